"""What keeps our code out of the app's way: swallowed errors, undoable patches, import hooks.

Rules that every hook keeps:

* `never_raise` around everything of ours, never around the app's own call;
* an error is counted in `failures` and logged once per place, at debug level, by its class and
  where it was raised: its message may quote the app, and handlers of logs that are given the
  exception itself show its message, its cause and the variables of its frames;
* a patch is made through `Patches`, so that `uninstrument()` restores everything and a
  second `instrument()` cannot double it.
"""

from __future__ import annotations

import functools
import logging
import sys
import threading
from collections import Counter, deque
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, ModuleType

log = logging.getLogger("sottovoce")

P = ParamSpec("P")
R = TypeVar("R")

failures: Counter[str] = Counter()
"""Errors of our own that the app never saw, by place: exported as `sottovoce.hook.errors`."""

undecodable: Counter[str] = Counter()
"""Bytes of a provider that could not be understood, by reason (``json``, ``utf8``, ``size``,
``sse``, ``encoding``, ``type``, ``reader``): exported as `sottovoce.decode.errors`."""

_MARK = "__sottovoce_original__"
_PLACES = 16


def failed(place: str) -> None:
    """Count the exception being handled under `place`; log it the first time.

    Never raises but what `let_through` does.
    """
    let_through()
    failures[place] += 1
    if failures[place] == 1:
        log.debug("sottovoce: %s failed and was skipped (%s)", place, handled())


def let_through() -> None:
    """Raise the exception being handled again where a handler of a signal's raised it.

    It ran in the middle of our code, and what it raised is the app's: a time limit, often.
    """
    error = sys.exc_info()[1]
    if error is not None and _is_a_signals(error):
        raise error


def _is_a_signals(error: BaseException) -> bool:
    # Where nobody imported it there is no handler in Python. They run in the main thread alone.
    signal = sys.modules.get("signal")
    if signal is None or threading.current_thread() is not threading.main_thread():
        return False
    # Its own `getsignal` makes an enumeration's member of every answer: twenty times as much.
    handler = sys.modules["_signal"].getsignal
    handlers = {_code(handler(number)) for number in range(1, signal.NSIG)} - {None}
    passed = error.__traceback__ if handlers else None
    while passed is not None:
        if passed.tb_frame.f_code in handlers:
            return True
        passed = passed.tb_next
    return False


def _code(handler: Any) -> CodeType | None:
    """Give the code of a function or method; None of anything else."""
    function = handler.__func__ if type(handler) is MethodType else handler
    return function.__code__ if type(function) is FunctionType else None


def handled() -> str:
    """Say what exception is being handled: its class, and the functions that it passed.

    Its message is never asked for. Never raises.
    """
    kind, _, traceback = sys.exc_info()
    if kind is None:
        return "nothing"
    places: deque[str] = deque(maxlen=_PLACES)
    while traceback is not None:
        frame = traceback.tb_frame
        module = dict.get(frame.f_globals, "__name__")
        known = module if type(module) is str else "?"
        places.append(f"{known}.{frame.f_code.co_name}:{traceback.tb_lineno}")
        traceback = traceback.tb_next
    return " > ".join((type.__dict__["__name__"].__get__(kind), *places))


def never_raise(place: str) -> Callable[[Callable[P, R]], Callable[P, R | None]]:
    """Decorate a function of ours that runs in the app's path: on error it returns None."""

    def decorate(function: Callable[P, R]) -> Callable[P, R | None]:
        @functools.wraps(function)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R | None:
            try:
                return function(*args, **kwargs)
            except Exception:  # noqa: BLE001 - the promise of this decorator
                failed(place)
                return None

        return guarded

    return decorate


