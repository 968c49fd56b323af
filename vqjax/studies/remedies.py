"""Each remedy alone, added to one weak baseline, against all others: seeds, intervals, verdicts."""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from vqjax import health, metrics, ops, patients, quantizers
from vqjax.patients import Patient
from vqjax.studies import remedies_report as report
from vqjax.studies import tokenizer_report
from vqjax.trainer import data, logs
from vqjax.trainer.experiment import environment
from vqjax.trainer.settings import RunError, check_fields, choose, load_dataset
from vqjax.trainer.summaries import summarise
from vqjax.trainer.workdir import Workdir

# Name -> type of the configuration's fields, see configs/remedies.py.
FIELDS: dict[str, type] = {
    'dataset': str, 'data_dir': str, 'seeds': int, 'steps': int, 'methods': str,
    'baseline': dict, 'remedies': dict,
}  # fmt: skip
_FIT_ITERATIONS = 50


def run(config: dict[str, Any], workdir: str) -> dict[str, Any]:
    """Trains what is not finished in `workdir` and writes results.json, report.md and plots.

    Args:
      config: plain data with exactly the fields of FIELDS.
      workdir: folder for all that.

    Returns:
      The content of results.json.

    Raises:
      RunError: something for the user to put right.
    """
    names = _check(config)
    dataset = load_dataset(config['dataset'], config['data_dir'])
    made = {name: make_patient(config, name, dataset.info) for name in names}
    folder = Workdir(workdir, config)
    with logs.Display(len(names) * config['seeds']) as display:
        for name in names:
            todo = [s for s in range(config['seeds']) if folder.finished(name, s) is None]
            for seed in todo:
                record = _run(*made[name], dataset, seed)
                folder.finish(name, seed, record)
                display.say(f'{name} seed {seed}: {logs.quality(record["result"])}')
            # Nothing of this remedy is compiled again.
            jax.clear_caches()
    results = _collect(config, folder, made)
    folder.write_json('results.json', results)
    if config['baseline'].get('grid'):
        runs = {name: folder.finished(name, 0) for name in names}
        tokenizer_report.write(folder.path, results, runs)
        table = tokenizer_report.table(config, tokenizer_report.measure_all(results, runs))
    else:
        report.write(folder.path, results)
        table = report.table(results)
    folder.close()
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    return results


def _check(config: Mapping[str, Any]) -> list[str]:
    check_fields(config, FIELDS)
    if config['seeds'] < 1:
        raise RunError(f'seeds is {config["seeds"]}: give at least 1')
    if config['steps'] < 1 or config['steps'] % patients.CHUNK:
        raise RunError(f'steps is {config["steps"]}: give a multiple of {patients.CHUNK}')
    return choose(config['methods'], config['remedies'], 'method')


def make_patient(config: Mapping[str, Any], name: str, info: Any) -> tuple[Patient, int]:
    """The run that a remedy stands for, and the codes to fit afterwards (0 = none).

    Raises:
      RunError: naming the remedy and what is wrong with it.
    """
    fields = {**config['baseline'], **config['remedies'][name]}
    images = config['steps'] * config['baseline']['batch_size']
    steps = images // fields['batch_size']
    codes_after = fields.pop('codes_after', 0)
    known = [f.name for f in dataclasses.fields(Patient)]
    for field in fields.keys() - set(known):
        raise RunError(f'remedies.{name} has no field {field!r}; it has {", ".join(known)}')
    try:
        if fields['quantizer'] is not None:
            fields['quantizer'] = quantizers.make(fields['quantizer'])
        if isinstance(fields.get('quantizer_weight'), Mapping):
            given = dict(fields['quantizer_weight'])
            fields['quantizer_weight'] = ops.Schedule(given.pop('schedule'), **given)
    except (ValueError, TypeError) as error:
        raise RunError(f'remedies.{name}: {error}') from error
    return (
        Patient(
            steps=steps - steps % patients.CHUNK,
            num_classes=info.num_classes,
            image_shape=tuple(info.image_shape),
            **fields,
        ),
        codes_after,
    )


def _run(patient: Patient, codes_after: int, dataset: data.Dataset, seed: int) -> dict[str, Any]:
    begun = time.monotonic()
    course = patients.treat(patient, dataset, seed)
    final = dict(course.final)
    if codes_after:
        final |= fit_after(patient, codes_after, course, dataset)
    result = {'seed': seed, 'seconds': time.monotonic() - begun, **final}
    learned = (course.variables['params'], course.variables.get('codebook_stats', {}))
    # Every step of a tokenizer, whose loss curve is what is asked for; else the evaluations.
    history = [r for r in course.history if patient.grid or 'accuracy' in r]
    found = []
    if patient.quantizer is not None:
        classes = None
        if patient.classification:
            classes = patient.num_classes ** (1 / quantizers.stages(patient.quantizer))
        found = health.diagnose(course.history, patient.quantizer.num_codes, classes)
    return {
        'result': result,
        'history': history,
        'findings': [f.name for f in found],
        'params': sum(int(np.prod(x.shape)) for x in jax.tree.leaves(learned)),
    }


def fit_after(
    patient: Patient, num_codes: int, course: patients.Course, dataset: data.Dataset
) -> dict[str, float]:
    """Figures of a finished encoder whose features are replaced by their k-means centroids."""
    fit = jax.jit(
        functools.partial(ops.kmeans, k=num_codes, iters=_FIT_ITERATIONS), static_argnames='k'
    )
    model, variables = patient.model, course.variables
    images, _ = patients.whole(dataset, 'train')
    parts = [
        model.apply(variables, part, method='encode')
        for part in jnp.array_split(images, -(-len(images) // 1024))
    ]
    centroids = fit(jax.random.key(0), jnp.concatenate(parts)).centroids
    images, labels = patients.whole(dataset, 'test')
    codes = ops.nearest_codes(model.apply(variables, images, method='encode'), centroids)
    logits = model.apply(variables, centroids[codes], method='head')
    counts = ops.code_counts(codes, num_codes)
    return {
        'accuracy': float(jnp.mean(jnp.argmax(logits, -1) == labels)),
        'perplexity': float(metrics.perplexity(counts)),
        'active_codes': float(metrics.active_codes(counts)),
    }


def _collect(config, folder, made):
    methods = {}
    for name, (patient, codes_after) in made.items():
        runs = [folder.finished(name, seed) for seed in range(config['seeds'])]
        seeds = [run['result'] for run in runs]
        quantizer = patient.quantizer
        bits = 32.0 * patient.features if quantizer is None else float(quantizer.bits)
        # Stages together: eight groups of nine codes tell far more than ten classes apart.
        stages = 1 if quantizer is None else quantizers.stages(quantizer)
        for seed in seeds:
            seed['collapsed'] = float(
                seed.get('perplexity', np.inf) ** stages < health.CLASS_SHARE * patient.num_classes
            )
        collapses = int(sum(seed['collapsed'] for seed in seeds))
        methods[name] = {
            'spec': None if quantizer is None else quantizers.to_spec(quantizer),
            'changed': config['remedies'][name],
            'bits': float(np.log2(codes_after)) if codes_after else bits,
            'params': runs[0]['params'],
            'seconds': sum(seed['seconds'] for seed in seeds),
            'collapse': metrics.wilson_interval(collapses, len(seeds))._asdict(),
            'summary': summarise(seeds),
            'seeds': seeds,
        }
    return {
        'schema': 1,
        'config': config,
        'environment': environment(),
        'methods': methods,
        'findings': {name: folder.finished(name, 0).get('findings', []) for name in made},
    }
