"""Every setting: its environment variable, default, parser. The only module that reads them.

`OTEL_*` variables keep the meaning that OpenTelemetry gives them; `SOTTOVOCE_*` exist where
OpenTelemetry has none. A value that cannot be used never raises: it becomes the safe choice
and a warning that names the variable, the value (secrets excepted) and the choices.
"""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING, Any, Final

from sottovoce import parsers
from sottovoce.parsers import Unusable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

SIGNALS: Final = ("traces", "metrics", "logs")
LOCAL_ENDPOINT: Final = "http://127.0.0.1:4318"

PROFILES: Final = ("off", "aggregate", "strict", "standard", "content")
"""The privacy profiles, the tightest first."""

ALLOWED_KINDS: Final = (
    "span",
    "metric",
    "resource",
    "scope",
    "tool",
    "agent",
    "service",
    "route",
    "name",
)
"""Kinds of names that the operator can let leave; ``name``: of workflows, prompts, tables, …"""

PROTOCOLS: Final = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}
"""OTLP protocols, with the exporter entry point that speaks each."""
_PROTOCOL: Final = parsers.optional(parsers.choice(*PROTOCOLS))

# Compiled when a value has to be shown: most processes give no reason to.
_CREDENTIALS: Final = r"(^\s*|//)[^/@\s]*@"
_QUERY: Final = r"[?#].*"
_NAMED: Final = 3
"""Entries of a list that a warning names, of those that cannot be used."""
TOLD: Final = "SOTTOVOCE_TOLD"
"""What a process has warned of, for its children: set by us, no setting."""
_NOT_OURS: Final = ("SOTTOVOCE_BACKEND", "SOTTOVOCE_CACHE", "SOTTOVOCE_COLLECTOR_", TOLD)
"""Variables of the Collector's configurations, of the Makefile and of `distro`: no settings."""


class Setting:
    """One field of `Settings`: where it comes from and how it is read.

    Attributes:
        name: of the field.
        variable: of the environment.
        default: when the variable is absent or empty.
        parse: makes a value of text; raises `Unusable`.
        meaning: for a reader of the documentation.
        safe: the choice when the value is unusable.
        secret: never shown.
    """

    # No dataclass: that would write its methods anew in every process, for two milliseconds.

    __slots__ = ("default", "meaning", "name", "parse", "safe", "secret", "variable")

    name: str

    def __init__(
        self,
        variable: str,
        default: Any,
        parse: Callable[[str], Any],
        meaning: str,
        *,
        safe: Any = None,
        secret: bool = False,
    ) -> None:
        self.variable = variable
        self.default = default
        self.parse = parse
        self.meaning = meaning
        self.safe = default if safe is None else safe
        self.secret = secret

    def __set_name__(self, owner: type[Settings], name: str) -> None:
        self.name = name
        SETTINGS[name] = self

    def __get__(self, chosen: Settings | None, owner: type[Settings]) -> Any:
        """The default; what was chosen is in the object itself, and found first."""
        return self.default


SETTINGS: Final[dict[str, Setting]] = {}
"""Every setting, by its field."""


def _setting(variable: str, default: Any, parse: Any, meaning: str, **more: Any) -> Any:
    """Make a field of `Settings`, of whatever type its annotation says."""
    return Setting(variable, default, parse, meaning, **more)


