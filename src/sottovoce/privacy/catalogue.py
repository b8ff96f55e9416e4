"""Which model ids are publicly known, so that one of them tells nothing about who asked.

The list is `catalogue.txt` beside this module: ids written as the templates of `templates`. What
they spell is a finite set, and `accepted` counts it: the room that an id leaves for anything
but a model's name is that count's logarithm, and no arrangement of known words is public unless
a template spells it. ``gpt-4o:acme``, ``ft:gpt-4o:x``, ``acme/gpt-4o``, ``gpt-4o-2024-99-99`` and
``mlx-community/acme-4bit`` are spelled by none. An id is accepted as it is published or all in
lower case, in no other mixture: that would be room for a bit a letter.

The operator's file (`SOTTOVOCE_MODEL_CATALOGUE`) is of the same notation. With a line such as
``version: 2027.01`` it stands in for the shipped list, without one it adds to it; an id a line
is enough. It is read once, with the list, at the first question.

Besides ids there are *descriptors*, which our runtimes give to a model of a local file:
``{architecture}-{size bucket}-{quantization}``, each of a closed vocabulary.
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from sottovoce import settings as settings_
from sottovoce.privacy import templates
from sottovoce.privacy.templates import FIRST_YEAR, HEAD, LETTERS, Malformed
from sottovoce.registry import ATTRIBUTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    # What a template is read with: the vocabularies, and the last year of its dates.
    _Context = tuple[Mapping[str, templates.Words], int]

log = logging.getLogger("sottovoce")

VERSION: Final = "2026.11"
"""The shipped list's: year and month in which it was made."""

LONGEST: Final = 96
"""Characters of the longest id that is looked at."""

REMEMBERED: Final = 1024
"""Answers that are kept."""

MOST_BYTES: Final = 1 << 20
MOST_IDS: Final = 10_000_000
"""Of the operator's file, and of a section of a list."""

_NONE: Final[list[_Line]] = []
_ENDS: Final = frozenset("/_.")
_SHIPPED: Final = os.path.join(os.path.dirname(__file__), "catalogue.txt")  # noqa: PTH118, PTH120 - pathlib costs more to import
_LAST_YEAR: Final = 2099

_ARCHITECTURES: Final = ATTRIBUTES["sottovoce.model.architecture"].values or frozenset()
_BUCKETS: Final = ATTRIBUTES["sottovoce.model.parameters"].values or frozenset()
_QUANTIZATIONS: Final = ATTRIBUTES["sottovoce.model.quantization"].values or frozenset()


def is_public(model: str) -> bool:
    """Whether `model` is the id of a publicly known model. Linear in its length, remembered."""
    # The length first: what is too long is not kept among the answers either.
    return len(model) <= LONGEST and _is_public(model)


def is_descriptor(model: str) -> bool:
    """Whether `model` is ``{architecture}-{size bucket}-{quantization}`` of our vocabularies."""
    parts = model.rsplit("-", 2)
    return (
        len(parts) == 3  # noqa: PLR2004 - the three parts of the name
        and parts[1] in _BUCKETS
        and parts[2] in _QUANTIZATIONS
        and parts[0] in _ARCHITECTURES
    )


def ids() -> tuple[str, ...]:
    """The ids to list, sorted: as published, with the known dates and the usual quantizations.

    More are public: any real date, any quantization of the vocabularies, and lower case.
    """
    return tuple(sorted(set(_catalogue(lower=False).listed())))


def accepted() -> dict[str, int]:
    """Section of the list → how many ids it accepts at most; each has a lower case as well."""
    return _catalogue(lower=False).counts()


def version() -> str:
    """The version of the list in use; ``+file`` follows when the operator's file adds to it."""
    return _version(_texts()) + ("+file" if len(_texts()) > 1 else "")


def reload() -> None:
    """Forget the list and every answer; the next question reads the files again."""
    for memory in (_is_public, _catalogue, _texts):
        memory.cache_clear()


