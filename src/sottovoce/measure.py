"""Histograms and span attributes by the SDK's shortest way: they are most of what a call costs.

`Histogram.record` copies, checks and hashes the attributes of every measurement: about ten
microseconds each, three to five times a call, once a chunk in peers that record every chunk.
Three ideas avoid most of it:

* All measurements of one call share a `Point`: its key is found once, and the aggregation
  that a key leads to is remembered, so that a measurement goes straight to `aggregate`.
* The gaps between a stream's chunks are kept as bucket counts (`call.Gaps`) and added to
  the aggregation under its own lock, all at once.
* A span takes attributes that are clean already as they are (`put`).

All reach into the SDK (seen in opentelemetry-sdk 1.45), so every step is checked before
anything is changed. Where it looks different — another provider, a View with another
aggregation, delta temporality (whose aggregations are replaced at each collection) — the
public API is used; gaps are then recorded one by one as their bucket's mean, which keeps
counts and sum exact.

Under a profile whose numbers are coarse nothing exact is recorded at all: a value is replaced
by what stands for its bucket before an aggregation, or anyone's reader, can see it.
"""

from __future__ import annotations

from bisect import bisect_left
from time import time_ns
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import trace

from sottovoce.call import CHUNK_BOUNDS_S, Gaps
from sottovoce.guard import failed
from sottovoce.privacy import buckets

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from opentelemetry.context import Context
    from opentelemetry.metrics import Histogram
    from opentelemetry.trace import Span, SpanContext

    from sottovoce.privacy.compiled import Choice

_NS: Final = 1e-9
_REMEMBERED: Final = 2000  # the SDK's own limit of attribute sets for one instrument


class Point:
    """What the measurements of one call share.

    Args:
        attributes: the attributes of its metric points, strings and ints only (a key tells
            1 and True apart no better than Python does).
        context: where the call's span is current, for exemplars.
        span: that span's ids; asked of the context when absent.
    """

    __slots__ = ("attributes", "context", "exemplar", "key", "sampled", "span")

    def __init__(
        self, attributes: Mapping[str, Any], context: Context, *, span: SpanContext | None = None
    ) -> None:
        self.attributes = attributes
        self.context = context
        self.key = _key(attributes)
        if span is None:
            span = trace.get_current_span(context).get_span_context()
        self.span = span
        self.sampled = span.trace_flags & 1 == 1
        # What all its measurements have in common as exemplars, once one is.
        self.exemplar: dict[str, Any] | None = None

    def with_more(self, more: Mapping[str, Any], known: dict[Any, Any]) -> Point:
        """Give the same point with `more` attributes, of which `known` remembers the key.

        Args:
            more: attributes to add; the same ones for everything in `known`.
            known: kept by the caller, who bounds how many of it there are.
        """
        found = known.get(self.key)
        if found is None:
            attributes = {**self.attributes, **more}
            found = attributes, _key(attributes)
            if self.key is not None and len(known) < _REMEMBERED:
                known[self.key] = found
        made: Point = object.__new__(Point)
        made.attributes, made.key = found
        made.context, made.span, made.sampled = self.context, self.span, self.sampled
        made.exemplar = None
        return made


_CLEAN: Final = frozenset({str, int, float, bool})


def put(span: Span, attributes: Mapping[str, Any]) -> None:
    """Set attributes of a span, as `Span.set_attributes` does, which looks at each for long."""
    try:
        kept: Any = span._attributes  # type: ignore[attr-defined] # noqa: SLF001
        most = kept.maxlen
        if (
            type(span).__name__ == "_Span"
            and type(kept).__name__ == "BoundedAttributes"
            and kept.max_value_len is None
            and (most is None or len(kept._dict) + len(attributes) <= most)  # noqa: SLF001
            and _are_clean(attributes)
        ):
            # What the SDK holds while it sets them; a span that has ended keeps what it has.
            with span._lock, kept._lock:  # type: ignore[attr-defined] # noqa: SLF001
                if span._end_time is None and not kept._immutable:  # type: ignore[attr-defined] # noqa: SLF001
                    kept._dict.update(attributes)  # noqa: SLF001
                    return
    except Exception:  # noqa: BLE001 - a changed SDK: nothing was set yet
        failed("measure.put")
    span.set_attributes(attributes)