class Settings:
    """What the operator decided, read once at start.

    Raises:
        TypeError: for a value of what is no setting.
    """

    profile: str = _setting(
        "SOTTOVOCE_PROFILE",
        "standard",
        parsers.choice(*PROFILES),
        "privacy profile, the tightest first: `off` (no telemetry at all), `aggregate` (metrics only, by the hour), `strict` (numbers in buckets), `standard`, `content` (needs `SOTTOVOCE_CONTENT_ACK`; sends what `standard` sends)",
        safe="off",
    )
    content_ack: bool = _setting(
        "SOTTOVOCE_CONTENT_ACK",
        default=False,
        parse=parsers.boolean,
        meaning="`true`: the second key of profile `content`, without which it is `standard`",
    )
    semconv: str = _setting(
        "SOTTOVOCE_SEMCONV",
        "v1.41",
        parsers.choice("v1.41", "latest", "both"),
        "metric vocabulary: `v1.41` (what backends read today), `latest` (`gen_ai.client.inference.*`) or `both`",
    )
    remote_model_ids: str = _setting(
        "SOTTOVOCE_REMOTE_MODEL_IDS",
        "hash",
        parsers.choice("hash", "catalogue"),
        "`hash`: ids of remote models are pseudonyms; `catalogue`: ids of publicly known models are kept",
    )
    model_catalogue: str | None = _setting(
        "SOTTOVOCE_MODEL_CATALOGUE",
        None,
        parsers.words,
        "file of more publicly known model ids, one a line; with a line `version: 2027.01` it replaces the shipped list",
    )
    key: str | None = _setting(
        "SOTTOVOCE_KEY",
        None,
        parsers.words,
        "secret of the pseudonyms, at least 16 bytes; absent: made at first use and kept in the state directory",
        secret=True,
    )
    key_file: str | None = _setting(
        "SOTTOVOCE_KEY_FILE", None, parsers.words, "file that holds the secret of the pseudonyms"
    )
    hash_mode: str = _setting(
        "SOTTOVOCE_HASH_MODE",
        "keyed",
        parsers.choice("keyed", "public"),
        "`public`: models are hashed with a public constant, so that deployments can be compared; whoever has a list of model ids can reverse it",
    )
    user_ids: str = _setting(
        "SOTTOVOCE_USER_IDS",
        "drop",
        parsers.choice("drop", "hash"),
        "`hash`: `user.id` and `enduser.pseudo.id` leave as pseudonyms that change every week",
    )
    own_hosts: tuple[str, ...] = _setting(
        "SOTTOVOCE_OWN_HOSTS",
        (),
        parsers.hosts,
        "comma-separated hosts (`api.example.org`, `*.example.org`) that are yours: their models count as local and trace context may go there",
    )
    endpoints: tuple[str, ...] = _setting(
        "SOTTOVOCE_ENDPOINTS",
        (),
        parsers.endpoints,
        "comma-separated `HOST[:PORT][/PATH]=PROVIDER`: who answers there (`localhost:8000=vllm`); with `:local` the host counts as yours, with `:remote` as not yours, even on this machine",
    )
    allow: tuple[str, ...] = _setting(
        "SOTTOVOCE_ALLOW",
        (),
        parsers.allowed(ALLOWED_KINDS),
        "comma-separated names of your own that may leave: `span:NAME`, `metric:NAME`, `resource:KEY`, `scope:NAME`, `tool:NAME`, `agent:NAME`, `service:NAME` (in profile `strict`), `route:/PATH/{ID}`, `name:NAME` (workflows, prompts, tables, queues, …); a trailing `*` stands for any ending",
    )
    stack_frames: tuple[str, ...] = _setting(
        "SOTTOVOCE_STACK_FRAMES",
        (),
        parsers.packages,
        "comma-separated packages of your own: of an exception, the frames that are in them leave as `module:function:line` (profile `standard`); never messages, never frames of others",
    )
    coarse_span_times: bool = _setting(
        "SOTTOVOCE_COARSE_SPAN_TIMES",
        default=False,
        parse=parsers.boolean,
        meaning="`true`: in profile `strict` the times of spans are rounded down to 100 ms",
    )
    propagation: str = _setting(
        "SOTTOVOCE_PROPAGATION",
        "own",
        parsers.choice("own", "all"),
        "who may get `traceparent` with a model call: loopback and your own hosts, or everyone",
    )
    rivals: str = _setting(
        "SOTTOVOCE_RIVALS",
        "skip",
        parsers.choice("skip", "run"),
        "other instrumentations of the clients that ours record: `skip` them under the launcher, or `run` them too (two spans a call)",
    )
    disabled_instrumentations: tuple[str, ...] = _setting(
        "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS",
        (),
        parsers.items,
        "comma-separated entry points not to apply under the launcher (`sottovoce_openai`, …), or `*`",
    )
    exit_timeout: float = _setting(
        "SOTTOVOCE_EXIT_TIMEOUT",
        1.0,
        parsers.seconds,
        "seconds that the end of the process may wait for the last export",
    )
    local: bool = _setting(
        "SOTTOVOCE_LOCAL",
        default=False,
        parse=parsers.boolean,
        meaning=f"send to a `sottovoce local` receiver at {LOCAL_ENDPOINT} when no endpoint is set",
    )
    disabled: bool = _setting(
        "OTEL_SDK_DISABLED",
        default=False,
        parse=parsers.true,
        meaning="`true`: no telemetry at all",
    )
    config_file: str | None = _setting(
        "OTEL_CONFIG_FILE",
        None,
        parsers.words,
        "OpenTelemetry's declarative configuration; gated like everything else",
    )

    endpoint: str | None = _setting(
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        None,
        parsers.address,
        "where the Collector listens, for traces and metrics (and logs, if their exporter is named)",
    )
    traces_endpoint: str | None = _setting(
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", None, parsers.address, "full URL for traces alone"
    )
    metrics_endpoint: str | None = _setting(
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", None, parsers.address, "full URL for metrics alone"
    )
    logs_endpoint: str | None = _setting(
        "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", None, parsers.address, "full URL for logs alone"
    )
    protocol: str | None = _setting(
        "OTEL_EXPORTER_OTLP_PROTOCOL",
        None,
        _PROTOCOL,
        "`http/protobuf` (default) or `grpc`",
        safe="http/protobuf",
    )
    traces_protocol: str | None = _setting(
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
        None,
        _PROTOCOL,
        "protocol of traces alone",
        safe="http/protobuf",
    )
    metrics_protocol: str | None = _setting(
        "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL",
        None,
        _PROTOCOL,
        "protocol of metrics alone",
        safe="http/protobuf",
    )
    logs_protocol: str | None = _setting(
        "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL",
        None,
        _PROTOCOL,
        "protocol of logs alone",
        safe="http/protobuf",
    )
    traces_exporter: tuple[str, ...] | None = _setting(
        "OTEL_TRACES_EXPORTER",
        None,
        parsers.exporters,
        "comma-separated exporters (`otlp`, `console`, …) or `none`; `otlp` when there is an endpoint",
    )
    metrics_exporter: tuple[str, ...] | None = _setting(
        "OTEL_METRICS_EXPORTER", None, parsers.exporters, "the same for metrics"
    )
    logs_exporter: tuple[str, ...] | None = _setting(
        "OTEL_LOGS_EXPORTER",
        None,
        parsers.exporters,
        "the same for logs; `none` unless named or logs have an endpoint of their own, since the gate leaves a record no body",
    )
    propagators: str | None = _setting(
        "OTEL_PROPAGATORS",
        None,
        parsers.words,
        "comma-separated propagators; `tracecontext`, without baggage, when unset",
    )
    logging_handler: bool = _setting(
        "OTEL_PYTHON_LOGGING_AUTO_INSTRUMENTATION_ENABLED",
        default=False,
        parse=parsers.true,
        meaning="send records of `logging` through the gate, without their text",
    )

    def __init__(self, **chosen: Any) -> None:
        check(chosen)
        vars(self).update(chosen)

    def but(self, **changes: Any) -> Settings:
        """The same with other values.

        Raises:
            TypeError: for a value of what is no setting.
        """
        return Settings(**{**vars(self), **changes})

    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in SETTINGS)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{name} cannot be set: settings are read once; `but` makes others")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Settings) and self._values() == other._values()

    def __hash__(self) -> int:
        # Of a few: asked once for each instrumentor, and most processes have one object.
        return hash((self.profile, self.semconv, self.endpoint, self.own_hosts))

    def __repr__(self) -> str:
        shown = (
            f"{entry.name}={getattr(self, entry.name)!r}"
            for entry in SETTINGS.values()
            if not entry.secret
        )
        return f"Settings({', '.join(shown)})"

    def exporters(self, signal: str) -> tuple[str, ...]:
        """Entry point names of the exporters of `traces`, `metrics` or `logs`; empty for none."""
        if not self.permitted:
            return ()
        names: tuple[str, ...] | None = getattr(self, f"{signal}_exporter")
        if names is None:
            own = getattr(self, f"{signal}_endpoint")
            shared = signal != "logs" and (self.endpoint or self.local)
            names = ("otlp",) if own or shared else ()
        protocol = getattr(self, f"{signal}_protocol") or self.protocol or "http/protobuf"
        return tuple(PROTOCOLS[protocol] if name == "otlp" else name for name in names)

    @property
    def off_because(self) -> str | None:
        """Which setting turns all telemetry off; None when none does."""
        if self.disabled:
            return "OTEL_SDK_DISABLED is true"
        return "SOTTOVOCE_PROFILE is off" if self.profile == "off" else None

    @property
    def permitted(self) -> bool:
        """Whether telemetry may be made at all."""
        return self.off_because is None

    @property
    def has_destination(self) -> bool:
        """Whether anything would receive telemetry; without it nothing is created."""
        return self.permitted and (
            self.config_file is not None or any(self.exporters(signal) for signal in SIGNALS)
        )


