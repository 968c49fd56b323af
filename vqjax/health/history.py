"""What a rule reads and what it says: the records of a run as series, and a finding."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Finding(NamedTuple):
    """One thing that is wrong.

    name: of the rule that found it, e.g. 'collapse'.
    severity: 'error' (the run is lost), 'warning' (it pays for it) or 'note'.
    evidence: the numbers it rests on, and the bound they broke.
    remedy: as a change of the configuration.
    """

    name: str
    severity: str
    evidence: dict[str, float]
    remedy: str


class History:
    """Records as series, and what is known of the run; see `vqjax.health.diagnose`."""

    def __init__(self, records, num_codes, num_classes, spec):
        self.records = list(records)
        self.num_codes, self.num_classes = num_codes, num_classes
        self.spec = repr(spec or '')

    def series(self, *names: str) -> np.ndarray:
        """Values of the records that hold all of `names`: float64 [n], or [n, len(names)]."""
        held = [r for r in self.records if all(r.get(name) is not None for name in names)]
        rows = np.array([[float(r[name]) for name in names] for r in held], np.float64)
        rows = rows.reshape(len(held), len(names))
        return rows[:, 0] if len(names) == 1 else rows

    def last(self, name: str, default: float = np.nan) -> float:
        """The newest value of `name`."""
        values = self.series(name)
        return float(values[-1]) if len(values) else default
