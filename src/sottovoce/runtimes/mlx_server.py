"""mlx-lm's HTTP server: each request for a completion becomes one call, of the caller's trace.

A request is taken in the thread of its connection and answered by one thread that generates
for all. Where both meet, `ResponseGenerator.generate`, everything is known: what was asked,
which model answers, each token. What that one thread does is recorded nowhere else: mlx-lm's
functions in it are marked as owned (`mlx_batch.suppressed`). But a model that it loads is loaded
for the first request that wants it, in whose span that happens.

The call lasts from the request's first byte to the answer's last. The time to the first token
holds the wait for other requests and for a model to be loaded, the rates do not: what the engine
took waits in there for its turn (8 prompts, 32 answers), and prompts are read side by side, so
how fast is told of a request without company only. A request that the server refuses before it
asks a model (not JSON, a temperature that is no number) is no call. A client that goes away has
abandoned its call.

Seen in mlx-lm 0.28.4 to 0.32.2. Before, the server generated in the connection's own thread:
see `mlx_handler.py`.
"""

from __future__ import annotations

import functools
from threading import current_thread
from time import perf_counter_ns
from types import GeneratorType
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from sottovoce import dropped
from sottovoce.guard import never_raise
from sottovoce.runtimes import (
    failures,
    identity,
    mlx_answer,
    mlx_batch,
    mlx_generate,
    mlx_handler,
    mlx_main,
    mlx_models,
    mlx_request,
)
from sottovoce.runtimes.engine import Arguments, Runtime
from sottovoce.runtimes.identity import key_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import ModuleType

    from sottovoce.call import Recorder
    from sottovoce.guard import ImportHooks, Patches

MODULE: Final = "mlx_lm.server"

_MODEL: Final = ("model_path", "adapter_path", "draft_model_path")
"""What `ModelProvider.load` is asked for."""


def install(recorder: Recorder, hooks: ImportHooks, patches: Patches) -> None:
    """Patch mlx-lm's server when it is imported, or at once if it already was.

    Args:
        recorder: what turns calls into telemetry.
        hooks: import hooks; once stopped, wrappers that the app still holds pass through.
        patches: keeps the originals for `Patches.undo`.
    """
    server = _Server(mlx_answer.PROVIDER, recorder, hooks)
    hooks.when_imported(MODULE, lambda module, _: server.patch(module, patches))
    mlx_main.when_run(MODULE, hooks, patches, lambda module: server.patch(module, patches))