def read(environ: Mapping[str, str] | None = None, **overrides: Any) -> tuple[Settings, list[str]]:
    """Read the settings from the environment, then apply `overrides` by field name.

    Returns:
        The settings, and one warning for each value that could not be used.

    Raises:
        TypeError: for an override that is no setting.
    """
    # Copied: `os.environ` decodes a name and its value each time that it is asked.
    environ = dict(os.environ) if environ is None else environ
    values: dict[str, Any] = {}
    warnings: list[str] = []
    for entry in SETTINGS.values():
        text = environ.get(entry.variable)
        # An empty value is an unset one, as OpenTelemetry has it.
        if text is None or not text.strip():
            continue
        try:
            values[entry.name] = entry.parse(text)
        except Unusable as error:
            values[entry.name] = value = error.kept if error.wrong else entry.safe
            warnings.append(refused(entry.variable, entry, text, error, f"Using {value!r}"))
    check(overrides)
    known = {entry.variable for entry in SETTINGS.values()}
    ours = [name for name in environ if name.startswith("SOTTOVOCE_")]
    warnings += [
        f"{name} is not a setting of this version and does nothing."
        for name in sorted(ours)
        if name not in known and not name.startswith(_NOT_OURS)
    ]
    chosen = Settings(**{**values, **overrides})
    if chosen.allow and chosen.profile in _NO_NAMES_OF_ONES_OWN:
        warnings.append(f"SOTTOVOCE_ALLOW does nothing with SOTTOVOCE_PROFILE={chosen.profile}.")
    return settled(_with_hosts_of_endpoints(chosen), warnings)


