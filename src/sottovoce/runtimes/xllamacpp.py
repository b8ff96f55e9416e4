"""xllamacpp in process: what llama.cpp's own server is asked without HTTP becomes calls.

Requests and answers are those of the server's routes, as dicts or as JSON, so the protocols of
these routes read them; streams come piece by piece to a function of the app's, in the thread that
asked. An answer tells its counts and the engine's own times. A model has the path of its file as
its name, there and in every answer: it is described by the head of that file instead; of a server
that was made before we were here by the first answer of each call.

Methods are patched on the class. Loading happens in ``Server.__new__``, which cannot be replaced
on a type that is not Python's, so `Server` itself becomes a subclass that differs in nothing else;
where the app had the class already, it stays, and loads are not seen. Seen in xllamacpp
2026.10.11549.
"""

from __future__ import annotations

import functools
import json
import sys
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Final

from sottovoce.guard import failed, let_through, never_raise
from sottovoce.protocols.bodies import request_facts
from sottovoce.protocols.checks import checked
from sottovoce.protocols.cohere import RERANK
from sottovoce.protocols.openai_chat import OPENAI_CHAT
from sottovoce.protocols.openai_completions import OPENAI_COMPLETIONS
from sottovoce.protocols.openai_embeddings import OPENAI_EMBEDDINGS
from sottovoce.protocols.protocol import Seen, error_code
from sottovoce.runtimes import failures, xllamacpp_models
from sottovoce.runtimes.engine import Arguments, EngineCall, Runtime
from sottovoce.runtimes.identity import tell

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from sottovoce.call import Recorder
    from sottovoce.guard import ImportHooks, Patches
    from sottovoce.protocols.protocol import Protocol
    from sottovoce.runtimes.identity import Identity

_METHODS: Final = (
    ("handle_chat_completions", "chat", OPENAI_CHAT),
    ("handle_completions", "text_completion", OPENAI_COMPLETIONS),
    ("handle_embeddings", "embeddings", OPENAI_EMBEDDINGS),
    ("handle_rerank", "rerank", RERANK),
)
"""Method of `Server`, operation, what it is asked and answers in."""

_CODES: Final = {"exceed_context_size_error": failures.CONTEXT}
"""The server's types of errors that have a code of ours."""

_MS: Final = 1e6
"""Nanoseconds in a millisecond."""


def install(recorder: Recorder, hooks: ImportHooks, patches: Patches, settings: Any = None) -> None:
    """Patch xllamacpp when the app imports it, or at once if it already did.

    Arguments as in `llama_cpp.install`.
    """
    del settings

    def patch(module: ModuleType, _late: bool) -> None:
        runtime = _XLlamaCpp(xllamacpp_models.PROVIDER, recorder, hooks)
        runtime.library = module
        for name, operation, protocol in _METHODS:
            make = functools.partial(runtime.handle, operation, protocol)
            patches.wrap(module.Server, name, make)
        package = sys.modules.get(module.__name__.partition(".")[0])
        if not hasattr(package, "Server"):
            # Else somebody may have made one, which must stay an instance of what the name means.
            patches.wrap(module, "Server", runtime.server)

    hooks.when_imported("xllamacpp.xllamacpp", patch)


class _ServerCall(EngineCall):
    """A request that a server in this process answers."""

    __slots__ = ("failure", "nameless", "protocol", "seen", "stopped")

    def __init__(self, protocol: Protocol, recorder: Recorder, **opened: Any) -> None:
        self.protocol = protocol
        self.seen = Seen()
        # What the answer says went wrong; whether the app wanted no more of the stream.
        self.failure: str | None = None
        self.stopped = False
        # Whether the answer's model is the only one who says whose it is.
        self.nameless = False
        super().__init__(recorder, **opened)

    def read(self, piece: Any) -> None:
        """Learn from what the app's function is given: the answer, or an event of its stream."""
        if not isinstance(piece, dict):
            text = piece.encode() if isinstance(piece, str) else piece
            if (
                self.stream
                and not self.nameless
                and self.protocol.may_hold_fact.search(text) is None
            ):
                return
            piece = json.loads(text)
        if type(piece) is not dict:
            return
        self.failure = self.failure or _failure(piece)
        if self.stream:
            facts = checked(self.protocol.event(piece, self.seen))
        else:
            facts = self.protocol.response(piece)
        # The file's path, unless the app gave it a name.
        named = facts.pop("response_model", None)
        if self.nameless and named is not None:
            self.nameless = False
            known = xllamacpp_models.of_file(named)
            if known is not None:
                tell(self, known)
        self.facts.update(facts)
        self._read_times(piece.get("timings"))

    def _read_times(self, timings: Any) -> None:
        """Take the engine's own times: ours have the wait for other requests in them."""
        if type(timings) is not dict or "output_tokens" not in self.facts:
            return
        first, rest = timings.get("prompt_ms"), timings.get("predicted_ms")
        made = self.facts["output_tokens"]
        if isinstance(first, float) and first > 0:
            self.first_ns = self.first_ns or int(first * _MS)
        if isinstance(rest, float) and rest >= 0 and made > 1:
            self.facts["time_per_output_token_s"] = rest / 1000 / (made - 1)

    def worked(self) -> None:
        """The engine worked until now."""
        now = perf_counter_ns()
        self.busy_ns += now - self.started_ns
        self.started_ns = now

    def over(self) -> None:
        """The method returned. Never raises."""
        if self.failure is not None:
            self.gather()
            self.fail(self.failure)
        elif self.stopped:
            self.leave()
        else:
            self.finish()


