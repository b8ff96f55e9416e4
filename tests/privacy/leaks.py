"""The leak corpus: secrets for every place, dialect, type and encoding, and what finds them again.

Every case plants one secret in one place of one record, made by the real SDK. The secrets
share a stem, so that what left is found by a few searches in any encoding, and have a number
each, so that what got out is named. Digests and numbers are found by their values.
"""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from privacy.leak_places import PLACES, Process
from sottovoce.privacy.policy import Policy
from sottovoce.registry import ATTRIBUTES
from sottovoce.settings import Settings

STEM = "quillfeder"
MARK = "kanarienvogel"  # what stands for a secret in dialects/*.json
SECRET = "a secret of the tests"
# What the operator let leave; a secret may still not hide in it.
ALLOWED = ("resource:team", "scope:shop", "span:checkout", "metric:orders")
UNTRUE_NUMBERS = 7_000_000_000_000


def _percent(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode())


def _unicode(text: str) -> str:
    return "".join(f"\\u{ord(letter):04x}" for letter in text)


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _nested(text: str) -> str:
    inner = json.dumps({"role": "user", "content": text})
    return json.dumps([{"body": inner}])


def _digest(name: str) -> Callable[[str], str]:
    return lambda text: hashlib.new(name, text.encode(), usedforsecurity=False).hexdigest()


ENCODINGS: dict[str, Callable[[str], str]] = {
    "raw": str,
    "quoted": quote,
    "percent": _percent,
    "base64": _base64,
    "hex": lambda text: text.encode().hex(),
    "unicode escapes": _unicode,
    "nested JSON": _nested,
    "sha256": _digest("sha256"),
    "sha1": _digest("sha1"),
    "md5": _digest("md5"),
}
DIGESTS = ("sha256", "sha1", "md5")
FRAGMENT = 12  # hex characters by which a digest is known: no shorter one would be shown


@dataclass(frozen=True)
class Case:
    """One secret in one place.

    Attributes:
        number: of the secret.
        place: where it is planted; a key of `PLACES`.
        key: the attribute, or what part of the place.
        encoding: how.
        value: what is planted.
    """

    number: int
    place: str
    key: str
    encoding: str
    value: Any

    def __str__(self) -> str:
        return f"{self.number}: {self.place}, {self.key}, {self.encoding}: {self.value!r}"


def sentence(number: int) -> str:
    """A prompt."""
    return f"Frau {STEM.capitalize()}{number:04} hat Fieber"


class _Cases(list[Case]):
    def plant(self, place: str, key: str, encoding: str = "raw", shape: str = "{}") -> None:
        number = len(self)
        value = shape.format(ENCODINGS[encoding](sentence(number)))
        self.append(Case(number, place, key, encoding, value))

    def name(self, place: str, key: str, shape: str) -> None:
        """Plant a secret word, where a sentence is not even looked at."""
        number = len(self)
        self.append(Case(number, place, key, "word", shape.format(f"{STEM}{number:04}")))

    def put(self, place: str, key: str, encoding: str, make: Callable[[str, int], Any]) -> None:
        number = len(self)
        self.append(Case(number, place, key, encoding, make(sentence(number), number)))


CONTENT = (
    "gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.prompt.0.content", "input.value",
    "llm.input_messages.0.message.content", "traceloop.entity.input", "langfuse.observation.input",
    "ai.prompt.messages", "request_data", "mlflow.spanInputs", "url.full", "db.query.text",
    "exception.message", "user.id", "session.id", "gen_ai.agent.name", "code.file.path",
)  # fmt: skip
"""Keys that no profile lets through whatever their value is, of all dialects."""

