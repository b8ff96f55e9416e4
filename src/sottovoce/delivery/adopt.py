"""Providers that someone else built: put behind the gate in place, or refused.

Someone else is another distribution's configurator, `OTEL_CONFIG_FILE`, an entry point named
by `OTEL_PYTHON_TRACER_PROVIDER`, or the app itself. What cannot be gated is shut down and
nothing is instrumented: telemetry is lost rather than sent raw.

Importing this module does not import the SDK.
"""

from __future__ import annotations

import functools
import logging
import sys
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from opentelemetry import _logs, metrics, trace
from opentelemetry._logs import _internal as logs_api
from opentelemetry.metrics import _internal as metrics_api

from sottovoce._version import __version__
from sottovoce.delivery import exit as ending
from sottovoce.guard import Patches

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sottovoce.delivery.pipeline import Pipeline
    from sottovoce.settings import Settings

log = logging.getLogger("sottovoce")

_PATIENCE: Final = 1.0
"""Seconds that ending refused providers may keep the app from starting."""

_VACANT: Final = frozenset(
    {
        "ProxyTracerProvider",
        "NoOpTracerProvider",
        "_ProxyMeterProvider",
        "NoOpMeterProvider",
        "ProxyLoggerProvider",
        "NoOpLoggerProvider",
    }
)
"""Class names, in `opentelemetry`'s API, of providers that export nothing."""


class Refused(RuntimeError):
    """Providers that cannot be gated; the message says why and what to do."""


class Providers(NamedTuple):
    """Three providers that belong together; one that is absent is None."""

    tracer: Any = None
    meter: Any = None
    logger: Any = None


_refusal: str | None = None

_SETTERS: Final = (
    (trace, "_set_tracer_provider"),
    (metrics_api, "_set_meter_provider"),
    (logs_api, "_set_logger_provider"),
)
"""What every way to make a provider global ends in (read in opentelemetry-api 1.45); a program
may hold on to the public functions since before we came."""

_setters: Final = Patches()


def in_use() -> Providers:
    """The global providers, where someone set one."""
    found = (trace.get_tracer_provider(), metrics.get_meter_provider(), _logs.get_logger_provider())
    return Providers(*(None if _is_vacant(provider) else provider for provider in found))


def refusal() -> str | None:
    """Why nothing may be instrumented; None when it may."""
    return _refusal


def forgive() -> None:
    """Forget a refusal: the app starts again, with what may be another configuration."""
    global _refusal  # noqa: PLW0603 - see `refuse`
    _refusal = None


def is_ready() -> bool:
    """Whether there is a pipeline, gated, that our instrumentors could feed."""
    if _refusal is not None or "opentelemetry.sdk" not in sys.modules:
        return False
    from sottovoce.privacy import gate  # noqa: PLC0415 - imports the SDK

    present = [provider for provider in in_use() if provider is not None]
    return bool(present) and all(gate.is_gated(provider) for provider in present)


def guard(chosen: Settings) -> None:
    """Put the global providers behind the gate; there may be none, or ours.

    Raises:
        Refused: one cannot be gated, or telemetry is off. All have been shut down.
    """
    # The SDK's providers know `OTEL_SDK_DISABLED` and then make nothing (`_disabled`, 1.45).
    present = Providers(
        *(None if getattr(provider, "_disabled", False) else provider for provider in in_use())
    )
    if not any(present):
        return
    from sottovoce.delivery import pipeline  # noqa: PLC0415 - imports the SDK
    from sottovoce.privacy import gate, policy  # noqa: PLC0415

    if all(gate.is_gated(provider) for provider in present if provider is not None):
        return
    names = ", ".join(sorted({_name_of(provider) for provider in present if provider is not None}))
    if off := chosen.off_because:
        refuse(present, f"{off}, but {names} would export telemetry")
        raise Refused(_refusal)
    judge = policy.active() if pipeline.current() else policy.activate(chosen)
    if reason := _gated(present, judge):
        refuse(present, f"{names} cannot be gated: {reason}")
        raise Refused(_refusal)
    watch()
    pipeline.gate_propagation(judge, chosen)


def watch() -> None:
    """From now on, put what the app makes global behind the gate, or do not let it be global."""
    for module, name in _SETTERS:
        _setters.wrap(module, name, _watched)


