"""What each rule of the registry does with one value: keeps it, replaces it, or drops it.

A rule is made once for an attribute (`make`) and then called with every string given for it.
It returns what may leave, or a `Drop` that names the rule it is counted under. Numbers and
booleans need no rule beyond their type, which the policy checks itself.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from sottovoce import guard, registry
from sottovoce.privacy import errors, hosts, tripwire
from sottovoce.privacy.patterns import Pattern
from sottovoce.registry import SCOPES, SHAPES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sottovoce.privacy.pseudonyms import Pseudonyms

LONGEST: Final = errors.LONGEST
"""Characters of the longest string that may leave."""

OTHER: Final = errors.OTHER

REMEMBERED: Final = 1024
"""Values whose verdict a rule remembers: attributes repeat, and a verdict is for ever."""


class Drop:
    """The verdict that a value must not leave; `rule` is what the drop is counted under."""

    __slots__ = ("rule",)

    def __init__(self, rule: str) -> None:
        self.rule = rule


class Changed:
    """The verdict that `value` leaves in the place of another, counted under `rule`."""

    __slots__ = ("rule", "value")

    def __init__(self, value: str | float | tuple[str, ...], rule: str) -> None:
        self.value = value
        self.rule = rule


Verdict = str | Drop | Changed

DROPPED: Final = Drop("drop")
UNKNOWN: Final = Drop("unknown")
WRONG_TYPE: Final = Drop("type")
TOO_LONG: Final = Drop("length")
RANGE: Final = Drop("range")
CONTROL: Final = Drop("control")
SHAPE: Final = Drop("shape")
ROUTE: Final = Drop("route")
TRIPWIRE: Final = Drop("tripwire")

_INSTANCE: Final = "service.instance.id"
_CHANGING: Final = frozenset({"sottovoce.hook.place", _INSTANCE})
"""Attributes of which a value may be let through later that was not before."""

_ROTATING: Final = frozenset({"hash_rot", "hash_user"})
"""Rules with another verdict every week."""

FRAMES: Final = "sottovoce.exception.frames"
"""The attribute of `frames`."""

KINDS_OF_NAMES: Final = {
    "gen_ai.tool.name": "tool",
    "sottovoce.response.tool_calls.names": "tool",
    "gen_ai.agent.name": "agent",
    "http.route": "route",
    "service.name": "service",
    "url.template": "route",
    FRAMES: "frames",
}
"""Attribute of rule *allow12* → how `SOTTOVOCE_ALLOW` calls its names; the others are ``name``."""

COUNTED_AS: Final = {"gen_ai.request.stop_sequences": "sottovoce.request.stop_sequences.count"}
"""Attribute of rule *count* → the attribute that says how many values it had."""

_PATTERNS: Final = {pattern: Pattern(pattern) for pattern in SHAPES.values()}
_SHAPES: Final = {name: _PATTERNS[pattern] for name, pattern in SHAPES.items()}
"""Attribute → what a kept value of it must look like; stricter than the tripwire."""

VERSION: Final = _SHAPES["telemetry.sdk.version"]
"""A version as packages and runtimes have it: numbers, and the stages of a release."""

_RELEASE: Final = Pattern(r"(\d{1,3}(?:\.\d{1,3})?)(?:\.\d{1,5})?(?:-\d{1,4}-[a-z]{1,12})?")
"""A system's release, such as ``14.6.1`` or ``6.8.0-45-generic``, and what is told of it."""

_NO_NAME: Final = Pattern(
    r"://|(?:^|[\s\"'=(])(?:~|\.{1,2})?/(?:home|Users|root|var|tmp|mnt|private|Volumes|opt)/"
    r"|[A-Za-z]:\\|\d{9}"
)
"""What a text that the operator chose does not hold, besides what the tripwire finds: a URL, a
path, a long number."""


def text(value: str) -> Verdict:
    """The checks of a string that leaves as it is and has no rule of its own."""
    verdict = _printable(value)
    return TRIPWIRE if verdict is value and tripwire.hit(value) else verdict


def _printable(value: str) -> Verdict:
    """The checks that every string passes that leaves as it is."""
    if len(value) > LONGEST:
        return TOO_LONG
    # False for control, format, surrogate and private-use characters and for odd spaces.
    if not value.isprintable():
        return CONTROL
    return value


