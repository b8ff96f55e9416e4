"""What all instrumentors share: how one is applied, waits for imports of the app, is taken back."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, ClassVar

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor

from sottovoce import settings, steps
from sottovoce.guard import ImportHooks, Patches
from sottovoce.record import SpanRecorder

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from types import ModuleType

    from sottovoce.call import Recorder


class Instrumentor(BaseInstrumentor):  # type: ignore[misc]
    """What all share: a recorder, the patches made and the import hooks waiting.

    `instrument()` takes `tracer_provider` and `meter_provider` (the global ones when
    absent) and `settings` (read from the environment when absent).

    Attributes:
        modules: whose import makes it act.
        in_process: models run in this process, so what they take of the machine is of interest.
    """

    modules: ClassVar[tuple[str, ...]] = ()
    in_process: ClassVar[bool] = False
    _providers: tuple[Any, Any, settings.Settings]
    _patches: Patches
    _hooks: ImportHooks
    _own_hosts: tuple[str, ...]
    _rivals: str
    _installed: bool
    _meters: Any
    _steps: Callable[[], Recorder]

    def instrumentation_dependencies(self) -> Collection[str]:
        """Name no version: what a hook does not recognise it leaves alone."""
        return ()

    def _instrument(self, **kwargs: Any) -> None:
        chosen = kwargs.get("settings") or settings.read()[0]
        self._patches, self._hooks = Patches(), ImportHooks()
        self._own_hosts = (*chosen.own_hosts, *chosen.endpoints)
        self._rivals = chosen.rivals
        self._installed = False
        self._meters = kwargs.get("meter_provider")
        self._providers = given = kwargs.get("tracer_provider"), self._meters, chosen
        recorder = shared_recorder(*given)
        # Asked for by every step, and settings take a while to hash.
        self._steps = lru_cache(maxsize=1)(partial(_step_recorder, *given))
        steps.source.add(self._steps)

        def imported(_: ModuleType, _late: bool) -> None:
            if not self._installed:
                self._installed = True
                self._install(recorder)
                if self.in_process:
                    from sottovoce import gauges  # noqa: PLC0415 - of use to few apps

                    gauges.start(type(self).__name__, self._meters, chosen)

        for module in self.modules:
            self._hooks.when_imported(module, imported)

    def _uninstrument(self, **_: Any) -> None:
        self._hooks.stop()
        steps.source.remove(self._steps)
        if self._installed:
            self._remove()
            if self.in_process:
                from sottovoce import gauges  # noqa: PLC0415

                gauges.stop(type(self).__name__, self._meters)
        self._patches.undo()

    def hooked(self) -> list[str]:
        """Say what was replaced so far, as ``module.Class.method``."""
        return self._patches.names()

    def _install(self, recorder: SpanRecorder) -> None:
        raise NotImplementedError

    def _remove(self) -> None:
        """Undo what is not a patch."""


@lru_cache(maxsize=1)
def shared_recorder(tracers: Any, meters: Any, chosen: settings.Settings) -> SpanRecorder:
    """Make one recorder for all that are applied together."""
    return SpanRecorder(tracers, meters, chosen)


@lru_cache(maxsize=1)
def _step_recorder(tracers: Any, meters: Any, chosen: settings.Settings) -> Recorder:
    """Make the recorder of tools and agents, once there are any."""
    from sottovoce.record_steps import StepRecorder  # noqa: PLC0415

    return StepRecorder(tracers, meters, chosen)


def request_recorder(tracers: Any, meters: Any, chosen: settings.Settings) -> Recorder:
    """Make the recorder of requests that this process answers, once there are any."""
    from sottovoce.record_requests import RequestRecorder  # noqa: PLC0415

    return RequestRecorder(tracers, meters, chosen)
