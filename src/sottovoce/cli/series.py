"""Metric points as they came, added up to what they say together."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sottovoce.cli.kept import Point

_DELTA: Final = 1
_OF_THE_MACHINE: Final = ("system.", "hw.")


def added_up(points: Iterable[Point]) -> list[Point]:
    """One point a name and attribute set, by name; of a level one a service.

    Of a cumulative series only its newest point counts, and processes are added; delta points
    are summed. Levels of several processes are not added: most of them have ended, and the
    machine has its memory only once. The newest one stands.

    Args:
        points: as exported, in the order of their times.
    """
    series: dict[tuple[Any, ...], Point] = {}
    for point in points:
        key: tuple[Any, ...] = (point.name, point.kind, point.bounds, str(point.attributes))
        if is_level(point):
            told = (*key, service(point))
            series[told] = point
        elif point.temporality == _DELTA:
            series[key] = _sum(series[key], point) if key in series else point
        else:
            process = (point.scope, str(point.resource), point.start_ns)
            series[key + process] = point
    merged: dict[tuple[Any, ...], Point] = {}
    for long, point in series.items():
        key = long if is_level(point) else long[:4]
        merged[key] = _sum(merged[key], point) if key in merged else point
    return sorted(merged.values(), key=lambda point: (point.name, str(point.attributes)))


def is_level(point: Point) -> bool:
    """Whether it tells how much there is, not how much there has been."""
    return point.kind == "gauge" or (
        point.kind == "sum" and not point.monotonic and point.temporality != _DELTA
    )


def service(point: Point) -> str:
    """The service that it speaks of; empty where that is the machine, or has no name."""
    if point.name.startswith(_OF_THE_MACHINE):
        return ""
    return str(point.resource.get("service.name", ""))


def _sum(one: Point, other: Point) -> Point:
    lows = [low for low in (one.low, other.low) if low is not None]
    highs = [high for high in (one.high, other.high) if high is not None]
    return replace(
        one,
        start_ns=min(one.start_ns, other.start_ns),
        at_ns=max(one.at_ns, other.at_ns),
        count=one.count + other.count,
        total=one.total + other.total,
        low=min(lows, default=None),
        high=max(highs, default=None),
        buckets=tuple(a + b for a, b in zip(one.buckets, other.buckets, strict=False)),
    )
