"""Tables of facts: each row names a fact and says where in a body its value lies.

What is found is not checked: `protocol.checked` does that, by fact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeAlias

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


class _Key(NamedTuple):
    """What is looked for under one key of a mapping.

    Attributes:
        value: (fact, place of its row in the table, whether 0 says nothing) of each fact that
            the value itself is; the place of a fact that no other row finds is None.
        inner: what is looked for in the value, where that is a mapping.
        finds: rows whose function looks for itself, with their places.
        rows: those of the table that `value` and `inner` stand for, with their places.
    """

    value: tuple[tuple[str, int | None, bool], ...]
    inner: _Plan
    finds: tuple[_Row, ...]
    rows: tuple[_Row, ...]


_Row: TypeAlias = tuple[str, int | None, Find]
_Plan: TypeAlias = dict[str, _Key]

# `id` raises an audit event, which costs more than all this where somebody listens (filelock does).
_key_of: Final = object.__hash__
_plans: Final[dict[int, tuple[Table, _Plan]]] = {}
"""By the identity of a table, which is a constant of its module."""


def _planned(table: Table) -> _Plan:
    """Group the rows of a table by the keys on their paths, so that each is looked up once."""
    key = _key_of(table)
    found = _plans.get(key)
    if found is None or found[0] is not table:
        facts = [fact for fact, _, _ in table]
        placed = [
            (fact, place if facts.count(fact) > 1 else None, find)
            for place, (fact, _, find) in enumerate(table)
        ]
        found = table, _plan(placed, 0)
        if len(_plans) < _MOST_PLANS:
            _plans[key] = found
    return found[1]


def _plan(rows_: list[_Row], depth: int) -> _Plan:
    by_key: dict[str, list[_Row]] = {}
    for row in rows_:
        path = row[2].__dict__.get("path")
        by_key.setdefault(path[depth] if path else row[2].__dict__["key"], []).append(row)
    return {key: _key(group, depth) for key, group in by_key.items()}


def _key(group: list[_Row], depth: int) -> _Key:
    pathed = [row for row in group if "path" in row[2].__dict__]
    deeper = [row for row in pathed if len(row[2].__dict__["path"]) > depth + 1]
    return _Key(
        tuple(
            (fact, place, "used" in find.__dict__)
            for fact, place, find in pathed
            if len(find.__dict__["path"]) == depth + 1
        ),
        _plan(deeper, depth + 1),
        tuple(row for row in group if "path" not in row[2].__dict__),
        tuple(pathed),
    )


def read(table: Table, body: Body) -> Candidates:
    """Apply every row of `table` to `body`. Never raises: a row that cannot be read is absent."""
    if type(body) is dict:
        try:
            found: Candidates = {}
            _look(_planned(table), body, found, {}, body)
        except Exception:  # noqa: BLE001 - a body may hold objects of the app
            return _read_rows(table, body)
        else:
            return found
    return _read_rows(table, body)


def _look(  # noqa: C901, PLR0912 - flat, because it runs for every body
    plan: _Plan, part: dict[str, Any], found: Candidates, places: dict[str, int], body: Body
) -> None:
    """Apply `plan` to a part of `body`; `places` are those of the rows that found something."""
    for key in part if len(part) < len(plan) else plan:
        looked_for = plan.get(key)
        if looked_for is None or key not in part:
            continue
        values, inner, finds, rows_ = looked_for
        value = part[key]
        if value is not None:
            for fact, place, used_only in values:
                if value or not used_only:
                    if place is None:
                        found[fact] = value
                    else:
                        _put(found, places, fact, place, value)
            if inner and type(value) is dict:
                _look(inner, value, found, places, body)
            elif inner:
                finds = (*rows_, *finds)
        for fact, place, find in finds:
            # As `_asked`.
            try:
                value = find(body)
            except Exception:  # noqa: BLE001 - a body may hold objects of the app
                value = _WRONG
            if value is not None:
                if place is None:
                    found[fact] = value
                else:
                    _put(found, places, fact, place, value)


def _asked(find: Find, body: Body) -> Any:
    try:
        return find(body)
    except Exception:  # noqa: BLE001 - a body may hold objects of the app
        return _WRONG


def _put(found: Candidates, places: dict[str, int], fact: str, place: int, value: Any) -> None:
    """Take what a row found, unless an earlier one of the same fact did."""
    if places.get(fact, place) >= place:
        places[fact] = place
        found[fact] = value


def _read_rows(table: Table, body: Body) -> Candidates:
    """Apply the rows one by one."""
    found: Candidates = {}
    for fact, key, find in table:
        try:
            there = key in body
        except Exception:  # noqa: BLE001 - a body may be an object of the app
            there = True
        value = _asked(find, body) if there and fact not in found else None
        if value is not None:
            found[fact] = value
    return found
