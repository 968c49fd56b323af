"""What a rule reads and what it says: the records of a run as series, and a finding."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vqjax.health.facts import Facts


class Finding(NamedTuple):
    """One thing that is wrong.

    name: of the rule that found it, e.g. 'collapse'.
    severity: 'error' (the run is lost), 'warning' (it pays for it) or 'note' (worth knowing).
    evidence: the numbers it rests on, and the bound they broke.
    remedy: as a change of the configuration or of the loop.
    """

    name: str
    severity: str
    evidence: dict[str, float]
    remedy: str


class History:
    """Records as series, and what is known of the run; see `vqjax.health.diagnose`."""

    def __init__(
        self,
        records: Sequence[Mapping[str, Any]],
        num_codes: int | None,
        num_classes: float | None,
        spec: Any,
    ):
        self.records = list(records)
        self.num_codes, self.num_classes = num_codes, num_classes
        self.facts = Facts(spec)

    def series(self, *names: str, finite: bool = True) -> np.ndarray:
        """Values of the records that hold all of `names`: float64 [n], or [n, len(names)].

        Records in which one is not finite are left out unless `finite` is False.
        """
        held = [r for r in self.records if all(r.get(name) is not None for name in names)]
        rows = np.array([[float(r[name]) for name in names] for r in held], np.float64)
        rows = rows.reshape(len(held), len(names))
        if finite:
            rows = rows[np.isfinite(rows).all(-1)]
        return rows[:, 0] if len(names) == 1 else rows

    def last(self, name: str, default: float = np.nan) -> float:
        """The newest value of `name`."""
        values = self.series(name)
        return np.float64(values[-1] if len(values) else default)

    def late(self, name: str) -> float:
        """Median of the last fifth of the values of `name`, NaN without any."""
        values = self.series(name)
        return np.float64(np.median(values[-max(len(values) // 5, 1) :]) if len(values) else np.nan)

    def first(self, name: str) -> float:
        """The value of `name` at the first step; NaN where the records start later."""
        held = [r for r in self.records if r.get(name) is not None]
        if not held or held[0].get('step', 0) > 1:
            return np.float64(np.nan)
        return np.float64(held[0][name])

    @functools.cached_property
    def steps(self) -> float:
        """Training steps that the records span, from the first step on."""
        numbers = self.series('step')
        if len(numbers):
            return float(numbers.max())
        return float(len(self.series('quantizer_loss')))

    @functools.cached_property
    def expected(self) -> float:
        """Codes that a uniform source of as many vectors as were counted would use."""
        return uniform_use(self.last('tokens'), self.num_codes)

    @functools.cached_property
    def expected_in_batch(self) -> float:
        """The same of one training batch."""
        return uniform_use(self.late('batch_tokens'), self.num_codes)

    @functools.cached_property
    def errors(self) -> tuple[float, float]:
        """Late squared error relative to the variance of z, of the codebook and of a k-means.

        That of the codebook is of vectors it has not learned from: those of a step before its
        update. NaN where not recorded.
        """
        return self.late('relative_error'), self.late('reference_error')

    @property
    def could_do_better(self) -> bool | None:
        """Whether a fitted codebook serves the same vectors much better; None where not known.

        Twice the error, and a twentieth of the variance: an encoder that still moves is ahead of
        any average of its past, and leaves sound runs of a few hundred steps at 1 to 2.8 times
        the error of a k-means made at once.
        """
        error, reference = self.errors
        if np.isnan(error) or np.isnan(reference):
            return None
        return bool(error > 2 * reference and error - reference > 0.05)

    @functools.cached_property
    def growth(self) -> float:
        """Late length of z against that at the first step."""
        return self.late('input_norm') / self.first('input_norm')

    @functools.cached_property
    def few_active(self) -> bool:
        """Whether fewer than a tenth of the codes are in use that uniform use would reach.

        Of few codes, whether at most a quarter and at most two are. Where a single batch tells
        most of its vectors apart, the codes are more than the data has use for, and not few.
        """
        active = self.last('active_codes')
        if not active <= max(0.1 * self.expected, min(2.0, self.expected / 4)):
            return False
        inside = self.expected_in_batch
        # Of fewer than 20 codes, a tenth would be one or two.
        return not (inside >= 20 and self.late('batch_perplexity') > 0.1 * inside)


def uniform_use(tokens: float, num_codes: int | None) -> float:
    """Codes that `tokens` uniform draws among `num_codes` are expected to use; NaN without K."""
    if num_codes is None:
        return np.nan
    if np.isnan(tokens):
        return float(num_codes)
    return float(-num_codes * np.expm1(tokens * np.log1p(-1 / num_codes))) if num_codes > 1 else 1.0
