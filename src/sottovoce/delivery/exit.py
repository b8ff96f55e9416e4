"""The end of a pipeline: one last export of all signals at once, within a deadline.

The SDK waits up to 30 seconds a signal, one after the other, and an exporter retries for
ten. Here each provider is shut down by a daemon thread of its own and the process waits for
them together, `SOTTOVOCE_EXIT_TIMEOUT` at most. What a Collector has not taken by then is
given up; a thread still talking to it dies with the process.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import weakref
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from sottovoce.guard import failed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

log = logging.getLogger("sottovoce")

_SILENT: Final = logging.CRITICAL + 1

_STARTS_THREADS_AT_EXIT: Final = not (3, 12, 0) <= sys.version_info[:3] <= (3, 12, 1)
"""Two releases of Python start no thread once the main one has ended."""


class Ending:
    """Closes providers exactly once, and lets the process wait no longer than allowed.

    Args:
        providers: tracer, meter and logger provider; None for one that is absent.
        exporters: what they send with, where it is known; told to stop retrying.
        timeout: seconds that the process may wait at its end.
    """

    def __init__(
        self, providers: Iterable[Any], exporters: tuple[Any, ...], timeout: float
    ) -> None:
        self._providers = [provider for provider in providers if provider is not None]
        self._exporters = exporters
        self._timeout = timeout
        # Popping is atomic: no lock that a fork could copy in a locked state.
        self._open = [True]
        self._parked: _Crew | None = None

    @property
    def is_open(self) -> bool:
        """Whether nobody has closed them yet."""
        return bool(self._open)

    def arm(self) -> None:
        """Close them when the process ends, in forked children as well."""
        # The SDK would otherwise do it again by itself; unregistering what is not there is fine.
        for provider in self._providers:
            atexit.unregister(provider.shutdown)
        atexit.register(self._at_exit)
        _armed.add(self)
        self.park()

    def park(self) -> None:
        """Have threads waiting, on a Python that starts none at its end."""
        if not _STARTS_THREADS_AT_EXIT:
            self._parked = self._crew().park()

    def close(self, timeout: float | None = None) -> bool:
        """Export what is queued and shut everything down.

        Args:
            timeout: seconds to wait; `SOTTOVOCE_EXIT_TIMEOUT` when absent.

        Returns:
            Whether everything was handed over in time. True when closed before.
        """
        try:
            self._open.pop()
        except IndexError:
            return True
        atexit.unregister(self._at_exit)
        deadline = monotonic() + (self._timeout if timeout is None else timeout)
        for exporter in self._exporters:
            _attempt_once(exporter)
        done = (self._parked or self._crew()).work(deadline)
        if not done:
            for exporter in self._exporters:
                _stop(exporter)
        return done

    def _crew(self) -> _Crew:
        return _Crew(provider.shutdown for provider in self._providers)

    def _at_exit(self) -> None:
        # A dead Collector is no news for whoever runs a command line tool, and a daemon
        # thread that logs while the interpreter goes down could print a traceback.
        logging.getLogger("opentelemetry").setLevel(_SILENT)
        try:
            if not self.close():
                log.info("sottovoce: the last telemetry was not delivered in time")
        except KeyboardInterrupt:
            # Somebody wants out now.
            return


_armed: weakref.WeakSet[Ending] = weakref.WeakSet()


def _in_child() -> None:
    """Close at the end of a `multiprocessing` child too, which runs no `atexit`.

    Finalizers that exist at the fork are cleared in the child before it works; a function
    registered to run after the fork is called after that.
    """
    util = sys.modules.get("multiprocessing.util")
    for ending in _armed:
        ending.park()
        if util is not None:
            util.register_after_fork(ending, _finalize)


def _finalize(ending: Ending) -> None:
    sys.modules["multiprocessing.util"].Finalize(None, ending._at_exit, exitpriority=-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def flush(providers: Iterable[Any], timeout: float) -> bool:
    """Export what is queued now, of all signals at once.

    Args:
        providers: tracer, meter and logger provider; None for one that is absent.
        timeout: seconds to wait at most.

    Returns:
        Whether everything was handed over in time.
    """
    jobs = [provider.force_flush for provider in providers if provider is not None]
    return _Crew(jobs).work(monotonic() + timeout)


def shut_down(providers: Iterable[Any], timeout: float) -> bool:
    """Shut providers down, whoever built them, all at once.

    Args:
        providers: anything with a `shutdown`; None and what has none is passed over.
        timeout: seconds to wait at most.

    Returns:
        Whether all ended in time.
    """
    ends = (getattr(provider, "shutdown", None) for provider in providers)
    return _Crew(end for end in ends if end is not None).work(monotonic() + timeout)


class _Crew:
    """A daemon thread for each job, to do them side by side.

    Args:
        jobs: what to do; a job that returns False or raises has failed.
    """

    def __init__(self, jobs: Iterable[Callable[[], Any]]) -> None:
        self._go = threading.Event()
        self._outcomes: list[bool] = []
        self._threads = [
            threading.Thread(target=self._work, args=(job,), name="sottovoce-exit", daemon=True)
            for job in jobs
        ]

    def park(self) -> _Crew:
        """Start the threads now, to wait for `work`."""
        for thread in self._threads:
            thread.start()
        return self

    def work(self, deadline: float) -> bool:
        """Do the jobs until all are done or the deadline has passed; returns whether all are."""
        self._go.set()
        try:
            for thread in self._threads:
                if thread.ident is None:
                    thread.start()
        except RuntimeError:
            # No thread can be had any more: what was not started is not waited for.
            return False
        for thread in self._threads:
            thread.join(max(0.0, deadline - monotonic()))
        return len(self._outcomes) == len(self._threads) and all(self._outcomes)

    def _work(self, job: Callable[[], Any]) -> None:
        self._go.wait()
        try:
            self._outcomes.append(job() is not False)
        except Exception:  # noqa: BLE001 - an exporter's failure is not the app's
            failed("export")
            self._outcomes.append(False)


def _attempt_once(exporter: Any) -> None:
    """Let an exporter try once and not wait for a second try.

    The first wait of OTLP exporters is about as long as all the time there is, so a retry
    would be paid for and never made. The events are private: `_client._shutdown_event` of
    OTLP/HTTP (1.45), `_shutdown_in_progress` of gRPC (1.35 to 1.45) and of older HTTP ones.
    Without them the deadline still holds.
    """
    for owner in (exporter, getattr(exporter, "_client", None)):
        for name in ("_shutdown_event", "_shutdown_in_progress", "_shutdown_is_occuring"):
            event = getattr(owner, name, None)
            if isinstance(event, threading.Event):
                event.set()


def _stop(exporter: Any) -> None:
    """Shut an exporter down that its processor did not come to shut down."""
    if getattr(exporter, "_shutdown", False):
        return
    try:
        exporter.shutdown()
    except Exception:  # noqa: BLE001 - see _concurrently
        failed("export")
