"""How a residual quantizer looks for the codes of all stages together."""

from __future__ import annotations

from dataclasses import dataclass

from vqjax.ops.fields import check, check_count, is_number, make_plain


@dataclass(frozen=True)
class Beam:
    """Beam search of a `Residual` in which the error after every stage counts.

    Partial sums are kept by the sum so far of weight |z - sum|^2 over the stages: the codes then
    serve z after each stage, for rates that are cut, and not at the end alone, as where the field
    `beam` is a number.

    Fields:
      size: partial sums kept, at least 2.
      weights: of the squared error after each stage, one a stage, not all 0.

    Raises ValueError for a field out of range; the quantizer for another number of weights.
    """

    size: int
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        make_plain(self)
        check_count('size', self.size, least=2)
        given = isinstance(self.weights, tuple) and len(self.weights) > 0
        need = 'a tuple of numbers, one a stage, not negative and not all 0'
        check(given, 'weights', self.weights, need)
        ok = all(is_number(w) and w >= 0 for w in self.weights) and any(self.weights)
        check(ok, 'weights', self.weights, need)
