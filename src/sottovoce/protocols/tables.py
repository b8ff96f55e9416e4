"""Tables of facts: each row names a fact and says where in a body its value lies.

What `read` finds is not checked, what `learnt` finds is: a value that is not of its fact's type
(`checks.py`) sets nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from sottovoce.guard import let_through
from sottovoce.protocols.checks import CHECKS, MAX_COUNT, checked, count

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
    counts, *others = [at(*path) for path in paths]

    def find(body: Body) -> Any:
        total = counts(body)
        # Anything but a count is for the check to refuse.
        if type(total) is int:
            for other in others:
                more = other(body)
                if type(more) is int:
                    total += more
        return total

    return of(paths[0][0])(find)


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


class _Used:
    """A fact that is a lone count, and says nothing where it is 0, as it nearly always is."""

    __slots__ = ("fact",)

    def __init__(self, fact: str) -> None:
        self.fact = fact


_Step: TypeAlias = tuple[Any, Any, "Callable[[Body], Any] | None"]
"""A fact, its check, how to find it. No check: its value is taken as it is. No way to find it: it is
the key's own value. No fact, but a plan in the place of the check: what is found holds several."""
_Node: TypeAlias = "str | _Used | _Plan | tuple[_Step, ...]"
"""What is looked for under one key of a mapping: the fact, of a lone count, as most facts are; a
plan, where the value holds facts and nothing else is looked for; else the steps to take."""
_Plan: TypeAlias = dict[str, _Node]

# `id` raises an audit event, which costs more than all this where somebody listens (filelock does).
_key_of: Final = object.__hash__
_plans: Final[dict[int, tuple[Table, _Plan]]] = {}
"""What `read` looks for, by the identity of a table, which is a constant of its module."""
_checked_plans: Final[dict[int, tuple[Table, _Plan]]] = {}
"""The same of `learnt`."""


def _planned(table: Table, *, checks: bool) -> _Plan:
    """Group the rows of a table by the keys on their paths, so that each is looked up once."""
    plan = _plan(table, 0, checks=checks)
    plans = _checked_plans if checks else _plans
    if len(plans) < _MOST_PLANS:
        plans[_key_of(table)] = table, plan
    return plan


def _plan(table: Table, depth: int, *, checks: bool) -> _Plan:
    by_key: dict[str, list[Row]] = {}
    for row in table:
        path = vars(row[2]).get("path")
        by_key.setdefault(path[depth] if path else row[1], []).append(row)
    return {key: _node(group, depth + 1, checks=checks) for key, group in by_key.items()}


def _node(group: list[Row], depth: int, *, checks: bool) -> _Node:
    steps: list[_Step] = []
    deeper: list[Row] = []
    together_: dict[Any, _Plan] = {}
    for row in group:
        fact, _, find = row
        marks = vars(find)
        check = CHECKS[fact] if checks else None
        if "look" in marks:
            told = together_.setdefault(marks["look"], {})
            told[fact] = fact if check is count else ((fact, check, None),)
        elif len(marks.get("path", ())) > depth:
            deeper.append(row)
        else:
            steps.append((fact, check, None if "path" in marks and "used" not in marks else find))
    inner = _plan(tuple(deeper), depth, checks=checks)
    if inner and not steps and not together_:
        return inner
    if len(group) == 1 and "path" in vars(group[0][2]) and steps and steps[0][1] is count:
        fact, _, asked = steps[0]
        return fact if asked is None else _Used(fact)
    if inner:
        steps.append((None, inner, None))
    return (*steps, *((None, told, look) for look, told in together_.items()))


def read(table: Table, body: Body) -> Candidates:
    """Apply every row of `table` to `body`. Never raises: a row that cannot be read is absent."""
    if type(body) is dict:
        known = _plans.get(_key_of(table))
        plan = known[1] if known and known[0] is table else _planned(table, checks=False)
        found: Candidates = {}
        doubted: list[str] = []
        try:
            _look(plan, body, found, doubted, body)
        except Exception:  # noqa: BLE001 - a body may hold objects of the app
            let_through()
            return _read_rows(table, body)
        if doubted:
            found.update(_read_rows(_of(table, doubted), body))
        return found
    return _read_rows(table, body)


def learnt(table: Table, body: Body, on_malformed: Callable[[str], None] | None = None) -> Facts:
    """Apply every row of `table` to `body`, and keep the values that have the type of their fact.

    Never raises; `on_malformed` is told ``type`` once however many values were of another type.
    """
    if type(body) is dict:
        known = _checked_plans.get(_key_of(table))
        plan = known[1] if known and known[0] is table else _planned(table, checks=True)
        facts: Any = {}
        doubted: list[str] = []
        try:
            _look(plan, body, facts, doubted, body)
        except Exception:  # noqa: BLE001 - a body may hold objects of the app
            let_through()
            return checked(_read_rows(table, body), on_malformed)
        if doubted:
            for fact in doubted:
                facts.pop(fact, None)
            facts.update(checked(_read_rows(_of(table, doubted), body), on_malformed))
        return facts  # type: ignore[no-any-return]
    return checked(_read_rows(table, body), on_malformed)


def _of(table: Table, facts: list[str]) -> Table:
    return tuple(row for row in table if row[0] in facts)


def _look(  # noqa: C901, PLR0912 - flat, because it runs for every body
    plan: _Plan, part: Mapping[str, Any], found: Candidates, doubted: list[str], body: Body
) -> None:
    """Apply `plan` to a part of `body`.

    Args:
        plan: what is looked for.
        part: where, of the body.
        found: gets what is found.
        doubted: gets the facts whose rows have to be asked one by one: they disagree, or what one
            found is not of the fact's type.
        body: all of it.

    Raises:
        Exception: when all rows have to be.
    """
    for key, value in part.items():
        node: Any = plan.get(key)
        if node is None:
            continue
        kind = type(node)
        if kind is str:
            if type(value) is int and 0 <= value <= MAX_COUNT:
                if node in found and found[node] != value:
                    doubted.append(node)
                found[node] = value
            elif value is not None:
                doubted.append(node)
        elif kind is dict:
            if type(value) is dict:
                _look(node, value, found, doubted, body)
            elif value is not None:
                raise TypeError
        elif kind is _Used:
            if value:
                _look({key: node.fact}, {key: value}, found, doubted, body)
        else:
            for fact, check, find in node:
                given = value if find is None else find(body)
                if given is None:
                    continue
                if fact is None:
                    if type(given) is not dict:
                        raise TypeError
                    _look(check, given, found, doubted, body)
                    continue
                good = given if check is None else check(given)
                if good is None or (fact in found and not _same(good, found[fact])):
                    doubted.append(fact)
                found[fact] = good


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)


def _read_rows(table: Table, body: Body) -> Candidates:
    """Apply the rows one by one."""
    found: Candidates = {}
    for fact, key, find in table:
        if fact in found:
            continue
        try:
            there = key in body
        except Exception:  # noqa: BLE001 - a body may be an object of the app
            let_through()
            there = True
        try:
            value = find(body) if there else None
        except Exception:  # noqa: BLE001 - same
            let_through()
            value = _WRONG
        if value is not None:
            found[fact] = value
    return found
