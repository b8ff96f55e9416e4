"""How the events of one stream begin that hold no fact: the same in nearly all of them.

Before the piece of text that it is for, an event repeats the answer's id and model, its own kind
and place. What is known to begin so, and to hold no fact up to there, is compared in one go.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


@functools.cache
def _match() -> Callable[[bytes], re.Match[bytes] | None]:
    # Compiled by the first stream. Strings are taken of keys that hold no content alone, and what
    # is opened holds neither facts nor, as a tool's arguments do, an app's own keys and numbers.
    # It ends where something was opened or the next key comes: no key of a fact is cut in two.
    return re.compile(
        rb"(?:event: ?[\w.]+\n)?data: ?\{(?: *\""
        rb"(?:(?:id|object|model|type|role|service_tier|system_fingerprint)\": ?\"[\w.:/-]*\","
        rb"|[a-z_]+\": ?(?:\d+|null),"
        rb"|(?:candidates|choices|delta)\": ?[{[]+))*"
    ).match


def beginning(event: bytes, known: bytes) -> bytes:
    """Say how events of a stream begin, of which `event` is one that does not begin as `known`.

    Args:
        event: one or more whole server-sent events.
        known: how the ones before began; empty at first.

    Returns:
        What both begin with, where that reaches into their data, else what `event` begins with
        up to the first thing that could be content; `known` where nothing can be said.
    """
    match = _match()
    found = match(event)
    if found is None:
        return known
    both = match(_common(known, found[0]))
    return (both or found)[0]


def _common(one: bytes, other: bytes) -> bytes:
    for place, (mine, its) in enumerate(zip(one, other, strict=False)):
        if mine != its:
            return one[:place]
    return min(one, other, key=len)
