"""Templates that spell a finite set of ids: text, choices, closed vocabularies, real dates.

``gpt-4o[-mini][-{yyyy-mm-dd=2024-05-13}]``: round brackets choose one, square ones may be left
out, braces name a vocabulary or a form of dates, of which the known ones follow the sign ``=``.
There is no repetition, so `count` can tell how much room for anything else is left.

Matching carries the set of positions that may have been reached through the template once. Its
time is the template's size times the text's length at most, whatever the two are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from sottovoce.privacy.patterns import Pattern

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

FIRST_YEAR: Final = 2019
"""Of the dates in ids."""

HEAD: Final = 2
"""Characters by which templates are found: every id has as many, whatever is left out."""

LETTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_:/@+")
"""What ids are made of."""

_BEGINNING: Final = Pattern(r"[^()\[\]{}|]*")
_DAYS: Final = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_FEBRUARY: Final = 2


class Malformed(ValueError):
    """What cannot be read; the message says why, never what is written there."""


class Node(Protocol):
    """A part of a template."""

    def ends(self, text: str, starts: set[int]) -> set[int]:
        """Where in `text` a match that begins at one of `starts` may end."""

    def count(self) -> int:
        """How many strings it spells, at most."""

    def listed(self) -> Iterator[str]:
        """The strings to list: of dates the known ones, of vocabularies the usual words."""

    def heads(self) -> Iterator[str]:
        """What the strings begin with."""


class Text:
    """Itself."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def ends(self, text: str, starts: set[int]) -> set[int]:
        """See `Node`."""
        mine = self._text
        return {at + len(mine) for at in starts if text.startswith(mine, at)}

    def count(self) -> int:
        """See `Node`."""
        return 1

    def listed(self) -> Iterator[str]:
        """See `Node`."""
        yield self._text

    heads = listed


class Words:
    """One word of a vocabulary."""

    __slots__ = ("_lengths", "_usual", "_words")

    def __init__(self, usual: tuple[str, ...], others: tuple[str, ...]) -> None:
        self._usual = usual
        self._words = frozenset(usual + others)
        self._lengths = {len(word) for word in self._words}

    def ends(self, text: str, starts: set[int]) -> set[int]:
        """See `Node`."""
        words, lengths = self._words, self._lengths
        return {
            at + length for at in starts for length in lengths if text[at : at + length] in words
        }

    def count(self) -> int:
        """See `Node`."""
        return len(self._words)

    def listed(self) -> Iterator[str]:
        """See `Node`."""
        return iter(self._usual)

    def heads(self) -> Iterator[str]:
        """See `Node`."""
        return iter(self._words)


def _is_day(month: str, day: str, year: int = 2020) -> bool:
    if not (month.isdigit() and day.isdigit() and 1 <= int(month) <= len(_DAYS)):
        return False
    # From 2019 on to 2099 every fourth year is a leap year.
    short = int(month) == _FEBRUARY and year % 4 != 0
    return 1 <= int(day) <= _DAYS[int(month) - 1] - short


def _is_month(month: str, year: str, last: int) -> bool:
    return month.isdigit() and 1 <= int(month) <= len(_DAYS) and _is_year(year, last)


def _is_year(year: str, last: int) -> bool:
    return year.isdigit() and FIRST_YEAR <= int(year) <= last


def _days(last: int) -> int:
    return sum(365 + (year % 4 == 0) for year in range(FIRST_YEAR, last + 1))


def _months(last: int) -> int:
    return len(_DAYS) * (last + 1 - FIRST_YEAR)


class Form(NamedTuple):
    """How a date is written: its length, whether it is real, how many there are.

    Both questions are asked with the last year; that a text is ASCII is the caller's promise.
    """

    length: int
    is_real: Callable[[str, int], bool]
    count: Callable[[int], int]


FORMS: Final[Mapping[str, Form]] = {
    "yyyy-mm-dd": Form(
        10,
        lambda text, last: (
            text[4] == text[7] == "-"
            and _is_year(text[:4], last)
            and _is_day(text[5:7], text[8:], int(text[:4]))
        ),
        _days,
    ),
    "yyyymmdd": Form(
        8,
        lambda text, last: _is_year(text[:4], last) and _is_day(text[4:6], text[6:], int(text[:4])),
        _days,
    ),
    "yymm": Form(4, lambda text, last: _is_month(text[2:], f"20{text[:2]}", last), _months),
    "mm-yyyy": Form(
        7, lambda text, last: text[2] == "-" and _is_month(text[:2], text[3:], last), _months
    ),
    "mmdd": Form(4, lambda text, _last: _is_day(text[:2], text[2:]), lambda _last: sum(_DAYS)),
    "mm-dd": Form(
        5,
        lambda text, _last: text[2] == "-" and _is_day(text[:2], text[3:]),
        lambda _last: sum(_DAYS),
    ),
}