def _with_hosts_of_endpoints(chosen: Settings) -> Settings:
    """`chosen`, whose endpoints that are local are on hosts of the operator's own."""
    own = (each.partition("=")[0] for each in chosen.endpoints if each.endswith(":local"))
    hosts = (re.sub(r"(?::\d+)?(?:/.*)?$", "", address).strip("[]") for address in own)
    added = tuple(dict.fromkeys(host for host in hosts if host not in chosen.own_hosts))
    return chosen.but(own_hosts=chosen.own_hosts + added) if added else chosen


def settled(chosen: Settings, warnings: list[str]) -> tuple[Settings, list[str]]:
    """`chosen` without what its values cannot mean together."""
    for name, address in list(_bare_addresses(chosen)):
        warnings.append(
            f"{variable_of(name)}: {shown(address)} cannot be used; over HTTP it must start with http:// or https://. Using none."
        )
        absent: dict[str, Any] = {name: None}
        chosen = chosen.but(**absent)
    path = next((f"/v1/{s}" for s in SIGNALS if (chosen.endpoint or "").endswith(f"/v1/{s}")), None)
    if path:
        warnings.append(
            f"OTEL_EXPORTER_OTLP_ENDPOINT: {path} is added to it once more; leave that out."
        )
    return _acknowledged(chosen, [*warnings, *_other_ports(chosen)])


def _other_ports(chosen: Settings) -> Iterator[str]:
    """Endpoints whose port takes another protocol, as Collectors have it: all would be lost."""
    for name in ("endpoint", *(f"{signal}_endpoint" for signal in SIGNALS)):
        address = getattr(chosen, name) or ""
        spoken = getattr(chosen, name.replace("endpoint", "protocol")) or chosen.protocol
        port = (address.partition("://")[2] or address).partition("/")[0].rpartition(":")[2]
        other = ("grpc", "http/protobuf") if spoken == "grpc" else ("http/protobuf", "grpc")
        if port == _PORTS[other[1]]:
            yield (
                f"{variable_of(name)}: Collectors take {other[1]} on port {port}, and "
                f"{other[0]} on {_PORTS[other[0]]}; OTEL_EXPORTER_OTLP_PROTOCOL says which is spoken."
            )


