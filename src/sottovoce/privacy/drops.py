"""How many items were dropped or replaced, by signal and rule, counted without a lock."""

from __future__ import annotations

import threading
from collections import Counter, deque
from typing import Final

FOLD_AT: Final = 1024
"""Counts that may wait to be added up."""


class Drops:
    """Counts of one policy. Thread-safe.

    Attributes:
        news: what was not added up yet, as (signal, rule, times). Appending to a deque is
            atomic, so the hot path does just that, and calls `tidy` when it is long.
    """

    __slots__ = ("_counts", "_lock", "news")

    def __init__(self, most: int | None = None) -> None:
        self.news: deque[tuple[str, str, int]] = deque(maxlen=most)
        self._counts: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def add(self, signal: str, rule: str, times: int = 1) -> None:
        """Count `times` drops of `signal` under `rule`."""
        self.news.append((signal, rule, times))
        if len(self.news) > FOLD_AT:
            self.tidy()

    def tidy(self) -> None:
        """Add up what waits, unless another thread does so now."""
        if self._lock.acquire(blocking=False):
            try:
                self._fold()
            finally:
                self._lock.release()

    def counts(self) -> Counter[tuple[str, str]]:
        """(signal, rule) → how many so far; a copy."""
        with self._lock:
            self._fold()
            return Counter(self._counts)

    def _fold(self) -> None:
        news, counts = self.news, self._counts
        try:
            while True:
                signal, rule, times = news.popleft()
                counts[signal, rule] += times
        except IndexError:
            pass
