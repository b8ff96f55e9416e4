"""What an environment holds that matters to us: libraries, hooks, rivals, destination.

Facts alone; `doctor` shows them. No secret and no address beyond host and port is among them.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.metadata import entry_points, packages_distributions, version
from platform import python_version
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from opentelemetry import environment_variables
from opentelemetry.sdk import environment_variables as sdk_variables

from sottovoce import hardware, registry, rivals, settings
from sottovoce.privacy import catalogue, pseudonyms
from sottovoce.privacy.hosts import is_loopback

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sottovoce.settings import Settings

_PATIENCE_S: Final = 120
_ALIKE: Final = 0.93
"""How alike two names are of which one was meant: 1 is the same."""
_ANSWER_S: Final = 1.0
_PORTS: Final = {"http": 80, "https": 443}
_GROUPS: Final = ("opentelemetry_distro", "opentelemetry_configurator")
_NO_SPANS: Final = frozenset({"off", "aggregate"})
_ELSEWHERE: Final = ("opentelemetry.", "sottovoce.")


@dataclass(frozen=True)
class Library:
    """A library that one of our instrumentors is for.

    Attributes:
        name: its distribution.
        version: None when it cannot be told.
        instrumentor: our entry point.
        state: ``hooked``, ``disabled``, ``left alone`` (a seam is missing: its version is
            one that we do not know) or ``fails to import (CLASS)``.
        hooks: what was wrapped, as ``module.Class.method``.
    """

    name: str
    version: str | None
    instrumentor: str
    state: str
    hooks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Other:
    """Telemetry of somebody else in this environment, and what we do about it."""

    name: str
    version: str | None
    treatment: str


@dataclass(frozen=True)
class Environment:
    """Everything that `sottovoce doctor` shows.

    Attributes:
        python: version of the interpreter.
        settings: what is not a default: variable -> value as shown.
        warnings: settings that could not be used, files that they name, and variables that are
            nearly OpenTelemetry's.
        destinations: signal -> exporter and host, empty for none.
        silent: those of the signals whose destination is on this machine and does not answer.
        spans: what spans would be of, by `gen_ai.operation.name` or MCP method; none in a
            profile without spans.
        metrics: names of the metrics of the chosen vocabulary.
        machine: what the resource says of it: attribute -> word.
        gauges: those of the metrics that tell of memory and accelerators, as far as this machine
            can; none without a runtime.
        libraries: those that are installed.
        others: other distributions, rivals, native telemetry of SDKs.
        missing: entry points of ours that nothing installed asks for.
        unknown: names in `OTEL_PYTHON_DISABLED_INSTRUMENTATIONS` that are like ours, or ours but
            for ``sottovoce_``, and no entry point's.
        problem: why the libraries could not be looked at, else None.
    """

    python: str
    settings: Mapping[str, str]
    warnings: tuple[str, ...]
    destinations: Mapping[str, str]
    spans: tuple[str, ...]
    metrics: tuple[str, ...]
    machine: Mapping[str, str]
    gauges: tuple[str, ...]
    libraries: tuple[Library, ...]
    others: tuple[Other, ...]
    missing: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    problem: str | None = None
    silent: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)


def look() -> Environment:
    """Gather the facts; importing every library takes some seconds, in another process."""
    chosen, warnings = settings.read()
    found, problem = _probed()
    disabled = set(chosen.disabled_instrumentations)
    everything_off = "*" in disabled
    libraries = [
        _library(name, each, off=everything_off or name in disabled)
        for name, each in found.items()
        if each["library"] is not None
    ]
    return Environment(
        python=sys.version.split()[0],
        settings=settings.chosen_by_operator(chosen),
        warnings=(*warnings, *_unusable(chosen), *_nearly()),
        destinations={signal: _destination(chosen, signal) for signal in settings.SIGNALS},
        spans=() if chosen.profile in _NO_SPANS else tuple(registry.SPANS),
        metrics=() if chosen.profile == "off" else _metrics(chosen.semconv),
        machine={} if chosen.profile == "off" else hardware.profile().attributes(),
        gauges=() if chosen.profile == "off" else _gauges(found, libraries),
        libraries=tuple(libraries),
        others=tuple(_others(chosen, {each.name: each.version for each in libraries})),
        missing=tuple(name for name, each in found.items() if each["library"] is None),
        unknown=_unknown(chosen),
        problem=problem,
        silent=tuple(signal for signal in settings.SIGNALS if _is_silent(chosen, signal)),
        versions={
            name: _version(name) or "absent"
            for name in ("sottovoce", "opentelemetry-sdk", "opentelemetry-instrumentation")
        },
    )


def _unusable(chosen: Settings) -> list[str]:
    """What an app would be warned of when it first makes a pseudonym, or meets a public id."""
    told: list[str] = []
    if chosen.key is not None or chosen.key_file is not None:
        told += _warned(lambda: pseudonyms.from_settings(chosen))
    if chosen.model_catalogue is not None:
        told += _warned(catalogue.version)
    return told


def _warned(look: Callable[[], object]) -> list[str]:
    told: list[str] = []
    log, handler = logging.getLogger("sottovoce"), logging.Handler(logging.WARNING)
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    propagates, log.propagate = log.propagate, False
    log.addHandler(handler)
    try:
        look()
    finally:
        log.removeHandler(handler)
        log.propagate = propagates
    return told


def _nearly() -> list[str]:
    """Variables that OpenTelemetry does not know, but for a letter or two."""
    known = {entry.variable for entry in settings.SETTINGS.values()}
    for module in (environment_variables, sdk_variables):
        known |= {name for name in vars(module) if name.startswith("OTEL_")}
    told = []
    for name in sorted(os.environ):
        if name.startswith("OTEL_") and name not in known:
            meant = difflib.get_close_matches(name, known, 1, _ALIKE)
            told += [f"{name} is none of OpenTelemetry's variables; is {it} meant?" for it in meant]
    return told


def _unknown(chosen: Settings) -> tuple[str, ...]:
    # Of other packages' names nobody can tell: they may be meant for other environments.
    known = entry_points(group="opentelemetry_instrumentor").names
    return tuple(
        name
        for name in chosen.disabled_instrumentations
        if name not in known and (name.startswith("sottovoce") or f"sottovoce_{name}" in known)
    )


def _metrics(vocabulary: str) -> tuple[str, ...]:
    chosen = {"v1.41", "latest"} if vocabulary == "both" else {vocabulary}
    return tuple(name for name, each in registry.METRICS.items() if chosen & each.vocabulary)


def _gauges(found: Mapping[str, Any], libraries: list[Library]) -> tuple[str, ...]:
    hooked = [found[each.instrumentor]["gauges"] for each in libraries if each.hooks]
    return tuple(dict.fromkeys(name for names in hooked for name in names))


def _probed() -> tuple[dict[str, Any], str | None]:
    """Run the probe, with nowhere to send to."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "sottovoce.cli.probe"],
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
            env={**clean, "SOTTOVOCE_PROFILE": "standard"},
            check=False,
        )
        found: dict[str, Any] = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return {}, f"importing the libraries took more than {_PATIENCE_S} s"
    except ValueError:
        return {}, f"the process that imports the libraries ended with {done.returncode}"
    return found, None


