"""Who a loaded `Llama` is: what the file says of its tensors, and what holds them.

Titles and file names are user-typed and never read. Seen in llama-cpp-python 0.3.36.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from sottovoce.guard import never_raise
from sottovoce.runtimes import failures, identity

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

PROVIDER: Final = "llama_cpp"

FILE_TYPES: Final = {
    0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 7: "q8_0", 8: "q5_0", 9: "q5_1", 10: "q2_k",
    11: "q3_k_s", 12: "q3_k_m", 13: "q3_k_l", 14: "q4_k_s", 15: "q4_k_m", 16: "q5_k_s",
    17: "q5_k_m", 18: "q6_k", 19: "iq2_xxs", 20: "iq2_xs", 21: "q2_k_s", 22: "iq3_xs",
    23: "iq3_xxs", 24: "iq1_s", 25: "iq4_nl", 26: "iq3_s", 27: "iq3_m", 28: "iq2_s",
    29: "iq2_m", 30: "iq4_xs", 31: "iq1_m", 32: "bf16", 36: "tq1_0", 37: "tq2_0",
    38: "mxfp4_moe", 39: "nvfp4", 40: "q1_0", 41: "q2_0",
}  # fmt: skip
"""`general.file_type` of GGUF, by llama.cpp's `llama_ftype`."""

_PLAIN: Final = frozenset({None, 0, 1, 30})
"""Types of a key-value cache that every model can have: not given, F32, F16, BF16 of ggml."""

LOADED: Final = identity.Identities(PROVIDER)
"""Identities of the models that are loaded in this process."""

repository: ContextVar[str | None] = ContextVar("sottovoce_llama_repository", default=None)
"""The hub id that `from_pretrained` loads; set and reset in one frame."""


@never_raise("llama_cpp.identity")
def identify(llama: Any, library: ModuleType) -> identity.Identity | None:
    """Describe a model, once; None for one that was closed before anybody asked.

    Args:
        llama: the `Llama`.
        library: `llama_cpp.llama_cpp`, the bindings.
    """
    known = LOADED.get(llama)
    # A freed model must not be asked for anything.
    if known is None and llama._model.model is not None:
        metadata = llama.metadata
        kind = str(metadata.get("general.file_type"))
        architecture = metadata.get("general.architecture")
        known = identity.describe(
            repository.get() or identity.snapshot_id(llama.model_path),
            identity.architecture(architecture),
            FILE_TYPES.get(int(kind)) if kind.isdigit() else None,
            llama._model.n_params(),
            size=llama._model.size(),
            adapted=llama.lora_path is not None,
            offload=_offload(
                llama.model_params.n_gpu_layers,
                metadata.get(f"{architecture}.block_count"),
                able=library.llama_supports_gpu_offload(),
            ),
        )
        size = getattr(llama, "_n_ctx", None)
        if type(size) is int:
            known.facts["context_size"] = size
        LOADED.put(llama, known)
    return known


@never_raise("llama_cpp.blame")
def blame(asked: Mapping[str, Any], error: BaseException) -> str | None:
    """Give the code of what a load failed with.

    A context that could not be made has one message, be there no memory or a setting refused:
    quantised caches are not for every model and every way to attend.

    Args:
        asked: the settings of the `Llama`, by name.
        error: what it failed with.
    """
    code = failures.of_load(error)
    if code is failures.OUT_OF_MEMORY and type(error) is ValueError and _may_be_refused(asked):
        return None
    return code


def _may_be_refused(asked: Mapping[str, Any]) -> bool:
    types = asked.get("type_k"), asked.get("type_v")
    return not _PLAIN.issuperset(types) or not asked.get("n_batch", True)


def _offload(asked: int, blocks: object, *, able: bool) -> str | None:
    """Tell how much of a model an accelerator holds; None when nobody knows.

    Args:
        asked: layers that the app wanted there; a negative number is all of them.
        blocks: repeating layers, as the file says; the output is one more.
        able: whether the library was built for an accelerator.
    """
    if not able or asked == 0:
        return "none"
    layers = str(blocks)
    if asked > 0 and not layers.isdigit():
        return None
    return "full" if asked < 0 or asked > int(layers) else "partial"
