"""The studies: configurations of the trainer, and what is said of their outcome."""

from __future__ import annotations

import importlib
import pathlib
from typing import Any

from vqjax.moved import forward
from vqjax.trainer.config.fields import FIELDS
from vqjax.trainer.errors import RunError
from vqjax.trainer.files.display import Terminal
from vqjax.trainer.wording import shorten

STUDIES = ('comparison', 'remedies', 'rates', 'tokenizer', 'vqvae2', 'autopsy', 'behaviour')

# Those that read their data again after the runs, by the name that the configuration has.
_BY_NAME = ('vqvae2', 'autopsy', 'behaviour')


def run(config: dict[str, Any], workdir: str, dataset: Any = None) -> dict[str, Any]:
    """Runs the study that `config['study']` names, 'comparison' by default.

    Args:
      config: plain data; fields that it leaves out are at their defaults.
      workdir: folder for results, reports, logs and checkpoints; a run that was stopped goes on.
      dataset: your own data in place of those that `config['dataset']` names, which is then what
        reports call them: a pair (images [n, H, W, C], labels [n]); or anything with `len` and
        items (image, label), such as a Grain MapDataset; or a mapping of train, validation and test
        to these; or a `trainer.data.Dataset`.

    Returns:
      The content of results.json; `vqjax.results.records.Results.read` makes of it what reports and
      plots take.

    Raises:
      RunError: there is no such study, or what the study and `experiment.run` refuse.
    """
    name = config.get('study', FIELDS['study'].default)
    if name not in STUDIES:
        raise RunError(f'study is {shorten(name)}: choose one of {", ".join(STUDIES)}')
    for field in ('trials', 'split'):
        value = config.get(field, FIELDS[field].default)
        if name != 'comparison' and value != FIELDS[field].default:
            raise RunError(
                f'{field} is {value!r}, which only the study comparison knows, and study is '
                f'{name!r}: leave {field} at {FIELDS[field].default!r}'
            )
    if dataset is not None and name in _BY_NAME:
        raise RunError(
            f'study {name!r} reads its data by name, and dataset is handed over: write them to a '
            "folder of images or an .npz file, and set dataset to 'folder' or 'npz'"
        )
    study = importlib.import_module(f'vqjax.studies.{name}.study').prepare(config)
    parts = study.parts._replace(dataset=dataset)
    results = study.run(study.config, workdir, conclude=study.conclude, parts=parts)
    report = pathlib.Path(workdir) / 'report.md'
    if results and report.is_file():
        Terminal().print(f'Report: {report}', soft_wrap=True, markup=False, highlight=False)
    return results


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
