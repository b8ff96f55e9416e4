"""What `opentelemetry-instrument` finds: the distro, the configurator, the guard.

The launcher chooses a distro and a configurator independently, so either of ours may run
without the other. Whoever wins, `guard_providers` runs before anything is instrumented.

The only module that writes the environment: defaults for variables that nobody set.
Nothing here imports the SDK until there is a destination.
"""

from __future__ import annotations

import contextlib
import email
import gc
import logging
import os
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.instrumentation.distro import BaseDistro
from opentelemetry.util._importlib_metadata import Distribution, entry_points

from sottovoce import settings
from sottovoce.guard import failed, never_raise

if TYPE_CHECKING:
    from collections.abc import Iterator
    from os import PathLike

    from opentelemetry.util._importlib_metadata import EntryPoint

    from sottovoce.settings import Settings

log = logging.getLogger("sottovoce")

_OURS: Final = "sottovoce."


_defaults: dict[str, str] = {}
_reported: set[str] = set()


def from_environment() -> Settings:
    """Read what the operator set; a value that cannot be used is reported once.

    Our own defaults are left out: what was chosen for one pipeline does not bind the next.
    """
    theirs = {name: value for name, value in os.environ.items() if _defaults.get(name) != value}
    chosen, warnings = settings.read(theirs)
    if not chosen.disabled:
        report(warnings)
    return chosen


def report(warnings: list[str]) -> None:
    """Show each warning once a process; without `logging` set up it goes to stderr."""
    for warning in warnings:
        if warning not in _reported:
            _reported.add(warning)
            log.warning("sottovoce: %s", warning)


