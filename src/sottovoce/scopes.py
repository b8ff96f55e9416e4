"""What the app says of itself: this is a tool, this is an agent, this is one conversation.

Nothing is looked at but the name: no argument, no result, no exception's message. With nothing
instrumented all of this costs next to nothing and does nothing.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

from sottovoce import guard, steps

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator
    from contextvars import Token
    from types import TracebackType
    from uuid import UUID

    from typing_extensions import Self

    from sottovoce.steps import Kind, Step, Tokens

    Opened = tuple[Step, Tokens | None]

F = TypeVar("F", bound="Callable[..., Any]")

_FUNCTIONS: Final = frozenset({
    "function", "method", "builtin_function_or_method", "partial", "cython_function_or_method",
})  # fmt: skip
"""Types of what can be decorated."""

_LONGEST: Final = 256
"""Characters of a name that are looked at; what is longer has none."""


@overload
def tool(name: str) -> Scope: ...
@overload
def tool(name: F) -> F: ...
def tool(name: Any) -> Any:
    """Mark what runs inside as one execution of a tool: a span ``execute_tool {name}``.

    Use it as a context manager (``with`` and ``async with``) or as a decorator of a function,
    a coroutine function, a generator or an async generator; a generator's span lasts from its
    first step to its last. Signature, results and exceptions of what is decorated are unchanged.
    ``@sottovoce.tool`` without a name takes the function's. Classes, and objects that merely can
    be called, are left as they are and record nothing.

    Args:
        name: of the tool, the same for every run; built-in names and those that
            `SOTTOVOCE_ALLOW` lists can be read, any other leaves as a pseudonym.
    """
    return _scope("tool", name)


@overload
def agent(name: str) -> Scope: ...
@overload
def agent(name: F) -> F: ...
def agent(name: Any) -> Any:
    """Mark what runs inside as one run of an agent: a span ``invoke_agent {name}``.

    Everything else is as in `tool`.
    """
    return _scope("agent", name)


class conversation:  # noqa: N801 - used as a function, like contextlib's
    """Say that what runs inside belongs to one conversation of the app's: ``with``, ``async with``.

    Model calls and agents inside get it as `gen_ai.conversation.id`, as a pseudonym that changes
    every week. Tasks that are started inside keep it, threads only if they are given the
    context. Of nested ones the innermost counts.

    Args:
        id: the app's own id of it: a number, a `uuid.UUID`, or text of at most 128 characters;
            anything else is ignored.
    """

    def __init__(self, id: str | int | UUID) -> None:  # noqa: A002 - what the attribute is called
        self._id = _text(_digits(id))
        self._tokens: list[Token[str | None]] = []

    def __enter__(self) -> Self:
        if self._id is not None:
            self._tokens.append(steps.current_conversation.set(self._id))
        return self

    def __exit__(self, *_: object) -> None:
        # Several threads or tasks may share this object: whose token fits is the one to undo.
        for token in reversed(list(self._tokens)):
            try:
                steps.current_conversation.reset(token)
            except (ValueError, RuntimeError):
                continue
            self._tokens.remove(token)
            return

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(self, *_: object) -> None:
        self.__exit__()


class Scope:
    """One tool or agent of the app's, as often as it is entered. Made by `tool` and `agent`."""

    def __init__(self, kind: Kind, name: str | None) -> None:
        self._kind: Kind = kind
        self._name = name
        self._opened: list[Opened] = []

    def __call__(self, function: F) -> F:
        """Decorate `function`."""
        decorated: F = _decorated(self._kind, self._name, function)
        return decorated

    def __enter__(self) -> Self:
        opened = _open(self._kind, self._name)
        if opened is not None:
            self._opened.append(opened)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _close(self._current(), error)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.__exit__(kind, error, trace)

    @guard.never_raise("scopes.exit")
    def _current(self) -> Opened | None:
        """Take what was entered here: threads and tasks may share this object."""
        here = steps.current_step.get()
        mine = [opened for opened in self._opened if opened[0] is here] or self._opened[-1:]
        if not mine:
            return None
        self._opened.remove(mine[0])
        return mine[0]


def _scope(kind: Kind, name: Any) -> Any:
    if callable(name) or isinstance(name, (staticmethod, classmethod, property)):
        return _decorated(kind, None, name)
    return Scope(kind, _text(name))


