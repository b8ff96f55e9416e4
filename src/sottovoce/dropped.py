"""Calls whose answer the app stopped reading: ended without danger, and never forgotten.

A response or a generator that the app drops is often found by the garbage collector, which
runs in the middle of anything: also where the very same thread holds a lock that recording a
call needs, so that ending the call there would wait for ever. The way to the end may even look
innocent (`__del__`, ``except GeneratorExit``, but also an SDK's ``finally: response.close()``).
Therefore `stop` knows whether its thread is collecting garbage, and then leaves the ending to
a thread of ours, which `SimpleQueue.put` wakes, being made for that. What is still open when the
process ends was registered with `keep`.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import threading
import weakref
from collections import deque
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final

from sottovoce import guard

if TYPE_CHECKING:
    from sottovoce.call import Call

_waiting: deque[tuple[Call, int | None]] = deque()
"""What garbage collection stopped, until somebody ends it: a queue's own waiter may be given what
is put there, and not come to it before the process ends (seen in Python 3.13)."""
_news: SimpleQueue[None] = SimpleQueue()
_ending = threading.Lock()
_open: set[weakref.ref[Call]] = set()
"""Each goes when its call does; unlike a `WeakSet`, without running any Python for it."""
_thread: threading.Thread | None = None
_PATIENCE: Final = 1.0
"""Seconds that the end of the process waits for the thread."""
_said: Final[dict[str, Any]] = {"stop": None}
"""What the collector of garbage told, its latest last: there is never more than one at work."""
_said_here: Final = threading.local()
"""What it told in each thread."""


def collecting() -> bool:
    """Whether this thread is collecting garbage right now, in whose middle we were called."""
    # A copy, because another thread may be about to begin.
    said = _said.copy()
    return next(reversed(said)) == "start" and vars(_said_here).get("start") is said["start"]


def stop(call: Call, at_ns: int | None = None) -> None:
    """The app stopped reading: no loss if the model had finished, else it abandoned the call.

    Either way the call ended when its last chunk came, or at `at_ns` (of `perf_counter_ns`)
    when none did. May be called from anywhere. Never raises.
    """
    if not call.is_open:
        return
    if collecting():
        _waiting.append((call, at_ns))
        _news.put(None)
    else:
        _end(call, at_ns)


@guard.never_raise("dropped.end")
def _end(call: Call, at_ns: int | None) -> None:
    call.gather()
    reasons = call.facts.get("finish_reasons", ())
    if len(reasons) >= call.facts.get("request_choice_count", 1) and "error" not in reasons:
        call.end(at_ns=call.last_chunk_ns or at_ns)
    else:
        call.abandon(at_ns=at_ns)


def keep(call: Call) -> None:
    """End `call` at the latest when the process does. Never raises."""
    _open.add(weakref.ref(call, _open.discard))
    if _thread is None:
        _start()


@guard.never_raise("dropped.keep")
def _start() -> None:
    global _thread  # noqa: PLW0603 - one per process, gone after a fork
    if _thread is None:
        thread = threading.Thread(target=_serve, name="sottovoce-dropped", daemon=True)
        thread.start()
        _thread = thread


def _serve() -> None:
    while True:
        _news.get()
        with _ending:
            _end_waiting()


def _end_waiting() -> None:
    with contextlib.suppress(IndexError):
        while True:
            _end(*_waiting.popleft())


@atexit.register
def stop_all() -> None:
    """End what nobody read to the end; providers that were made before us still export it."""
    # What the thread is at is done first, in microseconds; a process must end all the same.
    held = _ending.acquire(timeout=_PATIENCE)
    try:
        _end_waiting()
    finally:
        if held:
            _ending.release()
    for call in _kept():
        _end(call, None)


def _kept() -> list[Call]:
    return [call for call in (alive() for alive in list(_open)) if call is not None]


def _forget() -> None:
    """In a forked child: what the parent's calls become is the parent's to say."""
    global _thread, _waiting, _news, _ending
    # The thread runs in the parent alone, and may have held the locks.
    _thread, _waiting, _news, _ending = None, deque(), SimpleQueue(), threading.Lock()
    for call in _kept():
        # Whatever the child does with its copy of the stream, read it or close it.
        call.forget()
    _open.clear()


# Each gets the phase and an object of its own. None is Python's: in one that is, the signals are
# handled that came meanwhile, and what a handler raises, as that of Ctrl-C, would be lost there.
gc.callbacks += [_said.pop, _said.__setitem__, _said_here.__setattr__]
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
