"""Who a loaded model is, in words that no user typed: hub id, architecture, size, quantisation.

A path, a file name and a model's own title are user-typed text and never become part of an
identity. What is left is the public id under which the model was asked for, or else a
descriptor ``{architecture}-{size bucket}-{quantisation}`` of the registry's vocabularies.
"""

from __future__ import annotations

import os
import re
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sottovoce import loaded
from sottovoce.guard import never_raise
from sottovoce.hardware import tiers
from sottovoce.registry import ATTRIBUTES

if TYPE_CHECKING:
    from sottovoce.call import Call, Facts

key_of: Final = object.__hash__
"""Tells living objects apart, as `id` does. That raises an audit event, and a hook that listens
(filelock's, which `huggingface_hub` brings) takes it several times as long."""

OTHER: Final = "other"
"""Stands in a descriptor for what is unknown or in no vocabulary."""

OFFLOADS: Final = ATTRIBUTES["sottovoce.model.offload"].values or frozenset()
"""How much of a model an accelerator can hold."""

_ARCHITECTURES: Final = ATTRIBUTES["sottovoce.model.architecture"].values or frozenset()
_QUANTIZATIONS: Final = ATTRIBUTES["sottovoce.model.quantization"].values or frozenset()


_KIND: Final = (
    "model_architecture",
    "model_parameters",
    "model_quantization",
    "provider",
    "request_model",
)
"""What tells loaded models apart where they are counted."""


class _Bucket(NamedTuple):
    below: float
    name: str


SIZE_BUCKETS: Final = (
    _Bucket(1e6, "lt_1M"),
    _Bucket(5e6, "1M"),
    _Bucket(50e6, "10M"),
    _Bucket(300e6, "100M"),
    _Bucket(800e6, "500M"),
    _Bucket(2.2e9, "1B"),
    _Bucket(5.5e9, "3B"),
    _Bucket(11e9, "8B"),
    _Bucket(20e9, "14B"),
    _Bucket(50e9, "32B"),
    _Bucket(80e9, "70B"),
    _Bucket(float("inf"), "gt_70B"),
)
"""Parameter counts, each bucket up to but without its `below`: edges lie between the sizes
that models are published in (1.7B is 1B, 4B is 3B, 7B and 9B are 8B, 12B is 14B, 27B is 32B)."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,63}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_SNAPSHOT = re.compile(
    r"(?:^|[\\/])models--([A-Za-z0-9][\w.-]*?)--([A-Za-z0-9][\w.-]*)[\\/]snapshots[\\/]", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Identity:
    """A loaded model: the id that a call's `model` gets, and the facts of every call to it."""

    name: str
    facts: Facts


def describe(
    public_id: str | None,
    architecture: str | None,
    quantization: str | None,
    parameters: int | None,
    *,
    size: int | None = None,
    adapted: bool | None = None,
    offload: str | None = None,
) -> Identity:
    """Make an identity of what is known; what is in no vocabulary is no fact.

    Args:
        public_id: what `hub_id` or `snapshot_id` gave.
        architecture: what `architecture` chose.
        quantization: bits of an MLX weight (``4bit``), a float type or a GGUF file type.
        parameters: number of weights.
        size: bytes of memory that the weights take.
        adapted: whether an adapter (LoRA) is loaded on it.
        offload: how much of it an accelerator holds: ``none``, ``partial`` or ``full``.
    """
    facts: Facts = {}
    if architecture in _ARCHITECTURES:
        facts["model_architecture"] = architecture
    if quantization in _QUANTIZATIONS:
        facts["model_quantization"] = quantization
    if isinstance(parameters, int) and parameters > 0:
        facts["model_parameters"] = size_bucket(parameters)
    tier = tiers.in_use(size)
    if tier is not None:
        facts["model_size"] = tier
    if adapted is not None:
        facts["model_adapter"] = adapted
    if offload in OFFLOADS:
        facts["model_offload"] = offload
    descriptor = "-".join(
        str(facts.get(fact, OTHER))
        for fact in ("model_architecture", "model_parameters", "model_quantization")
    )
    return Identity(public_id or descriptor, facts)


def architecture(*candidates: object) -> str | None:
    """Return the first candidate that the registry knows as an architecture."""
    for name in candidates:
        if isinstance(name, str) and name in _ARCHITECTURES:
            return name
    return None


def size_bucket(parameters: float) -> str:
    """Name the bucket of `SIZE_BUCKETS` that a number of weights falls into."""
    return next(bucket.name for bucket in SIZE_BUCKETS if parameters < bucket.below)


@never_raise("identity.hub_id")
def hub_id(asked: object) -> str | None:
    """Return the public id under which a model is asked for, ``org/name``, or None.

    None for whatever exists on this machine, unless it lies in a hub cache, whose
    directories carry the id.
    """
    if not isinstance(asked, (str, os.PathLike)):
        return None
    text = os.fspath(asked)
    if not isinstance(text, str):
        return None
    if _HUB_ID.fullmatch(text) and ".." not in text and not Path(text).exists():
        return text
    return snapshot_id(text)


def snapshot_id(path: object) -> str | None:
    """Return the ``org/name`` of a path inside a hub cache, else None."""
    found = _SNAPSHOT.search(path) if isinstance(path, str) else None
    return f"{found[1]}/{found[2]}" if found else None


def tell(call: Call, known: Identity) -> None:
    """Say who answers an open call: when it began nobody knew."""
    call.model = known.name
    call.facts.update(known.facts)
    # Recorders of the contract need not have it.
    named = getattr(call.recorder, "named", None)
    if named is not None:
        named(call)


class Identities:
    """Identities of living models that cannot be keys: by `key_of`, forgotten when a model dies.

    `mlx.nn.Module` is a dict, hence unhashable, so a `WeakKeyDictionary` cannot hold it.

    Args:
        provider: whose models they are; with it, they are counted as loaded while they live.
    """

    def __init__(self, provider: str | None = None) -> None:
        self._provider = provider
        self._known: dict[int, Identity] = {}
        self._tickets: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._known)

    def get(self, model: Any) -> Identity | None:
        """Return what is known of `model`."""
        return self._known.get(key_of(model))

    def put(self, model: Any, identity: Identity) -> None:
        """Remember `identity` for as long as `model` lives.

        Raises:
            TypeError: for an object that cannot be weakly referenced.
        """
        key = key_of(model)
        if key not in self._known:
            weakref.finalize(model, self._forget, key).atexit = False
            self._count(key, identity)
        self._known[key] = identity

    def unloaded(self, model: Any) -> None:
        """Count `model`, which lives on, as loaded no longer: the app closed it. Never raises."""
        self._uncount(key_of(model))

    def _forget(self, key: int) -> None:
        # A finaliser, so no lock; each of these is one operation.
        self._known.pop(key, None)
        self._uncount(key)

    def _count(self, key: int, identity: Identity) -> None:
        if self._provider is not None:
            words = {**identity.facts, "provider": self._provider, "request_model": identity.name}
            kind = tuple(sorted((name, str(words[name])) for name in _KIND if name in words))
            ticket = loaded.add(kind)
            # Two threads may meet a model for the first time at once.
            if self._tickets.setdefault(key, ticket) != ticket:
                loaded.remove(ticket)

    def _uncount(self, key: int) -> None:
        ticket = self._tickets.pop(key, None)
        if ticket is not None:
            loaded.remove(ticket)
