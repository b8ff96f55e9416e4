"""A request to mlx-lm's server, from its first byte on, in whichever thread it is worked on."""

from __future__ import annotations

from contextvars import ContextVar, copy_context
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Protocol

from sottovoce.guard import never_raise
from sottovoce.runtimes import mlx_answer
from sottovoce.runtimes.mlx_drafts import Drafts

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context

    from sottovoce.call import Call, Recorder


class Request:
    """A request that the thread of a connection works on.

    Attributes:
        asked: what it asks of the engine, until that has answered.
        call: its call, once there is one.
        drafts: what counts the work of its draft model, where it has one.
        handler: what answers it; None where there is no HTTP.
        started_ns: `time.perf_counter_ns` at which it came.
    """

    __slots__ = ("_within", "asked", "call", "drafts", "handler", "started_ns")

    def __init__(self, handler: Any) -> None:
        self.handler = handler
        self.started_ns = perf_counter_ns()
        self.asked: mlx_answer.Asked | None = None
        self.call: mlx_answer.Answer | None = None
        self.drafts: list[Drafts] = []
        # Of its thread: the caller's span is current there.
        self._within: Context | None = None

    def ask(self, engine: Any, request: Any, arguments: Any) -> None:
        """The engine is asked now; arguments as `mlx_answer.Asked` has them."""
        self._within = copy_context()
        self.asked = mlx_answer.Asked(
            engine, request, arguments, self.started_ns, perf_counter_ns(), self.handler
        )

    def taken(self) -> mlx_answer.Asked | None:
        """Give what was asked, once: nothing of it is kept."""
        asked, self.asked = self.asked, None
        # It holds this request, which holds the handler, which can hold a model.
        self._within = None
        return asked

    @never_raise("mlx_request.open")
    def open(self, recorder: Recorder) -> mlx_answer.Answer | None:
        """Open the call before it is known who answers. Never raises."""
        if self.call is None and self.asked is not None and self._within is not None:
            self.call = self._within.run(mlx_answer.opened, recorder, self.asked)
        return self.call

    @never_raise("mlx_request.draft")
    def draft(self, named: dict[str, Any]) -> Callable[[Any], None] | None:
        """Give what counts a generation with these arguments, where a draft model runs in it."""
        if named.get("draft_model") is None:
            return None
        drafts = Drafts(named)
        self.drafts.append(drafts)
        return drafts.read


current: ContextVar[Request | None] = ContextVar("sottovoce_mlx_request", default=None)
"""What this thread answers; set and reset in one frame."""


class Opens(Protocol):
    """What can open the call of a request."""

    def open(self, recorder: Recorder) -> Call | None:
        """Give the call, open or not. Never raises."""


class Waiting:
    """What a request waits for happens in its span: a model is loaded, often the one that answers.

    Args:
        recorder: what makes the span current.
        request: the one that waits.
    """

    __slots__ = ("_entered", "_recorder", "_request")

    def __init__(self, recorder: Recorder, request: Opens) -> None:
        self._recorder = recorder
        self._request = request
        # Loaders call each other.
        self._entered: list[Any] = []

    def __enter__(self) -> None:
        call = self._request.open(self._recorder)
        self._entered.append(None if call is None else self._recorder.enter(call))

    def __exit__(self, *_: object) -> None:
        self._recorder.leave(self._entered.pop())
