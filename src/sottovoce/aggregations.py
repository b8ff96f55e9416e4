"""The SDK's aggregations behind a histogram: which ones measurements go to, and how to add many.

All of it is private to the SDK (seen in opentelemetry-sdk 1.45), so what is found is checked for
what is going to be touched; of an aggregation that looks different only the method that the SDK
itself calls is used.
"""

from __future__ import annotations

from bisect import bisect_left
from threading import RLock
from time import time_ns
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from opentelemetry.context import Context
from opentelemetry.metrics import Asynchronous
from opentelemetry.trace import NonRecordingSpan, set_span_in_context

from sottovoce.call import CHUNK_BOUNDS_S
from sottovoce.guard import never_raise

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from opentelemetry.trace import SpanContext

    from sottovoce.call import Gaps

_NS: Final = 1e-9


Told: TypeAlias = "tuple[float, SpanContext | None, int]"
"""A measurement: its value, the span of its exemplar if it is to be one, and when it was made, in
nanoseconds since the epoch."""


class Measurement:
    """What an aggregation reads of the SDK's `Measurement`."""

    __slots__ = ("attributes", "context", "time_unix_nano", "value")

    def __init__(self, value: float, attributes: Mapping[str, Any], told: Told) -> None:
        self.value = value
        self.attributes = attributes
        _, span, self.time_unix_nano = told
        self.context = Context()
        if span is not None and span.is_valid:
            self.context = set_span_in_context(NonRecordingSpan(span), self.context)


def series(instrument: Any, attributes: dict[str, Any]) -> list[Series]:
    """Find what counts a histogram's measurements with these attributes. May raise."""
    return [Series(match, attributes) for match in _matches(instrument)]


def _matches(instrument: Any) -> list[Any]:
    return [
        match
        for storage in instrument._measurement_consumer._reader_storages.values()
        for match in storage._get_or_init_view_instrument_match(instrument)
    ]


def begin_anew(meters: Any, scope: str) -> None:
    """Forget what the histograms and counters of `scope` have counted in a provider of the SDK's.

    In a forked child: the parent exports it, and threads of the parent may have held its locks.
    May raise. Series found before lead to what was forgotten.
    """
    for storage in meters._measurement_consumer._reader_storages.values():
        # Who collected when the process forked holds it for good.
        storage._lock = RLock()
        matches = storage._instrument_view_instrument_matches
        for instrument in list(matches):
            of_ours = instrument.instrumentation_scope.name == scope
            if of_ours and not isinstance(instrument, Asynchronous):
                del matches[instrument]


def _kept(match: Any, attributes: dict[str, Any]) -> dict[str, Any]:
    keys = match._view._attribute_keys
    if keys is None:
        return dict(attributes)
    return {name: value for name, value in attributes.items() if name in keys}


class Series:
    """What counts the measurements with some attributes in one reader's view of a histogram.

    For delta temporality it is replaced whenever it is collected. May raise when it is made.

    Attributes:
        is_known: many can be added at once, in any order.
    """

    __slots__ = ("_attributes", "_has_gaps", "_is_dropped", "_key", "_match", "is_known")

    def __init__(self, match: Any, attributes: dict[str, Any]) -> None:
        from opentelemetry.sdk.metrics._internal import _view_instrument_match as sdk  # noqa: PLC0415

        self._match = match
        self._attributes = _kept(match, attributes)
        self._key = sdk._hash_attributes(self._attributes)
        # The SDK keeps one of each kind, that counts nothing, to tell kinds apart by.
        self.is_known = _is_known(match._aggregation)
        self._is_dropped = type(match._aggregation).__name__ == "_DropAggregation"
        self._has_gaps = _has_gaps(match._aggregation)

    def begin(self) -> None:
        """Begin to count: what counts tells since when."""
        with self._match._lock:
            self._match._get_or_create_aggregation(self._key, self._attributes)

    def add(self, told: Sequence[Told], attributes: Mapping[str, Any]) -> None:
        """Do what the SDK does for each measurement.

        Args:
            told: the measurements, in their order.
            attributes: of them all, for exemplars.
        """
        # Held meanwhile: what was collected is thrown away.
        with self._match._lock:
            now = self._match._get_or_create_aggregation(self._key, self._attributes)
            if self.is_known:
                _add(now, told, attributes)
                return
            for each in told:
                _add_one(now, Measurement(each[0], attributes, each), sampled=each[1] is not None)

    def merge(self, gaps: Gaps) -> None:
        """Add `gaps` (nanoseconds) to what counts seconds; none of them is an exemplar.

        Where its buckets are others than theirs, each gap is the mean of those in its bucket.
        """
        if self._is_dropped:
            return
        with self._match._lock:
            now = self._match._get_or_create_aggregation(self._key, self._attributes)
            if self._has_gaps:
                _merge(now, gaps)
                return
            for count, total in gaps.buckets.values():
                told = total / count * _NS, None, time_ns()
                measurement = Measurement(told[0], self._attributes, told)
                for _ in range(count):
                    now.aggregate(measurement, False)