def _are_clean(attributes: Mapping[str, Any]) -> bool:
    for value in attributes.values():
        if type(value) in _CLEAN:
            continue
        if type(value) is not tuple:
            return False
        for each in value:
            if type(each) is not str:
                return False
    return True


class _Measurement:
    """What an aggregation reads of the SDK's `Measurement`."""

    __slots__ = ("attributes", "context", "time_unix_nano", "value")

    def __init__(self, value: float, point: Point) -> None:
        self.value = value
        self.time_unix_nano = time_ns()
        self.attributes = point.attributes
        self.context = point.context


class _Key:
    """Stands for a set of attributes: told from others, and looked up, by what it is alone."""

    __slots__ = ()


_keys: Final[dict[tuple[Any, ...], _Key]] = {}


def _key(attributes: Mapping[str, Any]) -> _Key | None:
    """The key of a set of attributes; None when there are more than are remembered."""
    items = tuple(attributes.items())
    key = _keys.get(items)
    if key is None and len(_keys) < _REMEMBERED:
        key = _keys[items] = _Key()
    return key


class Measured:
    """A histogram, with attributes that all its measurements have.

    Args:
        histogram: the instrument.
        extra: attributes to add to those of every point.
        bounds: the bounds of its buckets.
        choice: whether numbers are coarse; exact without one.
    """

    def __init__(
        self,
        histogram: Histogram,
        extra: Mapping[str, Any] | None = None,
        *,
        bounds: Sequence[float] = (),
        choice: Choice | None = None,
    ) -> None:
        self._histogram = histogram
        self._bounds = bounds
        self._choice = choice
        self._extra = dict(extra or {})
        self._storages: Any = None
        self._config: Any = None
        self._offered: str | None = None
        self._found: dict[_Key | None, list[tuple[Any, bool]]] = {}

    def record(self, value: float, point: Point) -> None:
        """Record `value`, in the histogram's unit."""
        if self._choice is not None and self._choice.now.coarse:
            value = buckets.representative(value, self._bounds)
        try:
            # As `_look`, for every measurement.
            found = self._found.get(point.key)
            consumer = self._histogram._measurement_consumer  # type: ignore[attr-defined] # noqa: SLF001
            if found is None or consumer._reader_storages is not self._storages:  # noqa: SLF001
                found = self._find(point)
            config = self._config
            known = found and value >= 0 and (config is None or config._config.is_enabled)  # noqa: SLF001
        except Exception:  # noqa: BLE001 - a changed SDK: nothing was recorded yet
            known = False
        if not known:
            self._histogram.record(value, {**point.attributes, **self._extra}, point.context)
            return
        sampled = point.sampled if self._offered == _TRACED else self._offered == _ALL
        for aggregation, is_known in found:  # type: ignore[union-attr]
            if is_known:
                _aggregate(aggregation, value, point, sampled=sampled)
            else:
                aggregation.aggregate(_Measurement(value, point), sampled)

    def record_gaps(self, gaps: Gaps, point: Point) -> None:
        """Record `gaps` (nanoseconds) into this histogram of seconds."""
        coarse = self._choice is not None and self._choice.now.coarse
        if coarse:
            gaps = _coarse(gaps)
        try:
            found = self._look(point)
            if found and all(known and _has_gaps(each) for each, known in found):
                for aggregation, _ in found:
                    with aggregation._lock:  # noqa: SLF001
                        _merge(aggregation, gaps)
                return
            attributes = {**point.attributes, **self._extra}
            done = _add(self._histogram, gaps, attributes)
        except Exception:  # noqa: BLE001 - a changed SDK: nothing was added yet
            failed("measure.gaps")
            done = False
        if done:
            return
        attributes = {**point.attributes, **self._extra}
        for place, (count, total) in enumerate(zip(gaps.counts, gaps.sums, strict=True)):
            for _ in range(count):
                value = _REPRESENTATIVES[place] if coarse else total / count * _NS
                self._histogram.record(value, attributes, point.context)

    def _look(self, point: Point) -> list[tuple[Any, bool]]:
        """The aggregations that a measurement of `point` goes to; none: unknown, or switched off.

        Each with whether it is one that `_aggregate` knows. May raise.
        """
        found = self._found.get(point.key)
        consumer = self._histogram._measurement_consumer  # type: ignore[attr-defined] # noqa: SLF001
        if found is None or consumer._reader_storages is not self._storages:  # noqa: SLF001
            found = self._find(point)
        config = self._config
        return found if config is None or config._config.is_enabled else []  # noqa: SLF001

    def _find(self, point: Point) -> list[tuple[Any, bool]]:
        """Find and remember them. May raise."""
        instrument: Any = self._histogram
        storages = instrument._measurement_consumer._reader_storages  # noqa: SLF001
        if storages is not self._storages:
            # A reader came or went: nothing remembered holds any more.
            self._found = {}
            self._storages = storages
            self._config = instrument._meter_config  # noqa: SLF001
            self._offered = _offered(instrument)
        attributes = {**point.attributes, **self._extra}
        found: list[tuple[Any, bool]] = []
        for match in _matches(instrument) if self._offered is not None else ():
            if match._reset_on_collect:  # noqa: SLF001
                found = []
                break
            aggregation = _aggregation(match, attributes)
            found.append((aggregation, _is_known(aggregation)))
        if point.key is not None and len(self._found) < _REMEMBERED:
            self._found[point.key] = found
        return found


