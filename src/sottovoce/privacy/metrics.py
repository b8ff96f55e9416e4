"""The gate for metrics: what a reader collects is rebuilt before the reader gets it.

Every reader, pushing or pulling, asks the provider's measurement consumer; the gate stands in
front of that one method, so readers that are added later get clean data as well. A View is no
substitute: it drops attributes from points, but hands them to exemplars.

Points whose attributes become equal are one series afterwards and are merged as such. What the
tighter profiles leave of a point's numbers and times is decided last (`coarse.py`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.sdk.metrics._internal.point import Buckets
from opentelemetry.sdk.metrics.export import (
    ExponentialHistogram,
    ExponentialHistogramDataPoint,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)

from sottovoce import guard, registry
from sottovoce.privacy.ledger import NAME as LEDGER
from sottovoce.privacy.ledger import Ledger
from sottovoce.privacy.origin import Origins, schema_url
from sottovoce.registry import METRICS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry.sdk.metrics import Exemplar
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    from sottovoce.privacy.policy import Policy

Point = NumberDataPoint | HistogramDataPoint | ExponentialHistogramDataPoint
Data = Sum | Gauge | Histogram | ExponentialHistogram

SCOPE: Final = "sottovoce"
OURS: Final = "sottovoce."

_UNITS: Final = frozenset({
    "", "1", "%", "ns", "us", "ms", "s", "min", "h", "d", "By", "kBy", "MBy", "GBy", "KiBy", "MiBy",
    "GiBy", "bit", "Hz", "W", "J", "Cel", "V", "A", "{token}/s", "{request}/s", "By/s", "1/s",
    *(metric.unit for metric in METRICS.values()),
    "{call}", "{chunk}", "{connection}", "{event}", "{file}", "{job}", "{message}", "{model}",
    "{operation}", "{process}", "{response}", "{retry}", "{row}", "{session}", "{task}", "{thread}",
})  # fmt: skip
"""Units that may leave: what stands in braces is free text."""


class MetricGate:
    """Stands in for a measurement consumer's `collect`: the same call, clean data.

    Args:
        policy: what may leave.
        collect: the consumer's own bound method.
    """

    def __init__(self, policy: Policy, collect: Callable[..., MetricsData | None]) -> None:
        self.policy = policy
        self._collect = collect
        self._origins = Origins(policy, "metric")
        self._ledger = Ledger(policy)

    def __call__(self, metric_reader: Any, timeout_millis: float = 10_000) -> MetricsData | None:
        """Collect for `metric_reader`; None, which exports nothing, when cleaning fails.

        Raises:
            MetricsTimeoutError: what the SDK's own method raises.
        """
        data = self._collect(metric_reader, timeout_millis)
        if data is None:
            return None
        try:
            clean = self.clean(data)
            told_by = None if self.policy.off else self._told_by()
            if told_by is not None:
                resource = self._origins.resource(data.resource_metrics[0].resource)
                clean = self._ledger.closed(metric_reader, clean, resource, told_by)
            if clean is not None and self.policy.choice.now.hourly:
                from sottovoce.privacy import coarse  # noqa: PLC0415 - of two profiles

                clean = coarse.by_the_hour(clean)
        except Exception:  # noqa: BLE001 - fail closed
            self.policy.count("metric", "gate_error")
            guard.failed("metric gate")
            return None
        return clean

    def _told_by(self) -> InstrumentationScope | None:
        """The scope of our counter, if a recorder made it."""
        # `_async_instruments` of the measurement consumer, read in opentelemetry-sdk 1.45.
        consumer = getattr(self._collect, "__self__", None)
        for instrument in list(getattr(consumer, "_async_instruments", ())):
            if instrument.name == LEDGER and instrument.instrumentation_scope.name == SCOPE:
                return self._origins.scope(instrument.instrumentation_scope)
        return None

    def clean(self, data: MetricsData) -> MetricsData | None:
        """`data` rebuilt; None when nothing of it may leave. May raise."""
        if self.policy.off:
            return None
        resources = []
        for given in data.resource_metrics:
            scopes: dict[tuple[str, str | None, str | None], ScopeMetrics] = {}
            series: dict[Any, Metric] = {}
            for scope_metrics in given.scope_metrics:
                scope = self._origins.scope(scope_metrics.scope)
                key = (scope.name, scope.version, scope.schema_url)
                # Scopes that may not be named become one.
                scopes.setdefault(
                    key, ScopeMetrics(scope, [], schema_url(scope_metrics.schema_url))
                )
                for metric in scope_metrics.metrics:
                    self._add(metric, key, series)
            for (key, *_), metric in series.items():
                reduced = self._reduced(metric, key[0])
                if reduced is not None:
                    scopes[key].metrics.append(reduced)  # type: ignore[attr-defined]
            kept = [scope for scope in scopes.values() if scope.metrics]
            if kept:
                resources.append(
                    ResourceMetrics(
                        self._origins.resource(given.resource), kept, schema_url(given.schema_url)
                    )
                )
        return MetricsData(resources) if resources else None

    def _reduced(self, metric: Metric, scope: str) -> Metric | None:
        compiled = self.policy.choice.now
        if not compiled.coarse:
            return metric
        try:
            from sottovoce.privacy import coarse  # noqa: PLC0415 - of two profiles

            # What our recorder counts is bucketed already, unless it began before `tighten`.
            return coarse.reduced(metric, counted=scope == SCOPE and not compiled.late)
        except Exception:  # noqa: BLE001 - fail closed: this metric alone is dropped
            self.policy.count("metric", "rule_error")
            guard.failed("metric gate")
            return None

    def _add(self, given: Metric, scope: Any, series: dict[Any, Metric]) -> None:
        try:
            metric = self._metric(given, scope[0])
        except Exception:  # noqa: BLE001 - fail closed: this metric alone is dropped
            self.policy.count("metric", "rule_error")
            guard.failed("metric gate")
            return
        if metric is None:
            return
        key = (scope, metric.name, metric.unit, _kind(metric.data))
        found = series.get(key)
        if found is not None:
            both = [*found.data.data_points, *metric.data.data_points]
            points = self._merged(type(metric.data), both)
            metric = replace(found, data=_with(found.data, points))
        series[key] = metric

    def _metric(self, given: Metric, scope: str) -> Metric | None:
        known = METRICS.get(given.name) if type(given.name) is str else None
        if known is not None and given.name.startswith(OURS) and scope != SCOPE:
            # Some attributes of our own metrics are words of ours, which no vocabulary lists.
            self.policy.count("metric", "scope")
            return None
        if known is not None:
            if not (_is(known.instrument, given.data) and _has_unit(given, known.unit)):
                self.policy.count("metric", "type")
                return None
            name, unit, description = given.name, known.unit, known.description
            attributes: frozenset[str] | None = known.attributes
        elif self.policy.allows("metric", given.name):
            name, description, attributes = given.name, "", None
            unit = given.unit if type(given.unit) is str and given.unit in _UNITS else ""
            if unit != given.unit:
                self.policy.count("metric", "unit")
        else:
            self.policy.count("metric", "unknown")
            return None
        data = given.data
        points = self._merged(
            type(data), [self._point(point, attributes) for point in data.data_points]
        )
        if not points:
            return None
        return Metric(name, description, unit, _with(data, points))

    def _point(self, point: Point, allowed: frozenset[str] | None) -> Point:
        attributes = self.policy.attributes(point.attributes, "metric")
        if allowed is not None:
            for name in [n for n in attributes if n not in allowed and n != "otel.metric.overflow"]:
                del attributes[name]
                self.policy.count("metric", "unknown")
        return replace(point, attributes=attributes, exemplars=self._exemplars(point.exemplars))

    def _exemplars(self, given: Sequence[Exemplar]) -> list[Exemplar]:
        """The spans that measurements were made in: without what a View dropped, and not in `strict`."""
        if given and self.policy.choice.now.coarse:
            self.policy.count("metric", "exemplar", len(given))
            return []
        dropped = sum(len(exemplar.filtered_attributes or ()) for exemplar in given)
        if dropped:
            self.policy.count("metric", "drop", dropped)
        return [replace(exemplar, filtered_attributes={}) for exemplar in given]

    def _merged(self, kind: type[Data], points: Sequence[Any]) -> Sequence[Any]:
        merge = _MERGE[kind]
        merged: dict[Any, Any] = {}
        for point in points:
            key = tuple(sorted((point.attributes or {}).items()))
            found = merged.get(key)
            if found is None:
                merged[key] = point
                continue
            both = merge(found, point)
            if both is None:
                self.policy.count("metric", "merge")
            else:
                merged[key] = both
        return list(merged.values())


def _is(instrument: str, data: Data) -> bool:
    if isinstance(data, Sum):
        return instrument == ("counter" if data.is_monotonic else "updowncounter")
    if isinstance(data, Gauge):
        return instrument == "gauge"
    return instrument == "histogram"


def _has_unit(given: Metric, unit: str) -> bool:
    # Other spellings are read late: most apps have none.
    return not given.unit or given.unit == unit or registry.UNITS.get(given.unit) == unit


def _with(data: Any, points: Sequence[Any]) -> Any:
    return replace(data, data_points=points)


def _kind(data: Data) -> tuple[Any, ...]:
    return (
        type(data),
        getattr(data, "aggregation_temporality", None),
        getattr(data, "is_monotonic", None),
    )


def _last(one: NumberDataPoint, other: NumberDataPoint) -> NumberDataPoint:
    return one if one.time_unix_nano > other.time_unix_nano else other


def _added(one: NumberDataPoint, other: NumberDataPoint) -> NumberDataPoint:
    return replace(one, value=one.value + other.value, **_common(one, other))


def _histogram(one: HistogramDataPoint, other: HistogramDataPoint) -> HistogramDataPoint | None:
    if tuple(one.explicit_bounds) != tuple(other.explicit_bounds):
        return None
    counts = [a + b for a, b in zip(one.bucket_counts, other.bucket_counts, strict=True)]
    return replace(one, bucket_counts=counts, **_distribution(one, other))


def _exponential(
    one: ExponentialHistogramDataPoint, other: ExponentialHistogramDataPoint
) -> ExponentialHistogramDataPoint:
    scale = min(one.scale, other.scale)
    both = ((one, one.scale - scale), (other, other.scale - scale))
    return replace(
        one,
        scale=scale,
        zero_count=one.zero_count + other.zero_count,
        positive=_buckets([(point.positive, coarser) for point, coarser in both]),
        negative=_buckets([(point.negative, coarser) for point, coarser in both]),
        flags=one.flags | other.flags,
        **_distribution(one, other),
    )


def _buckets(given: list[tuple[Buckets, int]]) -> Buckets:
    """The sum of `given`, each at a scale made coarser by so many steps.

    One step of scale joins every two neighbours, so an index is halved (OpenTelemetry's data
    model, "Exponential Scale").
    """
    counts: Counter[int] = Counter()
    for buckets, coarser in given:
        for index, count in enumerate(buckets.bucket_counts, buckets.offset):
            if count:
                counts[index >> coarser] += count
    if not counts:
        return Buckets(0, [])
    first, last = min(counts), max(counts)
    return Buckets(first, [counts[index] for index in range(first, last + 1)])


def _distribution(one: Any, other: Any) -> dict[str, Any]:
    return {
        "count": one.count + other.count,
        "sum": one.sum + other.sum,
        "min": min(one.min, other.min),
        "max": max(one.max, other.max),
        **_common(one, other),
    }


def _common(one: Any, other: Any) -> dict[str, Any]:
    return {
        "start_time_unix_nano": min(one.start_time_unix_nano or 0, other.start_time_unix_nano or 0),
        "time_unix_nano": max(one.time_unix_nano, other.time_unix_nano),
        "exemplars": [*one.exemplars, *other.exemplars],
    }


_MERGE: Final[dict[type[Data], Callable[[Any, Any], Any]]] = {
    Gauge: _last,
    Sum: _added,
    Histogram: _histogram,
    ExponentialHistogram: _exponential,
}
