"""Every setting: its environment variable, default, parser. The only module that reads them.

`OTEL_*` variables keep the meaning that OpenTelemetry gives them; `SOTTOVOCE_*` exist where
OpenTelemetry has none. A value that cannot be used never raises: it becomes the safe choice
and a warning that names the variable, the value (secrets excepted) and the choices.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ENDPOINT_VARIABLES: Final = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
    "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT",
)
EXPORTER_VARIABLES: Final = (
    "OTEL_TRACES_EXPORTER",
    "OTEL_METRICS_EXPORTER",
    "OTEL_LOGS_EXPORTER",
)
LOCAL_ENDPOINT: Final = "http://127.0.0.1:4318"

_TRUE: Final = frozenset({"1", "true", "on", "yes"})
_FALSE: Final = frozenset({"0", "false", "off", "no", ""})


class _Unusable(ValueError):
    """A value that a parser refuses; the message names the choices."""


def _choice(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        value = text.strip().lower()
        if value not in choices:
            raise _Unusable(f"choose one of {', '.join(choices)}")
        return value

    return parse


def _profile(text: str) -> str:
    value = text.strip().lower()
    if value in {"aggregate", "strict", "content"}:
        raise _Unusable("this version has the profiles off and standard")
    return _choice("off", "standard")(value)


def _boolean(text: str) -> bool:
    value = text.strip().lower()
    if value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise _Unusable("choose true or false")


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 60:  # noqa: PLR2004 - the bound is in the message
        raise _Unusable("give a number of seconds from 0 to 60")
    return value


def _hosts(text: str) -> tuple[str, ...]:
    return tuple(host.strip().lower() for host in text.split(",") if host.strip())


def _text(text: str) -> str | None:
    return text or None


def _setting(
    variable: str,
    default: Any,
    parse: Callable[[str], Any],
    meaning: str,
    *,
    safe: Any = None,
    secret: bool = False,
) -> Any:
    """A field of `Settings`; `safe` is the choice when the value is unusable (else the default)."""
    return field(
        default=default,
        repr=not secret,
        metadata={
            "variable": variable,
            "parse": parse,
            "meaning": meaning,
            "safe": default if safe is None else safe,
            "secret": secret,
        },
    )


@dataclass(frozen=True, slots=True)
class Settings:
    """What the operator decided, read once at start."""

    profile: str = _setting(
        "SOTTOVOCE_PROFILE",
        "standard",
        _profile,
        "privacy profile: `standard`, or `off` for no telemetry at all",
        safe="off",
    )
    semconv: str = _setting(
        "SOTTOVOCE_SEMCONV",
        "v1.41",
        _choice("v1.41", "latest", "both"),
        "metric vocabulary: `v1.41` (what backends read today), `latest` (`gen_ai.client.inference.*`) or `both`",
    )
    remote_model_ids: str = _setting(
        "SOTTOVOCE_REMOTE_MODEL_IDS",
        "hash",
        _choice("hash", "catalogue"),
        "`hash`: ids of remote models are pseudonyms; `catalogue`: ids of publicly known models are kept",
    )
    key: str | None = _setting(
        "SOTTOVOCE_KEY",
        None,
        _text,
        "secret of the pseudonyms, at least 16 bytes; absent: made at first use and kept in the state directory",
        secret=True,
    )
    key_file: str | None = _setting(
        "SOTTOVOCE_KEY_FILE", None, _text, "file that holds the secret of the pseudonyms"
    )
    own_hosts: tuple[str, ...] = _setting(
        "SOTTOVOCE_OWN_HOSTS",
        (),
        _hosts,
        "comma-separated hosts (`api.example.org`, `*.example.org`) that are yours: their models count as local and trace context may go there",
    )
    propagation: str = _setting(
        "SOTTOVOCE_PROPAGATION",
        "own",
        _choice("own", "all"),
        "who may get `traceparent` with a model call: loopback and your own hosts, or everyone",
    )
    exit_timeout: float = _setting(
        "SOTTOVOCE_EXIT_TIMEOUT",
        1.0,
        _seconds,
        "seconds that the end of the process may wait for the last export",
    )
    local: bool = _setting(
        "SOTTOVOCE_LOCAL",
        default=False,
        parse=_boolean,
        meaning=f"send to a `sottovoce local` receiver at {LOCAL_ENDPOINT} when no endpoint is set",
    )
    disabled: bool = _setting(
        "OTEL_SDK_DISABLED", default=False, parse=_boolean, meaning="no telemetry at all"
    )
    config_file: str | None = _setting(
        "OTEL_CONFIG_FILE",
        None,
        _text,
        "OpenTelemetry's declarative configuration; gated like everything else",
    )

    @property
    def has_destination(self) -> bool:
        """Whether anything would receive telemetry; without it nothing is created."""
        if self.disabled or self.profile == "off":
            return False
        if self.local or self.config_file:
            return True
        if any(os.environ.get(name, "").strip() for name in ENDPOINT_VARIABLES):
            return True
        return any(
            os.environ.get(name, "").strip().lower() not in {"", "none"}
            for name in EXPORTER_VARIABLES
        )


def read(environ: Mapping[str, str] | None = None, **overrides: Any) -> tuple[Settings, list[str]]:
    """Read the settings from the environment, then apply `overrides` by field name.

    Returns:
        The settings, and one warning for each value that could not be used.

    Raises:
        TypeError: for an override that is no setting.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    warnings: list[str] = []
    for entry in fields(Settings):
        meta = entry.metadata
        text = environ.get(meta["variable"])
        if text is None:
            continue
        try:
            values[entry.name] = meta["parse"](text)
        except _Unusable as error:
            values[entry.name] = meta["safe"]
            shown = "the value given" if meta["secret"] else repr(text[:64])
            warnings.append(
                f"{meta['variable']}: {shown} cannot be used; {error}. Using {meta['safe']!r}."
            )
    unknown = set(overrides) - {entry.name for entry in fields(Settings)}
    if unknown:
        known = ", ".join(entry.name for entry in fields(Settings))
        raise TypeError(f"no such setting: {', '.join(sorted(unknown))}. Settings are: {known}")
    known_variables = {entry.metadata["variable"] for entry in fields(Settings)}
    warnings += [
        f"{name} is not a setting of this version and does nothing."
        for name in sorted(environ)
        if name.startswith("SOTTOVOCE_") and name not in known_variables
    ]
    return replace(Settings(**values), **overrides), warnings
