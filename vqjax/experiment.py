"""methods x seeds -> results: the whole comparison, resumable."""

import functools
import os
import platform
from typing import Any

import flax
import jax
import jax.numpy as jnp

import vqjax
from vqjax import data, health, logs, models, quantizers, report, training
from vqjax.checkpoints import CheckpointError
from vqjax.processes import agree, on_first_process
from vqjax.runs import Context, Run, Stopped, StopRequest
from vqjax.settings import RunError, Settings, check, load_dataset
from vqjax.workdir import Workdir

__all__ = ['RunError', 'Stopped', 'run']


def run(config: dict[str, Any], workdir: str) -> dict[str, Any]:
    """Trains every method with every seed that is not finished and writes the reports.

    Args:
      config: plain data with exactly the fields of settings.FIELDS.
      workdir: folder for results, reports, logs and checkpoints.

    Returns:
      The content of results.json.

    Raises:
      RunError: something for the user to put right; nothing half written stays behind.
      Stopped: SIGTERM or SIGINT came; the same command goes on from there.
    """
    settings = check(config)
    dataset = load_dataset(settings.dataset, settings.data_dir)
    try:
        if settings.guard:
            settings.methods = _guarded(settings.methods, dataset.info.num_classes)
        steps = settings.epochs * data.steps_per_epoch(dataset, settings.batch_size)
    except (ValueError, OSError) as error:
        raise RunError(' '.join(str(error).split())) from error
    writes = jax.process_index() == 0
    folder = on_first_process(lambda: Workdir(workdir, config))
    try:
        todo = agree(_unfinished(settings, folder) if writes else None)
        total = sum(len(seeds) for seeds in todo.values()) * steps
        with logs.Display(total, quiet=not writes) as display, StopRequest() as stop:
            context = Context(settings, dataset, folder, display, stop)
            for method, seeds in todo.items():
                run_method(context, method, seeds)
        if not writes:
            return {}
        results = collect(settings, folder)
        results['findings'] = findings(settings, folder, dataset.info.num_classes)
        folder.write_json('results.json', results)
        histories = {
            method: [folder.finished(method, seed)['history'] for seed in range(settings.seeds)]
            for method in settings.methods
        }
        report.write(folder.path, results, histories)
        report.print_table(results)
        report.print_findings(results)
        return results
    except (RunError, CheckpointError) as error:
        if folder is not None:
            folder.discard()
        raise RunError(str(error)) from error
    finally:
        if folder is not None:
            folder.close()


def _guarded(methods: dict[str, Any], num_classes: int) -> dict[str, Any]:
    return {
        name: quantizer and quantizers.guard_codebooks(quantizer, least=float(num_classes))
        for name, quantizer in methods.items()
    }


def findings(settings: Settings, folder: Workdir, num_classes: int) -> list[dict[str, Any]]:
    """What `health.diagnose` makes of every finished run, each with its method and seed."""
    found = []
    for method, quantizer in settings.methods.items():
        if quantizer is None:
            continue
        for seed in range(settings.seeds):
            history = folder.finished(method, seed)['history']
            spec = quantizers.to_spec(quantizer)
            classes = num_classes ** (1 / quantizers.stages(quantizer))
            diagnosed = health.diagnose(history, quantizer.num_codes, classes, spec)
            found += [f._asdict() | {'method': method, 'seed': seed} for f in diagnosed]
    return found


def _unfinished(settings: Settings, folder: Workdir) -> dict[str, list[int]]:
    todo = {
        method: [s for s in range(settings.seeds) if folder.finished(method, s) is None]
        for method in settings.methods
    }
    return {method: seeds for method, seeds in todo.items() if seeds}


def run_method(context: Context, method: str, seeds: list[int]) -> None:
    """Compiles one method once and trains it with every seed given."""
    task = make_task(context.settings, method, context.dataset, context.num_steps)
    train_fn = jax.pmap(
        functools.partial(training.train_step, task), axis_name=training.AXIS, donate_argnums=0
    )
    eval_fn = jax.pmap(functools.partial(training.eval_step, task), axis_name=training.AXIS)
    for seed in seeds:
        Run(context, method, seed, task, train_fn, eval_fn).finish()


def make_task(
    settings: Settings, method: str, dataset: data.Dataset, num_steps: int
) -> training.Task:
    """What a method trains and how, for steps over the axis `training.AXIS`."""
    per_epoch = data.steps_per_epoch(dataset, settings.batch_size)
    return training.Task(
        models.Classifier(
            dataset.info.num_classes,
            settings.methods[method],
            settings.encoder,
            settings.features,
            settings.bottleneck,
            training.AXIS,
            jnp.dtype(settings.dtype),
        ),
        training.make_optimizer(
            settings.learning_rate,
            num_steps,
            round(settings.warmup_epochs * per_epoch),
            settings.weight_decay,
            settings.clip_norm,
        ),
        settings.label_smoothing,
        settings.accumulate,
        settings.ema_decay,
    )


def collect(settings: Settings, folder: Workdir) -> dict[str, Any]:
    """The content of results.json from the finished runs."""
    methods = {}
    for method, quantizer in settings.methods.items():
        runs = [folder.finished(method, seed) for seed in range(settings.seeds)]
        seeds = [run['result'] for run in runs]
        methods[method] = {
            'spec': None if quantizer is None else quantizers.to_spec(quantizer),
            'bits': runs[0]['bits'],
            'params': runs[0]['params'],
            'seconds': sum(seed['seconds'] for seed in seeds),
            'summary': report.summarise(seeds),
            'seeds': seeds,
        }
    return {
        'schema': 1,
        'config': settings.config,
        'environment': environment(),
        'methods': methods,
    }


def environment() -> dict[str, Any]:
    """Versions and devices that the results depend on."""
    return {
        'vqjax': vqjax.__version__,
        'python': platform.python_version(),
        'jax': jax.__version__,
        'flax': flax.__version__,
        'platform': f'{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores',
        'devices': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
        'processes': jax.process_count(),
    }
