"""mlx-lm's commands run by ``python -m mlx_lm.server``: a copy of the module as ``__main__``.

No import hook sees such a copy, and nobody imports the module of that name. But the first thing
that a command does, when all of it is defined, is to read its arguments: then the copy is
patched. This form is deprecated since mlx-lm 0.24; ``python -m mlx_lm server`` and the console
script import the module as everybody does.

Seen in mlx-lm 0.28.0 to 0.32.2.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import sys
from typing import TYPE_CHECKING, Any

from sottovoce.guard import never_raise

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from sottovoce.guard import ImportHooks, Patches


def when_run(
    name: str, hooks: ImportHooks, patches: Patches, patch: Callable[[ModuleType], None]
) -> None:
    """Call `patch` with the main module, should it be a copy of the module `name`.

    Args:
        name: of a module that is a command.
        hooks: once stopped, nothing is patched any more.
        patches: keeps what this replaces.
        patch: gets the module before the command works; may raise.
    """
    if not _asked_for(name):
        return
    guarded = never_raise(f"main module {name}")(patch)

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def parse_args(*args: Any, **kwargs: Any) -> Any:
            main = sys.modules.get("__main__")
            if hooks.active and getattr(getattr(main, "__spec__", None), "name", None) == name:
                guarded(main)  # type: ignore[arg-type]
            return original(*args, **kwargs)

        return parse_args

    patches.wrap(argparse.ArgumentParser, "parse_args", make)


def _asked_for(name: str) -> bool:
    """Whether the interpreter was started with ``-m name``; what runs is not known so early."""
    words = sys.orig_argv
    return any(
        word == name and before.startswith("-") and before.endswith("m")
        for before, word in itertools.pairwise(words)
    )
