"""What a wire format is to us: tables of facts, and how its last event and its errors look.

A protocol is tables (`tables.py`). The values that they find are checked by fact in one place
(`checks.py`), so that a value of another type sets nothing, whatever a provider sends. No row may
name anything that can hold content.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from sottovoce.protocols.checks import MAX_INDEX, word
from sottovoce.protocols.tables import certain, learnt, read, without

if TYPE_CHECKING:
    from collections.abc import Callable

    from sottovoce.call import Facts
    from sottovoce.protocols.tables import Body, Candidates, Table

UNNAMED_ERROR: Final = "_OTHER"
"""The code of an error that brings none that can be used."""

_MAX_TOOLS = 1024
# Compiled by the first error, and kept by `re`.
_CODE: Final = r"[A-Za-z_][A-Za-z0-9_.\-]{0,63}"


def error_code(*candidates: Any) -> str:
    """Give the first usable of a provider's error codes or types, as a string.

    Usable are identifier-like strings and HTTP status numbers; messages never are.
    """
    for value in candidates:
        if isinstance(value, str):
            status = len(value) == 3 and value.isascii() and value.isdigit()  # noqa: PLR2004 - HTTP's
            if status or re.fullmatch(_CODE, value):
                return value
        elif type(value) is int and 100 <= value <= 599:  # noqa: PLR2004 - HTTP status
            return str(value)
    return UNNAMED_ERROR


def names(*given: Any) -> list[str] | None:
    """Keep the names that are words; None when none is."""
    return [str.__str__(name) for name in given if word(name)] or None


class Seen:
    """What the earlier events of a stream said that later ones add to. Bounded."""

    __slots__ = ("counts", "reasons", "tool_ids", "tool_names", "tool_places")

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.reasons: dict[int, str] = {}
        # Dicts, whose keys count: an empty set takes three times as much.
        self.tool_ids: dict[str, None] = {}
        self.tool_names: dict[Any, str] = {}
        self.tool_places: dict[tuple[int, int], None] = {}

    def finished(self, index: Any, reason: Any) -> None:
        """Choice number `index` ended for `reason`."""
        if isinstance(reason, str) and type(index) is int and 0 <= index < MAX_INDEX:
            self.reasons[index] = reason[:MAX_INDEX]

    def tool(self, choice: Any, place: Any, identity: Any, name: Any = None) -> None:
        """A tool call was seen: by its place among those of a choice, and by its id.

        Servers leave out either, or number every call 0. What is no word names no tool.
        """
        if type(choice) is int and type(place) is int and len(self.tool_places) < _MAX_TOOLS:
            self.tool_places[choice, place] = None
        if identity and isinstance(identity, str) and len(self.tool_ids) < _MAX_TOOLS:
            self.tool_ids[identity[:MAX_INDEX]] = None
        if word(name) and len(self.tool_names) < MAX_INDEX:
            self.tool_names.setdefault((str(choice), str(place), str(identity)), name)

    def counted(self, name: str, value: Any) -> None:
        """A count that only grows was given: by name, of which a protocol has a few."""
        if type(value) is int and value >= self.counts.get(name, 0):
            self.counts[name] = value

    def candidates(self) -> Candidates:
        """Give the facts so far. A choice without a reason is an ``error``, as the conventions say."""
        found: Candidates = {}
        if self.reasons:
            reasons = self.reasons
            found["finish_reasons"] = [reasons.get(i, "error") for i in range(max(reasons) + 1)]
        if self.tool_places or self.tool_ids:
            found["tool_call_count"] = max(len(self.tool_places), len(self.tool_ids))
        if self.tool_names:
            found["tool_names"] = list(self.tool_names.values())
        return found


def as_answered(table: Table) -> Callable[[Body, Seen], Candidates]:
    """Make the reader of events that say what whole answers say."""
    return lambda body, _seen: read(table, body)


class Protocol:
    """One wire format.

    Attributes:
        name: ours, for logs and tests.
        asked: where the facts of a request are.
        answered: where the facts of a whole answer are.
        event: reads one streamed event; gets what earlier ones said.
        error: gives an error body's code (`UNNAMED_ERROR` when it has none), None when the
            body is no error.
        may_hold_fact: matches every event that may hold a fact; one that it does not match
            is counted and timed, never parsed.
        last_data: what the data of the last event begins with, where it is not JSON.
        last_types: the `type` of events that are the last.
        last: tells the last event where its `type` does not.
        tail_keys: of a longer answer, the keys whose values are looked for at its end: counts,
            objects of counts, words.
        parse_up_to: bytes up to which a whole answer is parsed; of a longer one only the
            beginning and the end are looked at.
        flat: no object in an answer but the outermost has a key `model`.
        array: a stream may be one JSON array, an element for each event.
        opaque: answers are sound or text unless their type says JSON or a stream; such an answer
            is never looked at.
        streams_as: content type of streams, where a server does not tell it.
        batch: a whole answer may be a list with an item for each input, of which the first counts.
    """

    # No NamedTuple: to make it would be a tenth of what a first call takes.

    __slots__ = (
        "answered", "array", "asked", "batch", "error", "event", "flat", "last", "last_data",
        "last_types", "may_hold_fact", "name", "opaque", "parse_up_to", "streams_as", "tail_keys",
    )  # fmt: skip

    def __init__(
        self,
        *,
        name: str,
        asked: Table,
        answered: Table,
        event: Callable[[Body, Seen], Candidates],
        error: Callable[[Body], str | None],
        may_hold_fact: re.Pattern[bytes],
        last_data: bytes = b"[DONE]",
        last_types: frozenset[str] = frozenset(),
        last: Callable[[Body], bool] | None = None,
        tail_keys: tuple[str, ...] = ("usage",),
        parse_up_to: int = 256 * 1024,
        flat: bool = False,
        array: bool = False,
        opaque: bool = False,
        batch: bool = False,
        streams_as: str = "text/event-stream",
    ) -> None:
        self.name = name
        self.asked = asked
        self.answered = answered
        self.event = event
        self.error = error
        self.may_hold_fact = may_hold_fact
        self.last_data = last_data
        self.last_types = last_types
        self.last = last
        self.tail_keys = tail_keys
        self.parse_up_to = parse_up_to
        self.flat = flat
        self.array = array
        self.opaque = opaque
        self.batch = batch
        self.streams_as = streams_as

    def but(self, **changes: Any) -> Protocol:
        """Give the same with other values."""
        values: dict[str, Any] = {name: getattr(self, name) for name in Protocol.__slots__}
        return Protocol(**{**values, **changes})

    def request(self, body: Body) -> Facts:
        """Read the facts of a request's JSON object. Never raises; never content."""
        return learnt(self.asked, body)

    def certain(self, body: Body, lacks: str | None = None) -> Facts:
        """Read the facts of a request of which only a part is known, none that the rest could change.

        Args:
            body: what is known.
            lacks: the one key of which it is not known what it holds; ``None``: there may be others.
        """
        known = certain(self.asked) if lacks is None else without(self.asked, lacks)
        return learnt(known, body)

    def response(self, body: Body, on_malformed: Callable[[str], None] | None = None) -> Facts:
        """Read the facts of a whole answer's JSON object. Never raises; never content."""
        return learnt(self.answered, body, on_malformed)
