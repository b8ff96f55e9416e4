"""Who a server of xllamacpp runs: what the head of the model's file says, and what was asked for.

File names and titles are user-typed and never part of it. Seen in xllamacpp 2026.10.11549.
"""

from __future__ import annotations

import functools
import re
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sottovoce.guard import never_raise
from sottovoce.runtimes import failures, gguf, identity
from sottovoce.runtimes.llama_models import FILE_TYPES, PROVIDER

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["LOADED", "PROVIDER", "asked", "blame", "identify", "of_file"]

LOADED: Final = identity.Identities(PROVIDER)
"""Identities of the servers that live in this process."""

asked: ContextVar[Any] = ContextVar("sottovoce_xllamacpp_asked", default=None)
"""The `CommonParams` of the server that is made now; set and reset in one frame."""

_SIZE: Final = re.compile(rb"(?:(\d{1,3})x)?(\d{1,4}(?:\.\d{1,3})?)([KMBT])(?:-.*)?")
_UNITS: Final = {b"K": 1e3, b"M": 1e6, b"B": 1e9, b"T": 1e12}
_GPUS: Final = {1, 2}
"""Types of devices that are accelerators with memory: `GGML_BACKEND_DEVICE_TYPE_GPU`, `…_IGPU`."""


@never_raise("xllamacpp.identity")
def identify(server: Any, library: ModuleType) -> identity.Identity | None:
    """Describe a server's model by the parameters that it was made with."""
    params = asked.get()
    if params is None:
        return None
    path = params.model.path
    public = identity.hub_id(params.model.hf_repo.partition(":")[0]) or identity.snapshot_id(path)
    known = _described(
        path,
        public,
        adapted=bool(params.lora_adapters),
        offload=_offload(params.n_gpu_layers, library),
    )
    context = _context(params)
    if context is not None:
        known.facts["context_size"] = context
    LOADED.put(server, known)
    return known


@functools.lru_cache(maxsize=64)
@never_raise("xllamacpp.file")
def of_file(path: str) -> identity.Identity | None:
    """Describe the model in the file at `path`; None where there is no such file."""
    if gguf.architecture(gguf.head(path) or b"") is None:
        return None
    return _described(path, identity.snapshot_id(path))


@never_raise("xllamacpp.blame")
def blame(library: ModuleType) -> str | None:
    """Say why the server could not be made, where the model's file tells it."""
    path = asked.get().model.path
    if not path:
        return None
    head = gguf.head(path)
    if head is None:
        return None if Path(path).exists() else failures.NOT_FOUND
    if gguf.architecture(head) is None:
        return failures.BAD_FILE
    unknown = gguf.is_unsupported(path, library.__file__ or "")
    return failures.UNSUPPORTED if unknown else None


def _described(path: str, public: str | None, **more: Any) -> identity.Identity:
    values = gguf.values(gguf.head(path) or b"")
    architecture = values.get(b"general.architecture")
    kind = values.get(b"general.file_type")
    return identity.describe(
        public,
        identity.architecture(architecture.decode("ascii", "replace"))
        if isinstance(architecture, bytes)
        else None,
        FILE_TYPES.get(kind) if isinstance(kind, int) else None,
        _parameters(values),
        size=Path(path).stat().st_size if values else None,
        **more,
    )


def _parameters(values: dict[bytes, bytes | int]) -> int | None:
    """Give the number of weights, or else a round one that a label says: ``8B``, ``8x7B``."""
    count, label = values.get(b"general.parameter_count"), values.get(b"general.size_label")
    if isinstance(count, int):
        return count
    found = _SIZE.fullmatch(label) if isinstance(label, bytes) else None
    if found is None:
        return None
    return round(int(found[1] or 1) * float(found[2]) * _UNITS[found[3]])


def _context(params: Any) -> int | None:
    """Give the tokens that one request may fill; None where the model's file decides."""
    size: int = params.n_ctx
    slots: int = params.n_parallel
    if size < 1 or slots < 1:
        return None
    return size if params.kv_unified else size // slots


def _offload(layers: int, library: ModuleType) -> str | None:
    """Say that no accelerator holds a part of the model, where that is certain."""
    devices = library.get_device_info() if layers != 0 else ()
    return None if any(int(each["type"].value) in _GPUS for each in devices) else "none"