def _digits(given: object) -> object:
    """Write a database's key out; of a subclass no method of its own is asked."""
    kind = type(given)
    # Who has a UUID has imported the module.
    if kind is int or kind is getattr(sys.modules.get("uuid"), "UUID", int):
        # More digits than Python writes, a UUID that was never given its number.
        with contextlib.suppress(ValueError, AttributeError):
            return str(given)
    return given


def _text(given: object) -> str | None:
    """Give the characters of a string; of a subclass no method of its own is asked."""
    if not isinstance(given, str):
        return None
    text = str.__str__(given)
    return text if 0 < len(text) <= _LONGEST else None


@guard.never_raise("scopes.open")
def _open(kind: Kind, name: str | None) -> Opened | None:
    recorder = steps.source.recorder()
    if recorder is None:
        return None
    step = steps.Step(recorder, kind, name)
    return step, steps.enter(step)


def _close(opened: Opened | None, error: BaseException | None = None) -> None:
    if opened is not None:
        steps.leave(*opened)
        steps.close(opened[0], error)


def _pause(opened: Opened | None) -> None:
    if opened is not None:
        steps.leave(*opened)


def _resume(opened: Opened | None) -> Opened | None:
    return opened and (opened[0], steps.enter(opened[0]))


def _decorated(kind: Kind, name: str | None, function: Any) -> Any:
    if isinstance(function, (staticmethod, classmethod)):
        return type(function)(_decorated(kind, name, function.__func__))
    if type(function).__name__ not in _FUNCTIONS:
        # A class, or an object that can be called: a function in its place would be another thing.
        return function
    name = name or _text(getattr(function, "__name__", None))
    for fits, make in _MAKERS:
        if fits(function):
            return make(kind, name, function)
    return _function(kind, name, function)


def _function(kind: Kind, name: str | None, function: Callable[..., Any]) -> Any:
    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        opened = _open(kind, name)
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            _close(opened, error)
            raise
        _close(opened)
        return result

    return run


def _coroutine(kind: Kind, name: str | None, function: Callable[..., Any]) -> Any:
    @functools.wraps(function)
    async def run(*args: Any, **kwargs: Any) -> Any:
        opened = _open(kind, name)
        try:
            result = await function(*args, **kwargs)
        except BaseException as error:
            _close(opened, error)
            raise
        _close(opened)
        return result

    return run


# Of a generator the step is current only while its code runs, never across a yield. What passes
# through must not stay in a variable, or it lives longer than it would without us.


def _generator(kind: Kind, name: str | None, function: Callable[..., Any]) -> Any:
    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        inner = function(*args, **kwargs)
        opened = _open(kind, name)
        if opened is None:
            return (yield from inner)
        resume, given = inner.send, None
        while True:
            try:
                box = [resume(given)]
            except StopIteration as stop:
                _close(opened)
                return stop.value
            except BaseException as error:
                given = None
                _close(opened, error)
                raise
            given = None
            _pause(opened)
            try:
                given = yield box.pop()
                resume = inner.send
            except GeneratorExit as dropped:
                opened = _resume(opened)
                try:
                    inner.close()
                finally:
                    _close(opened, dropped)
                raise
            except BaseException as thrown:  # noqa: BLE001 - for the generator to handle
                resume, given = inner.throw, thrown
            opened = _resume(opened)

    return run


def _async_generator(kind: Kind, name: str | None, function: Callable[..., Any]) -> Any:
    @functools.wraps(function)
    async def run(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        inner = function(*args, **kwargs)
        opened = _open(kind, name)
        resume, given = inner.asend, None
        while True:
            try:
                box = [await resume(given)]
            except StopAsyncIteration:
                _close(opened)
                return
            except BaseException as error:
                given = None
                _close(opened, error)
                raise
            given = None
            _pause(opened)
            try:
                given = yield box.pop()
                resume = inner.asend
            except GeneratorExit as dropped:
                opened = _resume(opened)
                try:
                    await inner.aclose()
                finally:
                    _close(opened, dropped)
                raise
            except BaseException as thrown:  # noqa: BLE001 - for the generator to handle
                resume, given = inner.athrow, thrown
            opened = _resume(opened)

    return run


_MAKERS: Final = (
    (inspect.isasyncgenfunction, _async_generator),
    (inspect.iscoroutinefunction, _coroutine),
    (inspect.isgeneratorfunction, _generator),
)
"""What tells a kind of function → what makes its replacement."""