class _Line:
    """One template, read when an id begins as it does: most are never asked for."""

    __slots__ = ("_begins", "_context", "_template", "_written")

    def __init__(self, written: str, context: _Context) -> None:
        self._written = written
        self._begins = templates.literal(written)
        self._context = context
        self._template: templates.Sequence | None = None

    @property
    def template(self) -> templates.Sequence:
        made = self._template
        if made is None:
            # Two threads may both read it; either result will do.
            made = self._template = templates.parse(self._written, *self._context)
        return made

    def heads(self) -> set[str]:
        heads = set(self.template.heads())
        if any(len(head) < HEAD for head in heads):
            raise Malformed("an id of fewer than two characters")
        return heads

    def ends(self, text: str) -> set[int]:
        return self.template.ends(text, {0}) if text.startswith(self._begins) else set()


class _Place(NamedTuple):
    """Where the ids of a section occur: what stands before and after each, and whether to list."""

    before: str
    after: _Line
    is_listed: bool


class _Section:
    """Templates that occur at the same places."""

    __slots__ = ("_by_head", "_context", "_lines", "name", "places")

    def __init__(self, name: str, places: list[_Place], context: _Context) -> None:
        self.name = name
        self.places = places
        self._context = context
        # Both by the first characters of the ids: as written, and once they were asked for.
        self._by_head: dict[str, list[str]] = {}
        self._lines: dict[str, list[_Line]] = {}

    def add(self, written: str) -> None:
        head = written[:HEAD]
        heads = {head} if head.isalnum() else _Line(written, self._context).heads()
        for each in heads:
            self._by_head.setdefault(each, []).append(written)

    def beginning(self, head: str) -> list[_Line]:
        lines = self._lines.get(head)
        if lines is None:
            written = self._by_head.get(head)
            if written is None:
                return _NONE
            lines = self._lines[head] = [_Line(each, self._context) for each in written]
        return lines

    def templates(self) -> list[templates.Sequence]:
        written = dict.fromkeys(each for lines in self._by_head.values() for each in lines)
        return [_Line(each, self._context).template for each in written]


class _Catalogue:
    """The sections of one or more texts, found by what stands before an id.

    Raises:
        Malformed: a line cannot be used; unless `checked`, most are read only when asked for.
    """

    def __init__(self, texts: tuple[str, ...], last_year: int, *, checked: bool) -> None:
        # Whether to read every template now rather than when an id begins like it.
        self._checked = checked
        self._words: dict[str, templates.Words] = {}
        self._context: _Context = (self._words, last_year)
        self._shared: dict[str, list[_Place]] = {}
        self._sections: list[_Section] = []
        for text in texts:
            self._read(text)
        self._befores: dict[str, list[tuple[_Section, _Line]]] = defaultdict(list)
        for section in self._sections:
            for place in section.places:
                self._befores[place.before].append((section, place.after))

    def _read(self, text: str) -> None:  # noqa: C901 - one kind of line after the other
        # Ids before the first header are whole ones.
        section = self._begun("own")
        places = section.places
        places.append(_Place("", self._line(""), is_listed=True))
        for number, written in enumerate(text.splitlines(), 1):
            line = written.partition("#")[0].strip()
            try:
                if " " not in line and "[" not in line[:1]:
                    if line:
                        section.add(line)
                        if self._checked:
                            templates.parse(line, *self._context)
                    continue
                keyword, _, rest = line.partition(" ")
                if keyword == "version:":
                    continue
                if keyword in {"at", "also"}:
                    places += self._placed(rest, is_listed=keyword == "at")
                elif keyword == "places":
                    places = self._shared.setdefault(rest, [])
                elif rest.startswith(":="):
                    self._words[keyword] = templates.vocabulary(rest[2:])
                elif line.startswith("[") and line.endswith("]") and "[" not in line[1:]:
                    section = self._begun(line[1:-1])
                    places = section.places
                else:
                    raise Malformed("a space or a bracket where ids have none")  # noqa: TRY301 - as below
            except Malformed as error:
                raise Malformed(f"line {number} has {error}") from None

    def _line(self, written: str) -> _Line:
        return _Line(written, self._context)

    def _begun(self, header: str) -> _Section:
        name, *shared = header.split(" +")
        if not all(other in self._shared for other in shared):
            raise Malformed("places that are not defined above it")
        places = [place for other in shared for place in self._shared[other]]
        section = _Section(name, places, self._context)
        self._sections.append(section)
        return section

    def _placed(self, rest: str, *, is_listed: bool) -> Iterator[_Place]:
        befores, _, after = rest.partition(" ")
        line = self._line(after.strip())
        if self._checked:
            line.template.count()
        for before in befores.split(","):
            if before != "-" and not (LETTERS.issuperset(before) and before[-1:] in _ENDS):
                raise Malformed("a place that does not end with / _ or .")
            yield _Place("" if before == "-" else before, line, is_listed)

    def is_public(self, model: str) -> bool:
        return any(self._is_named(before, model[len(before) :]) for before in _befores(model))

    def _is_named(self, before: str, rest: str) -> bool:
        head = rest[:HEAD]
        for section, after in self._befores.get(before, ()):
            for line in section.beginning(head):
                ends = line.ends(rest)
                if ends and len(rest) in after.template.ends(rest, ends):
                    return True
        return False

    def listed(self) -> Iterator[str]:
        for section in self._sections:
            names = [name for template in section.templates() for name in template.listed()]
            for place in section.places:
                if place.is_listed:
                    afters = list(place.after.template.listed())
                    yield from (
                        f"{place.before}{name}{after}" for name in names for after in afters
                    )

    def counts(self) -> dict[str, int]:
        counts: dict[str, int] = defaultdict(int)
        for section in self._sections:
            names = sum(template.count() for template in section.templates())
            counts[section.name] += names * sum(
                place.after.template.count() for place in section.places
            )
        return {name: count for name, count in counts.items() if count}


