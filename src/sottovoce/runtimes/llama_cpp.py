"""llama-cpp-python in process: completions, chats, embeddings and loading become calls.

The outermost method of a `Llama` opens the call; what it calls of the same `Llama` only feeds
it, however many passes of the engine run inside (an automatic tool choice runs three).
``create_chat_completion_openai_v1`` only delegates, so it needs no hook.

Token counts are those of `Llama.generate`, summed over the passes: what the library reports
is absent from streams and covers the last pass only. A final end-of-generation token is not
part of the output. Prompt tokens that the first evaluation of a pass left out came from the
key-value cache. A prompt longer than the context fails with OpenAI's code for it,
``context_length_exceeded``.

Everything is patched on the class, so names that were bound earlier and subclasses are
served too. Seen in llama-cpp-python 0.3.0 and 0.3.36.
"""

from __future__ import annotations

import functools
from types import GeneratorType
from typing import TYPE_CHECKING, Any

from sottovoce.call import current_call
from sottovoce.guard import failed, never_raise
from sottovoce.protocols.openai_chat import OPENAI_CHAT
from sottovoce.protocols.openai_completions import OPENAI_COMPLETIONS
from sottovoce.runtimes import identity, llama_call, llama_models
from sottovoce.runtimes.engine import Arguments, Runtime, pass_on
from sottovoce.runtimes.llama_call import COMPLETION, LlamaCall

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from sottovoce.call import Facts, Recorder
    from sottovoce.guard import ImportHooks, Patches


def install(recorder: Recorder, hooks: ImportHooks, patches: Patches, settings: Any = None) -> None:
    """Patch llama-cpp-python when the app imports it, or at once if it already did.

    Args:
        recorder: what turns calls into telemetry.
        hooks: import hooks; once stopped, wrappers that the app still holds pass through.
        patches: keeps the originals for `Patches.undo`.
        settings: unused; instrumentors hand it to every runtime.
    """
    del settings

    def patch(module: ModuleType, late: bool) -> None:
        del late  # methods are looked up when they are called
        runtime = _LlamaCpp(llama_models.PROVIDER, recorder, hooks)
        runtime.library = module.llama_cpp
        runtime.is_end = getattr(module.llama_cpp, "llama_vocab_is_eog", None)
        # As 0.3.0 has it.
        runtime.is_models_end = getattr(module.llama_cpp, "llama_token_is_eog", None)
        for name, make in (
            # Hands its defaults on as if the app had asked for them, hence a hook of its own.
            ("__call__", runtime.create_completion),
            ("create_completion", runtime.create_completion),
            ("create_chat_completion", runtime.create_chat_completion),
            ("create_embedding", runtime.create_embedding),
            ("embed", runtime.embed),
            ("generate", runtime.generate),
            ("eval", runtime.eval),
            ("__init__", runtime.init),
            ("from_pretrained", runtime.from_pretrained),
            ("close", runtime.close),
        ):
            patches.wrap(module.Llama, name, make)

    hooks.when_imported("llama_cpp.llama", patch)


