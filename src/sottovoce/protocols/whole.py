"""Whole JSON answers → facts of a call: parsed where they are small, else read at their ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sottovoce.protocols.bodies import parsed
from sottovoce.protocols.reader import Reader

if TYPE_CHECKING:
    from collections.abc import Callable

    from sottovoce.call import Call
    from sottovoce.protocols.protocol import Protocol

_END: Final = 1024
"""Bytes of the end of a long answer that are looked at first: the rest may be megabytes of numbers."""


def read_json(
    call: Call, protocol: Protocol, body: bytes, on_malformed: Callable[[str], None] | None = None
) -> str | None:
    """Read the facts of a complete JSON body; the short way of `Reader.whole`. Never raises.

    Returns:
        The code of the error that the body is, else ``None``.
    """
    try:
        if len(body) <= protocol.parse_up_to:
            found = parsed(protocol, body, on_malformed)
            if found is None:
                return None
        else:
            from sottovoce.protocols.edges import ending  # noqa: PLC0415 - for what is very long

            found, complete = ending(protocol, body[-_END:])
            if not complete:
                reader = Reader(call, protocol, "application/json", on_malformed)
                reader.whole(body)
                return reader.error
        error = protocol.error(found)
        call.facts.update(protocol.response(found, on_malformed))
    except Exception:  # noqa: BLE001 - the promise of this function
        if on_malformed is not None:
            on_malformed("reader")
        return None
    return error
