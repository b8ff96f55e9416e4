"""Where an exception was raised: frames of packages that the operator lists, and of no others.

A frame leaves as ``module:function:line`` and only if these three stand together in the code
of that module as it was loaded from its file. So nothing that runs under another name, that
was compiled from a text or that was put together by hand can say anything here; the text of a
traceback, which holds messages and lines of source, is never read.
"""

from __future__ import annotations

import sys
import weakref
from collections import deque
from collections.abc import Mapping
from importlib.machinery import SourceFileLoader, SourcelessFileLoader
from itertools import chain
from types import CodeType
from typing import TYPE_CHECKING, Any, Final

from sottovoce import guard
from sottovoce.privacy import rules
from sottovoce.privacy.patterns import Pattern

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType, TracebackType

ATTRIBUTE: Final = rules.FRAMES

MOST: Final = 16
"""Frames that are told of one exception: the innermost ones."""

_LONGEST: Final = 128
_DEEPEST: Final = 20_000
_CALLERS: Final = 256
_LOOKED_AT: Final = 512
_FRAME: Final = Pattern(
    r"([A-Za-z_][\w.]*):([A-Za-z_]\w*|<(?:module|lambda|genexpr|listcomp|dictcomp|setcomp)>)"
    r":([1-9]\d{0,5})"
)
_LOADERS: Final = frozenset({SourceFileLoader, SourcelessFileLoader})

_traceback_of: Final = BaseException.__dict__["__traceback__"].__get__

Place = tuple[str, int]
"""Name of a function and number of a line of it."""

_MODULES: Final = 1024
_known: dict[str, frozenset[Place]] = {}


class Frames:
    """Frames of some packages. Thread-safe; no method raises.

    Args:
        packages: names of packages or modules, such as ``shop`` or ``shop.orders``; what is
            in them counts as well.
    """

    __slots__ = ("_packages",)

    def __init__(self, packages: tuple[str, ...] = ()) -> None:
        self._packages = packages

    def __bool__(self) -> bool:
        return bool(self._packages)

    def __contains__(self, text: object) -> bool:
        """Whether `text` is a frame as `of` gives it."""
        if not self._packages or type(text) is not str or len(text) > _LONGEST:
            return False
        try:
            found = _FRAME.fullmatch(text)
            return (
                found is not None
                and self._has(found[1])
                and (found[2], int(found[3])) in _places(found[1])
            )
        except Exception:  # noqa: BLE001 - what cannot be looked up was not found
            guard.let_through()
            return False

    def of(self, error: BaseException | None) -> tuple[str, ...]:
        """The frames that `error` passed, and those that called them; the innermost last."""
        if not self._packages or not isinstance(error, BaseException):
            return ()
        try:
            shown: list[str] = []
            for frame, line in reversed(_walked(_traceback_of(error))):
                text = self._shown(frame, line)
                # A function that calls itself is told once.
                if text is not None and (not shown or shown[-1] != text):
                    shown.append(text)
                    if len(shown) == MOST:
                        break
            return tuple(reversed(shown))
        except Exception:  # noqa: BLE001 - the class of the error is told without them
            guard.let_through()
            return ()

    def handled(self, kind: type | str) -> tuple[str, ...]:
        """`of` the exception that this thread handles now, if `kind` is its class or the class's name."""
        if not self._packages:
            return ()
        error = sys.exc_info()[1]
        same = type(error) is kind or (type(kind) is str and type(error).__name__ == kind)
        return self.of(error) if same else ()

    def _has(self, module: str) -> bool:
        return any(module == name or module.startswith(f"{name}.") for name in self._packages)

    def _shown(self, frame: FrameType, line: int) -> str | None:
        name = _module_of(frame)
        if name is None or not self._has(name):
            return None
        text = f"{name}:{frame.f_code.co_name}:{line}"
        return text if text in self else None


def told_by(span: Any, frames: Frames) -> None:
    """Let `span` tell the frames of the exceptions that it records. Never raises.

    An event of a span has the text of a stack alone: the exception is at hand in
    `record_exception` only, which the SDK's own spans call as well as apps do.
    """
    living = weakref.ref(span)
    method = getattr(type(span), "record_exception", None)
    if method is None:
        return

    def record_exception(
        exception: BaseException, attributes: Any = None, *rest: Any, **options: Any
    ) -> Any:
        recording = living()
        if recording is None:
            # It is nobody's any more: nothing of it will leave.
            return None
        found = frames.of(exception)
        if found and (attributes is None or isinstance(attributes, Mapping)):
            attributes = {**(attributes or {}), ATTRIBUTE: found}
        return method(recording, exception, attributes, *rest, **options)

    try:
        span.record_exception = record_exception
    except Exception:  # noqa: BLE001 - a span that cannot be asked tells no frames
        guard.failed("stack frames")


def _walked(traceback: TracebackType | None) -> deque[tuple[FrameType, int]]:
    """Frames from the outermost to the innermost, each with the line that it was at."""
    callers: list[tuple[FrameType, int]] = []
    caller = traceback.tb_frame.f_back if traceback is not None else None
    while caller is not None and len(callers) < _CALLERS:
        callers.append((caller, caller.f_lineno))
        caller = caller.f_back
    return deque(chain(reversed(callers), _passed(traceback)), maxlen=_LOOKED_AT)


def _passed(traceback: TracebackType | None) -> Iterator[tuple[FrameType, int]]:
    steps = 0
    while traceback is not None and steps < _DEEPEST:
        yield traceback.tb_frame, traceback.tb_lineno
        traceback, steps = traceback.tb_next, steps + 1


def _module_of(frame: FrameType) -> str | None:
    """The name of the loaded module that `frame` runs in; None when it only says so."""
    name: Any = dict.get(frame.f_globals, "__name__")
    if type(name) is not str:
        return None
    module = sys.modules.get(name)
    if module is None or getattr(module, "__dict__", None) is not frame.f_globals:
        return None
    if name != "__main__":
        return name
    # Run by `python -m`: it has a name of its own.
    run: Any = getattr(getattr(module, "__spec__", None), "name", None)
    return run if type(run) is str else None


def _places(name: str) -> frozenset[Place]:
    """Every function of the module and each of its lines, from the file that it was loaded from."""
    places = _known.get(name)
    if places is None:
        places = _read(name)
        if places:
            if len(_known) >= _MODULES:
                _known.clear()
            # What was not found may be loaded later.
            _known[name] = places
    return places


def _read(name: str) -> frozenset[Place]:
    module = sys.modules.get(name) or sys.modules.get("__main__")
    spec: Any = getattr(module, "__spec__", None)
    if getattr(spec, "name", None) != name or type(spec.loader) not in _LOADERS:
        return frozenset()
    # What the interpreter keeps compiled beside the file: at the first error in a module.
    code = spec.loader.get_code(name)
    places: set[Place] = set()
    waiting: list[CodeType] = [code] if isinstance(code, CodeType) else []
    while waiting:
        each = waiting.pop()
        places.update((each.co_name, line) for *_, line in each.co_lines() if line)
        waiting.extend(const for const in each.co_consts if isinstance(const, CodeType))
    return frozenset(places)