_REPRESENTATIVES: Final = (*CHUNK_BOUNDS_S, buckets.above(CHUNK_BOUNDS_S))


def _coarse(gaps: Gaps) -> Gaps:
    """`gaps` of which every one is what stands for its bucket."""
    made = Gaps()
    made.counts = list(gaps.counts)
    values = [round(seconds / _NS) for seconds in _REPRESENTATIVES]
    made.sums = [count * value for count, value in zip(made.counts, values, strict=True)]
    present = [value for count, value in zip(made.counts, values, strict=True) if count]
    if present:
        made.minimum, made.maximum = present[0], present[-1]
    return made


def _matches(instrument: Any) -> list[Any]:
    return [
        match
        for storage in instrument._measurement_consumer._reader_storages.values()  # noqa: SLF001
        for match in storage._get_or_init_view_instrument_match(instrument)  # noqa: SLF001
    ]


def _kept(match: Any, attributes: dict[str, Any]) -> dict[str, Any]:
    keys = match._view._attribute_keys  # noqa: SLF001
    if keys is None:
        return dict(attributes)
    return {name: value for name, value in attributes.items() if name in keys}


def _aggregation(match: Any, attributes: dict[str, Any]) -> Any:
    from opentelemetry.sdk.metrics._internal import _view_instrument_match as sdk  # noqa: PLC0415

    kept = _kept(match, attributes)
    with match._lock:  # noqa: SLF001
        return match._get_or_create_aggregation(sdk._hash_attributes(kept), kept)  # noqa: SLF001


def _is_known(aggregation: Any) -> bool:
    """Whether it is the SDK's histogram, with an exemplar for each of its buckets."""
    from opentelemetry.sdk.metrics._internal import aggregation as sdk  # noqa: PLC0415
    from opentelemetry.sdk.metrics._internal.exemplar import exemplar_reservoir  # noqa: PLC0415

    if type(aggregation) is not sdk._ExplicitBucketHistogramAggregation:  # noqa: SLF001
        return False
    reservoir = getattr(aggregation, "_reservoir", None)
    return (
        type(reservoir) is exemplar_reservoir.AlignedHistogramBucketExemplarReservoir
        and vars(exemplar_reservoir.ExemplarBucket()).keys() == _EXEMPLAR
        and vars(aggregation).keys() >= _AGGREGATION
        and vars(reservoir).keys() >= _RESERVOIR
        and aggregation._record_min_max is True  # noqa: SLF001
        and tuple(reservoir._boundaries) == aggregation._boundaries  # noqa: SLF001
    )


_AGGREGATION: Final = {"_lock", "_value", "_sum", "_min", "_max", "_boundaries", "_record_min_max"}
_RESERVOIR: Final = {"_lock", "_boundaries", "_reservoir_storage"}
_EXEMPLAR: Final = {
    f"_ExemplarBucket__{name}"
    for name in ("value", "attributes", "time_unix_nano", "span_id", "trace_id", "offered")
}


