"""The studies: configurations of the trainer, and what is said of their outcome."""

from __future__ import annotations

import importlib
from typing import Any

STUDIES = ('comparison', 'remedies', 'rates', 'tokenizer', 'vqvae2', 'autopsy', 'behaviour')


def run(config: dict[str, Any], workdir: str) -> dict[str, Any]:
    """Runs the study that `config['study']` names, 'comparison' by default; see its module's `run`.

    Raises:
      RunError: there is no such study, or what the study itself raises.
    """
    from vqjax.trainer.fields import FIELDS, RunError

    study = config.get('study', FIELDS['study'].default)
    if study not in STUDIES:
        raise RunError(f'study is {study!r}: choose one of {", ".join(STUDIES)}')
    for field in ('trials', 'split'):
        value = config.get(field, FIELDS[field].default)
        if study != 'comparison' and value != FIELDS[field].default:
            raise RunError(
                f'{field} is {value!r}, which only the study comparison knows, and study is '
                f'{study!r}: leave {field} at {FIELDS[field].default!r}'
            )
    return importlib.import_module(f'vqjax.studies.{study}').run(config, workdir)
