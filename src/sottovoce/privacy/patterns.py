"""Regular expressions that are compiled when they are first asked for: an app needs few of them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    _Search = Callable[[str], re.Match[str] | None]


class Pattern:
    """As `re.compile`, later. Two threads that both ask first make the same."""

    __slots__ = ("_flags", "_written", "finditer", "fullmatch", "match", "search")

    finditer: Callable[[str], Iterator[re.Match[str]]]
    fullmatch: _Search
    match: _Search
    search: _Search

    def __init__(self, written: str, flags: re.RegexFlag = re.ASCII) -> None:
        self._written = written
        self._flags = flags

    def __getattr__(self, name: str) -> Any:
        # Reached only while the slot is empty.
        if name.startswith("_"):
            raise AttributeError(name)
        made = re.compile(self._written, self._flags)
        for method in ("finditer", "fullmatch", "match", "search"):
            setattr(self, method, getattr(made, method))
        return getattr(made, name)
