"""Add many measurements to a histogram at once.

A stream of a thousand chunks is a thousand gaps, and `Histogram.record` costs several
microseconds each; a peer that records every chunk makes a stream a third dearer. The call
therefore keeps bucket counts (`call.Gaps`), which are added here to the SDK's aggregation
under its own lock. That reaches into the SDK (seen in opentelemetry-sdk 1.45), so every
step is checked first; where anything looks different, each gap is recorded through the
public API as its bucket's mean, which keeps counts and sum exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sottovoce.call import CHUNK_BOUNDS_S

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.metrics import Histogram

    from sottovoce.call import Gaps

_NS = 1e-9


def record_gaps(
    histogram: Histogram, gaps: Gaps, attributes: dict[str, Any], context: Context
) -> None:
    """Record `gaps` (nanoseconds) into `histogram` (seconds) under `attributes`."""
    try:
        done = _add_to_aggregations(histogram, gaps, attributes)
    except Exception:  # noqa: BLE001 - a changed SDK: nothing was added yet, see below
        done = False
    if not done:
        for count, total in zip(gaps.counts, gaps.sums, strict=True):
            for _ in range(count):
                histogram.record(total / count * _NS, attributes, context)


def _add_to_aggregations(histogram: Any, gaps: Gaps, attributes: dict[str, Any]) -> bool:
    # All lookups come before the first addition, so that a surprise leaves nothing half done.
    from opentelemetry.sdk.metrics._internal import _view_instrument_match as sdk  # noqa: PLC0415
    from opentelemetry.sdk.metrics._internal.aggregation import (  # noqa: PLC0415
        _ExplicitBucketHistogramAggregation,
    )

    histogram = getattr(histogram, "_real_instrument", None) or histogram
    if not histogram._is_enabled():  # noqa: SLF001
        return True
    targets = []
    for storage in histogram._measurement_consumer._reader_storages.values():  # noqa: SLF001
        for match in storage._get_or_init_view_instrument_match(histogram):  # noqa: SLF001
            keys = match._view._attribute_keys  # noqa: SLF001
            kept = (
                attributes if keys is None else {k: v for k, v in attributes.items() if k in keys}
            )
            create = match._get_or_create_aggregation  # noqa: SLF001
            template = match._aggregation  # noqa: SLF001
            if (
                type(template) is not _ExplicitBucketHistogramAggregation
                or template._boundaries != CHUNK_BOUNDS_S  # noqa: SLF001
            ):
                return False
            targets.append((match._lock, create, sdk._hash_attributes(kept), dict(kept)))  # noqa: SLF001
    for lock, create, key, kept in targets:
        # Held while adding: a delta collection discards the aggregation it collected.
        with lock:
            aggregation = create(key, kept)
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