class _LlamaCpp(Runtime):
    """Makes the wrappers, which are methods of `Llama`."""

    library: ModuleType
    is_end: Callable[[Any, Any], bool] | None
    is_models_end: Callable[[Any, Any], bool] | None

    def create_completion(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `Llama.create_completion`."""
        return self._answer(original, COMPLETION, OPENAI_COMPLETIONS.request)

    def create_chat_completion(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `Llama.create_chat_completion`."""
        return self._answer(original, "chat", OPENAI_CHAT.request)

    def _answer(
        self,
        original: Callable[..., Any],
        operation: str,
        read_request: Callable[[dict[str, Any]], Facts],
    ) -> Callable[..., Any]:
        arguments = Arguments(original)

        @functools.wraps(original)
        def answer(*args: Any, **kwargs: Any) -> Any:
            if _inside(args):
                return original(*args, **kwargs)
            call = self._open(operation, arguments.named(args, kwargs), read_request)
            if call is None:
                result = original(*args, **kwargs)
                lazy = self.active and type(result) is GeneratorType
                return llama_call.unrecorded(result) if lazy else result
            # A completion that is a stream does nothing yet.
            lazy = call.stream and operation == COMPLETION
            result = self.run(call, original, args, kwargs, enter=not lazy)
            if call.stream and type(result) is GeneratorType:
                stream = pass_on(result, call, primed=True)
                # To its first yield, so that a stream that is never read ends its call too.
                next(stream)
                return stream
            call.read_answer(result)
            call.finish()
            return result

        return answer

    def create_embedding(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `Llama.create_embedding`, which counts tokens itself."""
        arguments = Arguments(original)

        @functools.wraps(original)
        def create_embedding(*args: Any, **kwargs: Any) -> Any:
            if _inside(args):
                return original(*args, **kwargs)
            named = arguments.named(args, kwargs)
            call = self._open("embeddings", named, _read_inputs)
            if call is None:
                return original(*args, **kwargs)
            result = self.run(call, original, args, kwargs)
            _read_embedding(call, result)
            call.finish()
            return result

        return create_embedding

    def embed(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `Llama.embed`: it is asked for its count, which the app gets if it asked too."""
        arguments = Arguments(original)
        can_count = "return_count" in arguments.names

        @functools.wraps(original)
        def embed(*args: Any, **kwargs: Any) -> Any:
            if _inside(args):
                return original(*args, **kwargs)
            named = arguments.named(args, kwargs)
            call = self._open("embeddings", named, _read_inputs)
            if call is None:
                return original(*args, **kwargs)
            add_count = can_count and "return_count" not in named
            if add_count:
                kwargs["return_count"] = True
            result = self.run(call, original, args, kwargs)
            _read_count(call, result, add_count or named.get("return_count"))
            call.finish()
            return result[0] if add_count else result

        return embed

    def generate(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `Llama.generate`, the engine itself: it counts for the call that runs.

        Called by the app, it is a stream of tokens and a call of its own.
        """

        @functools.wraps(original)
        def generate(*args: Any, **kwargs: Any) -> Any:
            inner = original(*args, **kwargs)
            if type(inner) is not GeneratorType or not self.active:
                return inner
            llama = args[0] if args else None
            prompt = llama_call.length(args[1] if len(args) > 1 else kwargs.get("tokens"))
            call = current_call.get()
            if type(call) is LlamaCall:
                if call.llama is llama:
                    return llama_call.count(inner, call, prompt)
                if call.serves(llama):
                    return inner

            opened: LlamaCall | None = None

            def open_call() -> LlamaCall | None:
                nonlocal opened
                opened = self._open(COMPLETION, {"self": llama, "stream": True})
                return opened

            return pass_on(llama_call.count(inner, lambda: opened, prompt), open_call)

        return generate

    def eval(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `Llama.eval`: what it evaluates of a prompt was not in the cache; guesses, too."""
        get_current = current_call.get

        def look(llama: Any, tokens: Any) -> None:
            call = get_current()
            if type(call) is LlamaCall and call.watched and call.llama is llama:
                call.evaluate(llama_call.length(tokens) or 0)

        if Arguments(original).names != ("self", "tokens"):

            @functools.wraps(original)
            def eval_with_more(*args: Any, **kwargs: Any) -> Any:
                look(args[0] if args else None, args[1] if len(args) > 1 else kwargs.get("tokens"))
                return original(*args, **kwargs)

            return eval_with_more

        # It runs for every token: written out, it costs half.
        @functools.wraps(original)
        def eval_(self: Any, tokens: Any) -> Any:
            call = get_current()
            if type(call) is LlamaCall and call.watched and call.llama is self:
                call.evaluate(llama_call.length(tokens) or 0)
            return original(self, tokens)

        return eval_

    def init(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `Llama.__init__`, which loads."""

        @functools.wraps(original)
        def __init__(*args: Any, **kwargs: Any) -> None:  # noqa: N807 - it is one
            self.load(
                original,
                args,
                kwargs,
                lambda _: self.identify(args[0]),
                functools.partial(llama_models.blame, kwargs),
            )

        return __init__

    def from_pretrained(self, original: Any) -> Callable[..., Any]:
        """Wrap `Llama.from_pretrained`, whose time includes a download."""
        # The bound method of `Llama`; a subclass must get itself.
        function = original.__func__
        arguments = Arguments(function)

        @functools.wraps(function)
        def from_pretrained(*args: Any, **kwargs: Any) -> Any:
            asked = identity.hub_id(arguments.named(args, kwargs).get("repo_id"))
            repository = llama_models.repository.set(asked)
            try:
                blame = functools.partial(llama_models.blame, kwargs)
                return self.load(function, args, kwargs, self.identify, blame)
            finally:
                llama_models.repository.reset(repository)

        return from_pretrained

    def close(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `Llama.close`, which `__del__` calls as well: it frees the model."""
        unloaded = never_raise("llama_cpp.close")(llama_models.LOADED.unloaded)

        @functools.wraps(original)
        def close(*args: Any, **kwargs: Any) -> Any:
            if args:
                unloaded(args[0])
            return original(*args, **kwargs)

        return close

    def identify(self, llama: Any) -> identity.Identity | None:
        """Describe a model. Never raises."""
        return llama_models.identify(llama, self.library)

    def _open(
        self,
        operation: str,
        named: dict[str, Any],
        read_request: Callable[[dict[str, Any]], Facts] | None = None,
    ) -> LlamaCall | None:
        """Open a call, if it is to be recorded. Never raises."""
        # Written out: `never_raise` costs a call more.
        try:
            if not self.recording or llama_call.unwanted.get():
                return None
            llama = named.get("self")
            facts: Facts = read_request(named) if read_request is not None else {}
            # Names nobody: the app's own word for the model, which answers repeat.
            facts.pop("request_model", None)
            if facts.get("request_max_tokens") == 0:
                del facts["request_max_tokens"]  # no limit
            # Opened last: what fails above must not leave a call behind that nobody ends.
            call = LlamaCall(
                self.recorder,
                operation,
                self.provider,
                llama_models.LOADED.get(llama) or self.identify(llama),
                bool(named.get("stream")),
                llama,
                self._ends,
                "request_tool_count" in facts,
            )
            call.facts.update(facts)
        except Exception:  # noqa: BLE001 - as it does
            failed("llama_cpp.open")
            return None
        return call

    def _ends(self, llama: Any, token: Any) -> bool:
        """Whether a token ends the generation. Never raises."""
        try:
            model = llama._model
            # The vocabulary of a closed model is freed.
            if model.model is None:
                return False
            if self.is_end is not None:
                return bool(self.is_end(model.vocab, token))
            return self.is_models_end is not None and bool(self.is_models_end(model.model, token))
        except Exception:  # noqa: BLE001 - as `never_raise` does
            failed("llama_cpp.end")
            return False


def _inside(args: tuple[Any, ...]) -> bool:
    """Whether a method was called by what a call of the same `Llama` runs."""
    call = current_call.get()
    return call is not None and type(call) is LlamaCall and bool(args) and call.serves(args[0])


def _read_inputs(named: dict[str, Any]) -> Facts:
    """Tell how many texts are embedded at once, where there may be several."""
    texts = named.get("input")
    return {"batch_size": len(texts)} if isinstance(texts, (list, tuple)) else {}


@never_raise("llama_cpp.embedding")
def _read_embedding(call: LlamaCall, result: Any) -> None:
    tokens = result["usage"]["prompt_tokens"]
    if type(tokens) is int:
        call.facts["input_tokens"] = tokens


@never_raise("llama_cpp.count")
def _read_count(call: LlamaCall, result: Any, counted: object) -> None:
    if counted and type(result[1]) is int:
        call.facts["input_tokens"] = result[1]
