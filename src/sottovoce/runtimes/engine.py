"""A call of an engine in this process, and how its stream is passed on to the app.

Engine times are measured inside the engine, so what the app does between two tokens is not in
them. The call is the current one while the engine works and never across a yield: the next
step of a stream may run in another thread or context.
"""

from __future__ import annotations

import inspect
from contextvars import ContextVar
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sottovoce import dropped
from sottovoce.call import Call, current_call
from sottovoce.guard import failed, never_raise
from sottovoce.runtimes import failures

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from sottovoce.call import Facts, Recorder
    from sottovoce.guard import ImportHooks
    from sottovoce.runtimes.identity import Identity

NS: Final = 1e-9
"""Seconds in a nanosecond."""

_POSITIONAL: Final = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
)

T = TypeVar("T")


class EngineCall(Call):
    """A call in process.

    Made for every call, hence by place: by keyword, a class is handed a dict.

    Args:
        identity: who runs, as far as is known.
        stream: whether the app gets the answer piece by piece.

    Subclasses say what is read of each piece and of the whole answer, and which facts follow.
    """

    __slots__ = ("busy_ns", "first_ns", "made", "reads", "started_ns")

    def __init__(
        self,
        recorder: Recorder,
        operation: str,
        provider: str,
        identity: Identity | None,
        stream: bool,
    ) -> None:
        # Nanoseconds inside the engine, in all and until the first token; when the step that
        # runs now began.
        self.busy_ns = self.first_ns = self.started_ns = 0
        # Tokens that the engine generated, as it counts them itself.
        self.made = 0
        # Whether the next piece of the stream may say anything.
        self.reads = True
        # Here and below not by way of `super`, which looks for the class each time.
        Call.__init__(
            self,
            recorder,
            operation=operation,
            provider=provider,
            model=identity.name if identity else None,
            in_process=True,
            local=True,
        )
        self.stream = stream
        if stream:
            self.facts["request_stream"] = True
            dropped.keep(self)
        if identity:
            self.facts.update(identity.facts)

    def read(self, piece: Any) -> None:
        """Learn from a piece of the stream; may raise."""

    def settle(self) -> None:
        """Write the facts of what was made; may raise."""

    def blame(self, error: BaseException) -> BaseException | str:
        """Give what the call failed with: the exception, or a code of the closed vocabulary."""
        return failures.of_call(error) or error

    def finish(self, error: BaseException | None = None) -> None:
        """The engine is done, or failed with `error`. Never raises."""
        self.gather()
        if error is None:
            self._end("completed", None, None)
        else:
            self.fail(self._blamed(error) or error)

    def leave(self) -> None:
        """The app stopped reading; once the answer is complete that is no abandonment."""
        # At once: the thread that may end it must not touch the engine.
        self.gather()
        dropped.stop(self)

    def gather(self) -> None:
        """Write what is known of the engine's work. Never raises; at exit nothing else comes."""
        if not self._open:
            return
        try:
            facts, busy_ns, first_ns, made = self.facts, self.busy_ns, self.first_ns, self.made
            facts["engine_duration_s"] = busy_ns * NS
            if first_ns:
                facts["time_to_first_token_s"] = first_ns * NS
                if type(made) is int and made > 1:
                    per_token = (busy_ns - first_ns) / (made - 1) * NS
                    facts["time_per_output_token_s"] = per_token if per_token > 0 else 0.0
            self.settle()
            # Of a batch no rates follow: its sequences are read and written side by side.
            if facts.get("batch_size", 1) <= 1:
                _settle_pace(facts)
        except Exception:  # noqa: BLE001 - written out: `never_raise` costs a call more
            failed("runtime.settle")

    @never_raise("runtime.blame")
    def _blamed(self, error: BaseException) -> BaseException | str:
        return self.blame(error)


def _settle_pace(facts: Facts) -> None:
    """Write the rates and how full the context is, where a runtime has not and they follow."""
    per_token = facts.get("time_per_output_token_s")
    if per_token and "decode_rate" not in facts:
        facts["decode_rate"] = 1 / per_token
    read = facts.get("input_tokens")
    if read is None or facts.get("passes", 1) > 1:
        return
    if "time_to_first_token_s" in facts and "prefill_rate" not in facts:
        first, fresh = facts["time_to_first_token_s"], read
        if "cache_read_tokens" in facts:
            fresh -= facts["cache_read_tokens"]
        # A single token is not read but decoded.
        if fresh > 1 and first:
            facts["prefill_rate"] = fresh / first
    if "context_size" in facts and "output_tokens" in facts and "context_fill" not in facts:
        filled = (read + facts["output_tokens"]) / facts["context_size"]
        facts["context_fill"] = filled if filled < 1 else 1.0


_loading: ContextVar[bool] = ContextVar("sottovoce_loading", default=False)
"""Whether an outer loader already measures; set and reset in one frame."""


