"""What is said of finished runs: the entries of results.json, findings, and what made them."""

import os
import pathlib
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import flax
import jax
import numpy as np

import vqjax
from vqjax import health, quantizers
from vqjax.trainer.convergence import rise
from vqjax.trainer.settings import Parts, Settings
from vqjax.trainer.summaries import summarise
from vqjax.trainer.workdir import Workdir

Wanted = Mapping[str, Sequence[int]]  # the seeds of every method


def collect(settings: Settings, wanted: Wanted, folder: Workdir, parts: Parts) -> dict[str, Any]:
    """The content of results.json from the finished runs."""
    methods = {}
    for name, seeds in wanted.items():
        method = settings.methods[name]
        methods[name] = entry(
            [folder.finished(name, seed) for seed in seeds],
            None if method.quantizer is None else parts.spec(method.quantizer),
            settings.overrides.get(name, {}),
            method.classification_weight > 0,
        )
    return {
        'schema': 1,
        'command': command(sys.argv),
        'config': settings.config,
        'environment': environment(),
        'methods': methods,
    }


def entry(
    runs: Sequence[Mapping[str, Any]],
    spec: Mapping[str, Any] | None,
    overrides: Mapping[str, Any],
    classifies: bool,
) -> dict[str, Any]:
    """What results.json says of one method, from the records of its finished runs."""
    seeds = [run['result'] for run in runs]
    return {
        'spec': spec,
        'overrides': overrides,
        'bits': float(np.mean([run['bits'] for run in runs])),
        'params': round(np.mean([run['params'] for run in runs])),
        'seconds': sum(seed['seconds'] for seed in seeds),
        'summary': summarise(seeds),
        'rise': rise([run['history'] for run in runs]) if classifies else None,
        'seeds': seeds,
    }


def findings(
    settings: Settings, wanted: Wanted, folder: Workdir, num_classes: int, parts: Parts
) -> list[dict[str, Any]]:
    """What `health.diagnose` makes of every finished run, each with its method and seed."""
    found = []
    for name, seeds in wanted.items():
        method = settings.methods[name]
        if method.quantizer is None:
            continue
        classes = None
        if method.classification_weight:
            classes = num_classes ** (1 / quantizers.stages(method.quantizer))
        for seed in seeds:
            diagnosed = health.diagnose(
                folder.history(name, seed),
                method.quantizer.num_codes,
                classes,
                parts.spec(method.quantizer),
            )
            found += [f._asdict() | {'method': name, 'seed': seed} for f in diagnosed]
    return found


def command(argv: list[str]) -> str:
    """What started this process, as a shell reads it; folders of this machine are FOLDER."""
    program, *rest = argv
    shown = ['python', pathlib.PurePath(program).name]
    for word in rest:
        flag, equals, value = word.rpartition('=')
        shown.append(f'{flag}{equals}FOLDER' if os.path.isabs(value) else shlex.quote(word))
    return ' '.join(shown)


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
