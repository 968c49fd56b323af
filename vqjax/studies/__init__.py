"""The studies: configurations of the trainer, and what is said of their outcome."""

from __future__ import annotations

import importlib
from typing import Any

from vqjax.moved import forward
from vqjax.trainer.config.fields import FIELDS
from vqjax.trainer.errors import RunError

STUDIES = ('comparison', 'remedies', 'rates', 'tokenizer', 'vqvae2', 'autopsy', 'behaviour')


def run(config: dict[str, Any], workdir: str) -> dict[str, Any]:
    """Runs the study that `config['study']` names, 'comparison' by default.

    Args:
      config: plain data; fields that it leaves out are at their defaults.
      workdir: folder for results, reports, logs and checkpoints; a run that was stopped goes on.

    Returns:
      The content of results.json.

    Raises:
      RunError: there is no such study, or what the study and `experiment.run` refuse.
    """
    name = config.get('study', FIELDS['study'].default)
    if name not in STUDIES:
        raise RunError(f'study is {name!r}: choose one of {", ".join(STUDIES)}')
    for field in ('trials', 'split'):
        value = config.get(field, FIELDS[field].default)
        if name != 'comparison' and value != FIELDS[field].default:
            raise RunError(
                f'{field} is {value!r}, which only the study comparison knows, and study is '
                f'{name!r}: leave {field} at {FIELDS[field].default!r}'
            )
    study = importlib.import_module(f'vqjax.studies.{name}.study').prepare(config)
    return study.run(study.config, workdir, conclude=study.conclude, parts=study.parts)


forward(
    __name__,
    {
        'report': ('comparison.report',),
        'plots': ('reporting.plots',),
        'codebook_plots': ('reporting.codebook_plots',),
        'segmentation': ('behaviour.segmentation',),
        'sessions': ('behaviour.sessions',),
        'peers': ('behaviour.peers',),
    },
)
