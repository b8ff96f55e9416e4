"""What was asked on a connection of http.client, between the request and its response."""

from __future__ import annotations

from time import perf_counter_ns
from typing import TYPE_CHECKING

from sottovoce import dropped

if TYPE_CHECKING:
    from sottovoce.transports.sending import Sending


class Awaited:
    """What is not answered yet. When nobody asks for the answer any more, the call is over."""

    __slots__ = ("_begun", "_sent_ns")

    def __init__(self, begun: Sending) -> None:
        self._sent_ns = perf_counter_ns()
        self._begun: Sending | None = begun
        if begun.tokens is not None:
            dropped.keep(begun.call)

    def take(self) -> Sending | None:
        """Give what was asked, once: it is answered, or failed."""
        begun, self._begun = self._begun, None
        return begun

    def __del__(self) -> None:
        # The connection was dropped, or asked something else.
        try:
            begun = self.take()
            if begun is not None and begun.tokens is not None:
                dropped.stop(begun.call, self._sent_ns)
        except Exception:  # noqa: BLE001, S110 - half-built, or the interpreter is going away
            pass
