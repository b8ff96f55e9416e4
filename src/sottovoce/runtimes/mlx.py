"""mlx-lm in process: `load`, `generate` and `stream_generate` become calls.

One call for one generation. `generate` loops over `stream_generate` inside mlx-lm: the outer
function opens the call and the inner one only feeds it. A stream's call is opened when the
app asks for the first token, because mlx-lm does nothing before that and a stream that is
never started would otherwise never end.

The operation is ``text_completion``: mlx-lm takes a finished prompt, as text or tokens, and
whether a chat template made it cannot be known. The conventions' ``chat`` is for messages.

Token counts are the engine's own, one response for each token, so they are exact for streams
that were abandoned or failed. The end-of-sequence token that mlx-lm counts on ``stop`` is not
part of the output (llama-cpp-python does not count it either), prompt tokens that came from a
prompt cache are part of the input.

Seen in mlx-lm 0.31.3 and 0.32.2. The package's attribute ``mlx_lm.generate`` is a function
that shadows the module of that name, so patches go to module *objects*.
"""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Final

from sottovoce.call import current_call
from sottovoce.guard import failed, never_raise
from sottovoce.runtimes import identity
from sottovoce.runtimes.engine import Arguments, EngineCall, Runtime, pass_on

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping
    from types import ModuleType

    from sottovoce.call import Recorder
    from sottovoce.guard import ImportHooks, Patches

PROVIDER: Final = "mlx"
OPERATION: Final = "text_completion"

_FLOATS: Final = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}

models: Final = identity.Identities()
"""Identities of the models that are loaded in this process."""


def install(recorder: Recorder, hooks: ImportHooks, patches: Patches, settings: Any = None) -> None:
    """Patch mlx-lm when the app imports it, or at once if it already did.

    Args:
        recorder: what turns calls into telemetry.
        hooks: import hooks; once stopped, wrappers that the app still holds pass through.
        patches: keeps the originals for `Patches.undo`.
        settings: unused; instrumentors hand it to every runtime.
    """
    del settings
    engine = _Mlx(PROVIDER, recorder, hooks)

    def patch(module: ModuleType, late: bool, makers: Mapping[str, Callable[[Any], Any]]) -> None:
        for name, make in makers.items():
            patches.wrap(module, name, make)
        if late:
            patches.rebind()

    loaders = {
        "load": engine.load_model,
        "sharded_load": engine.load_model,
        "load_model": engine.load_model,
    }
    generators = {"stream_generate": engine.stream_generate, "generate": engine.generate}
    hooks.when_imported("mlx_lm.utils", lambda module, late: patch(module, late, loaders))
    hooks.when_imported("mlx_lm.generate", lambda module, late: patch(module, late, generators))


class _Generation(EngineCall):
    """One generation: the engine's counts as the latest response has them."""

    __slots__ = ("cached", "fed", "prompt", "reason")

    # Prompt tokens that a prompt cache held before, which mlx-lm does not count.
    cached: int
    # Whether the stream inside `generate` is found.
    fed: bool
    prompt: Any
    reason: Any

    def read(self, piece: Any) -> None:
        self.made = piece.generation_tokens
        self.reason = piece.finish_reason
        if not self.first_ns:
            self.first_ns = self.busy_ns or perf_counter_ns() - self.started_ns
            self.prompt = piece.prompt_tokens

    def settle(self) -> None:
        facts = self.facts
        if type(self.prompt) is int:
            facts["input_tokens"] = self.prompt + self.cached
            if self.cached:
                facts["cache_read_tokens"] = self.cached
        if isinstance(self.reason, str):
            facts["finish_reasons"] = [self.reason]
        if self.first_ns and type(self.made) is int:
            facts["output_tokens"] = max(0, self.made - (self.reason == "stop"))


