"""Who an MLX model is: what its own modules and its configuration tell, no file is read.

Seen in mlx-lm 0.28.0 to 0.32.2 with mlx 0.29 to 0.32.
"""

from __future__ import annotations

import functools
from collections import Counter
from contextlib import nullcontext
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from sottovoce.guard import never_raise
from sottovoce.runtimes import identity
from sottovoce.runtimes.engine import Arguments

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from sottovoce.runtimes.engine import Runtime

PROVIDER: Final = "mlx"

models: Final = identity.Identities(PROVIDER)
"""Identities of the models that are loaded in this process."""

_FLOATS: Final = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
_ASKED: Final = ("path_or_hf_repo", "repo", "model_path")
_CONTEXT: Final = "max_position_embeddings"

waiting: ContextVar[AbstractContextManager[Any] | None] = ContextVar(
    "sottovoce_mlx_waiting", default=None
)
"""In what a load here happens: the call that waits for it. Set and reset in one frame."""

_NOBODY: Final = nullcontext()

_context: ContextVar[list[int] | None] = ContextVar("sottovoce_mlx_context", default=None)
"""Where a loader inside a loader leaves the context length: only the inner one sees the
configuration. Set and reset in one frame."""


def loader(runtime: Runtime, original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a loader, which returns the model first: remember who was loaded."""
    arguments = Arguments(original)

    @functools.wraps(original)
    def load(*args: Any, **kwargs: Any) -> Any:
        named = arguments.named(args, kwargs)
        # Before the call: a download can make what looks like a hub id exist here too.
        asked = next((identity.hub_id(named[name]) for name in _ASKED if name in named), None)
        adapted = named.get("adapter_path") is not None
        seen = _context.get()
        inner = _context.set([]) if seen is None else None
        try:
            with waiting.get() or _NOBODY:
                result = runtime.load(
                    original, args, kwargs, lambda result: _remember(result, asked, adapted)
                )
            if seen is not None:
                _leave_context(result, seen)
            return result
        finally:
            if inner is not None:
                _context.reset(inner)

    return load


def adapter(adapted: bool, original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap what puts an adapter on a loaded model, or takes it off: who it is changes."""
    arguments = Arguments(original)

    @never_raise("mlx.adapter")
    def note(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        model = arguments.named(args, kwargs).get("model")
        before = models.get(model)
        if before is not None:
            models.put(model, replace(before, facts={**before.facts, "model_adapter": adapted}))

    @functools.wraps(original)
    def adapt(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        note(args, kwargs)
        return result

    return adapt


def known(model: Any, tokenizer: Any = None) -> identity.Identity | None:
    """Give the identity of `model`, also of one that was loaded before we were here."""
    found = models.get(model)
    if found is None and hasattr(model, "modules"):
        found = _late(model, tokenizer)
    return found


def _parts(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


@never_raise("mlx.context")
def _leave_context(result: Any, seen: list[int]) -> None:
    length = _context_length(*_parts(result)[1:])
    if length is not None:
        seen.append(length)


@never_raise("mlx.remember")
def _remember(result: Any, public_id: str | None, adapted: bool) -> identity.Identity | None:
    """Identify the model that a loader returned, alone or first in a tuple."""
    # Last in the tuple is the configuration, where the loader gives it.
    model, *rest = _parts(result)
    length = _context_length(*rest)
    found = _identify(model, public_id, length or next(iter(_context.get() or ()), None), adapted)
    models.put(model, found)
    return found


@never_raise("mlx.late")
def _late(model: Any, tokenizer: Any) -> identity.Identity | None:
    public_id = identity.snapshot_id(getattr(tokenizer, "name_or_path", None))
    found = _identify(model, public_id, None, False)
    models.put(model, found)
    return found


def _identify(
    model: Any, public_id: str | None, context: int | None, adapted: bool
) -> identity.Identity:
    # A type that mlx-lm serves with another's code (mistral with llama) may be in no
    # vocabulary; the module that holds the code is.
    configured = getattr(model, "args", None) or getattr(model, "config", None)
    # mlx_lm.models.llama, mlx_vlm.models.qwen2_vl.qwen2_vl, mlx_whisper.whisper
    code = type(model).__module__.partition(".models.")[2] or type(model).__module__
    architecture = identity.architecture(
        getattr(model, "model_type", None),
        getattr(configured, "model_type", None),
        code.partition(".")[0],
        code.rpartition(".")[2],
    )
    parameters = size = 0
    weights: Counter[str] = Counter()
    for module in model.modules():
        # LoRA and DoRA layers alike wrap the layer that they adapt.
        adapted = adapted or "lora_a" in module
        # A quantised layer packs its weights into 32-bit words, with scales beside them.
        bits = getattr(module, "bits", None)
        packed = isinstance(bits, int) and "scales" in module
        for name, array in module.items():
            if name.startswith("_") or not hasattr(array, "dtype"):
                continue
            # Neither asks for the array's values, which a lazy load has not read.
            count = array.size
            size += array.nbytes
            if packed and name in {"scales", "biases"}:
                continue
            if packed and name == "weight":
                count = count * 32 // bits
                mode = getattr(module, "mode", "affine")
                weights[f"{bits}bit" if mode == "affine" else str(mode)] += count
            else:
                dtype = str(array.dtype).rpartition(".")[2]
                weights[_FLOATS.get(dtype, identity.OTHER)] += count
            parameters += count
    # Mixed models are named by what most of their weights are.
    most = weights.most_common(1)
    quantization = most[0][0] if most else None
    found = identity.describe(
        public_id, architecture, quantization, parameters, size=size, adapted=adapted
    )
    context = context or _context_length(configured)
    if context is not None:
        found.facts["context_size"] = context
    return found


def _context_length(*configurations: Any) -> int | None:
    """Give the first context length that a configuration or its text part tells, in tokens."""
    for configuration in configurations:
        for part in (configuration, _setting(configuration, "text_config")):
            length = _setting(part, _CONTEXT)
            if type(length) is int and length > 0:
                return length
    return None


def _setting(configuration: Any, name: str) -> Any:
    if isinstance(configuration, dict):
        return configuration.get(name)
    return getattr(configuration, name, None)
