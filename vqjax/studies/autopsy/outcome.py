"""What the autopsy says of a case: figures and findings of the faulty run and of the cured one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vqjax.results.plain import is_number, mappings, part, within
from vqjax.results.records import Results, RunFinding

SIDES = ('faulty', 'cured')
ENTRY = 'cases'  # of results.json
Figures = Mapping[str, float | None]  # None: NaN or infinite, which JSON does not know


@dataclasses.dataclass(frozen=True)
class CaseResult:
    """A case in results.json.

    Fields:
      claim, source, seen: as in `cases.Case`.
      findings: of each side.
      figures: of each side.
    """

    claim: str
    source: str
    seen: str
    findings: Mapping[str, tuple[RunFinding, ...]]
    figures: Mapping[str, Figures]

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> CaseResult:
        """Of an entry of `cases`.

        Raises:
          ValueError: a part is missing or damaged.
        """
        findings, figures = part(plain, 'findings', dict), {}
        for side in SIDES:
            figures[side] = part(plain, side, dict)
            for name, value in figures[side].items():
                if value is not None and not is_number(value):
                    raise ValueError(f'{side} {name} is {value!r:.40}, which is no number')
        return cls(
            claim=part(plain, 'claim', str),
            source=part(plain, 'source', str),
            seen=part(plain, 'seen', str),
            findings={s: tuple(map(RunFinding.read, mappings(findings, s))) for s in SIDES},
            figures=figures,
        )

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        findings = {side: [f.plain() for f in found] for side, found in self.findings.items()}
        return {
            'claim': self.claim,
            'source': self.source,
            'seen': self.seen,
            'findings': findings,
        } | {side: dict(figures) for side, figures in self.figures.items()}


class CaseRecord(NamedTuple):
    """A case with what its plot shows besides, by side.

    history: the records of the run; counts: uses of each code on the test split by position,
    [positions, K], None without codes.
    """

    case: CaseResult
    history: Mapping[str, Sequence[Figures]]
    counts: Mapping[str, np.ndarray | None]


def cases_of(results: Results) -> dict[str, CaseResult]:
    """The cases of results of the autopsy.

    Raises:
      ValueError: they have none, or a part is missing or damaged.
    """
    cases = {}
    found = part(results.added, ENTRY, dict)
    for name in found:
        with within(f'case {name}'):
            cases[name] = CaseResult.read(part(found, name, dict))
    return cases


def finite(figures: Mapping[str, Any]) -> dict[str, float | None]:
    """The numbers among figures, as JSON can hold them: None for NaN and infinities."""
    numbers = {k: float(v) for k, v in figures.items() if np.ndim(v) == 0}
    return {k: v if math.isfinite(v) else None for k, v in numbers.items()}