def _may_tell(piece: dict[str, Any]) -> bool:
    """Whether an event holds a fact: nearly all hold a word of one choice and nothing else."""
    try:
        choice = piece["choices"][0]
        return (
            choice["finish_reason"] is not None
            or "usage" in piece
            or "tool_calls" in choice.get("delta", ())
        )
    except Exception:  # noqa: BLE001 - another shape, an error for one
        let_through()
        return True


def _failure(answer: dict[str, Any]) -> str | None:
    error = answer.get("error")
    if type(error) is not dict:
        return error_code() if error else None
    kind = error.get("type")
    known = _CODES.get(kind) if isinstance(kind, str) else None
    return known or error_code(kind, error.get("code"))


class _XLlamaCpp(Runtime):
    """Makes the wrappers."""

    library: ModuleType

    def server(self, original: type) -> type:
        """Make the subclass of `Server` whose loads are seen."""

        def __new__(cls: type, *args: Any, **kwargs: Any) -> Any:  # noqa: N807 - it is one
            asked = xllamacpp_models.asked.set(args[0] if args else None)
            try:
                return self.load(
                    original.__new__, (cls, *args), kwargs, self._identify, self._blame
                )
            finally:
                xllamacpp_models.asked.reset(asked)

        own = {name: getattr(original, name) for name in ("__doc__", "__module__")}
        own |= {"__new__": __new__, "__slots__": ("__weakref__",)}
        return type(original)(original.__name__, (original,), own)

    def _identify(self, server: Any) -> Identity | None:
        return xllamacpp_models.identify(server, self.library)

    def _blame(self, error: BaseException) -> str | None:
        # One and the same for every reason.
        told = xllamacpp_models.blame(self.library) if type(error) is RuntimeError else None
        return told or failures.of_load(error)

    def handle(
        self, operation: str, protocol: Protocol, original: Callable[..., Any]
    ) -> Callable[..., Any]:
        """Wrap a method of `Server` that answers one request."""
        arguments = Arguments(original)

        @functools.wraps(original, updated=())
        def handle(*args: Any, **kwargs: Any) -> Any:
            named = arguments.named(args, kwargs)
            call = self._open(operation, protocol, named.get("self"), named.get("prompt"))
            if call is None:
                return original(*args, **kwargs)
            callback = named.get("callback")
            if callback is not None:
                told = _told(call, callback)
                args = tuple(told if each is callback else each for each in args)
                if "callback" in kwargs:
                    kwargs["callback"] = told
            result = _run(call, original, args, kwargs)
            if callback is None:
                _read(call, result)
            call.over()
            return result

        return handle

    @never_raise("xllamacpp.open")
    def _open(
        self, operation: str, protocol: Protocol, server: Any, prompt: Any
    ) -> _ServerCall | None:
        if not self.recording:
            return None
        if isinstance(prompt, dict):
            facts = protocol.request(prompt)
            texts = prompt.get("input")
        else:
            facts = request_facts(protocol, prompt.encode() if isinstance(prompt, str) else prompt)
            texts = None
        # The app's own word, which chooses nothing.
        named = facts.pop("request_model", None)
        if operation == "embeddings" and isinstance(texts, (list, tuple)):
            facts["batch_size"] = len(texts)
        known = xllamacpp_models.LOADED.get(server)
        call = _ServerCall(
            protocol,
            self.recorder,
            operation=operation,
            provider=self.provider,
            identity=known,
            stream=facts.get("request_stream") is True,
        )
        call.facts.update(facts)
        # Else the answer may repeat that word.
        call.nameless = known is None and named is None
        return call


def _run(
    call: _ServerCall, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Run what the app called; `call` is never current: of Python only the app's function runs."""
    call.started_ns = perf_counter_ns()
    try:
        return function(*args, **kwargs)
    except BaseException as error:
        call.worked()
        call.finish(error)
        raise
    finally:
        call.worked()


def _told(call: _ServerCall, callback: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Give the app's function what it is told, and learn from it; what it does is not the engine."""
    streamed, chunk = call.stream, call.chunk

    def told(piece: Any) -> Any:
        if streamed:
            chunk()
            call.busy_ns += call.last_chunk_ns - call.started_ns
            if not call.first_ns:
                call.first_ns = call.busy_ns
            if call.nameless or type(piece) is not dict or _may_tell(piece):
                _read(call, piece)
        else:
            call.worked()
            _read(call, piece)
        try:
            stop = callback(piece)
            if stop:
                call.stopped = True
            return stop
        finally:
            call.started_ns = perf_counter_ns()

    return told


def _read(call: _ServerCall, piece: Any) -> None:
    try:
        call.read(piece)
    except Exception:  # noqa: BLE001 - an answer of another shape is the app's all the same
        failed("xllamacpp.read")
