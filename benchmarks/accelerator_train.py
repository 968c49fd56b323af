"""The part `train` of accelerator.py: configs/cifar10.py for as many epochs as fit."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import signal
import sys
import threading
import time

import jax

# Guessed, not measured: a run compiles an evaluation too, and evaluates and saves beside its steps.
_MORE_SETUP, _MORE_EPOCH = 1.5, 1.25


class Unfinished(Exception):
    """A part that has to be run again, and why, in one line."""


@contextlib.contextmanager
def _time_limit(seconds: float):
    """After these seconds the trainer is asked to end: it saves, and raises Stopped."""
    from vqjax.trainer.run.stopping import StopRequest

    over = threading.Event()

    def ask():
        wait = seconds
        while not over.wait(wait):
            os.kill(os.getpid(), signal.SIGTERM)
            wait = 0.2  # again, should the trainer not have listened yet

    thread = threading.Thread(target=ask, daemon=True)
    # Where the trainer does not listen, the signal is not to end the process.
    with StopRequest():
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def epochs_that_fit(seconds: float, methods: int, setup_s: float, epoch_s: float, most: int) -> int:
    """Epochs of each method, 1 to `most`, so that all of them take about these seconds."""
    left = seconds / methods - _MORE_SETUP * setup_s
    return max(1, min(most, int(left / (_MORE_EPOCH * epoch_s))))


def _configuration(options) -> dict:
    """configs/cifar10.py with one seed; --quick: digits and a small encoder."""
    config = importlib.import_module('configs.cifar10').get_config().to_dict()
    config |= {'data_dir': options.data_dir, 'seeds': 1}
    if options.quick:
        config |= {'dataset': 'digits', 'augment': False, 'encoder': 'conv', 'dtype': 'float32'}
        config |= {'width': 4, 'features': 8, 'methods': 'vq_ema', 'batch_size': 256}
        config |= {'init_batch_size': 512, 'epochs': 2, 'checkpoint_every': 0, 'steps_per_call': 2}
    return config


def _short_run(config, seconds, begun, quick) -> dict:
    """Some steps of one method, and how many epochs of all fit into the seconds since `begun`."""
    import pipeline

    from vqjax.trainer.config import settings
    from vqjax.trainer.data import batches, sets

    given = settings.check(config)
    dataset = sets.load_dataset(config['dataset'], config['data_dir'])
    repeats, num_steps = (1, 2) if quick else (3, 48)
    start = time.perf_counter()
    row = pipeline.compare(config['dataset'], given, dataset, num_steps, repeats)
    ms = {name: row['runs'][name]['median_ms'] for name in (pipeline.PIPELINE, pipeline.RESIDENT)}
    taken = -(-num_steps // config['steps_per_call']) * config['steps_per_call'] * repeats
    setup_s = max(time.perf_counter() - start - taken * sum(ms.values()) / 1e3, 0.0)
    epoch_s = batches.steps_per_epoch(dataset, config['batch_size']) * ms[pipeline.PIPELINE] / 1e3
    jax.clear_caches()
    left = seconds - (time.perf_counter() - begun)
    epochs = epochs_that_fit(left, len(given.methods), setup_s, epoch_s, config['epochs'])
    warmup = min(config['warmup_epochs'], epochs / 4)
    print(f'  {epochs} epochs: {epoch_s:.2f} s each, {setup_s:.1f} s to start a method')
    return {
        'epochs': epochs,
        'warmup_epochs': warmup,
        'epoch_s': round(epoch_s, 3),
        'setup_s': round(setup_s, 1),
        'ms_per_step': ms,
    }


def train(options) -> dict:
    """configs/cifar10.py, one seed, for as many epochs as fit; goes on where it was stopped."""
    from vqjax.trainer import errors, experiment

    begun, seconds = time.perf_counter(), options.minutes * 60
    folder = options.out / f'{jax.default_backend()}_train{"_quick" * options.quick}'
    if options.again:
        shutil.rmtree(folder, ignore_errors=True)
    config, chosen = _configuration(options), folder / 'plan.json'
    try:
        if not chosen.exists():
            plan = _short_run(config, seconds, begun, options.quick)
            folder.mkdir(parents=True, exist_ok=True)
            chosen.write_text(json.dumps(plan))
        plan = json.loads(chosen.read_text())
        config |= {name: plan[name] for name in ('epochs', 'warmup_epochs')}
        with _time_limit(max(seconds - (time.perf_counter() - begun), 0.0)):
            results = experiment.run(config, str(folder / 'run'))
    except errors.RunError as error:
        hint = ' (--again starts it over)' if (folder / 'run').exists() else ''
        raise Unfinished(f'{error}{hint}') from error
    except errors.Stopped as stopped:
        # Somebody's wish, or the minutes are over: in both cases no other part is to begin.
        sys.exit(f'error: train: {stopped}')
    told = ('accuracy', 'ece', 'perplexity', 'active_codes', 'validation_accuracy', 'seconds')
    methods = {
        name: {
            figure: method['seeds'][0][figure] for figure in told if figure in method['seeds'][0]
        }
        for name, method in results['methods'].items()
    }
    # Over all starts of the command, where it was stopped in between.
    taken = sum(method['seconds'] for method in methods.values())
    return {'plan': plan, 'methods': methods, 'seconds': round(taken, 1), 'config': config}