@never_raise("aggregations.add")
def _add_one(aggregation: Any, measurement: Measurement, *, sampled: bool) -> None:
    """Do what the SDK does; a reservoir may be the app's own, and raise."""
    aggregation.aggregate(measurement, sampled)


def _is_known(aggregation: Any) -> bool:
    """Whether it is the SDK's histogram, with an exemplar for each of its buckets."""
    from opentelemetry.sdk.metrics._internal import aggregation as sdk  # noqa: PLC0415
    from opentelemetry.sdk.metrics._internal.exemplar import exemplar_reservoir  # noqa: PLC0415

    if type(aggregation) is not sdk._ExplicitBucketHistogramAggregation:
        return False
    reservoir = getattr(aggregation, "_reservoir", None)
    return (
        type(reservoir) is exemplar_reservoir.AlignedHistogramBucketExemplarReservoir
        and vars(exemplar_reservoir.ExemplarBucket()).keys() == _EXEMPLAR
        and vars(aggregation).keys() >= _AGGREGATION
        and vars(reservoir).keys() >= _RESERVOIR
        and aggregation._record_min_max is True
        and tuple(reservoir._boundaries) == aggregation._boundaries
    )


_AGGREGATION: Final = {"_lock", "_value", "_sum", "_min", "_max", "_boundaries", "_record_min_max"}
_RESERVOIR: Final = {"_lock", "_boundaries", "_reservoir_storage"}
_EXEMPLAR: Final = {
    f"_ExemplarBucket__{name}"
    for name in ("value", "attributes", "time_unix_nano", "span_id", "trace_id", "offered")
}


def _add(aggregation: Any, told: Sequence[Told], attributes: Mapping[str, Any]) -> None:
    """Do what the SDK does: add to buckets, of which the newest measurement is the exemplar."""
    bounds = aggregation._boundaries
    values = [value for value, _, _ in told]
    places = [bisect_left(bounds, value) for value in values]
    newest = {place: each for place, each in zip(places, told, strict=True) if each[1] is not None}
    total, least, most = sum(values), min(values), max(values)
    # What is collected, exemplars included, is collected under this lock as well.
    with aggregation._lock:
        counts = aggregation._value
        if counts is None:
            counts = aggregation._value = aggregation._get_empty_bucket_counts()
        for place in places:
            counts[place] += 1
        aggregation._sum += total
        if least < aggregation._min:
            aggregation._min = least
        if most > aggregation._max:
            aggregation._max = most
        for place, (value, span, at_ns) in newest.items():
            bucket = vars(aggregation._reservoir._reservoir_storage[place])
            # Of another set of attributes, which a View folds into this, a newer one may be here.
            if at_ns >= bucket["_ExemplarBucket__time_unix_nano"]:
                bucket.update(_exemplar(attributes, span, at_ns), _ExemplarBucket__value=value)  # type: ignore[arg-type]


def _exemplar(attributes: Mapping[str, Any], span: SpanContext, at_ns: int) -> dict[str, Any]:
    return {
        "_ExemplarBucket__attributes": attributes,
        "_ExemplarBucket__time_unix_nano": at_ns,
        "_ExemplarBucket__span_id": span.span_id or None,
        "_ExemplarBucket__trace_id": span.trace_id or None,
        "_ExemplarBucket__offered": True,
    }


TRACED, ALL, NONE = "traced", "all", "none"


def offered(instrument: Any) -> str | None:
    """Which measurements the SDK would offer as exemplars; None: its filter is unknown."""
    from opentelemetry.sdk.metrics import (  # noqa: PLC0415
        AlwaysOffExemplarFilter,
        AlwaysOnExemplarFilter,
        TraceBasedExemplarFilter,
    )

    kind = type(instrument._measurement_consumer._sdk_config.exemplar_filter)
    table: dict[type, str] = {
        TraceBasedExemplarFilter: TRACED,
        AlwaysOnExemplarFilter: ALL,
        AlwaysOffExemplarFilter: NONE,
    }
    return table.get(kind)


def _has_gaps(aggregation: Any) -> bool:
    """Whether `_merge` knows it, and its buckets are those of `Gaps`."""
    from opentelemetry.sdk.metrics._internal import aggregation as sdk  # noqa: PLC0415

    return (
        type(aggregation) is sdk._ExplicitBucketHistogramAggregation
        and aggregation._boundaries == CHUNK_BOUNDS_S
        and aggregation._record_min_max is True
    )


def _merge(aggregation: Any, gaps: Gaps) -> None:
    """Add `gaps` (nanoseconds) to a histogram of seconds whose buckets are theirs."""
    with aggregation._lock:
        counts = aggregation._value
        if counts is None:
            counts = aggregation._value = aggregation._get_empty_bucket_counts()
        for bucket, (count, total) in gaps.buckets.items():
            counts[bucket] += count
            aggregation._sum += total * _NS
        aggregation._min = min(aggregation._min, gaps.minimum * _NS)
        aggregation._max = max(aggregation._max, gaps.maximum * _NS)
