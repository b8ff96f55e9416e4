"""Calls whose answer the app stopped reading: ended without danger, and never forgotten.

A response or a generator that the app drops is often found by the garbage collector, which
runs in the middle of anything, also while the very same thread holds a lock that recording a
call needs: ending the call there would wait for ever. So whatever may run inside the collector
(`__del__`, ``except GeneratorExit``) hands its call over with `later`, and a thread of ours
ends it; `SimpleQueue.put` is made for that. What is still open when the process ends was
registered with `keep`.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from queue import SimpleQueue
from typing import TYPE_CHECKING

from sottovoce import guard

if TYPE_CHECKING:
    from sottovoce.call import Call

_waiting: SimpleQueue[tuple[Call, int | None]] = SimpleQueue()
_open: weakref.WeakSet[Call] = weakref.WeakSet()
_thread: threading.Thread | None = None


@guard.never_raise("dropped.stop")
def stop(call: Call, at_ns: int | None = None) -> None:
    """The app stopped reading: no loss if the model had finished, else it abandoned the call.

    Either way the call ended when its last chunk came, or at `at_ns` (of `perf_counter_ns`)
    when none did. Not to be called where the garbage collector may be at work.
    """
    reasons = call.facts.get("finish_reasons", ())
    if len(reasons) >= call.facts.get("request_choice_count", 1) and "error" not in reasons:
        call.end(at_ns=call.last_chunk_ns or at_ns)
    else:
        call.abandon(at_ns=at_ns)


def later(call: Call, at_ns: int | None = None) -> None:
    """Do `stop`, from another thread: safe inside the garbage collector. Never raises."""
    _waiting.put((call, at_ns))


@guard.never_raise("dropped.keep")
def keep(call: Call) -> None:
    """End `call` at the latest when the process does; from now on `later` has its thread."""
    global _thread  # noqa: PLW0603 - one per process, gone after a fork
    _open.add(call)
    if _thread is None or not _thread.is_alive():
        _thread = threading.Thread(target=_serve, name="sottovoce-dropped", daemon=True)
        _thread.start()


def _serve() -> None:
    while True:
        call, at_ns = _waiting.get()
        stop(call, at_ns)
        del call  # or it lives until the next one


@atexit.register
def stop_all() -> None:
    """End what nobody read to the end; providers that were made before us still export it."""
    for call in list(_open):
        stop(call)


def _forget() -> None:
    """In a forked child: what the parent's calls become is the parent's to say."""
    global _waiting  # noqa: PLW0603 - its lock may have been held when the process forked
    _waiting = SimpleQueue()
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
