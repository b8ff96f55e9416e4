"""Which numbers leave, and how exactly.

A number of ours is small and has few decimals. A phone number, an account or eight letters in
an integer are large, and further digits of a float can only carry something else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sottovoce.privacy import buckets, rules
from sottovoce.privacy.rules import Changed, Drop

if TYPE_CHECKING:
    from collections.abc import Mapping

LARGEST: Final = 10**9
"""What every number stays below, unless `MOST` says less."""

MOST: Final[Mapping[str, int]] = {
    "gen_ai.embeddings.dimension.count": 10**6,
    "gen_ai.evaluation.score.value": 10**4,
    "gen_ai.request.choice.count": 10**4,
    "gen_ai.request.frequency_penalty": 100,
    "gen_ai.request.presence_penalty": 100,
    "gen_ai.request.temperature": 100,
    "gen_ai.request.top_p": 100,
    "http.request.resend_count": 10**4,
    "http.response.status_code": 600,
    "rpc.grpc.status_code": 17,
    "server.port": 1 << 16,
    "sottovoce.context.utilization": 2,
    "sottovoce.draft.acceptance_rate": 2,
    "sottovoce.engine.passes": 10**4,
    "sottovoce.request.batch.size": 4**8 + 1,  # a bucket's bound, so that none shows more
}
"""What a number of an attribute stays below, where its meaning bounds it: a number that means
something else, a person's or an account's, does not fit."""

SCORES: Final = frozenset({"gen_ai.evaluation.score.value"})
"""Attributes whose numbers are scores, which may be negative."""

SHARES: Final = frozenset({"sottovoce.context.utilization", "sottovoce.draft.acceptance_rate"})
"""Attributes whose numbers are shares of a whole."""

THROUGHPUTS: Final = frozenset({"sottovoce.decode.throughput", "sottovoce.prefill.throughput"})
"""Attributes whose numbers say what is done each second."""

_FINEST: Final = 1e6


def whole(value: int, most: int) -> int | Drop:
    """A count below `most` as it is."""
    if 0 <= value < most:
        return value
    return rules.WRONG_TYPE if value < 0 else rules.RANGE


def real(value: float, most: int) -> float | Drop:
    """`value`, nearer to 0 than `most`, to the six decimals that a measurement has.

    `round` does the same, and takes five times as long for the sake of exact halves. An infinity or a NaN does not leave: its payload can carry anything as well.
    """
    if -most < value < most:
        return (value * _FINEST + 0.5) // 1 / _FINEST
    return rules.WRONG_TYPE if value - value else rules.RANGE


def bounds(name: str, kind: type) -> tuple[float, ...]:
    """Upper bounds of the buckets of `bucketed`, for what is no score."""
    if kind is int:
        return buckets.COUNTS
    if name in SHARES:
        return buckets.SHARES
    return buckets.THROUGHPUTS if name in THROUGHPUTS else buckets.SECONDS


def bucketed(name: str, kind: type, value: float) -> int | float | Drop | Changed:
    """The bucket of a number of the attribute `name`, which is declared to be of `kind`."""
    shown: float | None
    if kind is int:
        shown = buckets.count(int(value)) if value < MOST.get(name, LARGEST) else None
    elif name in SCORES:
        shown = buckets.score(value)
    elif name in SHARES:
        shown = buckets.share(value)
    elif name in THROUGHPUTS:
        shown = buckets.throughput(value)
    else:
        shown = buckets.seconds(value)
    if shown is None:
        return rules.RANGE
    return shown if shown == value else Changed(shown, "bucket")