class Runtime:
    """What the wrappers of one runtime share."""

    def __init__(self, provider: str, recorder: Recorder, hooks: ImportHooks) -> None:
        self.provider = provider
        self.recorder = recorder
        self._hooks = hooks
        # Recorders of the contract need not have these.
        self._loading = getattr(recorder, "loading", None)
        self._loaded = getattr(recorder, "loaded", None)
        self._enabled: Callable[[], bool] | None = getattr(recorder, "enabled", None)

    @property
    def active(self) -> bool:
        """Whether the hooks are still installed; wrappers that someone kept pass through if not."""
        return self._hooks.active

    @property
    def recording(self) -> bool:
        """Whether a call that begins now is recorded: the app may have suppressed it."""
        enabled = self._enabled
        return self._hooks.active and (enabled is None or enabled())

    def run(
        self,
        call: EngineCall,
        function: Callable[..., T],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        enter: bool = True,
    ) -> T:
        """Run what the app called, with `call` current; an exception fails it and is the app's.

        `enter`: with its span current, too.
        """
        current = current_call.set(call)
        entered = self.recorder.enter(call) if enter else None
        call.started_ns = perf_counter_ns()
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            call.busy_ns += perf_counter_ns() - call.started_ns
            call.finish(error)
            raise
        else:
            call.busy_ns += perf_counter_ns() - call.started_ns
            return result
        finally:
            if enter:
                self.recorder.leave(entered)
            current_call.reset(current)

    def load(
        self,
        function: Callable[..., T],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        identify: Callable[[T], Identity | None],
        blame: Callable[[BaseException], str | None] = failures.of_load,
    ) -> T:
        """Run a loader and record how long the app waited, a download included.

        Of loaders that call each other the outermost is recorded. `identify` gets what it
        returned and must not raise. Of a load that failed only the error's code or class is
        recorded: what was asked for may be a path. `blame` gives the code and must not raise.
        """
        if not self.active or _loading.get():
            return function(*args, **kwargs)
        recorded = self.recording
        inside = _loading.set(True)
        loading = self._begin_load() if recorded else None
        started = perf_counter_ns()
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            if recorded:
                waited = perf_counter_ns() - started
                self._record_load(None, waited, blame(error) or error, loading)
            raise
        else:
            waited = perf_counter_ns() - started
            known = identify(result)
            if recorded:
                self._record_load(known, waited, None, loading)
            return result
        finally:
            _loading.reset(inside)

    @never_raise("runtime.load")
    def _begin_load(self) -> Any:
        # Only where there is what ends it, too.
        if self._loading is None or self._loaded is None:
            return None
        return self._loading(self.provider)

    @never_raise("runtime.load")
    def _record_load(
        self,
        known: Identity | None,
        waited_ns: int,
        error: BaseException | str | None,
        loading: Any,
    ) -> None:
        if self._loaded is None:
            return
        facts = {"request_model": known.name, **known.facts} if known else {}
        begun = () if loading is None else (loading,)
        self._loaded(self.provider, facts, waited_ns * NS, error, *begun)


def pass_on(  # noqa: C901, PLR0912, PLR0915 - flat, because it runs for every token
    inner: Generator[Any, Any, Any],
    known: EngineCall | Callable[[], EngineCall | None],
    *,
    primed: bool = False,
) -> Generator[Any, Any, Any]:
    """Pass a stream on, as `yield from` would, and end its call exactly once when it is over.

    Args:
        inner: the stream.
        known: its call, or what opens one when the app asks for the first piece: None where the
            stream is not to be recorded.
        primed: whether the first `next` only starts this generator, so that its call ends even
            if the app never reads it.
    """
    call = known if isinstance(known, EngineCall) else known()
    del known  # what opened it holds the arguments
    if call is None:
        return (yield from inner)
    sent: Any = None
    thrown: BaseException | None = None
    if primed:
        # Never read, it was over for the app when it got the stream.
        call.last_chunk_ns = perf_counter_ns()
        try:
            sent = yield
        except GeneratorExit:
            call.leave()
            inner.close()
            raise
        except BaseException as error:  # noqa: BLE001 - thrown in by the app, for the engine
            thrown = error
    set_current, reset_current = current_call.set, current_call.reset
    send, read = inner.send, call.read
    while True:
        current = set_current(call)
        call.started_ns = started = perf_counter_ns()
        try:
            piece = send(sent) if thrown is None else inner.throw(thrown)
        except StopIteration as stop:
            call.busy_ns += perf_counter_ns() - started
            call.finish()
            return stop.value
        except BaseException as error:
            call.busy_ns += perf_counter_ns() - started
            call.finish(error)
            # Our frame is in the traceback: a reference here would make a cycle.
            thrown = None
            raise
        finally:
            reset_current(current)
        thrown = None
        # `Call.chunk`, written out: a call less for every token.
        now = perf_counter_ns()
        call.busy_ns += now - started
        gap = now - call.last_chunk_ns
        call.last_chunk_ns = now
        call.chunks += 1
        if not call.shortest <= gap <= call.longest:
            call.other_gap(gap)
        if call.reads:
            try:
                read(piece)
            except Exception:  # noqa: BLE001 - a piece of another shape is the app's all the same
                failed("runtime.read")
        try:
            sent = yield piece
        except GeneratorExit:
            call.leave()
            inner.close()
            raise
        except BaseException as error:  # noqa: BLE001 - thrown in by the app, for the engine
            thrown = error


class Arguments:
    """The parameters of a wrapped function: gives what it was called with a name."""

    def __init__(self, function: Callable[..., Any]) -> None:
        parameters: Mapping[str, inspect.Parameter] = {}
        try:
            parameters = inspect.signature(function).parameters
        except (TypeError, ValueError):
            failed("runtime.signature")
        self.names = tuple(parameters)
        self._positional = tuple(
            name for name, entry in parameters.items() if entry.kind in _POSITIONAL
        )

    def named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments by name; those beyond the known parameters are left out."""
        named = kwargs.copy()
        for name, value in zip(self._positional, args):  # noqa: B905 - saying it costs a third
            named[name] = value
        return named