def _befores(model: str) -> Iterator[str]:
    """What may stand before the name: nothing, its owner, a region or a second owner as well."""
    yield ""
    slash = model.rfind("/") + 1
    if slash:
        yield model[:slash]
    # us.anthropic.claude-sonnet-5, bartowski/Qwen_Qwen3-8B-GGUF
    for mark in "._":
        inside = model.find(mark, slash) + 1
        if inside:
            yield model[:inside]


def _version(texts: tuple[str, ...]) -> str:
    lines = texts[0].splitlines()
    return next((line[8:].strip() for line in lines if line.startswith("version:")), "")


def _made(texts: tuple[str, ...], *, checked: bool = False) -> _Catalogue:
    year = _version(texts)[:4]
    if not (year.isdigit() and FIRST_YEAR <= int(year) < _LAST_YEAR):
        raise Malformed("no version such as 2026.11")
    return _Catalogue(texts, int(year) + 1, checked=checked)


def _shipped() -> str:
    try:
        with open(_SHIPPED, encoding="ascii") as file:  # noqa: PTH123 - pathlib costs more to import
            return file.read()
    except OSError:
        # A frozen app may have been built without it: then every id is a pseudonym.
        log.warning("sottovoce: the list of public model ids is missing; every id is hashed.")
        return f"version: {VERSION}"


@lru_cache(maxsize=1)
def _texts() -> tuple[str, ...]:
    """The lists to use; an operator's that cannot be used is the matter of one warning."""
    shipped = (_shipped(),)
    # The environment's alone: what code sets may tighten, and more public ids would loosen.
    path = settings_.read()[0].model_catalogue
    if path is None:
        return shipped
    try:
        # To open a pipe would wait for its writer.
        if not os.path.isfile(path):  # noqa: PTH113 - as above
            raise Malformed("there is none")
        with open(path, "rb") as opened:  # noqa: PTH123 - as above
            read = opened.read(MOST_BYTES + 1)
        if len(read) > MOST_BYTES:
            raise Malformed("more than 1 MiB")
        own = (read.decode("ascii"),)
        texts = own if _version(own) else shipped + own
        for each in (texts, tuple(map(str.lower, texts))):
            if max(_made(each, checked=True).counts().values(), default=0) > MOST_IDS:
                raise Malformed("a section of more than ten million ids")
    except (OSError, ValueError, RecursionError) as error:
        log.warning(
            "SOTTOVOCE_MODEL_CATALOGUE: the file cannot be used (%s); using the shipped list, %s.",
            error if isinstance(error, Malformed) else type(error).__name__,
            VERSION,
        )
        return shipped
    return texts


@lru_cache(maxsize=2)
def _catalogue(*, lower: bool) -> _Catalogue:
    texts = _texts()
    return _made(tuple(map(str.lower, texts)) if lower else texts)


@lru_cache(maxsize=REMEMBERED)
def _is_public(model: str) -> bool:
    # Digits of other scripts would count as a date's.
    return model.isascii() and _catalogue(lower=model == model.lower()).is_public(model)
