"""`sottovoce.start()`: what the launcher does, for programs that cannot use the launcher.

Notebooks, frozen desktop apps, servers with a launcher of their own::

    handle = sottovoce.start()      # destination and everything else from OTEL_* variables
    ...
    handle.shutdown()               # or at the end of the process, by itself
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

from sottovoce import distro, tightening
from sottovoce.delivery import adopt
from sottovoce.delivery import exit as ending
from sottovoce.guard import failed

if TYPE_CHECKING:
    from types import TracebackType

    from opentelemetry.instrumentation.instrumentor import BaseInstrumentor
    from typing_extensions import Self

    from sottovoce.delivery.pipeline import Pipeline
    from sottovoce.settings import Settings

log = logging.getLogger("sottovoce")


class Handle:
    """What was started. Thread-safe; no method raises. Also a context manager.

    Attributes:
        settings: what was decided.
        reason: why nothing was started; None when it was.
    """

    def __init__(
        self,
        chosen: Settings,
        pipeline: Pipeline | None = None,
        *,
        reason: str | None = None,
    ) -> None:
        self.settings = chosen
        self.reason = reason
        self._pipeline = pipeline
        self._open = [True] if reason is None else []

    @property
    def active(self) -> bool:
        """Whether calls are recorded: something was started and not yet shut down."""
        pipeline = self._pipeline
        return bool(self._open) and (pipeline is None or pipeline.is_open)

    def flush(self, timeout: float | None = None) -> bool:
        """Send what is queued now.

        Args:
            timeout: seconds to wait at most; `SOTTOVOCE_EXIT_TIMEOUT` when absent.

        Returns:
            Whether everything was handed over in time.
        """
        if not self.active:
            return True
        try:
            return ending.flush(
                self._pipeline.providers if self._pipeline else adopt.in_use(),
                self.settings.exit_timeout if timeout is None else timeout,
            )
        except Exception:  # noqa: BLE001 - the promise of this class
            failed("flush")
            return False

    def shutdown(self, timeout: float | None = None) -> bool:
        """Undo the instrumentation, send what is queued, end the pipeline.

        Providers that someone else built are flushed and left running. A second call does
        nothing. `start()` may be called again: our calls then go through a new pipeline,
        while OpenTelemetry keeps the first providers as the global ones, for good, so that
        other libraries' telemetry ends here.

        Args:
            timeout: seconds to wait at most; `SOTTOVOCE_EXIT_TIMEOUT` when absent.

        Returns:
            Whether everything was handed over in time.
        """
        with _lock:
            if not self.active:
                return True
            _uninstrument()
            done = self._pipeline.ending.close(timeout) if self._pipeline else self.flush(timeout)
            self._open.clear()
            return done

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.shutdown()

    def __repr__(self) -> str:
        state = "active" if self.active else self.reason or "shut down"
        return f"<sottovoce.Handle: {state}>"


_lock = threading.RLock()
_current: Handle | None = None


def start(**changes: Any) -> Handle:
    """Instrument this process as `opentelemetry-instrument` would, from code.

    Call it early, before threads make model calls. A second call returns the handle of the
    first until that is shut down; under the launcher it returns a handle on what the
    launcher set up. Providers that the app configured before are put behind the gate and
    used.

    Args:
        changes: settings by name, e.g. ``endpoint="http://127.0.0.1:4318"``, ``local=True``,
            ``exit_timeout=2.0``, ``semconv="both"``. Code may tighten privacy, never loosen
            it: what only the environment may decide is reported and stays.

    Returns:
        A handle, also when nothing was started: `Handle.reason` then says why.

    Raises:
        TypeError: for a name that is no setting; nothing else is raised.
    """
    global _current  # noqa: PLW0603 - one pipeline a process, as there is one SDK
    with _lock:
        chosen, warnings = tightening.tightened(distro.from_environment(), **changes)
        if _current is not None and _current.active:
            if changes and chosen != _current.settings:
                log.warning("sottovoce: already started; the new settings are not used.")
            return _current
        distro.report(warnings)
        try:
            _current = _started(chosen)
        except Exception as error:  # noqa: BLE001 - the app runs on, without telemetry
            failed("start")
            log.warning(
                "sottovoce: could not start (%s); nothing is recorded.", type(error).__name__
            )
            _current = Handle(chosen, reason=f"could not start: {type(error).__name__}")
        return _current


def _started(chosen: Settings) -> Handle:
    if off := chosen.off_because:
        return Handle(chosen, reason=off)
    if not chosen.has_destination and not any(adopt.in_use()):
        return Handle(chosen, reason="no destination: set OTEL_EXPORTER_OTLP_ENDPOINT")
    distro.apply_defaults(chosen)
    from sottovoce.delivery import pipeline  # noqa: PLC0415 - the SDK, only when needed

    adopt.forgive()
    running = pipeline.current()
    if running is None and chosen.has_destination:
        running = pipeline.configure(chosen)
    try:
        adopt.guard(chosen)
    except adopt.Refused as refused:
        if running is not None:
            running.ending.close()
        return Handle(chosen, reason=str(refused))
    if reason := adopt.refusal():
        return Handle(chosen, reason=reason)
    _instrument(chosen, running)
    return Handle(chosen, running)


def _instrument(chosen: Settings, running: Pipeline | None) -> None:
    """Apply every instrumentor that is not applied yet; one that fails is left out."""
    providers = adopt.Providers() if running is None else running.providers
    given: dict[str, Any] = {"settings": chosen, "skip_dep_check": True}
    if providers.tracer is not None:
        given["tracer_provider"] = providers.tracer
    if providers.meter is not None:
        given["meter_provider"] = providers.meter
    for instrumentor in _instrumentors():
        if not instrumentor.is_instrumented_by_opentelemetry:
            try:
                instrumentor.instrument(**given)
            except Exception:  # noqa: BLE001 - the others still work
                failed(f"instrumenting by {type(instrumentor).__name__}")


def _uninstrument() -> None:
    for instrumentor in _instrumentors():
        if instrumentor.is_instrumented_by_opentelemetry:
            try:
                instrumentor.uninstrument()
            except Exception:  # noqa: BLE001 - the others still have to go
                failed(f"uninstrumenting by {type(instrumentor).__name__}")


def _instrumentors() -> list[BaseInstrumentor]:
    from sottovoce import instrumentors  # noqa: PLC0415 - pulls in the recorder

    # An instrumentor is a singleton: this is the one that the launcher or the app applied.
    return [kind() for kind in instrumentors.ALL]
