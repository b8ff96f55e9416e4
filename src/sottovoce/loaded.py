"""The models that are loaded in this process, of which kinds and how many.

A model is taken off by its finaliser, which runs anywhere: in the middle of a statement, where
the very same thread holds any lock. So nothing here takes one: every change is one operation on
a dict. Nothing here keeps a model alive, and a forked child's copy is right for the child.
"""

from __future__ import annotations

from collections import Counter
from itertools import count
from typing import Final

Kind = tuple[tuple[str, str], ...]
"""What models of a kind have in common, as sorted pairs."""

_KINDS: Final = 1000

_tickets: Final = count()
_kinds: Final[dict[int, Kind]] = {}
"""Ticket → what was loaded, for every model that lives."""

_seen: Final[dict[Kind, None]] = {}
"""Kinds that were loaded at some time: none of them left is worth saying as well."""


def add(kind: Kind) -> int:
    """A model of `kind` was loaded; returns what `remove` is told when it is no longer."""
    ticket = next(_tickets)
    if len(_seen) < _KINDS:
        _seen[kind] = None
    _kinds[ticket] = kind
    return ticket


def remove(ticket: int) -> None:
    """The model is no longer loaded. May be told twice, and from a finaliser."""
    _kinds.pop(ticket, None)


def counted() -> dict[Kind, int]:
    """How many models of each kind are loaded now."""
    # A copy is one operation: a finaliser may come between two.
    living = Counter(_kinds.copy().values())
    return {**dict.fromkeys(_seen.copy(), 0), **living}