def make(
    name: str,
    rule: str,
    values: frozenset[str] | None,
    pseudonyms: Pseudonyms,
    allowed: Container[Any] = (),
) -> Callable[[str], Verdict]:
    """The rule called `rule` for the attribute `name`, as a function of one string.

    A rule that this version does not know drops everything. `allowed` are names that the
    operator lets leave, where the rule is one for names.
    """
    judge = _FACTORIES.get(rule, _drop)(name, values, pseudonyms)
    if rule in _LISTED:
        judge = _or_allowed(judge, allowed)
    if name != _INSTANCE:
        # Of those, what leaves is random and this process's own.
        judge = _looked_at(judge, values or WORDS_OF.get(name, frozenset()))
    changes = name in _CHANGING or rule in _ROTATING
    return judge if changes else lru_cache(maxsize=REMEMBERED)(judge)


def _or_allowed(
    judge: Callable[[str], Verdict], allowed: Container[Any]
) -> Callable[[str], Verdict]:
    return lambda value: text(value) if value in allowed else judge(value)


def _looked_at(judge: Callable[[str], Verdict], words: frozenset[str]) -> Callable[[str], Verdict]:
    """`judge`, and the tripwire behind it, whatever the rule says.

    `words` are those of the vocabulary, which it does not find: the tests ask it of each.
    """

    def look(value: str) -> Verdict:
        verdict = judge(value)
        if verdict is value and value in words:
            return verdict
        shown = verdict.value if isinstance(verdict, Changed) else verdict
        return TRIPWIRE if isinstance(shown, str) and tripwire.hit(shown) else verdict

    return look


def _drop(
    _name: str, _values: frozenset[str] | None, _pseudonyms: Pseudonyms
) -> Callable[[str], Verdict]:
    def drop(_: str) -> Verdict:
        return DROPPED

    return drop


def _keep(name: str, values: frozenset[str] | None, _: Pseudonyms) -> Callable[[str], Verdict]:
    shape = _SHAPES.get(name)
    words = WORDS_OF.get(name, frozenset())
    if name == "sottovoce.hook.place":
        # Our own words, of which there is no list: those that were counted.
        return lambda value: value if value in guard.failures else SHAPE

    if name == _INSTANCE:
        return lambda value: _instance(value, shape)

    def keep(value: str) -> Verdict:
        if values is not None:
            return value if value in values else DROPPED
        if value in words:
            return value
        verdict = _printable(value)
        if verdict is not value:
            return verdict
        if shape is not None:
            return value if shape.fullmatch(value) else SHAPE
        return TRIPWIRE if _NO_NAME.search(value) else value

    return keep


def _instance(value: str, shape: Pattern | None) -> Verdict:
    from sottovoce.privacy import instance  # noqa: PLC0415 - once for a resource

    if instance.is_ours(value):
        return value
    known = shape is not None and shape.fullmatch(value)
    return Changed(instance.current(), "shape") if known else SHAPE


UNNAMED: Final = "unknown_service"
"""What OpenTelemetry calls a service that has no name."""
_UNNAMED: Final = frozenset({UNNAMED, f"{UNNAMED}:python"})

WORDS_OF: Final = {
    "server.address": hosts.PROVIDER_HOSTS | hosts.HERE,
    "service.name": _UNNAMED,
    "telemetry.sdk.name": frozenset({"opentelemetry"}),
}
"""Attribute without a vocabulary → what its value is in most processes."""

# What the SDK's detector passes on from `platform.machine()`, in the conventions' words.
_SAME: Final[Mapping[str, Mapping[str, str]]] = {
    "host.arch": {
        "x86_64": "amd64",
        "amd64": "amd64",
        "arm64": "arm64",
        "i386": "x86",
        "i686": "x86",
        "aarch64": "arm64",
        "armv7l": "arm32",
        "ppc64le": "ppc64",
    }
}


def _enum(name: str, values: frozenset[str] | None, _: Pseudonyms) -> Callable[[str], Verdict]:
    known = values or frozenset()
    other = Changed("custom" if name == "gen_ai.provider.name" else OTHER, "enum")

    def judge(value: str) -> Verdict:
        if value in known or value == other.value:
            return value
        word = value.lower()
        # Read late: most apps say what the vocabulary says.
        same = registry.WORDS.get(name, {}).get(word) or _SAME.get(name, {}).get(word)
        return same or other

    return judge


def _error(_name: str, values: frozenset[str] | None, _: Pseudonyms) -> Callable[[str], Verdict]:
    other = Changed(OTHER, "error")

    def judge(value: str) -> Verdict:
        known = errors.error(value, values)
        return value if known == value else other

    return judge


