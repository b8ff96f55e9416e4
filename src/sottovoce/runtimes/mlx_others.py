"""mlx-vlm, mlx-embeddings and mlx-whisper: what mlx-lm's relatives do becomes calls as well.

======================================== ====================================================
`mlx_vlm`: `generate`, `stream_generate` ``text_completion``, one call, as in `mlx.py`
`mlx_vlm`: `batch_generate`              the same for many prompts, one call
`mlx_embeddings`: `generate`             ``embeddings``; the result is lazy, so the time is that
                                         of asking, unless mlx-embeddings has to compute
`mlx_whisper`: `transcribe`              ``generate_content``, the model loaded in it included
======================================== ====================================================

Prompts, pictures, sounds and texts are never looked at. What they load is told like what
mlx-lm loads. mlx-vlm's server is in `mlx_vlm_server.py`; its `BatchGenerator` in an app's own
hands, and what makes pictures and sounds, are not seen.

Seen in mlx-vlm 0.7.10, mlx-embeddings 0.1.0 and mlx-whisper 0.4.3. The functions shadow their
modules' names, as in mlx-lm; in older versions `mlx_vlm.generate` is one module.
"""

from __future__ import annotations

import functools
from collections import Counter
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Final

from sottovoce.call import current_call
from sottovoce.guard import failed, never_raise
from sottovoce.runtimes import identity, mlx_generate, mlx_models
from sottovoce.runtimes.engine import Arguments
from sottovoce.runtimes.mlx_cache import EMPTY
from sottovoce.runtimes.mlx_call import GB, Generation, MlxCall

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType

    from sottovoce.guard import Patches
    from sottovoce.runtimes.engine import Runtime

_SETTINGS: Final = ("temperature", "top_p", "top_k")


def install(runtime: Runtime, module: ModuleType, patches: Patches) -> None:
    """Patch one of the modules that `MODULES` names; what it does not have is left alone."""
    for name, wrap in MODULES.get(module.__name__, {}).items():
        patches.wrap(module, name, functools.partial(wrap, runtime, module))
    generator = getattr(module, "BatchGenerator", None)
    if module.__name__ == "mlx_vlm.generate.ar" and isinstance(generator, type):
        patches.wrap(generator, "next", _step)


class Seeing(Generation):
    """A generation of mlx-vlm, which counts cached tokens itself."""

    __slots__ = ()

    def read(self, piece: Any) -> None:
        """Take the counts of a response; one that shows how a draft looks so far has none."""
        if getattr(piece, "is_draft", False):
            return
        self.made = piece.generation_tokens
        # Older versions tell no reason and no cached tokens.
        self.reason = getattr(piece, "finish_reason", None)
        if not self.first_ns:
            self.first_ns = self.busy_ns or perf_counter_ns() - self.started_ns
            cached = getattr(piece, "cached_tokens", 0)
            self.cached = cached if type(cached) is int else 0
            # Cached tokens are part of the prompt here.
            self.prompt = piece.prompt_tokens - self.cached
        if self.reason is not None:
            self.peak = piece.peak_memory * GB


class Whole(MlxCall):
    """A call whose result comes at once."""

    __slots__ = ()


class Group(Whole):
    """A call of mlx-vlm for many prompts: its generators, one after the other, feed it."""

    __slots__ = ("reasons",)

    def __init__(self, runtime: Runtime, **known: Any) -> None:
        self.reasons: Counter[str] = Counter()
        super().__init__(runtime, **known)

    def read(self, piece: Any) -> None:
        """Count the tokens of a step; may raise."""
        _, responses = piece
        for response in responses:
            self.made += 1
            if isinstance(response.finish_reason, str):
                self.reasons[response.finish_reason] += 1
        if responses and not self.first_ns:
            self.first_ns = perf_counter_ns() - self.started_ns

    def settle(self) -> None:
        """Write what all sequences add up to."""
        super().settle()
        # Which sequence waited how long, nobody knows.
        self.facts.pop("time_per_output_token_s", None)
        if self.first_ns:
            self.facts["output_tokens"] = self.made - self.reasons["stop"]


def _plain(named: Mapping[str, Any]) -> Any:
    """Give the sampling parameters that are arguments here."""
    facts: dict[str, Any] = {}
    for name in _SETTINGS:
        value = named.get(name)
        if type(value) is int or (type(value) is float and name != "top_k"):
            facts[f"request_{name}"] = value if name == "top_k" else float(value)
    return facts


def _see(runtime: Runtime, named: dict[str, Any], stream: bool) -> Generation:
    call = Seeing(
        runtime,
        identity=mlx_models.known(named.get("model"), named.get("processor")),
        stream=stream,
        held=EMPTY,
        asked=named,
    )
    call.facts.update(_plain(named))
    return call


def _stream(runtime: Runtime, _: ModuleType, original: Callable[..., Any]) -> Callable[..., Any]:
    begin = functools.partial(_see, runtime)
    return mlx_generate.stream_generate(runtime, begin, original)


def _generate(runtime: Runtime, _: ModuleType, original: Callable[..., Any]) -> Callable[..., Any]:
    return mlx_generate.generate(runtime, functools.partial(_see, runtime), original)


def _load(runtime: Runtime, _: ModuleType, original: Callable[..., Any]) -> Callable[..., Any]:
    return mlx_models.loader(runtime, original)


