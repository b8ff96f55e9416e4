"""Amounts of memory as tiers of GiB: words of two closed ladders.

What is built in is one of the sizes that machines are sold with; what something takes lies
between two of another ladder's edges.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from itertools import pairwise
from typing import Final, TypeGuard

GIB: Final = 1 << 30

_SOLD: Final = (8, 16, 18, 24, 32, 36, 48, 64, 96)
_TOLERANCE: Final = 0.5
"""GiB that a machine may report beyond a tier: vendors and systems count differently."""

EDGES: Final = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""GiB at which one tier of what is in use ends and the next begins."""

OTHER: Final = "other"
"""Stands for what could not be found out, or is in no list."""

BUILT_IN: Final = (*map(str, _SOLD), "128+")
"""The words of `built_in`, smallest first."""

IN_USE: Final = (
    f"lt_{EDGES[0]}GiB",
    *(f"{low}_{high}GiB" for low, high in pairwise(EDGES)),
    f"gte_{EDGES[-1]}GiB",
)
"""The words of `in_use`, smallest first."""


def built_in(gib: float | None) -> str:
    """The tier of a machine's memory in GiB, rounded up with a tolerance of half a GiB.

    ``other`` for what is no amount.
    """
    if not _is_amount(gib):
        return OTHER
    return BUILT_IN[bisect_left(_SOLD, gib - _TOLERANCE)]


def in_use(size: float | None) -> str | None:
    """The tier of an amount of memory in bytes that something takes; None for what is no amount."""
    # `_is_amount`, written out: this is asked for every call of an engine.
    if (type(size) is int or type(size) is float) and 0 < size < math.inf:
        return IN_USE[bisect_right(EDGES, size / GIB)]
    return None


def _is_amount(value: float | None) -> TypeGuard[float]:
    """Whether `value` is a number, finite and above zero."""
    return type(value) in {int, float} and 0 < value < math.inf  # type: ignore[operator]
