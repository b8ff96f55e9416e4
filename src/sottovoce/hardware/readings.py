"""What memory and accelerators are doing now, read seldom: at most every ten seconds.

Whoever asks in between gets the last reading. Nothing here raises, and nothing imports a
runtime: of MLX only what is loaded already is asked.
"""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from sottovoce.guard import never_raise
from sottovoce.hardware import gpu, memory

if TYPE_CHECKING:
    from sottovoce.hardware.gpu import Gpus

SECONDS: Final = 10.0
"""How old a reading may be."""

_ENGINE: Final = ("active", "cache", "peak")


@dataclass(frozen=True)
class Readings:
    """What could be read, in bytes; what could not is None.

    Attributes:
        process_memory: physical memory of this process.
        process_peak: the most that it ever was.
        available_memory: what the system could still give to programs.
        engine_memory: of MLX's arrays: ``active``, ``cache`` (freed, but kept for the next) and
            ``peak`` (the most that was ever active), where MLX is loaded.
        gpus: what the GPUs do.
    """

    process_memory: int | None = None
    process_peak: int | None = None
    available_memory: int | None = None
    engine_memory: dict[str, int] = field(default_factory=dict)
    gpus: Gpus | None = None


class _Last:
    """The last reading, when it was made, and in which process."""

    def __init__(self) -> None:
        self.readings = Readings()
        self.at = 0.0
        self.process = 0
        self.lock = threading.Lock()


_last = _Last()
_began_in: Final = os.getpid()


def now() -> Readings:
    """The readings, not older than ten seconds; making them takes up to some milliseconds."""
    last = _last
    if last.process != os.getpid():
        # The lock may have been held by another thread when this process was forked.
        last = _renew()
    if last.at and monotonic() - last.at < SECONDS:
        return last.readings
    if not last.lock.acquire(blocking=False):
        # Another thread is reading: what it finds is not waited for.
        return last.readings
    try:
        last.readings = Readings(
            memory.of_process(),
            memory.peak_of_process(),
            memory.available(),
            _engine_memory() or {},
            gpu.read(),
        )
        last.at = monotonic()
        return last.readings
    finally:
        last.lock.release()


def _renew() -> _Last:
    global _last  # noqa: PLW0603 - one a process
    _last = _Last()
    _last.process = os.getpid()
    return _last


@never_raise("hardware.mlx")
def _engine_memory() -> dict[str, int]:
    core: Any = sys.modules.get("mlx.core")
    if core is None or (sys.platform == "darwin" and os.getpid() != _began_in):
        # Metal may not be touched in a child of a fork.
        return {}
    found = {}
    for kind in _ENGINE:
        # Absent while MLX is being imported.
        read = getattr(core, f"get_{kind}_memory", None)
        size = read() if read is not None else None
        if type(size) is int:
            found[kind] = size
    return found