def _embed(runtime: Runtime, _: ModuleType, original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `mlx_embeddings.utils.generate`."""

    def begin(named: dict[str, Any]) -> Whole:
        texts = named.get("texts")
        call = Whole(
            runtime,
            operation="embeddings",
            identity=mlx_models.known(named.get("model"), named.get("processor")),
            stream=False,
            held=EMPTY,
            asked={},
        )
        if isinstance(texts, (list, tuple)):
            call.facts["batch_size"] = len(texts)
        return call

    return _whole(runtime, original, begin)


def _count(runtime: Runtime, _: ModuleType, original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap what makes tokens of texts: of one text they are as many as the array is long."""

    @never_raise("mlx.count")
    def count(made: Any) -> None:
        call = current_call.get()
        size = getattr(made, "size", None)
        if isinstance(call, Whole) and type(size) is int and "batch_size" not in call.facts:
            call.facts["input_tokens"] = size

    @functools.wraps(original)
    def prepare_inputs(*args: Any, **kwargs: Any) -> Any:
        made = original(*args, **kwargs)
        if runtime.active:
            count(made)
        return made

    return prepare_inputs


def _transcribe(
    runtime: Runtime, module: ModuleType, original: Callable[..., Any]
) -> Callable[..., Any]:
    """Wrap `mlx_whisper.transcribe.transcribe`, which keeps the model that it used last."""

    def held() -> Any:
        return getattr(module, "ModelHolder", None)

    def begin(named: dict[str, Any]) -> Whole:
        path = named.get("path_or_hf_repo", _default(original, "path_or_hf_repo"))
        holder = held()
        known = None
        if path is not None and getattr(holder, "model_path", None) == path:
            known = mlx_models.known(holder.model)
        call = Whole(
            runtime,
            operation="generate_content",
            identity=known or identity.describe(identity.hub_id(path), "whisper", None, None),
            stream=False,
            held=EMPTY,
            asked={},
        )
        call.facts["output_type"] = "text"
        call.facts.update(_plain(named))
        return call

    def learn(call: Whole, result: Any) -> None:
        known = mlx_models.known(getattr(held(), "model", None))
        if known is not None:
            call.facts.update(known.facts)
        segments = result["segments"]
        call.facts["output_tokens"] = sum(len(segment["tokens"]) for segment in segments)

    return _whole(runtime, original, begin, learn)


def _batch(runtime: Runtime, _: ModuleType, original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `mlx_vlm.generate.ar.batch_generate`."""

    def begin(named: dict[str, Any]) -> Whole:
        prompts = named.get("prompts")
        call = Group(
            runtime,
            identity=mlx_models.known(named.get("model"), named.get("processor")),
            stream=False,
            held=EMPTY,
            asked=named,
        )
        if isinstance(prompts, (list, tuple)):
            call.facts["batch_size"] = len(prompts)
        call.facts.update(_plain(named))
        return call

    def learn(call: Whole, result: Any) -> None:
        stats = result.stats
        if type(stats.prompt_tokens) is int:
            call.count_input(stats.prompt_tokens)
        if stats.prompt_tps > 0:
            call.facts["prefill_rate"] = stats.prompt_tps
        if stats.generation_tps > 0:
            call.facts["decode_rate"] = stats.generation_tps
        call.peak = stats.peak_memory * GB

    return _whole(runtime, original, begin, learn)


def _step(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `BatchGenerator.next`, which works for a whole call here."""

    @functools.wraps(original)
    def step(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        group = current_call.get()
        if isinstance(group, Group):
            try:
                group.read(result)
            except Exception:  # noqa: BLE001 - responses of another shape are the app's all the same
                failed("runtime.read")
        return result

    return step


def _whole(
    runtime: Runtime,
    original: Callable[..., Any],
    begin: Callable[[dict[str, Any]], Whole],
    learn: Callable[[Whole, Any], None] | None = None,
) -> Callable[..., Any]:
    """Wrap a function whose result comes at once."""
    arguments = Arguments(original)
    opened = never_raise("mlx.open")(begin)
    learnt = never_raise("mlx.learn")(learn) if learn is not None else None

    @functools.wraps(original)
    def whole(*args: Any, **kwargs: Any) -> Any:
        call = opened(arguments.named(args, kwargs)) if runtime.recording else None
        if call is None:
            return original(*args, **kwargs)
        result = runtime.run(call, original, args, kwargs)
        if learnt is not None:
            learnt(call, result)
        call.finish()
        return result

    return whole


def _default(function: Callable[..., Any], name: str) -> Any:
    return (getattr(function, "__kwdefaults__", None) or {}).get(name)


_GENERATE: Final = {"stream_generate": _stream, "generate": _generate}

MODULES: Final[
    Mapping[str, Mapping[str, Callable[[Runtime, ModuleType, Callable[..., Any]], Any]]]
] = {
    "mlx_vlm.utils": {"load": _load, "sharded_load": _load},
    "mlx_vlm.generate.dispatch": _GENERATE,
    "mlx_vlm.generate": _GENERATE,
    "mlx_vlm.generate.ar": {"batch_generate": _batch},
    "mlx_embeddings.utils": {"load": _load, "prepare_inputs": _count, "generate": _embed},
    "mlx_whisper.load_models": {"load_model": _load},
    "mlx_whisper.transcribe": {"transcribe": _transcribe},
}
"""Module → its functions, and what wraps each."""
