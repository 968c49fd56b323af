"""A study: a configuration of the trainer, and what is said of its outcome."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from vqjax.results.records import Results
from vqjax.trainer import experiment
from vqjax.trainer.config.settings import Parts

# Of a search the folder is a `search.Outcome`, which has the part of a Workdir that is needed.
Conclude = Callable[[Results, Any], Results]


class Study(NamedTuple):
    """A study that is ready to run; every study's module makes one of a configuration.

    Fields:
      config: the fields of every configuration; those that only the study knows are left out.
      conclude: (results, folder) -> results, when all runs are finished: writes the reports, prints
        them and returns the results with what it finds.
      parts: what it puts in place of the library's own parts.
      run: (config, workdir, *, conclude, parts) -> the content of results.json.
    """

    config: dict[str, Any]
    conclude: Conclude
    parts: Parts = Parts()
    run: Callable[..., dict[str, Any]] = experiment.run
