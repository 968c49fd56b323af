"""The command, the versions and the devices that made results."""

import os
import pathlib
import platform
import shlex
from typing import Any

import flax
import jax

import vqjax


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
