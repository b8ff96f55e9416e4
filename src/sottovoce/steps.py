"""One step of an app's work around its model calls: a tool, an agent, a request over MCP.

A step is a call that asks no model: opened, ended exactly once, with the same outcomes
(`call.Call`). What it does runs inside it, so a step is entered and left, and the steps and
model calls in between are its children. It knows a name and a method, and never what was given
to a tool or what it answered.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from sottovoce import guard
from sottovoce.call import Call

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextvars import Token

    from sottovoce.call import Recorder

    Tokens = tuple[Any, Token["Step | None"]]

Kind = Literal["tool", "agent", "mcp_client", "mcp_server"]

STOPS: Final = (GeneratorExit, KeyboardInterrupt, SystemExit)
"""The app dropped its coroutine or generator, or is being stopped: nothing failed."""

current_step: ContextVar[Step | None] = ContextVar("sottovoce_current_step", default=None)
"""The step whose work the code of this frame does."""

current_conversation: ContextVar[str | None] = ContextVar(
    "sottovoce_current_conversation", default=None
)
"""The app's id of the conversation that the code of this frame works for."""


class Step(Call):
    """A tool that runs, an agent that works, or a request over MCP.

    Args:
        recorder: what turns the step into telemetry.
        kind: what it is, and which side of it.
        name: of the tool, the agent or the prompt, exactly as given; the recorder and the gate
            decide what of it may be seen.
        method: of the protocol: ``tools/call``, ``ping``, …; of requests over MCP alone.
        local: the peer is this machine or the operator's own.
        address: host name of the server, where there is one.
        port: TCP port of the server.
        transport: ``pipe`` or ``tcp``.
        version: of the protocol, as the two sides agreed.
        session: the protocol's id of the session.
        carrier: where the other side's trace context is, as ``traceparent``.
    """

    __slots__ = ("carrier", "kind", "left", "method", "name", "session", "transport", "version")

    def __init__(
        self,
        recorder: Recorder,
        kind: Kind,
        name: str | None = None,
        *,
        method: str | None = None,
        local: bool = True,
        address: str | None = None,
        port: int | None = None,
        transport: str | None = None,
        version: str | None = None,
        session: str | None = None,
        carrier: Mapping[str, Any] | None = None,
    ) -> None:
        self.kind = kind
        self.name = name
        self.method = method
        self.transport = transport
        self.version = version
        self.session = session
        self.carrier = carrier
        self.left: Tokens | None = None
        super().__init__(
            recorder,
            operation="invoke_agent" if kind == "agent" else "execute_tool",
            provider="",
            in_process=kind in {"tool", "agent"},
            local=local,
            address=address,
            port=port,
        )


class Source:
    """Where recorders of steps come from: those of the instrumentors that are applied.

    A recorder is made by the first step that needs it. Thread-safe.
    """

    def __init__(self) -> None:
        self._makers: list[Callable[[], Recorder]] = []

    def add(self, make: Callable[[], Recorder]) -> None:
        """Let steps be recorded by what `make` returns, which is always the same."""
        self._makers.append(make)

    def remove(self, make: Callable[[], Recorder]) -> None:
        """Undo one `add`."""
        if make in self._makers:
            self._makers.remove(make)

    @guard.never_raise("steps.recorder")
    def recorder(self) -> Recorder | None:
        """Give the recorder for this frame; ``None`` when nothing is to be recorded."""
        if not self._makers:
            return None
        recorder = self._makers[-1]()
        enabled = getattr(recorder, "enabled", None)
        return recorder if enabled is None or enabled() else None


source: Final = Source()


@guard.never_raise("steps.enter")
def enter(step: Step) -> Tokens:
    """Make `step` the current one, and its span; undo it with `leave`. Never raises."""
    return step.recorder.enter(step), current_step.set(step)


@guard.never_raise("steps.leave")
def leave(step: Step, tokens: Tokens | None) -> None:
    """Undo `enter`. Never raises.

    Coroutines that share a context may leave in another order than they entered: what was
    current before is restored once the last that entered has left.
    """
    if tokens is None:
        return
    step.left = tokens
    top = current_step.get()
    if top is not step:
        return
    while top is not None and top.left is not None:
        span, before = top.left
        try:
            current_step.reset(before)
        except ValueError:
            # A coroutine that was dropped is closed in another context, which was never entered.
            return
        top.left = None
        top.recorder.leave(span)
        top = current_step.get()


@guard.never_raise("steps.close")
def close(step: Step, error: BaseException | str | None = None) -> None:
    """End `step`: it completed, failed, or was dropped by the app. Never raises."""
    if error is None:
        step.end()
    elif isinstance(error, STOPS):
        drop = cast("Callable[[Step], None]", getattr(step.recorder, "drop", Call.abandon))
        drop(step)
    else:
        step.fail(error)
