"""Text that all reports share: tables, intervals, what made them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vqjax.metrics import Interval

ONE_RUN = 'one run'  # in place of an interval


def markdown(rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """A table in Markdown whose source reads as a table too: cells padded to their column.

    Args:
      rows: of equally many cells, the first of them the headings.
      words: columns of text at the left; the others hold numbers and are set to the right.
    """
    rows = [[cell.replace('|', '\\|') for cell in row] for row in rows]
    widths = [max(4, *(len(cell) for cell in column)) for column in zip(*rows, strict=True)]
    rule = ['-' * w if i < words else '-' * (w - 1) + ':' for i, w in enumerate(widths)]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.ljust(w) if i < words else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
        )
        return f'| {" | ".join(padded)} |'

    header, *body = rows
    return '\n'.join(map(line, [header, rule, *body]))


def percent(interval: Interval) -> str:
    """The mean of a share, in percent."""
    return f'{100 * interval.mean:.1f}'


def percent_range(interval: Interval, runs: int | None = None) -> str:
    """The 95% interval of a share, in percent: 'low to high'; 'one run' of one run alone."""
    if runs == 1:
        return ONE_RUN
    return f'{100 * interval.low:.1f} to {100 * interval.high:.1f}'


def points(difference: Interval | None) -> str:
    """The mean of a difference of shares, in points with a sign; '' for None."""
    return '' if difference is None else f'{100 * difference.mean:+.1f}'


def points_range(difference: Interval | None, runs: int | None = None) -> str:
    """The 95% interval of a difference of shares, in points with a sign; '' for None.

    'one run' where it is of one run alone, which says nothing of others.
    """
    if difference is None or runs == 1:
        return '' if difference is None else ONE_RUN
    return f'{100 * difference.low:+.1f} to {100 * difference.high:+.1f}'


def made_by(command: str | None, environment: Mapping[str, Any]) -> str:
    """The command that made a report, where it is known, and where it ran."""
    where = ', '.join(f'{k} {v}' for k, v in environment.items())
    return f'```\n{command}\n```\n\nOn {where}.' if command else f'On {where}.'