SHAPED = {
    "gen_ai.request.model": ("{}", "gpt-4o:{}", "ft:gpt-4o:acme:{}", "h:{}", "llama-3-8b-{}"),
    "gen_ai.response.model": ("gpt-4o-2024-08-06-{}", "/models/{}.gguf", "arn:aws:bedrock:{}"),
    "llm.model_name": ("{}/gpt-4o", "gpt-4o\n{}"),
    "server.address": ("{}", "{}.openai.azure.com", "{}.example.org", "api.openai.com.{}"),
    "gen_ai.openai.api_base": ("https://{}@api.openai.com/v1", "https://api.openai.com/{}"),
    "error.type": ("{}", "openai.{}", "openai.RateLimitError.{}", "openai.RateLimitError: {}"),
    "exception.type": ("builtins.{}", "httpx.{}"),
    # The names of a template's parameters are the code's own, and stay.
    "http.route": ("/patients/{}", "/{}/v1", "/v1/{}?q=1", "{}"),
    "url.template": ("/orders/{}", "https://example.org/{}"),
    "gen_ai.operation.name": ("{}", "chat {}", "chat\x00{}"),
    "gen_ai.provider.name": ("{}", "openai.{}", "custom:{}"),
    "gen_ai.request.stop_sequences": ("{}",),
    "openai.request.service_tier": ("{}", "auto,{}"),
    "network.protocol.version": ("{}", "1.1.{}"),
    "otel.scope.name": ("{}",),
    "sottovoce.hook.place": ("{}",),
    "sottovoce.model.architecture": ("{}",),
}
"""Keys that let something through, and values that come close to it."""

LOOK_ALIKE = (
    "gen_ai.request.modeI", "gen_ai.Operation.name", "gen_ai.operation.name ", " error.type",
    "gen_ai․operation․name", "gen_ai.operation.name\u200b", "GEN_AI.OPERATION.NAME",
)  # fmt: skip

CAPTURED = [
    (path.stem, span)
    for path in sorted((Path(__file__).parent / "dialects").glob("*.json"))
    for span in json.loads(path.read_text())["spans"]
]
"""Spans as the packages of each dialect make them, content captured."""


def _captured(cases: _Cases) -> None:
    """One case for every value of every captured span that held something said."""
    for dialect, span in CAPTURED:
        for key, value in span["attributes"].items():
            if MARK in json.dumps(value, ensure_ascii=False):
                cases.put(
                    "dialect", f"{dialect} {key}", "raw",
                    lambda said, _, key=key, value=value, span=span: {
                        "scope": span["scope"], "name": span["name"],
                        "attributes": {**span["attributes"], key: _said(value, said)},
                    },
                )  # fmt: skip
        for event in span.get("events", ()):
            for key, value in event["attributes"].items():
                if MARK in json.dumps(value, ensure_ascii=False):
                    cases.put(
                        "event of dialect", f"{event['name']} {key}", "raw",
                        lambda said, _, key=key, value=value, event=event: {
                            "name": event["name"],
                            "attributes": {**event["attributes"], key: _said(value, said)},
                        },
                    )  # fmt: skip


def _said(value: Any, said: str) -> Any:
    if isinstance(value, str):
        return value.replace(MARK, said)
    return [_said(each, said) for each in value] if isinstance(value, list) else value


OPERATORS_OWN = {
    "service.name",
    "service.version",
    "service.namespace",
    "deployment.environment.name",
}


def _resources(cases: _Cases) -> None:
    """Every key of a resource that lets something through, and values that come close to it."""
    for key, row in ATTRIBUTES.items():
        if "resource" in row.signals and row.rule != "drop" and key not in OPERATORS_OWN:
            cases.plant("resource", key)
            for shape in ("1.0.{}", "1.0+{}", "6.1-{}"):
                cases.name("resource", key, shape)


def _typed(cases: _Cases) -> None:
    """Every key that lets a number, a flag or a list through is given something else."""
    for key, row in ATTRIBUTES.items():
        if not row.signals & {"span", "metric", "log"} or row.rule == "drop":
            continue
        place = next(
            (f"{each} attribute" for each in ("span", "log", "metric") if each in row.signals), ""
        )
        if row.type != "string":
            cases.plant(place, key)
        if row.type == "string[]":
            cases.put(place, key, "list", lambda said, _: ["stop", said])
        if row.type in {"int", "double"}:
            # A number can hold eight letters, a telephone number, an account.
            number = int if row.type == "int" else float
            cases.put(place, key, "number", lambda _, n, t=number: t(UNTRUE_NUMBERS + n * 1000))
        if row.type == "string" and row.rule in {"keep", "enum", "error", "host", "cat12"}:
            cases.plant(place, key)
            cases.put(place, key, "bytes", lambda said, _: said.encode())


