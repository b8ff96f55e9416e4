"""mlx-vlm's server: each request for a completion becomes one call, of the caller's trace.

As in mlx-lm's, one thread generates for all; what asks it is `ResponseGenerator.generate`, in a
thread that has the context of the request, and what it gets is read by iterating. So a middleware
around the app joins the caller's trace, and the call lasts from the request's first byte to its
last token. Of a prompt, pictures and sounds nothing is looked at.

Seen in mlx-vlm 0.7.10.
"""

from __future__ import annotations

import functools
from contextlib import suppress
from contextvars import copy_context
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Final

from sottovoce import dropped
from sottovoce.guard import failed, never_raise
from sottovoce.runtimes import (
    failures,
    identity,
    mlx_answer,
    mlx_batch,
    mlx_models,
    mlx_request,
)
from sottovoce.runtimes.engine import NS, Arguments

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from sottovoce.call import Call, Recorder
    from sottovoce.guard import Patches
    from sottovoce.runtimes.engine import Runtime

_REAL: Final = ("temperature", "top_p", "frequency_penalty", "presence_penalty")
_OFF: Final = {"top_k", "max_tokens", "frequency_penalty", "presence_penalty"}
"""Settings that 0 turns off."""


def install(runtime: Runtime, module: ModuleType, patches: Patches) -> None:
    """Patch `mlx_vlm.server.generation` or the app of `mlx_vlm.server.app`."""
    engine, tokens = (
        getattr(module, name, None) for name in ("ResponseGenerator", "_TokenIterator")
    )
    app = getattr(module, "app", None)
    if engine is not None and tokens is not None:
        answers: dict[int, Seen] = {}
        starts: dict[int, _Start] = {}
        patches.wrap(engine, "__init__", functools.partial(_made, runtime, starts))
        patches.wrap(engine, "_initialize_model", functools.partial(_initialized, runtime, starts))
        patches.wrap(engine, "generate", functools.partial(_generate, runtime, answers, tokens))
        patches.wrap(engine, "_run", _own)
        patches.wrap(tokens, "__next__", functools.partial(_next, answers))
        patches.wrap(tokens, "close", functools.partial(_close, answers))
    # It is too late once it serves.
    elif getattr(app, "middleware_stack", True) is None and app is not None:
        app.add_middleware(_Joining, runtime=runtime)


class Seen(mlx_answer.Answer):
    """One request for a completion; its chunks are what the engine gives at once."""

    __slots__ = ("drafted", "tokens")

    # How many of its draft's tokens were accepted and how many there were; tokens in the chunks.
    drafted: tuple[Any, Any]
    tokens: int

    def read(self, token: Any) -> None:
        """Take note of a token, or of several. Never raises."""
        self.chunk()
        try:
            self.tokens += token.token_count
            self.cached = token.cached_tokens
            if token.finish_reason is not None:
                self.reason = token.finish_reason
                self.drafted = token.draft_n_accepted, token.draft_n
        except Exception:  # noqa: BLE001 - a token of another shape is the app's all the same
            failed("mlx_vlm.read")

    @never_raise("mlx_vlm.gather")
    def gather(self) -> None:
        """Write what is known of the answer. Never raises."""
        if not self.is_open:
            return
        super().gather()
        if self.chunks:
            self.facts["output_tokens"] = self.tokens
        accepted, drafted = self.drafted
        if type(accepted) is int and type(drafted) is int and drafted > 0:
            self.facts["draft_accepted_share"] = min(1.0, accepted / drafted)


class _Start:
    """The engine of a request's model is being made for it."""

    __slots__ = ("_request", "_within")

    def __init__(self, request: mlx_request.Request) -> None:
        self._request = request
        self._within = copy_context()

    @never_raise("mlx_vlm.start")
    def open(self, recorder: Recorder) -> Call | None:
        """Open the call before it is known who answers. Never raises."""
        request = self._request
        if request.call is None:
            request.call = self._within.run(_opened, recorder, request, None, request.started_ns)
        return request.call

    @never_raise("mlx_vlm.start")
    def failed(self, error: BaseException) -> None:
        """The model could not be loaded; the server has wrapped what happened. Never raises."""
        call, inner = self._request.call, error.__context__ or error
        if call is not None:
            call.fail(failures.of_load(inner) or inner)