def apply_defaults(chosen: Settings) -> None:
    """Set, for this process and its children, the variables that nobody set."""

    def default(variable: str, value: str) -> None:
        if os.environ.get(variable) in {None, _defaults.get(variable)}:
            os.environ[variable] = _defaults[variable] = value

    # The launcher picks a configurator by itself: another installed distribution's could
    # come first and build a pipeline without a gate. A name set by the operator stays,
    # and what it builds is gated by `guard_providers`.
    default("OTEL_PYTHON_CONFIGURATOR", "sottovoce")
    if not chosen.has_destination:
        return
    _speak()
    _mend()
    # `anthropic` >= 2 makes spans of its own beside ours, with the organisation's id …
    default("ANTHROPIC_OPEN_TELEMETRY", "false")
    # … and, even without them, sends `traceparent` and baggage to the provider.
    default("ANTHROPIC_OPEN_TELEMETRY_PROPAGATION", "false")
    if chosen.config_file:
        # The file decides everything else.
        return
    # Half the import time of gRPC, and no native library in the app's process.
    default("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    # OpenTelemetry's own default adds baggage, which may hold what users said or are.
    default("OTEL_PROPAGATORS", "tracecontext")
    if address := chosen.endpoint or (settings.LOCAL_ENDPOINT if chosen.local else None):
        default("OTEL_EXPORTER_OTLP_ENDPOINT", address)
    if chosen.local and not chosen.endpoint:
        _ask_for_receiver(settings.LOCAL_ENDPOINT)
    # OpenTelemetry for Python exports nothing until told to. What has no destination stays
    # unset. Logs need to be asked for by name: without its text, which the gate removes, a
    # record says little and would cost a request all the same.
    for signal in settings.SIGNALS:
        if chosen.exporters(signal):
            default(f"OTEL_{signal.upper()}_EXPORTER", "otlp")
    # OTEL_EXPORTER_OTLP_TIMEOUT stays as it is: at exit we do not wait for it, and while the
    # app runs a slow network should get its ten seconds.


def _mend() -> None:
    """Remove what the SDK, or the API, would fail on: the default is better than no start."""
    from sottovoce.delivery import variables  # noqa: PLC0415 - of use only with a destination

    wrong = variables.unusable(dict(os.environ))
    for signal in ("tracer", "meter", "logger"):
        variable = f"OTEL_PYTHON_{signal.upper()}_PROVIDER"
        name = os.environ.get(variable)
        group = f"opentelemetry_{signal}_provider"
        if name is not None and not entry_points(group=group, name=name):
            known = ", ".join(sorted(entry.name for entry in entry_points(group=group)))
            wrong[variable] = f"{variable}: {name!r} cannot be used; choose of {known}. Using none."
    for variable in wrong:
        del os.environ[variable]
    report(list(wrong.values()))


class _Voice(logging.Handler):
    """Shows our warnings on stderr when nobody else does.

    Python does that by itself for a program without `logging` set up, but no more once
    OpenTelemetry's handler sits on the root logger, whose records leave without their text.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Leave it to a handler of the app's, if there is one."""
        here: logging.Logger | None = log
        while here is not None:
            if any(map(_shows, here.handlers)):
                return
            here = here.parent if here.propagate else None
        last = logging.lastResort
        if last is not None and record.levelno >= last.level:
            last.handle(record)


def _shows(handler: logging.Handler) -> bool:
    return not isinstance(handler, _Voice) and not type(handler).__module__.startswith(
        "opentelemetry."
    )


def _speak() -> None:
    if not any(isinstance(handler, _Voice) for handler in log.handlers):
        log.addHandler(_Voice())


class SottovoceDistro(BaseDistro):  # type: ignore[misc]
    """The distribution: defaults, and no instrumentation without a destination."""

    _chosen: Settings | None = None

    def _configure(self, **_: Any) -> None:
        self._chosen = from_environment()
        apply_defaults(self._chosen)

    def load_instrumentor(self, entry_point: EntryPoint, **kwargs: Any) -> None:
        """Instrument; ours only with somewhere to send to, and never at others' expense."""
        if not entry_point.value.startswith(_OURS):
            if not _is_rival(entry_point):
                super().load_instrumentor(entry_point, **kwargs)
        elif _has_pipeline():
            if self._chosen is not None:
                kwargs.setdefault("settings", self._chosen)
            try:
                super().load_instrumentor(entry_point, **kwargs)
            except Exception as error:  # noqa: BLE001 - the launcher would skip all that follow
                failed(f"instrumenting by {entry_point.name}")
                log.warning(
                    "sottovoce: %s could not be applied (%s); its calls are not recorded.",
                    entry_point.name,
                    type(error).__name__,
                )


def _is_rival(entry_point: EntryPoint) -> bool:
    """Whether ours records the same calls, and the operator wants them once; says so, once."""
    from sottovoce import rivals  # noqa: PLC0415 - few apps have an instrumentation of others

    chosen = from_environment()
    ours = rivals.covered_by(entry_point, chosen.disabled_instrumentations)
    if ours is None or chosen.rivals == "run" or not _has_pipeline():
        return False
    theirs = entry_point.value.partition(":")[0]
    told = (
        f"{theirs} is not applied: {ours} records the same calls, which would all leave twice. "
        f"SOTTOVOCE_RIVALS=run applies it too; OTEL_PYTHON_DISABLED_INSTRUMENTATIONS={ours} "
        "applies it instead; name the HTTP library there too (such as sottovoce_httpx), or its "
        "requests are recorded beside it."
    )
    _report_to_family(theirs, told)
    return True


def _report_to_family(name: str, warning: str) -> None:
    """Show a warning unless a process that this one descends from has shown it.

    Every Python that an app starts is launched as the app was: servers have many workers.
    """
    told = os.environ.get(settings.TOLD, "").split()
    if name not in told:
        os.environ[settings.TOLD] = " ".join((*told, name))
        report([warning])


@never_raise("distro.receiver")
def _ask_for_receiver(address: str) -> None:
    """Say what to start when nothing listens there: the SDK's own errors name no command."""
    import errno  # noqa: PLC0415 - of use only here
    import socket  # noqa: PLC0415

    host, _, port = address.partition("://")[2].partition(":")
    with socket.socket() as probe:
        # On this machine it is known at once.
        probe.settimeout(0.1)
        if probe.connect_ex((host, int(port))) != errno.ECONNREFUSED:
            return
    told = f"SOTTOVOCE_LOCAL: nothing listens at {address} yet; start it with `sottovoce local`."
    _report_to_family("local", told)


class SottovoceConfigurator:
    """Builds the providers behind the gate, when there is a destination."""

    def configure(self, **kwargs: Any) -> None:
        """Build them; called by the launcher with `auto_instrumentation_version`."""
        chosen = from_environment()
        if not chosen.has_destination:
            return
        apply_defaults(chosen)
        with _uncollected():
            from sottovoce.delivery import pipeline  # noqa: PLC0415 - the SDK, only when needed

            pipeline.configure(chosen, auto_version=kwargs.get("auto_instrumentation_version"))


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Let no garbage be looked for meanwhile: before the app runs there is none worth the time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def guard_providers() -> None:
    """Gate the global providers, whoever built them; runs before any instrumentor.

    Raises:
        Refused: they cannot be gated. They are shut down, and the launcher instruments
            nothing.
    """
    from sottovoce.delivery import adopt  # noqa: PLC0415 - light, but of use only here

    _read_requirements_once()
    adopt.guard(from_environment())


class _Known(Distribution):
    """A distribution that says what it requires without reading its metadata again."""

    def __init__(self, known: Distribution) -> None:
        self._known = known
        self._requires: list[str] | None = None
        text = known.read_text("METADATA")
        if text is None:  # not installed from a wheel
            self._requires = known.requires
        else:
            # The description, which follows, is most of it.
            head = email.message_from_string(text.partition("\n\n")[0])
            self._requires = head.get_all("Requires-Dist")

    @property
    def requires(self) -> list[str] | None:
        return self._requires

    def read_text(self, filename: str) -> str | None:
        text: str | None = self._known.read_text(filename)
        return text

    def locate_file(self, path: str | PathLike[str]) -> Any:
        return self._known.locate_file(path)


@never_raise("distro.requirements")
def _read_requirements_once() -> None:
    """Let the launcher ask our entry points what they require at the cost of one.

    It asks each of them twice, and Python (3.10 to 3.13) parses the metadata anew each time,
    with the description in it: most of what instrumenting would cost.
    """
    known: _Known | None = None
    for entry in entry_points(group="opentelemetry_instrumentor"):
        if entry.value.startswith(_OURS) and entry.dist is not None:
            known = known or _Known(entry.dist)
            # Entry points take no assignment; these are OpenTelemetry's own copies.
            vars(entry)["dist"] = known


def _has_pipeline() -> bool:
    """Whether our spans would go anywhere: a destination of ours, or gated providers."""
    from sottovoce.delivery import adopt  # noqa: PLC0415

    return adopt.is_ready()