def _library(instrumentor: str, found: Mapping[str, Any], *, off: bool) -> Library:
    name, version_ = _distribution(found["library"])
    state = "hooked" if found["hooks"] else "left alone"
    if found["error"] is not None:
        state = f"fails to import ({found['error']})"
    if off:
        state = "disabled"
    return Library(name, version_, instrumentor, state, () if off else tuple(found["hooks"]))


def _distribution(module: str) -> tuple[str, str | None]:
    """Name and version of what brought `module`: ``google.genai._api_client`` is google-genai.

    What is in the standard library has Python's version.
    """
    parts = module.split(".")
    if parts[0] in sys.stdlib_module_names:
        return module, python_version()
    for count in range(len(parts), 0, -1):
        name = "-".join(parts[:count])
        found = _version(name)
        if found is not None:
            return name, found
    owners = packages_distributions().get(parts[0]) or [parts[0]]
    return owners[0], _version(owners[0])


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except Exception:  # noqa: BLE001 - metadata that is missing or broken says nothing
        return None


def _destination(chosen: Settings, signal: str) -> str:
    """Say exporter and host: a path or a query may hold a token."""
    exporters = chosen.exporters(signal)
    if not exporters:
        return ""
    host = urlsplit(_address(chosen, signal)).netloc.rpartition("@")[2]
    return ", ".join(exporters) + (f" to {host}" if host else "")


def _address(chosen: Settings, signal: str) -> str:
    local = settings.LOCAL_ENDPOINT if chosen.local else ""
    return getattr(chosen, f"{signal}_endpoint") or chosen.endpoint or local


def _is_silent(chosen: Settings, signal: str) -> bool:
    """Ask this machine only: nobody else is to learn that somebody looks around."""
    address = _address(chosen, signal)
    if not address or not chosen.exporters(signal):
        return False
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 0)
        if not is_loopback(host):
            return False
        with socket.create_connection((host, port), timeout=_ANSWER_S):
            return False
    except (OSError, ValueError):
        return True


def _others(chosen: Settings, libraries: Mapping[str, str | None]) -> list[Other]:
    others = []
    for entry in entry_points(group="opentelemetry_instrumentor"):
        ours = rivals.covered_by(entry, chosen.disabled_instrumentations)
        if ours is None:
            continue
        treatment = (
            "runs beside us (SOTTOVOCE_RIVALS=run): two spans a call"
            if chosen.rivals == "run"
            else f"not applied by the launcher: {ours} records the same calls"
        )
        others.append(Other(_name_of(entry), _owner_version(entry), treatment))
    for group in _GROUPS:
        for entry in entry_points(group=group):
            if not entry.value.startswith(_ELSEWHERE):
                kind = group.removeprefix("opentelemetry_")
                treatment = f"another {kind}; what it builds passes our gate"
                others.append(Other(_name_of(entry), _owner_version(entry), treatment))
    if "anthropic" in libraries:
        treatment = (
            "its own spans are as ANTHROPIC_OPEN_TELEMETRY says; they pass our gate"
            if settings.is_set("ANTHROPIC_OPEN_TELEMETRY")
            else "its own spans (anthropic ≥ 2) are switched off under the launcher"
        )
        others.append(Other("anthropic", libraries["anthropic"], treatment))
    if chosen.config_file:
        others.append(Other("OTEL_CONFIG_FILE", None, "decides the pipeline; gated like any other"))
    return others


def _name_of(entry: Any) -> str:
    return str(entry.value if entry.dist is None else entry.dist.name)


def _owner_version(entry: Any) -> str | None:
    return None if entry.dist is None else str(entry.dist.version)
