"""What the profiles `strict` and `aggregate` leave of a metric's numbers and times.

A histogram with one measurement betrays it: the sum is the value, and so are the minimum and
the maximum. So a point keeps the counts of its buckets and a sum made of them; buckets that
someone else chose may be as narrow as he likes and are poured into those of the registry.
Counters of tokens become buckets as a whole; amounts of memory are tiers and shares have one
digit. In `aggregate` the times say the hour alone.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.sdk.metrics._internal.point import Buckets
from opentelemetry.sdk.metrics.export import (
    ExponentialHistogram,
    Gauge,
    Histogram,
    Metric,
    MetricsData,
    Sum,
)

from sottovoce.privacy import buckets
from sottovoce.registry import METRICS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from opentelemetry.sdk.metrics.export import (
        ExponentialHistogramDataPoint,
        HistogramDataPoint,
        NumberDataPoint,
    )

HOUR_NS: Final = 3600 * 10**9
TOKENS: Final = "{token}"

_LEVELS: Final[Mapping[str, Callable[[float], float | None]]] = {
    "By": buckets.memory,
    "1": buckets.score,
}
"""Unit → bucket, of metrics that say how much there is: memory, and shares."""

_SCALE: Final = -1
"""Scale of an exponential histogram whose buckets are those of counts: base 4."""


def reduced(metric: Metric, *, counted: bool) -> Metric:
    """`metric` with coarse numbers.

    Args:
        metric: as the rest of the gate left it.
        counted: the values of its counters are buckets, or sums of them, already.
    """
    data: Any = metric.data
    points: list[Any] = list(data.data_points)
    if isinstance(data, Histogram):
        bounds = _bounds(metric.name)
        points = [_histogram(point, bounds) for point in points]
    elif isinstance(data, ExponentialHistogram):
        points = [_exponential(point) for point in points]
    elif isinstance(data, Sum) and metric.unit == TOKENS:
        points = [_number(point, None if counted else _tokens) for point in points]
    else:
        bucket = _LEVELS.get(metric.unit or "") if _is_level(data) else None
        points = [_number(point, bucket) for point in points]
    return replace(metric, data=replace(data, data_points=points))


def by_the_hour(given: MetricsData) -> MetricsData:
    """`given` with all times rounded down to the hour, UTC."""
    return MetricsData(
        [
            replace(
                resource,
                scope_metrics=[
                    replace(scope, metrics=[_hourly(metric) for metric in scope.metrics])
                    for scope in resource.scope_metrics
                ],
            )
            for resource in given.resource_metrics
        ]
    )


def _hourly(metric: Metric) -> Metric:
    data: Any = metric.data
    points = [
        replace(
            point,
            start_time_unix_nano=_hour(point.start_time_unix_nano),
            time_unix_nano=_hour(point.time_unix_nano),
        )
        for point in data.data_points
    ]
    return replace(metric, data=replace(data, data_points=points))


def _bounds(name: str) -> Sequence[float]:
    known = METRICS.get(name)
    return (known and known.boundaries) or buckets.FOURS


def _hour(time: int | None) -> Any:
    return time if time is None else time - time % HOUR_NS


def _histogram(point: HistogramDataPoint, bounds: Sequence[float]) -> HistogramDataPoint:
    counts = [0] * (len(bounds) + 1)
    given = tuple(point.explicit_bounds)
    for place, count in enumerate(point.bucket_counts):
        # What lies above the last bound of the given is at least in the bucket after it.
        target = (
            bisect_left(bounds, given[place])
            if place < len(given)
            else min(bisect_left(bounds, given[-1]) + 1, len(bounds))
            if given
            else len(bounds)
        )
        counts[target] += count
    return replace(
        point,
        explicit_bounds=tuple(bounds),
        bucket_counts=counts,
        sum=_sum(zip(counts, (*bounds, buckets.above(bounds)), strict=True)),
        **_NOTHING_EXACT,
    )


def _exponential(point: ExponentialHistogramDataPoint) -> ExponentialHistogramDataPoint:
    scale = min(point.scale, _SCALE)
    positive = _coarser(point.positive, point.scale - scale)
    negative = _coarser(point.negative, point.scale - scale)
    base = 2.0 ** (2**-scale)
    total = _sum(
        (count, sign * base ** (index + 1))
        for sign, side in ((1, positive), (-1, negative))
        for index, count in enumerate(side.bucket_counts, side.offset)
    )
    return replace(
        point,
        scale=scale,
        positive=positive,
        negative=negative,
        sum=total,
        **_NOTHING_EXACT,
    )


def _number(
    point: NumberDataPoint, bucket: Callable[[float], float | None] | None
) -> NumberDataPoint:
    value: Any = point.value
    if bucket is not None:
        shown = bucket(value)
        # What is no amount is told as nothing.
        value = 0 if shown is None else shown
    return replace(point, value=value, exemplars=[])


def _tokens(value: float) -> float:
    return buckets.representative(value, buckets.COUNTS)


def _is_level(data: Any) -> bool:
    """Whether points say how much there is, rather than how much came."""
    return isinstance(data, Gauge) or (isinstance(data, Sum) and not data.is_monotonic)


def _coarser(given: Buckets, steps: int) -> Buckets:
    """`given` at a scale made coarser by `steps`: each joins every two neighbours."""
    counts: Counter[int] = Counter()
    for index, count in enumerate(given.bucket_counts, given.offset):
        if count:
            counts[index >> steps] += count
    if not counts:
        return Buckets(0, [])
    first, last = min(counts), max(counts)
    return Buckets(first, [counts[index] for index in range(first, last + 1)])


def _sum(counted: Any) -> float:
    return float(sum(count * value for count, value in counted if count))


_NOTHING_EXACT: Final[dict[str, Any]] = {"min": None, "max": None, "exemplars": []}