def _host(
    _name: str, _values: frozenset[str] | None, pseudonyms: Pseudonyms
) -> Callable[[str], Verdict]:
    def judge(value: str) -> Verdict:
        shown = hosts.host(value, pseudonyms)
        return value if shown == value else Changed(shown, "host")

    return judge


def _host_class(
    _name: str, _values: frozenset[str] | None, pseudonyms: Pseudonyms
) -> Callable[[str], Verdict]:
    def judge(value: str) -> Verdict:
        shown = value if value in hosts.CLASSES else hosts.host(value, pseudonyms)
        if pseudonyms.has_made(shown):
            shown = shown.rpartition("-")[0]
        return value if shown == value else Changed(shown, "host_class")

    return judge


def _route(*_: Any) -> Callable[[str], Verdict]:
    from sottovoce.privacy import paths  # noqa: PLC0415 - of use to servers alone

    def judge(value: str) -> Verdict:
        if len(value) > LONGEST:
            return TOO_LONG
        return value if paths.is_template(value) else ROUTE

    return judge


def _service(*_: Any) -> Callable[[str], Verdict]:
    other = Changed(UNNAMED, "service")
    return lambda value: value if value in _UNNAMED else other


def _minor(*_: Any) -> Callable[[str], Verdict]:
    def judge(value: str) -> Verdict:
        found = _RELEASE.fullmatch(value)
        if found is None:
            return SHAPE
        return value if found[1] == value else Changed(found[1], "minor")

    return judge


def _frames(*_: Any) -> Callable[[str], Verdict]:
    return lambda _: SHAPE


def _scope(*_: Any) -> Callable[[str], Verdict]:
    other = Changed(OTHER, "scope")
    return lambda value: value if value in SCOPES or value == OTHER else other


def _curated(_name: str, values: frozenset[str] | None, _: Pseudonyms) -> Callable[[str], Verdict]:
    known, other = values or frozenset(), Changed(OTHER, "curated")
    return lambda value: value if value in known or value == OTHER else other


def _curated_only(
    _name: str, values: frozenset[str] | None, _: Pseudonyms
) -> Callable[[str], Verdict]:
    known, dropped = values or frozenset(), Drop("curated")
    return lambda value: value if value in known else dropped


def _allow12(
    _name: str, values: frozenset[str] | None, pseudonyms: Pseudonyms
) -> Callable[[str], Verdict]:
    known = values or frozenset()

    def judge(value: str) -> Verdict:
        if value in known or value == OTHER or pseudonyms.has_made(value):
            return value
        return Changed(pseudonyms.name(value), "allow12") if len(value) <= LONGEST else TOO_LONG

    return judge


def _hash_rot(
    _name: str, _values: frozenset[str] | None, pseudonyms: Pseudonyms
) -> Callable[[str], Verdict]:
    return _weekly(pseudonyms.session)


def _hash_user(
    _name: str, _values: frozenset[str] | None, pseudonyms: Pseudonyms
) -> Callable[[str], Verdict]:
    return _weekly(pseudonyms.user)


def _weekly(hashed: Callable[[str], str]) -> Callable[[str], Verdict]:
    def judge(value: str) -> Verdict:
        if len(value) > LONGEST:
            return TOO_LONG
        # What only has the shape of a pseudonym is hashed as well: it may be anything.
        shown = hashed(value)
        return value if shown == value else Changed(shown, "hash_rot")

    return judge


_Factory = Callable[[str, frozenset[str] | None, "Pseudonyms"], Callable[[str], Verdict]]
_FACTORIES: Final[dict[str, _Factory]] = {
    "keep": _keep,
    "enum": _enum,
    "error": _error,
    "host": _host,
    "host_class": _host_class,
    "route": _route,
    "service": _service,
    "frames": _frames,
    "minor": _minor,
    "scope": _scope,
    "curated": _curated,
    "curated_only": _curated_only,
    "allow12": _allow12,
    "hash_rot": _hash_rot,
    "hash_user": _hash_user,
}


NAMES: Final = frozenset(_FACTORIES) | {"bucket", "cat12", "count"}
"""Rules that let something leave; any other drops whatever it is given."""


_LISTED: Final = frozenset({"allow12", "frames", "route", "service"})
"""Rules by which besides leaves what the operator lists."""