class _Answering:
    """What is seen of an answer: whether it comes piece by piece."""

    __slots__ = ("_send", "stream")

    def __init__(self, send: Any) -> None:
        self._send = send
        self.stream = False

    async def send(self, message: Any) -> None:
        """Send a part of it."""
        if message.get("type") == "http.response.start":
            self._look(message)
        await self._send(message)

    @never_raise("mlx_vlm.look")
    def _look(self, message: Any) -> None:
        headers = {name.lower(): value for name, value in message.get("headers", ())}
        self.stream = headers.get(b"content-type", b"").startswith(b"text/event-stream")


class _Joining:
    """Middleware: what the app does for a request belongs to the caller's trace."""

    def __init__(self, app: Any, runtime: Runtime) -> None:
        self._app = app
        self._runtime = runtime

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""
        if scope["type"] != "http" or not self._runtime.recording:
            await self._app(scope, receive, send)
            return
        recorder = self._runtime.recorder
        answering = _Answering(send)
        request = mlx_request.Request(answering)
        current = mlx_request.current.set(request)
        joined = self._join(scope)
        try:
            await self._app(scope, receive, answering.send)
        finally:
            recorder.leave(joined)
            # A coroutine that was dropped is closed in another context.
            with suppress(ValueError):
                mlx_request.current.reset(current)
            # It was refused after its model had been loaded.
            if request.call is not None and not request.call.began_ns:
                _end(request.call)

    @never_raise("mlx_vlm.join")
    def _join(self, scope: Any) -> Any:
        join = getattr(self._runtime.recorder, "join", None)
        if join is None:
            return None
        return join(
            {
                name.decode("latin-1").lower(): value.decode("latin-1")
                for name, value in scope["headers"]
            }
        )


