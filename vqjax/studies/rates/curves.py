"""What results say of every quantizer at every rate, and the rate that is enough."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from vqjax.metrics import Interval
from vqjax.results.records import Results
from vqjax.results.summaries import compare, still_rising

WITHIN = 0.01  # of accuracy: a quantizer that loses less than this has bits enough


class Point(NamedTuple):
    """A quantizer at one rate.

    Fields:
      name: of the method in results.json; what stands before its first '-' is the family.
      bits: of a token; exact, so that FSQ's are seldom a whole number.
      image_bits: the same of all tokens of an image.
      accuracy, difference: on the test splits, and minus that of `baseline`, paired by run; None
        where that one was not run.
      evenness: perplexity as a share of a uniform source's.
      collapsed, runs: how many, of how many.
      learning: its training accuracy still rose at the end of the runs, see
        `summaries.rise`; the accuracy is then less than longer runs would have.
    """

    name: str
    bits: float
    image_bits: float
    accuracy: Interval
    difference: Interval | None
    evenness: float
    collapsed: int
    runs: int
    learning: bool = False

    @property
    def loss(self) -> Interval:
        """The difference of a point that has one.

        Raises:
          ValueError: the same bottleneck without a quantizer was not run.
        """
        if self.difference is None:
            raise ValueError(f'{self.name} is compared with nothing: run its baseline too')
        return self.difference


class Enough(NamedTuple):
    """The smallest rate that loses less than WITHIN: shown, and by the point estimate; or None."""

    shown: Point | None
    estimate: Point | None


Curves = dict[str, list[Point]]


def bottleneck(results: Results, name: str) -> str:
    """That of a method: its own where the overrides name one."""
    own = results.methods[name].overrides
    return own.get('bottleneck', results.config['bottleneck'])


def bottlenecks(results: Results) -> list[str]:
    """Those of all methods, each once."""
    return list(dict.fromkeys(bottleneck(results, name) for name in results.methods))


def baseline(results: Results, kind: str) -> str | None:
    """The method without a quantizer that a bottleneck is compared with; None where none was run.

    That of the same bottleneck, or of another one where it has none of its own: without a quantizer
    both are one network, which takes the mean over places before or after a linear map.
    """
    methods = results.methods
    names = [name for name in methods if methods[name].spec is None]
    names.sort(key=lambda name: bottleneck(results, name) != kind)
    return next(iter(names), None)


def curves(results: Results, kind: str) -> Curves:
    """Family -> its points by bits, of the methods with this bottleneck."""
    found: Curves = {}
    none, rising = baseline(results, kind), still_rising(results)
    for name, method in results.methods.items():
        if method.bits_per_token is None or bottleneck(results, name) != kind:
            continue
        point = Point(
            name=name,
            bits=method.bits_per_token,
            image_bits=method.bits,
            accuracy=method.accuracy,
            difference=compare(results, name, to=none) if none else None,
            evenness=method.summary['evenness'].mean,
            collapsed=round(sum(seed.figures['collapsed'] for seed in method.seeds)),
            runs=len(method.seeds),
            learning=name in rising,
        )
        found.setdefault(name.split('-')[0], []).append(point)
    return {family: sorted(points, key=lambda p: p.bits) for family, points in found.items()}


def enough(points: Iterable[Point]) -> Enough:
    """The smallest rate that loses less than WITHIN, exactly that much being too much.

    Shown: the lower end of the paired 95% interval says so. By the point estimate: its mean does.
    A larger rate may fall behind again, which is no part of the question.
    """
    known = [(p, p.difference) for p in points if p.difference is not None]
    known.sort(key=lambda pair: pair[0].bits)
    shown = (p for p, difference in known if difference.low > -WITHIN)
    estimate = (p for p, difference in known if difference.mean > -WITHIN)
    return Enough(next(shown, None), next(estimate, None))


def tokens(found: Curves) -> int:
    """Tokens an image."""
    first = next(iter(found.values()))[0]
    return round(first.image_bits / first.bits)


def nominal(point: Point) -> int:
    """The rate that a point stands for: its bits to the next whole number."""
    return round(point.bits)


def title(kind: str, found: Curves) -> str:
    """A bottleneck in words."""
    number = tokens(found)
    return f'{kind}, {number} token{"s" * (number > 1)} per image'
