"""Two levels of codes against one at equal bits, and against the top level alone."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from vqjax.results.records import Results
from vqjax.results.summaries import shorten
from vqjax.studies.study import Study
from vqjax.studies.vqvae2 import report
from vqjax.trainer import errors
from vqjax.trainer.config import settings
from vqjax.trainer.data import batches, records, sets
from vqjax.trainer.files.workdir import Workdir
from vqjax.trainer.run import finished, tasks
from vqjax.trainer.step import measures, two_level
from vqjax.trainer.step.task import Task

BATCH = 200  # images decoded at once
Parts = dict[str, jax.Array]  # by part of the codes: all, top or bottom


def prepare(config: dict[str, Any]) -> Study:
    """The runs as configured, then a table and reconstructions.

    Raises:
      RunError: nothing is reconstructed, or no checkpoint is kept.
    """
    weights = [config.get('reconstruction_weight')]
    for fields in config.get('overrides', {}).values():
        weights.append(fields.get('reconstruction_weight', weights[0]))
    if not all(weights):
        raise errors.RunError(
            'study vqvae2 compares reconstructions: set reconstruction_weight above 0'
        )
    finished.check_kept(config)
    return Study(config, conclude)


def conclude(results: Results, folder: Workdir) -> Results:
    """Decodes the test split with one level at a time; writes and prints the report."""
    checked = settings.check(dict(results.config))
    where = checked.data_dir, settings.cutting(checked.config)
    dataset = sets.load_dataset(checked.dataset, *where, checked.image_size, checked.data_digest)
    checked = tasks.fit_quantizers(checked, dataset)
    originals = next(iter(_batches(dataset)))['image'][: report.SHOWN]
    shown: dict[tuple[str, str], Any] = {('original', 'all'): originals}
    methods = {}
    for name, method in results.methods.items():
        seeds = []
        for seed in method.seeds:
            task, variables = finished.trained(
                checked, name, seed=seed.seed, workdir=folder.path, dataset=dataset
            )
            errors, decoded = decode_apart(task, variables, dataset)
            if 0 in report.level_bits(method.spec):
                # A level of one code tells nothing: the other alone is both.
                errors, decoded = {'all': errors['all']}, {'all': decoded['all']}
            more = {f'error_{part}': error for part, error in errors.items() if part != 'all'}
            if len(seed.perplexity_per_stage) == len(two_level.NAMES):
                use = zip(two_level.NAMES, seed.perplexity_per_stage, strict=True)
                more |= {f'perplexity_{part}': perplexity for part, perplexity in use}
            seeds.append(seed.with_figures(more))
            if seed.seed == 0:
                shown |= {(name, part): images for part, images in decoded.items()}
        methods[name] = dataclasses.replace(method, seeds=tuple(seeds))
    results = dataclasses.replace(results, methods=methods)
    pictures = {key: np.asarray(x) * dataset.std + dataset.mean for key, x in shown.items()}
    report.write(folder.path, results, pictures)
    Console(width=None if sys.stdout.isatty() else 120).print(report.table(results))
    return shorten(results)


def decode_apart(
    task: Task, variables: Any, dataset: records.Dataset
) -> tuple[dict[str, float], Parts]:
    """What the decoder makes of all codes, and of one level alone.

    Of the other level each vector is the mean of that level over the test split, so that it tells
    nothing of an image.

    Returns:
      By part (`all`, `top`, `bottom`; `all` alone without two levels) the mean squared error of
      the test split, and the first reconstructions [n, H, W, C].
    """
    model = task.model.clone(axis_name=None)

    @jax.jit
    def quantize(images: jax.Array) -> jax.Array:
        output: Any = model.apply(variables, images, train=False)
        return output.z if output.quantized is None else output.quantized.z_q

    @jax.jit
    def decode(z_q: jax.Array, means: jax.Array, images: jax.Array) -> tuple[Parts, Parts]:
        parts = {'all': z_q}
        if model.grids:
            size = int(np.prod(model.grids[0]))
            top = jnp.arange(z_q.shape[2])[:, None] < size
            parts |= {'top': jnp.where(top, z_q, means), 'bottom': jnp.where(top, means, z_q)}
        decoded: dict[str, Any] = {
            part: model.apply(variables, x, method='decode') for part, x in parts.items()
        }
        errors = {part: measures.reconstruction_errors(x, images) for part, x in decoded.items()}
        return errors, {part: x[: report.SHOWN] for part, x in decoded.items()}

    quantized = [quantize(batch['image']) for batch in _batches(dataset)]
    real = [batch['mask'] for batch in _batches(dataset)]
    means = _means(quantized, real, model.grids)
    total: dict[str, float] = {}
    first: Parts = {}
    for z_q, batch in zip(quantized, _batches(dataset), strict=True):
        errors, decoded = decode(z_q, means, batch['image'])
        first = first or decoded
        for part, error in errors.items():
            total[part] = total.get(part, 0.0) + float(np.sum(np.asarray(error)[batch['mask']]))
    number = int(sum(mask.sum() for mask in real))
    return {part: error / number for part, error in total.items()}, first


def _means(
    quantized: Sequence[jax.Array], real: Sequence[np.ndarray], grids: Sequence[tuple[int, int]]
) -> np.ndarray:
    """The mean vector of each level, at each of its places: float32 [L, D]."""
    rows = np.concatenate([np.asarray(z)[mask] for z, mask in zip(quantized, real, strict=True)])
    if not grids:
        return np.zeros(())
    parts = [part.mean((0, 1, 2)) for part in two_level.unpack(rows, grids)]
    sizes = [int(np.prod(grid)) for grid in grids]
    return np.concatenate(
        [np.tile(mean, (size, 1)) for mean, size in zip(parts, sizes, strict=True)]
    )


def _batches(dataset: records.Dataset) -> Iterable[dict[str, np.ndarray]]:
    return batches.eval_batches(dataset, 'test', batch_size=BATCH, process_index=0, process_count=1)
