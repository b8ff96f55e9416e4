"""What other instrumentations say in their own words, said in those of the conventions.

A foreign key is never let through: what it says is given the convention's name here, and is
then judged by the policy as if it had come under that name. So a dialect can widen what is
understood, but never what may leave. Nothing is guessed: a value of another type says nothing,
and a string of digits is no count.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sottovoce.privacy.patterns import Pattern
from sottovoce.registry import ATTRIBUTES, DIALECTS, FOREIGN_WORDS, USAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Mapping

    from sottovoce.privacy.compiled import Entry, Table

Said = tuple[str, Any]
"""A key of the conventions and what is said under it."""

_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "string": (str,),
    "int": (int,),
    "double": (float, int),
    "boolean": (bool,),
    "string[]": (tuple, list),
}
_ADDRESS: Final = "server.address"
_PORT: Final = "server.port"
_URL: Final = Pattern(
    r"https?://(?:[^/?#@]*@)?(\[[0-9a-fA-F:.]+\]|[^/?#:@]+)(?::(\d{1,5}))?(?:[/?#]|$)"
)
_LONGEST_URL: Final = 2048
_LONGEST_USAGE: Final = 4096
_LONGEST_WORD: Final = 64
_LONGEST_MS: Final = 10**12
_LIST: Final = Pattern(r'\[\s*"[\w\-]{1,64}"\s*(?:,\s*"[\w\-]{1,64}"\s*){0,15}\]')


def said(found: Mapping[str, Any], taken: Mapping[str, Any]) -> dict[str, Any]:
    """What `found` (foreign key → value) says in the words of the conventions.

    Nothing under a key of `taken`. Of two foreign keys that say the same, the one that the
    registry lists first is heard, if its value can be. May raise.
    """
    facts: dict[str, Any] = {}
    heard: dict[str, int] = {}
    # No call for what is said as it is: this runs for every span of a dialect.
    for key, value in found.items():
        rank, name, kinds, read, words = _READ[key]
        if read is None:
            if (
                isinstance(value, kinds)
                and name not in taken
                and (name not in facts or heard[name] >= rank)
            ):
                facts[name] = value
                heard[name] = rank
            continue
        for ours, fact in read(name, value, words):
            if ours not in taken and heard.get(ours, rank) >= rank:
                if ours not in facts or heard[ours] > rank:
                    facts[ours] = fact
                heard[ours] = rank
    return facts


class Alone(NamedTuple):
    """A foreign key that is heard whatever else is said, if its value can be.

    Attributes:
        key: it.
        name: ours.
        words: value → what leaves for it, where it is a word of theirs; else empty, and it says
            what it holds.
        beaten: other foreign keys that say the same, which are heard only if its value cannot be.
    """

    key: str
    name: str
    words: Mapping[Any, Any]
    beaten: tuple[str, ...]


def alone(foreign: Iterable[str], taken: Container[str], table: Table) -> Iterator[Alone]:
    """Those of `foreign` of which it is plain, without their values, what they say.

    Args:
        foreign: foreign keys that come together.
        taken: all keys that do.
        table: our key → how it is judged.
    """
    said: dict[str, list[str]] = {}
    for key in sorted(foreign, key=lambda key: _READ[key][0]):
        _, name, _, read, _ = _READ[key]
        for each in _SEVERAL.get(read, (name,)):
            said.setdefault(each, []).append(key)
    for name, keys in said.items():
        entry = table.get(name)
        reads = {_READ[key][3] for key in keys}
        if entry is None or entry.drops or name in taken or reads & _SEVERAL.keys():
            continue
        key, *beaten = keys
        _, _, _, read, theirs = _READ[key]
        words: dict[Any, Any] = {}
        if read is _word:
            words = {each: ours for word, ours in (theirs or {}).items() for each in _spelled(word)}
        elif read is _one and entry.rule == "enum":
            words = {word: (word,) for word in ATTRIBUTES[name].values or ()}
        words = {word: ours for word, ours in words.items() if _leaves(ours, entry)}
        if read is None or words:
            yield Alone(key, name, words, tuple(beaten))


def _spelled(word: str) -> tuple[str, ...]:
    return word, word.upper(), word.capitalize()


def _leaves(ours: Any, entry: Entry) -> bool:
    (word,) = ours if isinstance(ours, tuple) else (ours,)
    return entry.lasts and entry.text(word) is word


def elements(value: str) -> list[str] | None:
    """The words of a list that was written as JSON; None when it is no such list."""
    if len(value) > _LONGEST_USAGE or not _LIST.fullmatch(value):
        return None
    listed: list[str] = json.loads(value)
    return listed


def _word(name: str, value: Any, words: Mapping[str, str]) -> tuple[Said, ...]:
    word = _short(value)
    ours = None if word is None else words.get(word.lower())
    return () if ours is None else ((name, ours),)


def _quoted(name: str, value: Any, _: Any) -> tuple[Said, ...]:
    return ((name, _unquoted(value)),) if isinstance(value, str) else ()


def _one(name: str, value: Any, _: Any) -> tuple[Said, ...]:
    word = _short(value)
    return ((name, (word,)),) if word else ()


def _seconds(name: str, value: Any, _: Any) -> tuple[Said, ...]:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return ()
    # A whole number may be too large for a float, and a fact of others must not be lost with it.
    return ((name, value / 1000),) if 0 <= value < _LONGEST_MS else ()


def _url(_name: str, value: Any, _: Any) -> tuple[Said, ...]:
    found = _URL.match(value) if isinstance(value, str) and len(value) <= _LONGEST_URL else None
    if found is None:
        return ()
    address = (_ADDRESS, found[1])
    return (address, (_PORT, int(found[2]))) if found[2] else (address,)


def _flag(name: str, value: Any, _: Any) -> tuple[Said, ...]:
    return ((name, "_OTHER"),) if value is True else ()


def _usage(_name: str, value: Any, _: Any) -> list[Said]:
    counts: list[Said] = []
    if not isinstance(value, str) or len(value) > _LONGEST_USAGE:
        return counts
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        return counts
    for path, name in USAGE.items():
        count = parsed
        for step in path:
            count = count.get(step) if isinstance(count, dict) else None
        if type(count) is int:
            counts.append((name, count))
    return counts


def _short(value: Any) -> str | None:
    """A word without JSON's quotes; None for anything longer than a word."""
    if not isinstance(value, str) or len(value) > _LONGEST_WORD:
        return None
    return _unquoted(value)


def _unquoted(value: str) -> str:
    quoted = len(value) > 1 and value[0] == value[-1] == '"'
    return value[1:-1] if quoted else value


_HOW: Final[dict[str, Callable[[str, Any, Any], Iterable[Said]] | None]] = {
    "same": None,
    "word": _word,
    "quoted": _quoted,
    "one": _one,
    "ms": _seconds,
    "url": _url,
    "flag": _flag,
    "usage": _usage,
}
_SEVERAL: Final[dict[Any, Iterable[str]]] = {_url: (_ADDRESS, _PORT), _usage: set(USAGE.values())}
"""How values are read that may say several things → of what."""
_READ: Final = {
    key: (rank, name, _TYPES.get(ATTRIBUTES[name].type, ()), _HOW[how], FOREIGN_WORDS.get(key))
    for rank, (key, (name, how)) in enumerate(DIALECTS.items())
}