def state_dir(environ: Mapping[str, str] | None = None) -> str | None:
    """Where state that outlives a process is kept on this platform; None without a home."""
    environ = os.environ if environ is None else environ
    home = os.path.expanduser("~")  # noqa: PTH111 - a string is all that is needed
    if sys.platform == "win32":
        base = environ.get("LOCALAPPDATA", "")
    elif sys.platform == "darwin":
        base = os.path.join(home, "Library", "Application Support")  # noqa: PTH118 - as above
    else:
        base = environ.get("XDG_STATE_HOME", "")
        if not os.path.isabs(base):  # noqa: PTH117 - the base directory specification wants it
            base = os.path.join(home, ".local", "state")  # noqa: PTH118 - as above
    return os.path.join(base, "sottovoce") if os.path.isabs(base) else None  # noqa: PTH117, PTH118 - as above


def chosen_by_operator(chosen: Settings) -> dict[str, str]:
    """What is not a default, by variable, as it may be shown: no secret, no address's path."""
    told = {}
    for entry in SETTINGS.values():
        value = getattr(chosen, entry.name)
        if value == entry.default:
            continue
        hidden = entry.secret or entry.parse is parsers.address
        text = ", ".join(value) if isinstance(value, tuple) else str(value)
        told[entry.variable] = "(set)" if hidden else shown(text)
    return told


def is_set(variable: str, other_than: str = "") -> bool:
    """Whether an environment variable of another package has a value, `other_than` excepted."""
    return os.environ.get(variable, "").strip().lower() not in {"", other_than}


def variable_of(name: str) -> str:
    """The environment variable of a field of `Settings`."""
    return SETTINGS[name].variable


def check(chosen: Mapping[str, Any]) -> None:
    """Refuse names that are no settings."""
    unknown = sorted(set(chosen).difference(SETTINGS))
    if unknown:
        known = ", ".join(SETTINGS)
        raise TypeError(
            f"no such setting: {', '.join(unknown)}. Settings are: {known}. What OpenTelemetry "
            "alone has a variable for, OTEL_SERVICE_NAME and the like, is set in the environment."
        )


def _acknowledged(chosen: Settings, warnings: list[str]) -> tuple[Settings, list[str]]:
    """`chosen`, whose profile is not `content` unless it has the second key as well."""
    if chosen.profile != "content" or chosen.content_ack:
        return chosen, warnings
    warning = (
        "SOTTOVOCE_PROFILE: 'content' also needs SOTTOVOCE_CONTENT_ACK=true. Using 'standard'."
    )
    return chosen.but(profile="standard"), [*warnings, warning]


def is_looser(profile: str, than: str) -> bool:
    """Whether `profile` lets more leave than the profile `than`."""
    return PROFILES.index(profile) > PROFILES.index(than)


_PORTS: Final = {"grpc": "4317", "http/protobuf": "4318"}

_NO_NAMES_OF_ONES_OWN: Final = frozenset({"aggregate", "strict"})


def refused(name: str, entry: Setting, text: str, error: Unusable, instead: str) -> str:
    """A warning that `text`, or some of the entries in it, cannot be used."""
    what = ", ".join(map(shown, error.wrong[:_NAMED])) or shown(text)
    if entry.secret:
        what = "the value given"
    return f"{name}: {what} cannot be used; {error}. {instead}."


def shown(text: str) -> str:
    """A value as a message may show it: short, without a URL's user, password and query."""
    return repr(re.sub(_QUERY, "?***", re.sub(_CREDENTIALS, r"\1***@", text), flags=re.DOTALL)[:64])


def _bare_addresses(chosen: Settings) -> Iterator[tuple[str, str]]:
    """Endpoints, by field, without a scheme that an HTTP exporter would be given."""
    for name in ("endpoint", *(f"{signal}_endpoint" for signal in SIGNALS)):
        address = getattr(chosen, name)
        protocol = getattr(chosen, name.replace("endpoint", "protocol")) or chosen.protocol
        if address and "://" not in address and protocol != "grpc":
            yield name, address