class _Mlx(Runtime):
    """Makes the wrappers."""

    def stream_generate(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `mlx_lm.generate.stream_generate`; the result stays a generator."""
        arguments = Arguments(original)

        @functools.wraps(original)
        def stream_generate(*args: Any, **kwargs: Any) -> Any:
            # Making the generator runs nothing of it, but raises what a bad call should raise.
            inner = original(*args, **kwargs)
            if not self.active or not inspect.isgenerator(inner):
                return inner
            whole = current_call.get()
            if type(whole) is _Generation and not whole.stream and not whole.fed:
                whole.fed = True
                return _feed(inner, whole)
            return _stream(inner, lambda: self._open(arguments, args, kwargs, stream=True))

        return stream_generate

    def generate(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `mlx_lm.generate.generate`: one call whose inner stream only feeds it."""
        arguments = Arguments(original)

        @functools.wraps(original)
        def generate(*args: Any, **kwargs: Any) -> Any:
            call = self._open(arguments, args, kwargs, stream=False)
            if call is None:
                return original(*args, **kwargs)
            text = self.run(call, original, args, kwargs)
            call.finish()
            return text

        return generate

    def load_model(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a loader, which returns the model first: remember who was loaded."""
        arguments = Arguments(original)

        @functools.wraps(original)
        def load(*args: Any, **kwargs: Any) -> Any:
            # Before the call: a download can make what looks like a hub id exist here too.
            asked = _asked_for(arguments.named(args, kwargs))
            return self.load(original, args, kwargs, lambda result: _remember(result, asked))

        return load

    @never_raise("mlx.open")
    def _open(
        self,
        arguments: Arguments,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        stream: bool,
    ) -> _Generation | None:
        if not self.recording:
            return None
        named = arguments.named(args, kwargs)
        model, limit = named.get("model"), named.get("max_tokens")
        known = models.get(model) or _late_identity(model, named.get("tokenizer"))
        cached = _cached_tokens(named.get("prompt_cache"))
        # Opened last: what fails above must not leave a call behind that nobody ends.
        call = _Generation(
            self.recorder,
            operation=OPERATION,
            provider=PROVIDER,
            identity=known,
            stream=stream,
        )
        call.cached = cached or 0
        call.fed = False
        call.prompt = call.reason = None
        # -1 asks for no limit.
        if type(limit) is int and limit > 0:
            call.facts["request_max_tokens"] = limit
        return call


def _stream(
    inner: Generator[Any, Any, Any], open_call: Callable[[], _Generation | None]
) -> Generator[Any, Any, Any]:
    """Pass a stream on; its call is open from the first `next` until the stream is over."""
    call = open_call()
    del open_call  # it holds the arguments
    if call is None:
        return (yield from inner)
    return (yield from pass_on(inner, call))


def _feed(inner: Generator[Any, Any, Any], call: _Generation) -> Generator[Any, Any, Any]:
    """Pass on the stream inside `generate`, which reads it without a pause."""
    try:
        for response in inner:
            try:
                call.read(response)
            except Exception:  # noqa: BLE001 - a response of another shape is the app's all the same
                failed("runtime.read")
            yield response
    finally:
        inner.close()


def _asked_for(named: dict[str, Any]) -> str | None:
    for name in ("path_or_hf_repo", "repo", "model_path"):
        if name in named:
            return identity.hub_id(named[name])
    return None


@never_raise("mlx.remember")
def _remember(result: Any, public_id: str | None) -> identity.Identity | None:
    """Identify the model that a loader returned, first in its tuple."""
    model = result[0]
    known = _identify(model, public_id)
    models.put(model, known)
    return known


@never_raise("mlx.late")
def _late_identity(model: Any, tokenizer: Any) -> identity.Identity | None:
    """Identify a model that was loaded before we were here, once."""
    public_id = identity.snapshot_id(getattr(tokenizer, "name_or_path", None))
    known = _identify(model, public_id)
    models.put(model, known)
    return known


def _identify(model: Any, public_id: str | None) -> identity.Identity:
    """Describe a model by its own modules: no file is read."""
    # A type that mlx-lm serves with another's code (mistral with llama) may be in no
    # vocabulary; the module that holds the code is.
    architecture = identity.architecture(
        getattr(model, "model_type", None),
        getattr(getattr(model, "args", None), "model_type", None),
        type(model).__module__.removeprefix("mlx_lm.models."),
    )
    parameters = 0
    weights: Counter[str] = Counter()
    for module in model.modules():
        # A quantised layer packs its weights into 32-bit words, with scales beside them.
        bits = getattr(module, "bits", None)
        packed = isinstance(bits, int) and "scales" in module
        for name, array in module.items():
            if name.startswith("_") or not hasattr(array, "dtype"):
                continue
            if packed and name in {"scales", "biases"}:
                continue
            size = array.size
            if packed and name == "weight":
                size = size * 32 // bits
                mode = getattr(module, "mode", "affine")
                weights[f"{bits}bit" if mode == "affine" else str(mode)] += size
            else:
                dtype = str(array.dtype).rpartition(".")[2]
                weights[_FLOATS.get(dtype, identity.OTHER)] += size
            parameters += size
    # Mixed models are named by what most of their weights are.
    most = weights.most_common(1)
    return identity.describe(public_id, architecture, most[0][0] if most else None, parameters)


@never_raise("mlx.cache")
def _cached_tokens(prompt_cache: Any) -> int:
    """Tokens that a prompt cache already holds: mlx-lm's prompt count leaves them out."""
    if not isinstance(prompt_cache, (list, tuple)):
        return 0
    offsets = (getattr(layer, "offset", 0) for layer in prompt_cache)
    return max((offset for offset in offsets if type(offset) is int), default=0)
