"""Numbers said so coarsely that they single nothing out: what profile `strict` keeps of them.

A number becomes the upper bound of the bucket that it falls in (a bound belongs to the bucket
below it, as in OpenTelemetry's histograms), so that it stays a number of the same attribute,
and a bucketed number is its own bucket: who buckets twice changes nothing.

================  ==================================================================
counts            0, 1, 4, 16, 64, … (each four times the one before)
seconds           1, 5, 15, 60, 300; 3600 stands for all that is longer
throughputs       0, 1, 2, 4, 8, … (each twice the one before)
memory            bytes as whole GiB: 0, 1, 2, 4, 8, 12, 16, 24, …; 256 stands for all above 128
shares            0, 0.1, 0.2, … 1
scores            one significant digit, and nothing finer than 0.1
histograms        the upper bound of the metric's own bucket; twice the last bound above it
================  ==================================================================
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

COUNTS: Final = (0, *(4**power for power in range(15)))
"""Upper bounds of the buckets of counts; what is larger is no count. Nothing is no bucket of
its own in a histogram, but of what is said of one call it is the most useful and the most
harmless number: no tokens came from a cache, none were used for reasoning."""

THROUGHPUTS: Final = (0.0, *(float(2**power) for power in range(21)))
"""Upper bounds of the buckets of what is done each second; what is faster is none."""

SHARES: Final = (0.0, *(tenths / 10 for tenths in range(1, 11)))
"""Upper bounds of the buckets of shares: those of the histogram of the same, and nothing, for the
reason that `COUNTS` has it. What is more is no share."""

MEMORY: Final = tuple(gib << 30 for gib in (0, 1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256))
"""Upper bounds of the buckets of memory, in bytes; the last stands for all that is more."""

SECONDS: Final = (1.0, 5.0, 15.0, 60.0, 300.0)
LONGER: Final = 3600.0
_BOUNDS_NS: Final = tuple(int(bound) * 10**9 for bound in SECONDS)
_WORDS: Final = ("lt_1s", "1_5s", "5_15s", "15_60s", "1_5m", "gte_5m")

FOURS: Final = tuple(float(4**power) if power >= 0 else 1 / 4**-power for power in range(-5, 16))
"""Bounds for a histogram whose own are not known to be harmless."""

_LARGEST_SCORE: Final = 1e6
_INSTANT_NS: Final = 10**8


def count(value: int) -> int | None:
    """The bucket of a count that is not negative; None for one that is too large."""
    place = bisect_left(COUNTS, value)
    return COUNTS[place] if place < len(COUNTS) else None


def memory(value: float) -> int | None:
    """The bucket of an amount of memory in bytes; None for what is none."""
    if not 0 <= value < math.inf:
        return None
    return MEMORY[min(bisect_left(MEMORY, value), len(MEMORY) - 1)]


def throughput(value: float) -> float | None:
    """The bucket of a throughput; None for one that is negative or too large."""
    place = bisect_left(THROUGHPUTS, value)
    return THROUGHPUTS[place] if value >= 0 and place < len(THROUGHPUTS) else None


def share(value: float) -> float | None:
    """The bucket of a share; None for one that is negative or too large."""
    place = bisect_left(SHARES, value)
    return SHARES[place] if value >= 0 and place < len(SHARES) else None


def seconds(value: float) -> float | None:
    """The bucket of a time; None for what is none."""
    if not 0 <= value < math.inf:
        return None
    place = bisect_left(SECONDS, value)
    return SECONDS[place] if place < len(SECONDS) else LONGER


def instant(nanoseconds: int) -> int:
    """A time of a span, rounded down to a tenth of a second, where the operator asks for that."""
    return nanoseconds - nanoseconds % _INSTANT_NS


def lasted(nanoseconds: int) -> str:
    """The word for how long a span lasted, of `sottovoce.duration.bucket`."""
    return _WORDS[bisect_right(_BOUNDS_NS, nanoseconds)]


def score(value: float) -> float | None:
    """A score with one significant digit, in steps of 0.1 at least; None for what is none."""
    if not -_LARGEST_SCORE < value < _LARGEST_SCORE:
        return None
    size = abs(value)
    return round(value, 1 if size < 1 else -math.floor(math.log10(size))) + 0.0


def representative(value: float, bounds: Sequence[float]) -> float:
    """What is recorded in the place of `value` into a histogram with `bounds`."""
    place = bisect_left(bounds, value)
    return bounds[place] if place < len(bounds) else above(bounds)


def above(bounds: Sequence[float]) -> float:
    """What stands for values above the last of `bounds`."""
    return 2 * bounds[-1] if bounds and bounds[-1] > 0 else 1.0
