"""Reviews: no entry of the registry changes without one that names it.

`reviews.yaml` is the list of reviews and only grows. `registry.lock` has, for each entry, the
hash of what was reviewed and the review that covers it, and a chain of hashes over the
reviews, so that an old one can neither be edited nor taken away. What was removed from the
registry keeps its line, with a `-` for the hash.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import yaml

import dialects
from definition import Invalid

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from definition import Attribute, Registry, Signal

REVIEWS: Final = "reviews.yaml"
LOCK: Final = "registry.lock"
GONE: Final = "-"

_FIELDS: Final = ("id", "date", "reviewer", "what", "why", "privacy", "entries")
_SHOWN: Final = 40
_ID: Final = re.compile(r"[a-z0-9][a-z0-9-]{2,63}")
_HEAD: Final = """\
# What of the registry was reviewed, and by which review. Written by
# `python semconv/generate.py --review ID`; never edited.
#
# review ID CHAIN          the hash of the review and of all before it
# KIND NAME HASH REVIEW    an entry as that review saw it
"""


@dataclass(frozen=True)
class Review:
    """One review: who looked at what and why, and what it means for privacy."""

    id: str
    date: str
    reviewer: str
    what: str
    why: str
    privacy: str
    entries: tuple[str, ...]

    def names(self, entry: str) -> bool:
        """Whether the review covers `entry`, by its name or by a beginning with ``*``."""
        return any(
            entry.startswith(name[:-1]) if name.endswith("*") else entry == name
            for name in self.entries
        )


@dataclass(frozen=True)
class Lock:
    """What was accepted: chain by review, and (hash, review) by entry."""

    chains: dict[str, str]
    entries: dict[str, tuple[str, str]]


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _attribute(attribute: Attribute) -> dict[str, Any]:
    return {
        "type": attribute.type,
        "prefix": attribute.prefix,
        "values": sorted(attribute.values or ()),
        "contract": attribute.contract,
        "sensitivity": attribute.sensitivity,
        "reason": attribute.reason,
        "rules": attribute.rules,
        "signals": sorted(attribute.signals),
    }


def _signal(signal: Signal) -> dict[str, Any]:
    return {
        "brief": signal.brief,
        "reason": signal.reason,
        "attributes": signal.attributes,
        **signal.extra,
    }


def kind_of(attribute: Attribute) -> str:
    """``resource`` for what only a resource may say, else ``attribute``."""
    return "resource" if attribute.signals == ("resource",) else "attribute"


def hashes(registry: Registry) -> dict[str, str]:
    """Entry (kind and name) → hash of everything that decides what leaves and why."""
    found = {
        f"{kind_of(attribute)} {key}": _hash(_attribute(attribute))
        for key, attribute in registry.attributes.items()
    }
    for kind, signals in (
        ("metric", registry.metrics),
        ("event", registry.events),
        ("span", registry.spans),
    ):
        found |= {f"{kind} {name}": _hash(_signal(signal)) for name, signal in signals.items()}
    for name, contract in registry.contracts.items():
        found[f"contract {name}"] = _hash([contract.meaning, contract.pattern])
    found |= {name: _hash(each) for name, each in dialects.hashes(registry.dialects).items()}
    return dict(sorted(found.items()))


def read_reviews(directory: Path) -> list[Review]:
    """The reviews, the oldest first.

    Raises:
        Invalid: with every mistake found.
    """
    path = directory / REVIEWS
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise Invalid(f"{REVIEWS}: cannot be read: {error}") from None
    given = content.get("reviews") if isinstance(content, dict) else None
    if not isinstance(given, list):
        raise Invalid(f"{REVIEWS}: `reviews` is missing")
    mistakes: list[str] = []
    reviews: list[Review] = []
    for number, entry in enumerate(given, 1):
        fields = entry if isinstance(entry, dict) else {}
        where = f"{REVIEWS}, review {fields.get('id', f'number {number}')}"
        wrong = _mistakes(fields, {review.id for review in reviews}, first=not reviews)
        mistakes += [f"{where}: {what}" for what in wrong]
        if not wrong:
            texts = {name: str(fields[name]).strip() for name in _FIELDS if name != "entries"}
            reviews.append(Review(**texts, entries=tuple(fields["entries"])))
    if mistakes:
        raise Invalid(*mistakes)
    return reviews


def _mistakes(fields: Mapping[str, Any], known: set[str], *, first: bool) -> list[str]:
    wrong = [f"`{name}` is not known here" for name in sorted(set(fields) - set(_FIELDS))]
    wrong += [
        f"`{name}` is missing"
        for name in ("reviewer", "what", "why", "privacy")
        if not isinstance(fields.get(name), str) or not fields[name].strip()
    ]
    if not isinstance(fields.get("id"), str) or not _ID.fullmatch(fields["id"]):
        wrong.append("`id` is no word of small letters, digits and `-`")
    elif fields["id"] in known:
        wrong.append("there is another review with this `id`")
    if not isinstance(fields.get("date"), dt.date):
        wrong.append("`date` is no date such as 2026-11-21")
    entries = fields.get("entries")
    if not isinstance(entries, list) or not all(isinstance(name, str) for name in entries):
        wrong.append("`entries` is no list of names")
    elif not entries:
        wrong.append("`entries` is empty")
    else:
        wrong += [
            f"{name!r} is no entry such as 'attribute gen_ai.system' or 'attribute gen_ai.*'"
            for name in entries
            if not re.fullmatch(r"[a-z]+ [^\s*]+\*?", name) and not (first and name == "*")
        ]
    return wrong


def _chains(reviews: list[Review]) -> dict[str, str]:
    chains: dict[str, str] = {}
    before = ""
    for review in reviews:
        before = chains[review.id] = _hash([before, *vars(review).values()])
    return chains


def read_lock(directory: Path) -> Lock:
    """What was accepted so far; nothing, when there is no lock yet.

    Raises:
        Invalid: a line is none.
    """
    lock = Lock({}, {})
    path = directory / LOCK
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or line.startswith("#"):
            continue
        if words[0] == "review" and len(words) == 3:
            lock.chains[words[1]] = words[2]
        elif len(words) == 4:
            lock.entries[f"{words[0]} {words[1]}"] = (words[2], words[3])
        else:
            raise Invalid(f"{LOCK}, line {number}: is not written by `--review`")
    return lock


def changed(registry: Registry, lock: Lock) -> dict[str, str]:
    """Entry → ``added``, ``changed`` or ``removed`` since it was reviewed."""
    now = hashes(registry)
    news = {}
    for name in sorted({*now, *lock.entries}):
        old, new = lock.entries.get(name, (GONE, ""))[0], now.get(name, GONE)
        if old != new:
            news[name] = "added" if old == GONE else "removed" if new == GONE else "changed"
    return news


def _history(reviews: list[Review], lock: Lock) -> list[str]:
    """What is wrong with the reviews that were accepted."""
    chains = _chains(reviews)
    wrong = []
    for name, chain in lock.chains.items():
        if name not in chains:
            wrong.append(f"{REVIEWS}: review {name} was removed; put it back as it was")
        elif chains[name] != chain:
            wrong.append(
                f"{REVIEWS}: review {name}, or one before it, was edited or moved; "
                "put it back as it was and say what is new in a review at the end"
            )
            break
    unknown = {review for _, review in lock.entries.values()} - set(lock.chains)
    wrong += [f"{LOCK}: review {name} is named and was never accepted" for name in sorted(unknown)]
    return wrong


_TODO: Final = f"""\
Nothing may leave that nobody has looked at. To have a change accepted:
  1. append a review to semconv/{REVIEWS} (never edit an old one):
       - id: WORD-OF-YOURS
         date: YYYY-MM-DD
         reviewer: role of who looked at it
         what: what changes
         why: what it is needed for
         privacy: one sentence on what it could give away
         entries:
{{entries}}
  2. python semconv/generate.py --review WORD-OF-YOURS
  3. commit the model, {REVIEWS}, {LOCK} and what was generated together"""


def _first(lines: list[str]) -> list[str]:
    more = len(lines) - _SHOWN
    return lines if more <= 0 else [*lines[:_SHOWN], f"           … and {more} more"]


def check(registry: Registry, directory: Path) -> list[str]:
    """What is not reviewed, line by line, and what to do about it; empty when all is well.

    Raises:
        Invalid: reviews or lock cannot be read.
    """
    reviews, lock = read_reviews(directory), read_lock(directory)
    wrong = _history(reviews, lock)
    news = changed(registry, lock)
    open_ = [review for review in reviews if review.id not in lock.chains]
    wrong += _first(
        [f"{name}: {what} without a review that was accepted" for name, what in news.items()]
    )
    if news:
        entries = _first([f"           - {name}" for name in news])
        wrong.append(_TODO.format(entries="\n".join(entries)))
    wrong += [
        f"{REVIEWS}: review {review.id} is not accepted; "
        f"run `python semconv/generate.py --review {review.id}`"
        for review in open_
    ]
    return wrong


def accept(registry: Registry, directory: Path, name: str) -> list[str]:
    """Write into the lock that review `name` covers what changed; returns the entries' names.

    Raises:
        Invalid: there is no such review, it was accepted already, it names what is not there, or
            an old one was touched. Nothing is written then.
    """
    reviews, lock = read_reviews(directory), read_lock(directory)
    wrong = _history(reviews, lock)
    if wrong:
        raise Invalid(*wrong)
    waiting = [review for review in reviews if review.id not in lock.chains]
    if name in lock.chains:
        raise Invalid(f"review {name} was accepted before: append another to {REVIEWS}")
    if name not in {review.id for review in waiting}:
        raise Invalid(f"{REVIEWS} has no review {name}: append one")
    review = waiting[0]
    if review.id != name:
        raise Invalid(f"review {review.id} comes first: run `--review {review.id}`")
    if reviews[: len(lock.chains)] != [each for each in reviews if each.id in lock.chains]:
        raise Invalid(f"review {name} stands before one that was accepted: put it at the end")
    news = changed(registry, lock)
    covered = [entry for entry in news if review.names(entry)]
    now = hashes(registry)
    idle = [
        named
        for named in review.entries
        if not any(Review.names(_only(review, named), entry) for entry in {*now, *lock.entries})
    ]
    if idle:
        raise Invalid(*(f"review {name}: there is no entry {named}" for named in idle))
    chains = _chains(reviews)
    lock.chains[name] = chains[name]
    for entry in covered:
        lock.entries[entry] = (now.get(entry, GONE), name)
    (directory / LOCK).write_text(_written(lock), encoding="utf-8")
    return covered


def _only(review: Review, named: str) -> Review:
    return Review(**{**vars(review), "entries": (named,)})


def _written(lock: Lock) -> str:
    lines = [f"review {name} {chain}" for name, chain in lock.chains.items()]
    lines += [
        f"{entry} {digest} {review}" for entry, (digest, review) in sorted(lock.entries.items())
    ]
    return _HEAD + "\n".join(lines) + "\n"
