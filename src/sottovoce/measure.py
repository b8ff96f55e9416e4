"""Histograms by the SDK's shortest way: what is not written to `pages` is recorded here one by one.

`Histogram.record` copies, checks and hashes the attributes of every measurement: about ten
microseconds each. Two ideas avoid most of it:

* All measurements of one call share a `Point`: its key is found once, and the aggregation
  that a key leads to is remembered, so that a measurement goes straight to `aggregate`.
* The gaps between a stream's chunks are kept as bucket counts (`call.Gaps`) and added to
  the aggregation under its own lock, all at once.

Both reach into the SDK (`aggregations.py`). Where it looks different — another provider, another
version — the public API is used; gaps are then recorded one by one as their bucket's mean, which
keeps counts and sum exact, as they are for a View with another aggregation.

Under a profile whose numbers are coarse nothing exact is recorded at all: a value is replaced
by what stands for its bucket before an aggregation, or anyone's reader, can see it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sottovoce.aggregations import (
    ALL,
    TRACED,
    Measurement,
    Series,
    Way,
    aggregate,
    merge,
    offered,
    ways,
)
from sottovoce.call import CHUNK_BOUNDS_S, Gaps
from sottovoce.guard import failed, let_through
from sottovoce.points import REMEMBERED
from sottovoce.privacy import buckets

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from opentelemetry.metrics import Histogram

    from sottovoce.points import Point
    from sottovoce.privacy.compiled import Choice

_NS: Final = 1e-9


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

    def __init__(
        self,
        histogram: Histogram,
        extra: Mapping[str, Any] | None = None,
        *,
        bounds: Sequence[float] = (),
        choice: Choice | None = None,
    ) -> None:
        self.histogram = histogram
        self._bounds = bounds
        self.choice = choice
        self.extra = dict(extra or {})
        self._storages: Any = None
        self._config: Any = None
        self._offered: str | None = None
        self._found: dict[Any, list[Way]] = {}

    def record(self, value: float, point: Point) -> None:
        """Record `value`, in the histogram's unit."""
        if self.choice is not None and self.choice.now.coarse:
            value = buckets.representative(value, self._bounds)
        try:
            # As `_look`, for every measurement.
            consumer, found = self.histogram._measurement_consumer, None  # type: ignore[attr-defined] # noqa: SLF001
            if consumer._reader_storages is self._storages:  # noqa: SLF001
                found = self._found.get(point.key)
            if found is None:
                found = self._find(point)
            config = self._config
            if config is not None and not config._config.is_enabled:  # noqa: SLF001
                return
            known = found is not None and value >= 0
        except AttributeError:  # another provider, or a changed SDK: nothing was recorded yet
            known = False
        except Exception:  # noqa: BLE001 - a changed SDK
            let_through()
            known = False
        if not known:
            self.histogram.record(value, {**point.attributes, **self.extra}, point.context)
            return
        sampled = point.sampled if self._offered == TRACED else self._offered == ALL
        for aggregation, is_known, _ in found:  # type: ignore[union-attr]
            if is_known:
                aggregate(aggregation, value, point, sampled=sampled)
            else:
                aggregation.aggregate(Measurement(value, point), sampled)

    def coarse(self, value: float | None) -> float | None:
        """What stands for the bucket of `value`."""
        return None if value is None else buckets.representative(value, self._bounds)

    def record_gaps(self, gaps: Gaps, point: Point) -> None:
        """Record `gaps` (nanoseconds) into this histogram of seconds."""
        coarse = self.choice is not None and self.choice.now.coarse
        if coarse:
            gaps = _coarse(gaps)
        try:
            # Another provider's has none, and no readers that are known.
            if hasattr(self.histogram, "_measurement_consumer"):
                found = self._look(point)
                if found is not None and all(has_gaps for _, _, has_gaps in found):
                    for aggregation, _, _ in found:
                        if type(aggregation) is Series:
                            aggregation.merge(gaps)
                        else:
                            merge(aggregation, gaps)
                    return
        except Exception:  # noqa: BLE001 - a changed SDK: nothing was added yet
            failed("measure.gaps")
        attributes = {**point.attributes, **self.extra}
        for place, (count, total) in gaps.buckets.items():
            for _ in range(count):
                value = _REPRESENTATIVES[place] if coarse else total / count * _NS
                self.histogram.record(value, attributes, point.context)

    def _look(self, point: Point) -> list[Way] | None:
        """Where a measurement of `point` goes; None when that is unknown. May raise."""
        consumer, found = self.histogram._measurement_consumer, None  # type: ignore[attr-defined] # noqa: SLF001
        if consumer._reader_storages is self._storages:  # noqa: SLF001
            found = self._found.get(point.key)
        if found is None:
            found = self._find(point)
        config = self._config
        return found if config is None or config._config.is_enabled else []  # noqa: SLF001

    def _find(self, point: Point) -> list[Way] | None:
        """Find and remember where it goes; None when that is unknown. May raise."""
        instrument: Any = self.histogram
        # Before the readers are looked at: one may come or go meanwhile, and with it what others
        # remember from then on.
        remembered = self._found
        storages = instrument._measurement_consumer._reader_storages  # noqa: SLF001
        if storages is not self._storages:
            # A reader came or went: nothing remembered holds any more.
            self._config = instrument._meter_config  # noqa: SLF001
            self._offered = offered(instrument)
            remembered = self._found = {}
            # Last: it tells other threads that all of this is so.
            self._storages = storages
        attributes = {**point.attributes, **self.extra}
        if self._offered is None:
            return None
        found = ways(instrument, attributes)
        if point.key is not None and len(remembered) < REMEMBERED:
            remembered[point.key] = found
        return found


_REPRESENTATIVES: Final = (*CHUNK_BOUNDS_S, buckets.above(CHUNK_BOUNDS_S))


def _coarse(gaps: Gaps) -> Gaps:
    """`gaps` of which every one is what stands for its bucket."""
    made = Gaps()
    for bucket, (count, _) in gaps.buckets.items():
        value = round(_REPRESENTATIVES[bucket] / _NS)
        made.buckets[bucket] = count, count * value
        made.minimum, made.maximum = min(made.minimum, value), max(made.maximum, value)
    return made