def _aggregate(aggregation: Any, value: float, point: Point, *, sampled: bool) -> None:
    """What the SDK does: add to a bucket, whose newest measurement is its exemplar.

    There, each of a call's measurements looks for its bucket twice, and for its span.
    """
    place = bisect_left(aggregation._boundaries, value)  # noqa: SLF001
    told = point.exemplar
    if sampled and told is None:
        span = point.span
        told = point.exemplar = {
            "_ExemplarBucket__attributes": point.attributes,
            "_ExemplarBucket__time_unix_nano": time_ns(),
            "_ExemplarBucket__span_id": span.span_id or None,
            "_ExemplarBucket__trace_id": span.trace_id or None,
            "_ExemplarBucket__offered": True,
        }
    # What is collected, exemplars included, is collected under this lock as well.
    with aggregation._lock:  # noqa: SLF001
        counts = aggregation._value  # noqa: SLF001
        if counts is None:
            counts = aggregation._value = aggregation._get_empty_bucket_counts()  # noqa: SLF001
        counts[place] += 1
        aggregation._sum += value  # noqa: SLF001
        if value < aggregation._min:  # noqa: SLF001
            aggregation._min = value  # noqa: SLF001
        if value > aggregation._max:  # noqa: SLF001
            aggregation._max = value  # noqa: SLF001
        if sampled:
            told["_ExemplarBucket__value"] = value  # type: ignore[index]
            aggregation._reservoir._reservoir_storage[place].__dict__.update(told)  # noqa: SLF001


_TRACED, _ALL, _NONE = "traced", "all", "none"


def _offered(instrument: Any) -> str | None:
    """Which measurements the SDK would offer as exemplars; None: its filter is unknown."""
    from opentelemetry.sdk.metrics import (  # noqa: PLC0415
        AlwaysOffExemplarFilter,
        AlwaysOnExemplarFilter,
        TraceBasedExemplarFilter,
    )

    kind = type(instrument._measurement_consumer._sdk_config.exemplar_filter)  # noqa: SLF001
    table: dict[type, str] = {
        TraceBasedExemplarFilter: _TRACED,
        AlwaysOnExemplarFilter: _ALL,
        AlwaysOffExemplarFilter: _NONE,
    }
    return table.get(kind)


def _has_gaps(aggregation: Any) -> bool:
    """Whether its buckets are those of `Gaps`."""
    return bool(aggregation._boundaries == CHUNK_BOUNDS_S)  # noqa: SLF001


def _add(instrument: Any, gaps: Gaps, attributes: dict[str, Any]) -> bool:
    """Add `gaps` where aggregations are replaced at each collection, or not remembered."""
    from opentelemetry.sdk.metrics._internal import _view_instrument_match as sdk  # noqa: PLC0415
    from opentelemetry.sdk.metrics._internal.aggregation import (  # noqa: PLC0415
        _ExplicitBucketHistogramAggregation,
    )

    if not hasattr(instrument, "_measurement_consumer"):
        return False
    if not instrument._is_enabled():  # noqa: SLF001
        return True
    matches = _matches(instrument)
    for match in matches:
        template = match._aggregation  # noqa: SLF001
        if type(template) is not _ExplicitBucketHistogramAggregation or not _has_gaps(template):
            return False
    for match in matches:
        kept = _kept(match, attributes)
        key = sdk._hash_attributes(kept)  # noqa: SLF001
        # Held while adding: a delta collection discards the aggregation that it collected.
        with match._lock:  # noqa: SLF001
            aggregation = match._get_or_create_aggregation(key, kept)  # noqa: SLF001
            with aggregation._lock:  # noqa: SLF001
                _merge(aggregation, gaps)
    return True


def _merge(aggregation: Any, gaps: Gaps) -> None:
    counts = aggregation._value  # noqa: SLF001
    if counts is None:
        counts = aggregation._value = aggregation._get_empty_bucket_counts()  # noqa: SLF001
    for bucket, count in enumerate(gaps.counts):
        if count:
            counts[bucket] += count
    aggregation._sum += sum(gaps.sums) * _NS  # noqa: SLF001
    aggregation._min = min(aggregation._min, gaps.minimum * _NS)  # noqa: SLF001
    aggregation._max = max(aggregation._max, gaps.maximum * _NS)  # noqa: SLF001