def _own(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `ResponseGenerator._run`, all that the engine's thread does."""

    @functools.wraps(original)
    def _run(*args: Any, **kwargs: Any) -> Any:
        owned = mlx_batch.suppressed.set(True)
        try:
            return original(*args, **kwargs)
        finally:
            mlx_batch.suppressed.reset(owned)

    return _run


def _made(
    runtime: Runtime, starts: dict[int, _Start], original: Callable[..., Any]
) -> Callable[..., Any]:
    """Wrap `ResponseGenerator.__init__`, which starts the engine's thread."""

    @functools.wraps(original)
    def __init__(engine: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807 - it is one
        request = mlx_request.current.get()
        if request is not None and request.call is None and runtime.active:
            starts[id(engine)] = _Start(request)
        try:
            original(engine, *args, **kwargs)
        except BaseException:
            starts.pop(id(engine), None)
            raise

    return __init__


def _initialized(
    runtime: Runtime, starts: dict[int, _Start], original: Callable[..., Any]
) -> Callable[..., Any]:
    """Wrap `ResponseGenerator._initialize_model`: in the engine's thread, for whom it is made."""

    @functools.wraps(original)
    def _initialize_model(engine: Any, *args: Any, **kwargs: Any) -> Any:
        start = starts.pop(id(engine), None)
        if start is None:
            return original(engine, *args, **kwargs)
        waiting = mlx_models.waiting.set(mlx_request.Waiting(runtime.recorder, start))
        try:
            return original(engine, *args, **kwargs)
        except BaseException as error:
            start.failed(error)
            raise
        finally:
            mlx_models.waiting.reset(waiting)

    return _initialize_model


def _opened(
    recorder: Recorder,
    request: mlx_request.Request | None,
    known: identity.Identity | None,
    start_ns: int,
) -> Seen:
    call = Seen(
        recorder,
        "chat" if request is not None else "text_completion",
        known,
        None,
        request is not None,
        start_ns,
    )
    call.tokens, call.drafted = 0, (None, None)
    return call


def _call_of(
    runtime: Runtime,
    request: mlx_request.Request | None,
    known: identity.Identity | None,
    asked_ns: int,
) -> Seen:
    """Open the call of an answer, or say of one that is open who answers."""
    if request is None:
        return _opened(runtime.recorder, None, known, asked_ns)
    call = request.call
    if isinstance(call, Seen) and not call.began_ns:
        if known is not None:
            identity.tell(call, known)
        return call
    # Of a request that asks for more than one answer only the first waited since it came.
    start_ns = request.started_ns if call is None else asked_ns
    request.call = call = _opened(runtime.recorder, request, known, start_ns)
    return call


@never_raise("mlx_vlm.open")
def _begun(runtime: Runtime, named: dict[str, Any], asked_ns: int, context: Any) -> Seen:
    """The engine began with what it was asked at `asked_ns`, or refused it."""
    began_ns = perf_counter_ns()
    engine, request = named["self"], mlx_request.current.get()
    known = mlx_models.known(engine.model, engine.processor)
    facts = _facts(named.get("args"))
    prompt = getattr(context, "prompt_tokens", -1)
    call = _call_of(runtime, request, known, asked_ns)
    call.began_ns = began_ns
    if type(prompt) is int:
        call.prompt = prompt
    call.stream = request is None or request.handler.stream
    call.facts.update(facts)
    call.facts["queue_s"] = (began_ns - asked_ns) * NS
    return call


def _generate(
    runtime: Runtime, answers: dict[int, Seen], kind: type, original: Callable[..., Any]
) -> Callable[..., Any]:
    """Wrap `ResponseGenerator.generate`: gives the context of a request and its tokens."""
    arguments = Arguments(original)

    @functools.wraps(original)
    def generate(*args: Any, **kwargs: Any) -> Any:
        if not runtime.recording:
            return original(*args, **kwargs)
        named, asked_ns = arguments.named(args, kwargs), perf_counter_ns()
        try:
            result = original(*args, **kwargs)
        except BaseException as error:
            _fail(_begun(runtime, named, asked_ns, None), error)
            raise
        # What is no context and iterator is the app's as it is.
        if isinstance(result, tuple) and [isinstance(each, kind) for each in result] == [
            False,
            True,
        ]:
            context, tokens = result
            call = _begun(runtime, named, asked_ns, context)
            if call is not None:
                answers[id(tokens)] = call
        return result

    return generate


def _next(answers: dict[int, Seen], original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `_TokenIterator.__next__`."""

    @functools.wraps(original)
    def __next__(iterator: Any) -> Any:  # noqa: N807 - it is one
        call = answers.get(id(iterator))
        if call is None:
            return original(iterator)
        try:
            token = original(iterator)
        except StopIteration:
            _end(call)
            raise
        except BaseException as error:
            _fail(call, error)
            raise
        call.read(token)
        if call.reason is not None:
            _end(call)
        return token

    return __next__


def _close(answers: dict[int, Seen], original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `_TokenIterator.close`, which `__del__` calls as well."""

    @functools.wraps(original)
    def close(iterator: Any) -> Any:
        call = answers.pop(id(iterator), None)
        if call is not None:
            dropped.stop(call, perf_counter_ns())
        return original(iterator)

    return close


def _facts(arguments: Any) -> Any:
    """Say what was asked for, the server's defaults included."""
    facts: dict[str, Any] = {}
    for name in (*_REAL, "top_k", "max_tokens"):
        value = getattr(arguments, name, None)
        real = name in _REAL
        if (type(value) is int or (real and type(value) is float)) and (value or name not in _OFF):
            facts[f"request_{name}"] = float(value) if real else value
    return facts


@never_raise("mlx_vlm.end")
def _end(call: Call) -> None:
    call.gather()
    call.end()


@never_raise("mlx_vlm.fail")
def _fail(call: Seen | None, error: BaseException) -> None:
    if call is not None:
        call.gather()
        call.fail(failures.of_call(error) or error)