class _Server(Runtime):
    """Makes the wrappers."""

    def __init__(self, provider: str, recorder: Recorder, hooks: ImportHooks) -> None:
        super().__init__(provider, recorder, hooks)
        # From when to when the model was loaded: the server holds one at a time.
        self._loads: WeakKeyDictionary[Any, tuple[int, int]] = WeakKeyDictionary()
        # Requests that the engine has not begun with, by `key_of` what is asked.
        self._queued: dict[int, mlx_request.Request] = {}

    def patch(self, module: ModuleType, patches: Patches) -> None:
        """Patch the classes of `module`, which is mlx-lm's server or runs as the main one."""
        handler, engine = module.APIHandler, getattr(module, "ResponseGenerator", None)
        patches.wrap(handler, "do_POST", self.post)
        patches.wrap(handler, "generate_response", self.respond)
        if engine is None:
            patches.wrap(module.ModelProvider, "load", self.load_at_once)
            mlx_handler.install(handler, patches, self._opened, self._loads)
        else:
            patches.wrap(module.ModelProvider, "load", self.load_on_demand)
            patches.wrap(engine, "generate", self.generate)
            patches.wrap(engine, "_tokenize", self.own)
            patches.wrap(engine, "_serve_single", self.serve_one)

    def post(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `APIHandler.do_POST`, which answers a request."""
        join = getattr(self.recorder, "join", None)

        @functools.wraps(original)
        def do_POST(handler: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N802 - http.server's name
            if not self.recording:
                return original(handler, *args, **kwargs)
            request = mlx_request.Request(handler)
            current = mlx_request.current.set(request)
            joined = join(getattr(handler, "headers", {})) if join is not None else None
            try:
                result = original(handler, *args, **kwargs)
            except BaseException as error:
                _break_off(request.call, error)
                raise
            else:
                _end(request.call)
                return result
            finally:
                self.recorder.leave(joined)
                mlx_request.current.reset(current)

        return do_POST

    def respond(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `APIHandler.generate_response`: it is told why the answer ended.

        A stop word (until 0.31) or a tool call is nothing that the engine knows of.
        """

        @functools.wraps(original)
        def generate_response(
            handler: Any, text: Any, finish_reason: Any, *args: Any, **kwargs: Any
        ) -> Any:
            if finish_reason is not None:
                request = mlx_request.current.get()
                if request is not None and request.call is not None:
                    request.call.reason = finish_reason
            return original(handler, text, finish_reason, *args, **kwargs)

        return generate_response

    def generate(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `ResponseGenerator.generate`: gives the context of a request and its tokens."""
        parameters = Arguments(original)

        @functools.wraps(original)
        def generate(*args: Any, **kwargs: Any) -> Any:
            named = parameters.named(args, kwargs)
            asked, arguments = named.get("request"), named.get("generation_args")
            if not self.recording or asked is None or arguments is None:
                return original(*args, **kwargs)
            # Of one by hand there is no handler.
            of = mlx_request.current.get() or mlx_request.Request(None)
            of.ask(named.get("self"), asked, arguments)
            self._queued[key_of(asked)] = of
            try:
                result = original(*args, **kwargs)
            except BaseException as error:
                self._refused(of, error)
                raise
            finally:
                self._queued.pop(key_of(asked), None)
            return self._answered(of, result)

        return generate

    def own(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `ResponseGenerator._tokenize`: with it the thread begins that generates for all.

        Also one that ran before we were here.
        """

        @functools.wraps(original)
        def _tokenize(engine: Any, *args: Any, **kwargs: Any) -> Any:
            # Set for good: nothing else runs in that thread.
            if getattr(engine, "_generation_thread", None) is current_thread():
                mlx_batch.suppressed.set(True)
            # After the tokenizer comes what is asked.
            for asked in args[1:2]:
                self._queued.pop(key_of(asked), None)
            return original(engine, *args, **kwargs)

        return _tokenize

    def serve_one(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `ResponseGenerator._serve_single`, which serves what no batch can."""

        @functools.wraps(original)
        def _serve_single(engine: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
            of = self._of(request)
            if of is None:
                return original(engine, request, *args, **kwargs)
            counting = mlx_generate.served.set(of.draft)
            try:
                return original(engine, request, *args, **kwargs)
            finally:
                mlx_generate.served.reset(counting)

        return _serve_single

    @never_raise("mlx_server.of")
    def _of(self, request: Any) -> mlx_request.Request | None:
        # Where it is answered, what is asked, how.
        return self._queued.get(key_of(request[1]))

    def load_on_demand(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `ModelProvider.load`: a request may wait for it."""
        parameters = Arguments(original)

        @functools.wraps(original)
        def load(*args: Any, **kwargs: Any) -> Any:
            of = self._first_for(parameters.named(args, kwargs)) if self._queued else None
            try:
                return self._load(of, original, args, kwargs)
            except BaseException:
                # Its thread is told, but maybe not before the next one's turn.
                self._drop(of)
                raise

        return load

    def load_at_once(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `ModelProvider.load` where the thread of a connection calls it itself."""

        @functools.wraps(original)
        def load(*args: Any, **kwargs: Any) -> Any:
            of = mlx_request.current.get()
            if of is None:
                return self._load(None, original, args, kwargs)
            mlx_handler.ask(of)
            try:
                return self._load(of, original, args, kwargs)
            except BaseException as error:
                # The server tells its client, and nobody else.
                self._refused(of, error)
                raise

        return load

    @never_raise("mlx_server.first")
    def _first_for(self, named: dict[str, Any]) -> mlx_request.Request | None:
        """Give the request that is the first to want a model."""
        model = tuple(named.get(name) for name in _MODEL)
        for request in list(self._queued.values()):
            # Without HTTP nobody ends the call of tokens that are never asked for.
            if request.handler is not None and request.asked is not None:
                wanted = request.asked.arguments.model
                if (wanted.model, wanted.adapter, wanted.draft) == model:
                    return request
        return None

    def _drop(self, of: mlx_request.Request | None) -> None:
        for key, request in list(self._queued.items()):
            if request is of:
                self._queued.pop(key, None)

    def _load(
        self,
        of: mlx_request.Request | None,
        original: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        provider = args[0] if args else None
        before, started_ns = getattr(provider, "model_key", None), perf_counter_ns()
        waits = mlx_request.Waiting(self.recorder, of) if of is not None else None
        waiting = mlx_models.waiting.set(waits)
        try:
            result = original(*args, **kwargs)
        finally:
            mlx_models.waiting.reset(waiting)
        self._note(provider, before, started_ns)
        return result

    @never_raise("mlx_server.load")
    def _note(self, provider: Any, before: Any, started_ns: int) -> None:
        if provider.model_key != before:
            self._loads[provider] = started_ns, perf_counter_ns()

    def _opened(self, of: mlx_request.Request, asked: mlx_answer.Asked) -> mlx_answer.Answer | None:
        """Open the call of a request, or say of one that is open who answers it."""
        known = mlx_answer.known(asked)
        call = of.call
        if call is None:
            call = mlx_answer.opened(self.recorder, asked, known)
        elif known is not None:
            identity.tell(call, known)
        if call is not None:
            call.drafts = of.drafts
        return call

    @never_raise("mlx_server.refused")
    def _refused(self, of: mlx_request.Request, error: BaseException) -> None:
        """The model could not be loaded or asked."""
        asked = of.taken()
        if asked is None:
            return
        call = of.call = of.call or mlx_answer.opened(self.recorder, asked)
        if call is not None:
            call.began(asked, perf_counter_ns(), None, self._loads)
            _fail(call, error)

    def _answered(self, of: mlx_request.Request, result: Any) -> Any:
        """Give what `ResponseGenerator.generate` gave, its tokens counted."""
        began_ns = perf_counter_ns()
        asked = of.taken()
        # What is no context and generator is the app's as it is.
        if asked is None or not isinstance(result, tuple) or len(result) != 2:  # noqa: PLR2004
            return result
        context, tokens = result
        if type(tokens) is not GeneratorType or type(context) is GeneratorType:
            return result

        def opened() -> mlx_answer.Answer | None:
            call = self._opened(of, asked)
            if call is not None:
                call.began(asked, began_ns, getattr(context, "prompt", None), self._loads)
            return call

        if of.handler is None:
            # Nobody tells when tokens that are never asked for are dropped.
            return context, _tokens(tokens, opened, context, ends=True)
        of.call = opened()
        return context, _tokens(tokens, lambda: of.call, context, ends=False)


_LOADING: Final = _Server._load.__code__


def _tokens(
    inner: Generator[Any, Any, Any],
    opened: Callable[[], mlx_answer.Answer | None],
    context: Any,
    *,
    ends: bool,
) -> Generator[Any, Any, Any]:
    """Pass the tokens on; nothing of one is kept. `ends`: the call is over when they are."""
    call = opened()
    del opened  # it holds what was asked
    if call is None:
        return (yield from inner)
    read = call.read
    try:
        for token in inner:
            read(token)
            if context is not None:
                call.read_context(context)
                context = None
            yield token
    except GeneratorExit:
        if ends:
            dropped.stop(call)
        raise
    except BaseException as error:
        _break_off(call, error)
        raise
    finally:
        inner.close()
    if ends:
        _end(call)
    return None


def _end(call: mlx_answer.Answer | None) -> None:
    """The answer is complete. Never raises."""
    if call is not None:
        call.gather()
        call.end()


@never_raise("mlx_server.fail")
def _fail(call: mlx_answer.Answer | None, error: BaseException) -> None:
    """The model could not be loaded or asked, or the server failed."""
    if call is not None:
        call.gather()
        code = failures.of_load(error) if _while_loading(error) else failures.of_call(error)
        call.fail(code or error)


def _while_loading(error: BaseException) -> bool:
    """Whether an error passed `ModelProvider.load`, before it was handed to this thread."""
    passed = error.__traceback__
    while passed is not None:
        if passed.tb_frame.f_code is _LOADING:
            return True
        passed = passed.tb_next
    return False


@never_raise("mlx_server.break_off")
def _break_off(call: mlx_answer.Answer | None, error: BaseException) -> None:
    """The answer broke off: the client went away, or something failed."""
    if call is not None and isinstance(error, ConnectionError):
        dropped.stop(call, perf_counter_ns())
    else:
        _fail(call, error)