@cache
def corpus() -> tuple[Case, ...]:
    """All cases, numbered."""
    cases = _Cases()
    for encoding in ENCODINGS:
        for key in CONTENT:
            cases.plant("span attribute", key, encoding)
        for place in PLACES:
            if place in {"metric name", "metric unit"} and encoding in {
                "percent",
                "unicode escapes",
            }:
                continue  # the SDK itself takes no such name, and no unit as long
            if place not in {"dialect", "event of dialect", "span attribute", "resource"}:
                cases.plant(place, "acme.note", encoding)
        for key in ("acme.note", "host.name", "process.command_line", "os.version"):
            cases.plant("resource", key, encoding)
        for key in ("gen_ai.request.model", "server.address", "error.type", "http.route"):
            cases.plant("span attribute", key, encoding, "h:{}" if encoding in DIGESTS else "{}")
            cases.plant("metric attribute", key, encoding)
    for key, shapes in SHAPED.items():
        for shape in shapes:
            for place in ("span attribute", "metric attribute", "log attribute"):
                cases.name(place, key, shape)
            cases.put("span attribute", key, "list", lambda said, _: [said, "stop"])
    for key in LOOK_ALIKE:
        cases.plant("span attribute", key)
    # What the operator lets leave is looked at as well: what is too long, hidden, or an address.
    cases.plant("resource", "team", shape="a team " * 20 + "{}")
    cases.plant("resource", "team", shape="a team\u200b{}")
    cases.plant("resource", "team", shape="a team\x1b{}")
    for shape in ("{}@example.org", "https://{}.example.org/", "/home/{}/app", "Bearer {}"):
        cases.name("resource", "service.name", shape)
    cases.put("log body", "body", "mapping", lambda said, _: {"prompt": [said]})
    cases.put("log body", "body", "bytes", lambda said, _: said.encode())
    _resources(cases)
    _typed(cases)
    _captured(cases)
    return tuple(cases)


def policy_of(profile: str) -> Policy:
    """A policy as an operator would have it who allowed some names of his own."""
    return Policy(Settings(profile=profile, key=SECRET, allow=ALLOWED))


def replay(policy: Policy) -> Process:
    """Everything of the corpus, written in one process."""
    process = Process(policy)
    for case in corpus():
        PLACES[case.place](process, case)
    return process


# --- Finding.


def _needles() -> list[bytes]:
    """The stem in every encoding that keeps letters apart, and in base64 at every offset."""
    found = [STEM, _percent(STEM), STEM.encode().hex(), _unicode(STEM), quote(STEM)]
    for spelling in (STEM, STEM.capitalize()):
        found += [ENCODINGS[each](spelling) for each in ("percent", "hex", "unicode escapes")]
        for before in range(3):
            text = base64.b64encode(b"\0" * before + spelling.encode())
            whole = (before + len(spelling)) * 8 // 6
            found.append(text[-(-before * 8 // 6) : whole].decode())
    return [each.lower().encode() for each in found]


NEEDLES = _needles()
_HEX = re.compile(rb"[0-9a-f]{%d,}" % FRAGMENT)
_NUMBERED = re.compile(rb"%s(\d{4})" % STEM.encode())


@cache
def _fragments() -> frozenset[bytes]:
    """Every beginning of a digest of a prompt."""
    return frozenset(
        ENCODINGS[name](sentence(case.number))[:FRAGMENT].encode()
        for case in corpus()
        for name in DIGESTS
    )


def survivors(messages: list[Any]) -> list[str]:
    """What got out, each with the text around it; empty if nothing did."""
    found = []
    for message in messages:
        wire = message.SerializeToString().lower()
        for needle in NEEDLES:
            for at in _all(wire, needle):
                number = _NUMBERED.match(wire, at)
                case = f"{corpus()[int(number[1])]} …" if number else ""
                found.append(f"{case}{wire[max(0, at - 60) : at + 60]!r}")
        for run in _HEX.finditer(wire):
            text = run[0]
            if any(text[n : n + FRAGMENT] in _fragments() for n in range(len(text) - FRAGMENT + 1)):
                found.append(f"digest {text!r}")
        found += [
            str(corpus()[(int(number) - UNTRUE_NUMBERS) // 1000])
            for number in numbers(message)
            if 0 <= number - UNTRUE_NUMBERS < len(corpus()) * 1000
        ]
    return found


def _all(text: bytes, needle: bytes) -> Iterator[int]:
    at = text.find(needle)
    while at >= 0:
        yield at
        at = text.find(needle, at + 1)


def numbers(message: Any) -> Iterator[float]:
    """Every number in a protobuf message."""
    for field, value in message.ListFields():
        repeated = value if field.is_repeated else (value,)
        for each in repeated:
            if field.type == field.TYPE_MESSAGE:
                yield from numbers(each)
            elif isinstance(each, (int, float)):
                yield each
