"""Read the registry of `model/` and `upstream/`, and say exactly what is wrong with it.

The files are in Weaver's definition format (``file_format: definition/2``); what the format
has no word for is in each entry's ``annotations: {sottovoce: …}``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

import contracts
import dialects

if TYPE_CHECKING:
    from contracts import Contract
    from dialects import Dialects

HERE = Path(__file__).resolve().parent
PROFILES = ("aggregate", "strict", "standard", "content")
SIGNALS = ("span", "event", "link", "log", "metric", "resource", "scope")
SENSITIVITIES = {
    "public": "says nothing about a person, an app or a company",
    "operational": "numbers about calls; many together can tell one app from another",
    "indirect": "normally harmless, but the value can be typed by a user or a developer",
    "identifying": "can name a company, a machine, an app or a private model",
    "personal": "identifies a person, or links what one person did",
    "secret": "may hold credentials",
    "content": "what was said, or what may embed it",
}
RULES = {
    "keep": "kept when its type is right, strings only up to 128 characters",
    "enum": "kept when the value is in a closed vocabulary, else `_OTHER` (a provider: `custom`)",
    "cat12": "the id of a publicly known local model is kept, every other model id becomes `h:` and 12 hex digits of a keyed hash",
    "error": "the class of a known library's exception, an HTTP status or a known error code is kept, else `_OTHER`",
    "host": "a well-known provider host and loopback are kept, any other host becomes its class and a keyed hash",
    "host_class": "a well-known provider host and loopback are kept, any other host becomes its class alone",
    "route": "kept when it can only be a template that somebody declared: it has placeholders, or nothing but common words of APIs, or the operator lists it (`SOTTOVOCE_ALLOW=route:…`)",
    "service": "kept when the operator lists it (`SOTTOVOCE_ALLOW=service:…`), else `unknown_service`",
    "frames": "frames of the packages of `SOTTOVOCE_STACK_FRAMES` are kept, and only if the module's file has that function and line; without the setting there are none",
    "minor": "a version is cut to its major and minor number",
    "opt_in": "dropped unless the operator lists the key (`SOTTOVOCE_ALLOW=resource:…`)",
    "scope": "kept when the name is known, else `_OTHER`",
    "count": "the value is dropped, only how many there were may be told (under a name of its own)",
    "bucket": "replaced by the upper bound of the bucket that the number falls in: counts 1, 4, 16, … each four times the one before (0 stays 0); seconds 1, 5, 15, 60, 300 (3600 when longer); throughputs 1, 2, 4, … each twice the one before; shares 0.1, 0.2, … 1 (0 stays 0); scores one digit",
    "curated": "a provider's or framework's built-in name is kept, else `_OTHER` (in `aggregate`: dropped)",
    "allow12": "a built-in name, or one that the operator allows (`SOTTOVOCE_ALLOW`), is kept; any other becomes 12 hex digits of a keyed hash",
    "hash_rot": "becomes 16 hex digits of a keyed hash whose key changes every week",
    "hash_user": "dropped; with `SOTTOVOCE_USER_IDS=hash` the same as `hash_rot`, with a key of its own",
    "seal": "dropped; only the local, encrypted, short-lived content buffer may hold it",
    "drop": "dropped",
}
TYPES = ("string", "int", "double", "boolean", "string[]", "int[]", "double[]", "boolean[]", "any")
INSTRUMENTS = ("counter", "gauge", "histogram", "updowncounter")
KINDS = ("CLIENT", "INTERNAL", "SERVER", "PRODUCER", "CONSUMER")
LEVELS = ("required", "recommended", "opt_in", "conditionally_required")
STABILITIES = ("development", "alpha", "beta", "release_candidate", "stable")
VOCABULARIES = ("v1.41", "latest")
# The one written in C reads the same ten times faster, where PyYAML was built with it.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SECTIONS = ("attributes", "attribute_groups", "metrics", "spans", "events")


class Invalid(Exception):
    """The registry has mistakes; each argument names a file, an entry and what is wrong."""


@dataclass(frozen=True)
class Attribute:
    """An attribute as declared; `prefix` when its key ends in a variable part."""

    key: str
    type: str
    values: tuple[str, ...] | None
    prefix: bool
    brief: str
    sensitivity: str
    reason: str
    rules: dict[str, str]
    signals: tuple[str, ...]
    contract: str
    file: str


@dataclass(frozen=True)
class Signal:
    """A metric, span or event; `attributes` maps a key to its requirement level."""

    name: str
    brief: str
    reason: str
    attributes: dict[str, str]
    extra: dict[str, Any]
    file: str


@dataclass(frozen=True)
class Registry:
    """Everything that is declared, sorted by name."""

    attributes: dict[str, Attribute]
    metrics: dict[str, Signal]
    spans: dict[str, Signal]
    events: dict[str, Signal]
    contracts: dict[str, Contract]
    dialects: Dialects
    upstream: dict[str, dict[str, Any]]


class _Checker:
    """Collects mistakes, so that one run shows them all."""

    def __init__(self) -> None:
        self.mistakes: list[str] = []

    def wrong(self, where: str, what: str) -> None:
        self.mistakes.append(f"{where}: {what}")

    def text(self, where: str, entry: dict[str, Any], name: str) -> str:
        value = entry.get(name)
        if not isinstance(value, str) or not value.strip():
            self.wrong(where, f"`{name}` is missing")
            return ""
        return value

    def one_of(self, where: str, name: str, value: Any, choices: Any) -> None:
        if value not in choices:
            self.wrong(where, f"`{name}` is {value!r}; choose one of {', '.join(choices)}")

    def only(self, where: str, entry: dict[str, Any], known: str) -> None:
        for name in sorted(set(entry) - set(known.split())):
            self.wrong(where, f"`{name}` is not known here")

    def own(self, where: str, entry: dict[str, Any], known: str) -> dict[str, Any]:
        annotations = entry.get("annotations")
        own = annotations.get("sottovoce") if isinstance(annotations, dict) else None
        if not isinstance(own, dict):
            self.wrong(where, "`annotations: {sottovoce: …}` is missing")
            return {}
        self.only(where, own, known)
        self.text(where, own, "reason")
        return own


def _shape(check: _Checker, where: str, kind: Any) -> tuple[str, list[Any] | None, bool]:
    """The type of an attribute, the values of an enum, and whether its key is a prefix."""
    if isinstance(kind, dict):
        members = kind.get("members") or ()
        identifiers = [member.get("id") for member in members]
        if len(set(identifiers)) != len(identifiers):
            check.wrong(where, "two members have the same `id`")
        return "string", [member.get("value") for member in members], False
    if isinstance(kind, str) and kind.startswith("template[") and kind.endswith("]"):
        return kind[len("template[") : -1], None, True
    return str(kind), None, False


def _values(check: _Checker, where: str, values: list[Any] | None) -> tuple[str, ...] | None:
    for value in values or ():
        if not isinstance(value, str):
            check.wrong(where, f"the value {value!r} is not a string: quote it")
    texts = tuple(map(str, values or ()))
    if len(set(texts)) != len(texts):
        check.wrong(where, "a value is listed twice")
    return texts or None


def _attribute(check: _Checker, file: str, entry: dict[str, Any]) -> Attribute:
    key = str(entry.get("key"))
    where = f"{file}, attribute {key}"
    check.only(where, entry, "key type brief note stability examples deprecated annotations")
    check.one_of(where, "stability", entry.get("stability"), STABILITIES)
    own = check.own(where, entry, "sensitivity reason rules signals values contract")
    check.one_of(where, "sensitivity", own.get("sensitivity"), SENSITIVITIES)
    given = own.get("rules")
    rules = given if isinstance(given, dict) else {}
    for profile in PROFILES:
        check.one_of(where, f"rules.{profile}", rules.get(profile), RULES)
    check.only(f"{where}, rules", rules, " ".join(PROFILES))
    signals = tuple(own.get("signals") or ())
    if not signals:
        check.wrong(where, "`signals` is missing")
    for signal in signals:
        check.one_of(where, "signals", signal, SIGNALS)
    kind, members, prefix = _shape(check, where, entry.get("type"))
    check.one_of(where, "type", kind, TYPES)
    values = _values(check, where, own.get("values") or members)
    used = set(rules.values())
    if used & {"enum", "error", "scope"} and not values:
        check.wrong(where, "the rules enum, error and scope need a list of values")
    if prefix and used - {"drop", "seal"}:
        check.wrong(where, "a key with a variable end can be declared as dropped only")
    if kind == "any" and used - {"drop", "seal"}:
        check.wrong(where, "a value of type `any` cannot be checked, so it can only be dropped")
    follows = contracts.following(kind, values, frozenset(used))
    if follows is None and "contract" not in own:
        check.wrong(where, "`contract` is missing: say what its values look like (contracts.yaml)")
    if follows is not None and "contract" in own:
        check.wrong(where, f"`contract` is not needed: {follows} follows from the rest")
    return Attribute(
        key=key,
        type=kind,
        values=values,
        prefix=prefix,
        brief=check.text(where, entry, "brief"),
        sensitivity=str(own.get("sensitivity")),
        reason=str(own.get("reason")),
        rules=rules,
        signals=signals,
        contract=follows or str(own.get("contract")),
        file=file,
    )


def _references(
    check: _Checker,
    where: str,
    entry: dict[str, Any],
    groups: dict[str, list[dict[str, Any]]],
    attributes: dict[str, Attribute],
) -> dict[str, str]:
    levels: dict[str, str] = {}
    for item in entry.get("attributes") or ():
        if "ref_group" in item:
            group = groups.get(item["ref_group"])
            if group is None:
                check.wrong(where, f"there is no attribute group {item['ref_group']}")
                continue
            levels.update(_references(check, where, {"attributes": group}, groups, attributes))
            continue
        key, level = str(item.get("ref")), item.get("requirement_level")
        if key not in attributes:
            check.wrong(where, f"refers to {key}, which is not declared")
        name = next(iter(level)) if isinstance(level, dict) and level else level
        check.one_of(f"{where}, {key}", "requirement_level", name, LEVELS)
        levels[key] = str(name)
    return levels


def _metric(check: _Checker, where: str, entry: dict[str, Any]) -> dict[str, Any]:
    own = check.own(where, entry, "reason vocabulary boundaries")
    check.one_of(where, "instrument", entry.get("instrument"), INSTRUMENTS)
    boundaries = own.get("boundaries")
    if (entry.get("instrument") == "histogram") != bool(boundaries):
        check.wrong(where, "a histogram, and nothing else, has `boundaries`")
    if boundaries and sorted(set(boundaries)) != boundaries:
        check.wrong(where, "`boundaries` must grow")
    vocabulary = own.get("vocabulary")
    if not isinstance(vocabulary, list):
        check.wrong(where, "`vocabulary` is missing (an empty list: let through from others)")
        vocabulary = []
    for name in vocabulary:
        check.one_of(where, "vocabulary", name, VOCABULARIES)
    return {
        "instrument": entry.get("instrument"),
        "unit": check.text(where, entry, "unit"),
        "boundaries": boundaries,
        "vocabulary": tuple(vocabulary),
    }


def _span(check: _Checker, where: str, entry: dict[str, Any]) -> dict[str, Any]:
    own = check.own(where, entry, "reason operations kinds")
    kinds = own.get("kinds") or []
    for kind in kinds:
        check.one_of(where, "kinds", kind, KINDS)
    if str(entry.get("kind")).upper() not in kinds:
        check.wrong(where, "`kind` is not among `kinds`")
    if not own.get("operations"):
        check.wrong(where, "`operations` is missing")
    name = entry.get("name")
    return {
        "kinds": kinds,
        "operations": own.get("operations") or [],
        "name": check.text(where, name if isinstance(name, dict) else {}, "note"),
    }


def _event(check: _Checker, where: str, entry: dict[str, Any]) -> dict[str, Any]:
    check.own(where, entry, "reason")
    return {}


_SIGNALS = {
    "metrics": ("name", "name instrument unit", _metric),
    "spans": ("type", "type kind name", _span),
    "events": ("name", "name", _event),
}
_COMMON = " brief note stability requirement_level deprecated attributes annotations"


def _document(check: _Checker, name: str, path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _LOADER)
    except OSError:
        check.wrong(name, "cannot be read")
        return {}
    except yaml.YAMLError as error:
        check.wrong(name, f"is not YAML: {error}")
        return {}
    if isinstance(content, dict):
        return content
    check.wrong(name, "holds no mapping")
    return {}


def _documents(check: _Checker, directory: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for path in sorted(directory.glob("*.yaml")):
        name = f"{directory.name}/{path.name}"
        mistakes = len(check.mistakes)
        content = _document(check, name, path)
        if len(check.mistakes) == mistakes:
            found[name] = content
    return found


def _declared(
    check: _Checker, documents: dict[str, dict[str, Any]]
) -> tuple[dict[str, Attribute], dict[str, list[dict[str, Any]]]]:
    attributes: dict[str, Attribute] = {}
    groups: dict[str, list[dict[str, Any]]] = {}
    for file, content in documents.items():
        for entry in content.get("attributes") or ():
            declared = _attribute(check, file, entry)
            other = attributes.setdefault(declared.key, declared)
            if other is not declared:
                where = f"{file}, attribute {declared.key}"
                check.wrong(where, f"is declared in {other.file} too")
        for entry in content.get("attribute_groups") or ():
            check.only(f"{file}, group {entry.get('id')}", entry, "id visibility attributes")
            groups[str(entry.get("id"))] = entry.get("attributes") or []
    return attributes, groups


def _signals(
    check: _Checker,
    section: str,
    documents: dict[str, dict[str, Any]],
    groups: dict[str, list[dict[str, Any]]],
    attributes: dict[str, Attribute],
) -> dict[str, Signal]:
    identifier, known, read = _SIGNALS[section]
    found: dict[str, Signal] = {}
    for file, content in documents.items():
        for entry in content.get(section) or ():
            name = str(entry.get(identifier))
            where = f"{file}, {section[:-1]} {name}"
            check.only(where, entry, known + _COMMON)
            check.one_of(where, "stability", entry.get("stability"), STABILITIES)
            if name in found:
                check.wrong(where, "is declared twice")
            extra = read(check, where, entry)
            own = (entry.get("annotations") or {}).get("sottovoce") or {}
            found[name] = Signal(
                name=name,
                brief=check.text(where, entry, "brief"),
                reason=str(own.get("reason")),
                attributes=_references(check, where, entry, groups, attributes),
                extra=extra,
                file=file,
            )
    return found


def _upstream(check: _Checker, directory: Path) -> dict[str, dict[str, Any]]:
    tables = {}
    for name, content in _documents(check, directory).items():
        for field in ("name", "repository", "version"):
            check.text(name, content, field)
        if content.get("vocabulary", VOCABULARIES[0]) not in VOCABULARIES:
            check.one_of(name, "vocabulary", content.get("vocabulary"), VOCABULARIES)
        tables[str(content.get("name"))] = content
    return tables


def _contracts(
    check: _Checker, path: Path, attributes: dict[str, Attribute]
) -> dict[str, Contract]:
    content = _document(check, path.name, path)
    known = contracts.read(content, check.wrong, path.name)
    for attribute in attributes.values():
        where = f"{attribute.file}, attribute {attribute.key}"
        check.one_of(where, "contract", attribute.contract, known)
    for name in sorted(set(known) - contracts.FOLLOWS - {a.contract for a in attributes.values()}):
        check.wrong(f"{path.name}, contract {name}", "no attribute names it")
    return known


def load(directory: Path = HERE) -> Registry:
    """Read and check the registry under `directory`.

    Raises:
        Invalid: with every mistake found.
    """
    check = _Checker()
    documents = _documents(check, directory / "model")
    manifest = documents.pop("model/manifest.yaml", {})
    if not str(manifest.get("schema_url", "")).startswith("https://"):
        check.wrong("model/manifest.yaml", "`schema_url` is missing")
    for name, content in documents.items():
        if content.get("file_format") != "definition/2":
            check.wrong(name, "does not begin with `file_format: definition/2`")
        check.only(name, content, "file_format " + " ".join(_SECTIONS))
    attributes, groups = _declared(check, documents)
    known = _contracts(check, directory / "contracts.yaml", attributes)
    metrics, spans, events = (
        _signals(check, section, documents, groups, attributes) for section in _SIGNALS
    )
    foreign = dialects.read(
        _document(check, dialects.FILE, directory / dialects.FILE), check.wrong, attributes, metrics
    )
    upstream = _upstream(check, directory / "upstream")
    if check.mistakes:
        raise Invalid(*check.mistakes)
    return Registry(
        attributes=dict(sorted(attributes.items())),
        metrics=dict(sorted(metrics.items())),
        spans=spans,
        events=dict(sorted(events.items())),
        contracts=known,
        dialects=foreign,
        upstream=upstream,
    )
