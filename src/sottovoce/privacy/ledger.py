"""The last word of `sottovoce.gate.dropped`: a collection also tells what it removes itself.

The counter is observed while the SDK collects, and metrics are judged after that. What is
removed then would be told by the next collection, which a short program does not have.
"""

from __future__ import annotations

import weakref
from collections import Counter
from dataclasses import replace
from time import time_ns
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.sdk.metrics._internal.instrument import _ObservableCounter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)

from sottovoce.registry import METRICS

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    from sottovoce.privacy.policy import Policy

NAME: Final = "sottovoce.gate.dropped"


class Ledger:
    """Brings the counter up to date, for each reader in the temporality that it asked for."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._began = time_ns()
        self._told: weakref.WeakKeyDictionary[Any, Counter[tuple[str, str]]] = (
            weakref.WeakKeyDictionary()
        )

    def closed(
        self,
        reader: Any,
        data: MetricsData | None,
        resource: Resource,
        scope: InstrumentationScope,
    ) -> MetricsData | None:
        """`data` with the counter, which `scope` made, as it stands now."""
        metric = self._metric(reader)
        if metric is None:
            return data
        resources = list(data.resource_metrics) if data is not None else []
        if not resources:
            resources.append(ResourceMetrics(resource, [], ""))
        scopes = list(resources[0].scope_metrics)
        place = next((n for n, each in enumerate(scopes) if each.scope == scope), None)
        if place is None:
            scopes.append(ScopeMetrics(scope, [metric], scope.schema_url or ""))
        else:
            others = [each for each in scopes[place].metrics if each.name != NAME]
            scopes[place] = replace(scopes[place], metrics=[*others, metric])
        resources[0] = replace(resources[0], scope_metrics=scopes)
        return MetricsData(resources)

    def _metric(self, reader: Any) -> Metric | None:
        # `_instrument_class_temporality` of MetricReader has the SDK's own classes for keys, as
        # read in opentelemetry-sdk 1.45.
        asked = reader._instrument_class_temporality.get(_ObservableCounter)
        temporality = asked or AggregationTemporality.CUMULATIVE
        total, now = self._policy.dropped, time_ns()
        before: Counter[tuple[str, str]] = Counter()
        if temporality == AggregationTemporality.DELTA:
            before = self._told.get(reader, before)
        self._told[reader] = total
        points = [
            NumberDataPoint(
                {"sottovoce.gate.signal": signal, "sottovoce.gate.rule": rule},
                self._began,
                now,
                count - before[signal, rule],
                [],
            )
            for (signal, rule), count in total.items()
            if count > before[signal, rule]
        ]
        known = METRICS[NAME]
        sums = Sum(points, temporality, is_monotonic=True)
        return Metric(NAME, known.description, known.unit, sums) if points else None
