"""A histogram of ours, by the public API: for what is not written to `pages`.

Under a profile whose numbers are coarse nothing exact is recorded at all: a value is replaced
by what stands for its bucket before an aggregation, or anyone's reader, can see it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from sottovoce.call import CHUNK_BOUNDS_S, Gaps
from sottovoce.privacy import buckets

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from opentelemetry.metrics import Histogram

    from sottovoce.points import Point
    from sottovoce.privacy.compiled import Choice

_NS: Final = 1e-9
_REPRESENTATIVES: Final = (*CHUNK_BOUNDS_S, buckets.above(CHUNK_BOUNDS_S))


class Measured:
    """A histogram, with attributes that all its measurements have.

    Args:
        histogram: the instrument.
        extra: attributes to add to those of every point.
        bounds: the bounds of its buckets.
        choice: whether numbers are coarse; exact without one.

    Attributes:
        histogram: the instrument.
        extra: attributes of every point.
        choice: whether numbers are coarse.
    """

    __slots__ = ("_bounds", "choice", "extra", "histogram")

    def __init__(
        self,
        histogram: Histogram,
        extra: Mapping[str, Any] | None = None,
        *,
        bounds: Sequence[float] = (),
        choice: Choice | None = None,
    ) -> None:
        self.histogram = histogram
        self.extra = dict(extra or {})
        self._bounds = bounds
        self.choice = choice

    @property
    def is_coarse(self) -> bool:
        """Whether nothing exact may be recorded now."""
        return self.choice is not None and self.choice.now.coarse

    def record(self, value: float, point: Point) -> None:
        """Record `value`, in the histogram's unit."""
        if self.is_coarse:
            value = self.coarse(value)
        self.histogram.record(value, {**point.attributes, **self.extra}, point.context)

    def record_gaps(self, gaps: Gaps, point: Point) -> None:
        """Record `gaps` (nanoseconds) into this histogram of seconds: each as its bucket's mean.

        Counts and sum are exact so.
        """
        attributes = {**point.attributes, **self.extra}
        for count, total in (coarse(gaps) if self.is_coarse else gaps).buckets.values():
            for _ in range(count):
                self.histogram.record(total / count * _NS, attributes, point.context)

    def coarse(self, value: float) -> float:
        """What stands for the bucket of `value`; itself where it is nothing to measure."""
        return buckets.representative(value, self._bounds) if 0 <= value < math.inf else value


def coarse(gaps: Gaps) -> Gaps:
    """`gaps` of which every one is what stands for its bucket."""
    made = Gaps()
    for bucket, (count, _) in gaps.buckets.items():
        value = round(_REPRESENTATIVES[bucket] / _NS)
        made.buckets[bucket] = count, count * value
        made.minimum, made.maximum = min(made.minimum, value), max(made.maximum, value)
    return made
