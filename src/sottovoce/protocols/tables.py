"""Tables of facts: each row names a fact and says where in a body its value lies.

What `read` finds is not checked, what `learnt` finds is: a value that is not of its fact's type
(`checks.py`) sets nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from sottovoce.protocols.checks import CHECKS, MAX_COUNT, checked, count, is_wrong

if TYPE_CHECKING:
    from sottovoce.call import Facts

Body: TypeAlias = Mapping[str, Any]
Candidates: TypeAlias = dict[str, Any]
"""Values by fact, as the wire gave them, not yet checked."""
Find: TypeAlias = Callable[[Body], Any]
Row: TypeAlias = tuple[str, str, Find]
Table: TypeAlias = tuple[Row, ...]
"""Rows of (fact, the body's key that it depends on, how to find its value); of several rows for
a fact the first value counts. Most keys are absent from most bodies, and then cost nothing."""

_WRONG: Final = object()
_MOST_PLANS = 256


def at(*path: str) -> Find:
    """Find the value at `path`; None where a part of it is absent or null."""
    key, inner = path[0], path[1:]

    def find(body: Body) -> Any:
        # Asked where `read` cannot look itself: a body of the app's own kind of mapping.
        value = body.get(key)
        for name in inner:
            if value is None:
                return None
            # What a body was parsed to is a dict; that a type is a Mapping takes longer to tell.
            if type(value) is not dict and not isinstance(value, Mapping):
                return _WRONG
            value = value.get(name)
        return value

    find.__dict__["path"] = path
    return of(key)(find)


def used(*path: str) -> Find:
    """Find the count at `path` unless it is 0: a modality that was not used is not told of."""
    there = at(*path)

    def find(body: Body) -> Any:
        return there(body) or None

    find.__dict__.update(path=path, used=True)
    return of(path[0])(find)


def length(key: str) -> Find:
    """Find how many items the list at `key` has; None when it is absent or no list."""

    def count(body: Body) -> Any:
        value = body.get(key)
        return len(value) if isinstance(value, (list, tuple)) else None

    count.__dict__["alone"] = True
    return of(key)(count)


def summed(*paths: tuple[str, ...]) -> Find:
    """Find the sum of the counts at `paths`, of which the first has to be there."""
    finds = [at(*path) for path in paths]

    def find(body: Body) -> Any:
        first, *others = [count(body) for count in finds]
        # Anything but a count is for `checked` to refuse.
        return first + sum(filter(_is_count, others)) if _is_count(first) else first

    return of(paths[0][0])(find)


def _is_count(value: Any) -> bool:
    return type(value) is int


def of(key: str) -> Callable[[Find], Find]:
    """Say that a function finds nothing in a body without `key`."""

    def mark(find: Find) -> Find:
        find.__dict__["key"] = key
        return find

    return mark


def together(key: str, look: Callable[[Body], Candidates], *facts: str) -> Table:
    """Make rows of facts that one look at a body finds all of, which is nothing without `key`."""

    def row(fact: str) -> Row:
        def find(body: Body) -> Any:
            return look(body).get(fact)

        find.__dict__.update(key=key, look=look)
        return fact, key, find

    return tuple(row(fact) for fact in facts)


def rows(*entries: tuple[str, Find]) -> Table:
    """Make a table of (fact, how to find its value)."""
    return tuple((fact, find.__dict__["key"], find) for fact, find in entries)


@lru_cache(maxsize=_MOST_PLANS)
def certain(table: Table) -> Table:
    """Give the rows whose values count whatever else is in a body.

    They are the first of their fact, and look at nothing but the value that they find.
    """
    first: dict[str, Row] = {}
    for row in table:
        first.setdefault(row[0], row)
    return tuple(row for row in first.values() if not {"path", "alone"}.isdisjoint(vars(row[2])))


@lru_cache(maxsize=_MOST_PLANS)
def without(table: Table, key: str) -> Table:
    """Give the rows of facts that do not depend on what a body holds under `key`."""
    lacking = {fact for fact, needed, _ in table if needed == key}
    return tuple(row for row in table if row[0] not in lacking)


_Check: TypeAlias = Callable[[Any], Any]
_Row: TypeAlias = tuple[str, "_Check | None", "int | None", Find]
"""A fact, its check, the row's place among those of its fact, how to find it. There is no check
where values are taken as they are, no place where no other row finds the fact."""
_Value: TypeAlias = tuple[str, "_Check | None", "int | None", bool]
"""The same of a fact that a key's value itself is, and whether 0 says nothing."""
_Several: TypeAlias = tuple[Callable[[Body], Candidates], "_Plan"]
"""A function that finds several facts, and what is looked for in what it gives: each by its name."""
_Key: TypeAlias = tuple[
    tuple[_Value, ...], "_Plan", tuple[_Row, ...], tuple[_Several, ...], tuple[_Row, ...]
]
"""What is looked for under one key of a mapping: facts that its value is; what is looked for in the
value, where that is a mapping; rows whose function looks for itself; functions that find several
facts; the rows that the first two stand for. Plain tuples, which are taken apart much faster than
named ones."""
_Plan: TypeAlias = dict[str, _Key]

# `id` raises an audit event, which costs more than all this where somebody listens (filelock does).
_key_of: Final = object.__hash__
_plans: Final[dict[int, tuple[Table, _Plan]]] = {}
"""What `read` looks for, by the identity of a table, which is a constant of its module."""
_checked_plans: Final[dict[int, tuple[Table, _Plan]]] = {}
"""The same of `learnt`."""


def _planned(table: Table, *, checked: bool) -> _Plan:
    """Group the rows of a table by the keys on their paths, so that each is looked up once."""
    facts = [fact for fact, _, _ in table]
    plan = _plan(
        [
            (
                fact,
                CHECKS[fact] if checked else None,
                place if facts.count(fact) > 1 else None,
                find,
            )
            for place, (fact, _, find) in enumerate(table)
        ],
        0,
    )
    plans = _checked_plans if checked else _plans
    if len(plans) < _MOST_PLANS:
        plans[_key_of(table)] = table, plan
    return plan


def _plan(rows_: list[_Row], depth: int) -> _Plan:
    by_key: dict[str, list[_Row]] = {}
    for row in rows_:
        path = row[3].__dict__.get("path")
        by_key.setdefault(path[depth] if path else row[3].__dict__["key"], []).append(row)
    return {key: _key(group, depth) for key, group in by_key.items()}


def _key(group: list[_Row], depth: int) -> _Key:
    pathed = [row for row in group if "path" in row[3].__dict__]
    several: dict[Callable[[Body], Candidates], _Plan] = {}
    for fact, check, place, find in group:
        if "look" in find.__dict__:
            told = several.setdefault(find.__dict__["look"], {})
            told[fact] = ((fact, check, place, False),), {}, (), (), ()
    deeper = [row for row in pathed if len(row[3].__dict__["path"]) > depth + 1]
    return (
        tuple(
            (fact, check, place, "used" in find.__dict__)
            for fact, check, place, find in pathed
            if len(find.__dict__["path"]) == depth + 1
        ),
        _plan(deeper, depth + 1),
        tuple(row for row in group if {"path", "look"}.isdisjoint(row[3].__dict__)),
        tuple(several.items()),
        tuple(pathed),
    )


def read(table: Table, body: Body) -> Candidates:
    """Apply every row of `table` to `body`. Never raises: a row that cannot be read is absent."""
    if type(body) is not dict:
        return _read_rows(table, body)
    known = _plans.get(_key_of(table))
    plan = known[1] if known and known[0] is table else _planned(table, checked=False)
    found: Candidates = {}
    try:
        _look(plan, body, found, {}, body)
    except Exception:  # noqa: BLE001 - a body may hold objects of the app
        return _read_rows(table, body)
    return found


def learnt(table: Table, body: Body, on_malformed: Callable[[str], None] | None = None) -> Facts:
    """Apply every row of `table` to `body`, and keep the values that have the type of their fact.

    Never raises; `on_malformed` is told ``type`` once however many values were of another type.
    """
    if type(body) is not dict:
        return checked(_read_rows(table, body), on_malformed)
    known = _checked_plans.get(_key_of(table))
    plan = known[1] if known and known[0] is table else _planned(table, checked=True)
    facts: Candidates = {}
    places: dict[str, int] = {}
    try:
        wrong = _look(plan, body, facts, places, body)
    except Exception:  # noqa: BLE001 - a body may hold objects of the app
        return checked(_read_rows(table, body), on_malformed)
    for fact in places:
        # Of these it is only known now which value counts.
        value = facts[fact]
        if type(value) is int and 0 <= value <= MAX_COUNT and CHECKS[fact] is count:
            continue
        good = CHECKS[fact](value)
        if good is None:
            del facts[fact]
            wrong = wrong or is_wrong(value)
        else:
            facts[fact] = good
    if wrong and on_malformed is not None:
        on_malformed("type")
    return facts  # type: ignore[return-value]


def _look(  # noqa: C901, PLR0912 - flat, because it runs for every body
    plan: _Plan, part: dict[str, Any], found: Candidates, places: dict[str, int], body: Body
) -> bool:
    """Apply `plan` to a part of `body`.

    Args:
        plan: what is looked for.
        part: where, of the body.
        found: gets what is found; a fact that several rows may find is not checked.
        places: of the rows that found such facts.
        body: all of it.

    Returns:
        Whether something was of a wrong type.
    """
    wrong = False
    for key, value in part.items():
        looked_for = plan.get(key)
        if looked_for is None:
            continue
        values, inner, finds, several, rows_ = looked_for
        if value is not None:
            for fact, check, place, used_only in values:
                if used_only and not value:
                    continue
                if place is not None:
                    if places.get(fact, place) >= place:
                        places[fact] = place
                        found[fact] = value
                elif check is None or (
                    check is count and type(value) is int and 0 <= value <= MAX_COUNT
                ):
                    # Most facts are counts.
                    found[fact] = value
                else:
                    good = check(value)
                    if good is not None:
                        found[fact] = good
                    elif is_wrong(value):
                        wrong = True
            if inner:
                if type(value) is dict:
                    wrong = _look(inner, value, found, places, body) or wrong
                else:
                    finds = (*rows_, *finds)
        for fact, check, place, find in finds:
            try:
                given = find(body)
            except Exception:  # noqa: BLE001 - a body may hold objects of the app
                given = _WRONG
            if given is None:
                continue
            if place is not None:
                if places.get(fact, place) >= place:
                    places[fact] = place
                    found[fact] = given
                continue
            good = given if check is None else check(given)
            if good is not None:
                found[fact] = good
            elif is_wrong(given):
                wrong = True
        for look, told in several:
            try:
                facts = look(body)
            except Exception:  # noqa: BLE001 - same
                facts = dict.fromkeys(told, _WRONG)
            wrong = _look(told, facts, found, places, body) or wrong
    return wrong


def _read_rows(table: Table, body: Body) -> Candidates:
    """Apply the rows one by one."""
    found: Candidates = {}
    for fact, key, find in table:
        if fact in found:
            continue
        try:
            there = key in body
        except Exception:  # noqa: BLE001 - a body may be an object of the app
            there = True
        try:
            value = find(body) if there else None
        except Exception:  # noqa: BLE001 - same
            value = _WRONG
        if value is not None:
            found[fact] = value
    return found