class Patches:
    """Attributes of foreign classes and modules that we replaced, and how to put them back."""

    def __init__(self) -> None:
        self._undo: list[tuple[Any, str, Any, bool, Any]] = []

    def wrap(self, owner: Any, name: str, make: Callable[[Any], Any]) -> bool:
        """Replace `owner.name` by ``make(original)``; once only.

        Args:
            owner: a class or a module *object* (a dotted string can resolve to a function
                that shadows its module, as in ``mlx_lm.generate``).
            name: the attribute; one that does not exist is left alone.
            make: gets the original, returns the replacement, which should carry
                ``functools.wraps(original)``.

        Returns:
            Whether anything was replaced.
        """
        original = getattr(owner, name, None)
        if original is None or hasattr(original, _MARK):
            return False
        inherited = isinstance(owner, type) and name not in vars(owner)
        raw = vars(owner).get(name, original)
        replacement = make(original)
        setattr(replacement, _MARK, original)
        if isinstance(raw, (classmethod, staticmethod)):
            replacement = type(raw)(replacement)
        setattr(owner, name, replacement)
        self._undo.append((owner, name, raw, inherited, replacement))
        return True

    def names(self) -> list[str]:
        """Say what was replaced: ``module.Class.method`` or ``module.function``."""
        return [
            f"{owner.__module__}.{owner.__qualname__}.{name}"
            if isinstance(owner, type)
            else f"{owner.__name__}.{name}"
            for owner, name, *_ in self._undo
        ]

    def rebind(self) -> int:
        """Point module globals that are already bound to an original at its replacement.

        For instrumenting after the app did ``from mlx_lm import generate``: only functions
        that were replaced in a *module* are looked for, and only in module globals.
        Returns how many names were rebound.
        """
        return _rebind({id(raw): (raw, new) for o, _, raw, _, new in self._undo if _is_module(o)})

    def undo(self) -> None:
        """Put every original back, newest first; what someone else replaced since stays.

        Names that modules took of a replacement (``from mlx_lm import generate``) get the
        original again as well.
        """
        names = {id(new): (new, raw) for o, _, raw, _, new in self._undo if _is_module(o)}
        while self._undo:
            owner, name, raw, inherited, replacement = self._undo.pop()
            if vars(owner).get(name) is not replacement:
                continue
            if inherited:
                delattr(owner, name)
            else:
                setattr(owner, name, raw)
        if names:
            _rebind(names)


def _is_module(owner: Any) -> bool:
    return not isinstance(owner, type)


def _rebind(names: dict[int, tuple[Any, Any]]) -> int:
    """In every module's globals, replace the first object of each pair by the second."""
    bound = 0
    for module in list(sys.modules.values()):
        namespace = getattr(module, "__dict__", None)
        if not isinstance(namespace, dict) or str(namespace.get("__name__")).startswith(
            "sottovoce"
        ):
            continue
        for name, value in list(namespace.items()):
            pair = names.get(id(value))
            if pair is not None and pair[0] is value:
                namespace[name] = pair[1]
                bound += 1
    return bound


_awaited: dict[str, list[Callable[[ModuleType], None]]] = {}
"""Module → hooks that wait until its code has run, of all `ImportHooks` that are not stopped."""


class ImportHooks:
    """Run a function when a module is imported, or at once if it already is; can be stopped.

    Attributes:
        active: whether hooks still act; a wrapper that someone kept passes through once they don't.

    wrapt has no way to remove a hook, so it gets one for each module, and those that are
    waiting for it are listed here.
    """

    def __init__(self) -> None:
        self.active = True
        self._waiting: list[tuple[str, Callable[[ModuleType], None]]] = []

    def when_imported(self, module: str, hook: Callable[[ModuleType, bool], None]) -> None:
        """Call ``hook(module object, late)`` right after `module`'s code ran.

        `late` tells that the module had been imported before: names bound to its functions
        then need `Patches.rebind`. Errors of the hook are counted and swallowed.
        """
        guarded = never_raise(f"import hook of {module}")(hook)
        known = sys.modules.get(module)
        late = known is not None

        def run(loaded: ModuleType) -> None:
            if self.active:
                guarded(loaded, late)

        # What it imports may have led here, while nothing is defined yet. CPython 3.10 to 3.14.
        begun = getattr(getattr(known, "__spec__", None), "_initializing", False)
        if late and not (begun and module in _awaited):
            import wrapt  # noqa: PLC0415 - most of what this module would cost an app without hooks

            wrapt.register_post_import_hook(run, module)
            return
        self._waiting.append((module, run))
        if module in _awaited:
            _awaited[module].append(run)
            return

        import wrapt  # noqa: PLC0415 - see above

        _awaited[module] = [run]
        wrapt.register_post_import_hook(functools.partial(_imported, module), module)

    def stop(self) -> None:
        """Let no hook act any more; what they hold is free."""
        self.active = False
        for module, run in self._waiting:
            if run in _awaited.get(module, ()):
                _awaited[module].remove(run)
        self._waiting.clear()


def _imported(module: str, loaded: ModuleType) -> None:
    for run in _awaited.pop(module, ()):
        run(loaded)