class Date:
    """A real date in one form."""

    __slots__ = ("_form", "_known", "_last")

    def __init__(self, form: Form, known: tuple[str, ...], last: int) -> None:
        self._form = form
        self._known = known
        self._last = last
        if not all(self.ends(date, {0}) == {len(date)} for date in known):
            raise Malformed("a date that is none")

    def ends(self, text: str, starts: set[int]) -> set[int]:
        """See `Node`."""
        length, is_real, _ = self._form
        return {
            at + length
            for at in starts
            if len(text) >= at + length and is_real(text[at : at + length], self._last)
        }

    def count(self) -> int:
        """See `Node`."""
        return self._form.count(self._last)

    def listed(self) -> Iterator[str]:
        """See `Node`."""
        return iter(self._known)

    def heads(self) -> Iterator[str]:
        """Raise `Malformed`: no id begins with a date."""
        raise Malformed("an id that begins with a date")


class Sequence:
    """Its nodes, one after the other."""

    __slots__ = ("_nodes",)

    def __init__(self, nodes: list[Node]) -> None:
        self._nodes = nodes

    def ends(self, text: str, starts: set[int]) -> set[int]:
        """See `Node`."""
        for node in self._nodes:
            starts = node.ends(text, starts)
            if not starts:
                break
        return starts

    def count(self) -> int:
        """See `Node`."""
        product = 1
        for node in self._nodes:
            product *= node.count()
        return product

    def listed(self) -> Iterator[str]:
        """See `Node`."""
        strings = [""]
        for node in self._nodes:
            more = list(node.listed())
            strings = [begun + rest for begun in strings for rest in more]
        return iter(strings)

    def heads(self) -> Iterator[str]:
        """See `Node`."""
        heads = {""}
        for node in self._nodes:
            if all(len(head) >= HEAD for head in heads):
                break
            more = list(node.heads())
            heads = {(head + rest)[:HEAD] for head in heads for rest in more}
        return iter(heads)


class Choice:
    """One of several ways, of which one may be nothing."""

    __slots__ = ("_ways",)

    def __init__(self, ways: list[Sequence]) -> None:
        self._ways = ways

    def ends(self, text: str, starts: set[int]) -> set[int]:
        """See `Node`."""
        return {end for way in self._ways for end in way.ends(text, starts)}

    def count(self) -> int:
        """See `Node`."""
        return sum(way.count() for way in self._ways)

    def listed(self) -> Iterator[str]:
        """See `Node`."""
        for way in self._ways:
            yield from way.listed()

    def heads(self) -> Iterator[str]:
        """See `Node`."""
        for way in self._ways:
            yield from way.heads()


def parse(template: str, words: Mapping[str, Words], last_year: int) -> Sequence:
    """Read `template`; `words` are the vocabularies that it may name.

    Raises:
        Malformed: it cannot be read.
    """
    reader = _Reader(template, words, last_year)
    made = reader.sequence()
    if reader.rest:
        raise Malformed("a bracket without its other half")
    return made


def vocabulary(text: str) -> Words:
    """Read ``usual|words;other|words``.

    Raises:
        Malformed: a word has characters that ids do not have.
    """
    usual, _, others = text.partition(";")
    both = [
        tuple(word.strip() for word in half.split("|") if word.strip()) for half in (usual, others)
    ]
    if not all(LETTERS.issuperset(word) for half in both for word in half):
        raise Malformed("a character that ids do not have")
    return Words(both[0], both[1])


def literal(template: str) -> str:
    """What every string of `template` begins with."""
    found = _BEGINNING.match(template)
    return found[0] if found else ""


class _Reader:
    """Reads a template from left to right; `rest` is what has not been read."""

    def __init__(self, template: str, words: Mapping[str, Words], last_year: int) -> None:
        self.rest = template
        self._words = words
        self._last = last_year

    def sequence(self) -> Sequence:
        nodes: list[Node] = []
        while self.rest and self.rest[0] not in ")]|":
            mark = self.rest[0]
            if mark == "{":
                nodes.append(self._reference())
            elif mark in "([":
                nodes.append(self._choice("]" if mark == "[" else ")"))
            else:
                nodes.append(self._text())
        return Sequence(nodes)

    def _choice(self, closing: str) -> Choice:
        ways = [Sequence([])] if closing == "]" else []
        while True:
            self.rest = self.rest[1:]
            ways.append(self.sequence())
            if not self.rest.startswith("|"):
                break
        if not self.rest.startswith(closing):
            raise Malformed("a bracket without its other half")
        self.rest = self.rest[1:]
        return Choice(ways)

    def _reference(self) -> Node:
        inside, brace, self.rest = self.rest[1:].partition("}")
        name, _, known = inside.partition("=")
        if brace and name in FORMS:
            return Date(FORMS[name], tuple(known.split("|")) if known else (), self._last)
        if not brace or name not in self._words:
            raise Malformed("a vocabulary that is not defined above it")
        return self._words[name]

    def _text(self) -> Text:
        text = literal(self.rest)
        self.rest = self.rest[len(text) :]
        # Nothing was read before a brace that closes what was never opened.
        if not text or not LETTERS.issuperset(text):
            raise Malformed("a character that ids do not have")
        return Text(text)