def _watched(setter: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(setter)
    def make_global(provider: Any, *args: Any, **kwargs: Any) -> None:
        if _is_vacant(provider) or _admitted(provider):
            setter(provider, *args, **kwargs)

    return make_global


def _admitted(provider: Any) -> bool:
    from sottovoce.privacy import gate, policy  # noqa: PLC0415 - imports the SDK

    if gate.is_gated(provider):
        return True
    kinds = (trace.TracerProvider, metrics.MeterProvider, _logs.LoggerProvider)
    alone = Providers(*(provider if isinstance(provider, kind) else None for kind in kinds))
    reason = _gated(alone, policy.active()) if any(alone) else "it is no provider"
    if reason:
        log.error(
            "sottovoce: refused: %s cannot be gated: %s. It is shut down and not used.",
            _name_of(provider), reason,
        )  # fmt: skip
        ending.shut_down([provider], _PATIENCE)
    return not reason


def from_file(chosen: Settings) -> Pipeline | None:
    """Let `opentelemetry-configuration` read `OTEL_CONFIG_FILE`, then gate what it made.

    Returns:
        The pipeline, or None: the file was refused (with a message) or sets nothing up.
    """
    from sottovoce.delivery import pipeline  # noqa: PLC0415 - see `guard`
    from sottovoce.privacy import policy  # noqa: PLC0415

    judge = policy.activate(chosen)
    before = in_use()
    try:
        from opentelemetry.configuration import configure_sdk, load_config_file  # noqa: PLC0415
    except ImportError:
        refuse(
            Providers(),
            "OTEL_CONFIG_FILE is set, but opentelemetry-configuration is not installed; "
            "install it, or unset the variable and configure by OTEL_* variables",
        )
        return None
    try:
        configure_sdk(load_config_file(chosen.config_file))
    except Exception as error:  # noqa: BLE001 - someone else's code, and the app must start
        from sottovoce.delivery import variables  # noqa: PLC0415 - only for what went wrong

        what = variables.told(error)
        refuse(_since(before), f"OTEL_CONFIG_FILE: {chosen.config_file!r} cannot be used ({what})")
        return None
    made = _since(before)
    if not any(made):
        log.warning("sottovoce: OTEL_CONFIG_FILE: %r sets nothing up.", chosen.config_file)
        return None
    if reason := _gated(made, judge):
        refuse(made, f"what OTEL_CONFIG_FILE: {chosen.config_file!r} set up: {reason}")
        return None
    _sign(made)
    watch()
    pipeline.gate_propagation(judge, chosen)
    end = ending.Ending(made, (), chosen.exit_timeout)
    return pipeline.remember(pipeline.Pipeline(made, (), end))


def refuse(providers: Providers, reason: str) -> None:
    """Say so loudly, let none of ours be instrumented, and end what would export."""
    global _refusal  # noqa: PLW0603 - one decision a process
    _refusal = f"sottovoce: refused: {reason}. Nothing is exported and nothing instrumented."
    log.error("%s", _refusal)
    ending.shut_down(providers, _PATIENCE)


def _gated(providers: Providers, judge: Any) -> str | None:
    """Gate providers in place and check that they are. Returns why not."""
    from sottovoce.privacy import gate  # noqa: PLC0415 - imports the SDK

    try:
        gate.gate_in_place(judge, *providers)
    except gate.CannotGate as error:
        return str(error)
    raw = [p for p in providers if p is not None and not gate.is_gated(p)]
    return f"{_name_of(raw[0])} stayed raw" if raw else None


def _since(before: Providers) -> Providers:
    """Global providers that were not there before."""
    return Providers(
        *(now if now is not was else None for was, now in zip(before, in_use(), strict=True))
    )


def _sign(providers: Providers) -> None:
    """Name distribution and machine on the resource, where the SDK lets it change (1.43 on)."""
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415

    from sottovoce import hardware  # noqa: PLC0415 - of use only here

    ours = {"telemetry.distro.name": "sottovoce", "telemetry.distro.version": __version__}
    machine = hardware.profile().attributes()
    for provider in providers:
        update = getattr(provider, "_update_resource", None)
        if update is not None:
            told = _resource_of(provider)
            update(Resource({k: v for k, v in machine.items() if k not in told} | ours))


def _resource_of(provider: Any) -> Mapping[str, Any]:
    """Attributes of the resource of a provider; a meter provider has it in `_sdk_config` (1.45)."""
    resource = getattr(getattr(provider, "_sdk_config", provider), "resource", None)
    return getattr(resource, "attributes", {})


def _is_vacant(provider: Any) -> bool:
    kind = type(provider)
    return kind.__name__ in _VACANT and kind.__module__.startswith("opentelemetry.")


def _name_of(provider: Any) -> str:
    return f"{type(provider).__module__}.{type(provider).__qualname__}"
