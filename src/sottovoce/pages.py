"""What calls measured, kept until there is enough of it, then added to the aggregations at once.

A call measures four to eleven things, and to find a bucket, take a lock and keep an exemplar for
each costs a microsecond apiece: more than anything else that a call records. So a call only
writes a *row* of values; what many calls wrote is added together, a lock for each aggregation
instead of one for each value, in code that is warm by then. A row belongs to a *page*: what one
set of attributes leads to.

Nobody sees the difference: whatever collects a provider's metrics runs the callbacks of its
observable instruments first (`SynchronousMeasurementConsumer.collect`, opentelemetry-sdk 1.30 to
1.45), and one of ours adds what waits (`own_counters`). Where the provider is not the SDK's, and
for what says an error, values are recorded one by one at once.
"""

from __future__ import annotations

import math
import os
from collections import deque
from time import time_ns
from typing import TYPE_CHECKING, Any, Final

from sottovoce.aggregations import ALL, TRACED, Series, offered, series
from sottovoce.guard import failed, let_through, never_raise
from sottovoce.measure import coarse
from sottovoce.points import REMEMBERED, Point

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.trace import SpanContext

    from sottovoce.aggregations import Told
    from sottovoce.call import Gaps
    from sottovoce.measure import Measured

MOST_ROWS: Final = 64
"""Rows that wait at most: in all, so that memory does not grow with the sets of attributes."""

_NUMBERS: Final = {int, float}

Values = tuple["float | None", ...]
"""A row's values, each in its histogram's unit; None: not measured."""


class Words:
    """What the columns from a certain one on say besides, and the pages of one book where they say it.

    Args:
        said: attributes.
    """

    __slots__ = ("pages", "said")

    def __init__(self, said: Mapping[str, Any]) -> None:
        self.said = said
        self.pages: dict[Any, Page] = {}


class Page:
    """Where the measurements of one set of attributes go; found once. May raise when it is made.

    Args:
        columns: the histograms, each with the attributes of its points but for its own.
        gaps: the histogram of a stream's gaps, if any.

    Attributes:
        gaps: what counts gaps.
        series: what counts in each column, and the attributes.
        offered: which measurements are offered as exemplars (`aggregations.offered`).
        in_order: what is measured has to be added in its order, as something keeps the last.
        consumer: the SDK's, which has the readers.
        readers: those that it had when this was found.
        config: whether the meter is switched on.
        unbegun: the columns of which nothing was measured yet.
    """

    __slots__ = (
        "config", "consumer", "gaps", "in_order", "offered", "readers", "series", "unbegun"
    )  # fmt: skip

    def __init__(
        self, columns: list[tuple[Measured, Mapping[str, Any]]], gaps: Measured | None
    ) -> None:
        histogram: Any = columns[0][0].histogram
        # Before the readers are looked at: one may come or go meanwhile.
        self.consumer = histogram._measurement_consumer  # noqa: SLF001
        self.readers = self.consumer._reader_storages  # noqa: SLF001
        self.config = histogram._meter_config  # noqa: SLF001
        self.offered = offered(histogram)
        self.series: list[tuple[list[Series], Mapping[str, Any]]] = []
        for measured, attributes in columns:
            said = {**attributes, **measured.extra}
            self.series.append((series(measured.histogram, said), said))
        self.gaps: list[Series] = []
        if gaps is not None:
            self.gaps = series(gaps.histogram, {**columns[0][1], **gaps.extra})

        self.in_order = not all(each.is_known for column, _ in self.series for each in column)
        self.unbegun = tuple(range(len(self.series)))

    def begin(self, values: Values) -> None:
        """Begin to count what `values` measures: what counts tells since when. May raise."""
        left = []
        for place in self.unbegun:
            if values[place] is None:
                left.append(place)
                continue
            for each in self.series[place][0]:
                each.begin()
        if len(left) < len(self.unbegun):
            self.unbegun = tuple(left)


class Book:
    """The rows of one group of histograms of one meter. Thread-safe without a lock.

    Args:
        columns: the histograms, in the order of a row's values.
        blamed: how many of them, from the first, say the error of a call that failed.
        worded_from: the first column whose points say the words that `write` is given.
        gaps: the histogram of a stream's gaps, which are added at once.
    """

    def __init__(
        self,
        *columns: Measured,
        blamed: int = 1,
        worded_from: int | None = None,
        gaps: Measured | None = None,
    ) -> None:
        self._columns = columns
        self._gaps = gaps
        self._choice = columns[0].choice
        # Whether another provider's than the SDK's.
        self._foreign = not hasattr(columns[0].histogram, "_measurement_consumer")
        self._blamed = blamed
        self._worded_from = len(columns) if worded_from is None else worded_from
        self._plain = Words({})

    def write(  # noqa: C901 - flat, because it runs for every call
        self,
        values: Values,
        point: Point,
        failed_point: Point,
        words: Words | None = None,
        gaps: Gaps | None = None,
    ) -> None:
        """Record `values`.

        Args:
            values: one for each column.
            point: of all columns that are not blamed.
            failed_point: of those that are: it says the call's error as well, if it has one.
            words: what the later columns say besides.
            gaps: those of a stream, in nanoseconds.
        """
        words = words or self._plain
        if failed_point is not point:
            values = self._blame(values, failed_point)
        if self._foreign:
            self._record(values, point, words, gaps)
            return
        page = None
        try:
            page = words.pages.get(point.key)
            if page is None or page.consumer._reader_storages is not page.readers:  # noqa: SLF001
                page = self._turn(point, words)
            if page.config is not None and not page.config._config.is_enabled:  # noqa: SLF001
                return
            for place in page.unbegun:
                if values[place] is not None:
                    page.begin(values)
                    break
        except Exception:  # noqa: BLE001 - a changed SDK: nothing was recorded yet
            let_through()
            page = None
        if page is None or page.offered is None:
            self._record(values, point, words, gaps)
            return
        choice = self._choice
        if choice is not None and choice.now.coarse:
            both = zip(self._columns, values, strict=True)
            values = tuple([None if value is None else each.coarse(value) for each, value in both])
            gaps = None if gaps is None else coarse(gaps)
        sampled = point.sampled if page.offered == TRACED else page.offered == ALL
        _rows.append((page, values, point.span if sampled else None, time_ns(), gaps))
        if len(_rows) >= MOST_ROWS:
            add_all()

    def _blame(self, values: Values, failed_point: Point) -> Values:
        """Record what says an error, and give the rest: errors are few, and of many kinds."""
        # What came before may be counted with it.
        add_all()
        for measured, value in zip(self._columns[: self._blamed], values, strict=False):
            if value is not None:
                measured.record(value, failed_point)
        return (None,) * self._blamed + values[self._blamed :]

    def _turn(self, point: Point, words: Words) -> Page:
        """Find and remember the page of `point`. May raise."""
        plain = dict(point.attributes)
        worded = {**plain, **words.said}
        page = Page(
            [
                (measured, plain if place < self._worded_from else worded)
                for place, measured in enumerate(self._columns)
            ],
            self._gaps,
        )
        if len(words.pages) >= REMEMBERED:
            # By keys that are forgotten, most of them.
            words.pages.clear()
        words.pages[point.key] = page
        return page

    def _record(self, values: Values, point: Point, words: Words, gaps: Gaps | None) -> None:
        """Record `values` one by one."""
        # First what came before: a bucket's exemplar is its newest measurement.
        add_all()
        worded = point.saying(words.said) if words.said else point
        for place, (measured, value) in enumerate(zip(self._columns, values, strict=True)):
            if value is not None:
                measured.record(value, worded if place >= self._worded_from else point)
        if gaps is not None and self._gaps is not None:
            self._gaps.record_gaps(gaps, point)


_rows: Final[deque[tuple[Page, Values, SpanContext | None, int, Gaps | None]]] = deque()
"""What waits, of all books, which may be gone: each row its page, its values, the span of its
exemplars if it is to have any, when it was written, in nanoseconds since the epoch, and a stream's
gaps."""


def add_all() -> None:
    """Add what waits to the aggregations. Never raises."""
    runs: dict[Any, list[Any]] = {}
    run: Any = None
    take = _rows.popleft
    try:
        while _rows:
            row = take()
            page = row[0]
            if page.in_order:
                # A run of rows of one page at a time.
                run = run if run is not None and run[0] is page else (page, len(runs))
                runs.setdefault(run, []).append(row)
            else:
                runs.setdefault((page, -1), []).append(row)
    except IndexError:  # another thread was quicker
        let_through()
    try:
        while runs:
            first = next(iter(runs))
            _add(first[0], runs.pop(first))
    finally:
        # An exception of a signal's handler: what it kept from being added waits on.
        _rows.extendleft(row for rows in reversed(list(runs.values())) for row in reversed(rows))


def _add(page: Page, rows: list[Any]) -> None:
    """Add rows of one page, in the order in which they were written."""
    for place, (column, attributes) in enumerate(page.series):
        told = []
        for _, values, span, at_ns, _ in rows:
            value = values[place]
            if value is None:
                continue
            if type(value) in _NUMBERS and 0 <= value < math.inf:
                told.append((value, span, at_ns))
            else:
                # As the SDK, which would not take it either.
                failed("pages.value")
        if told:
            for each in column:
                _told(each, told, attributes)
    for *_, gaps in rows:
        if gaps is not None:
            for each in page.gaps:
                _merge(each, gaps)


@never_raise("pages.add")
def _told(counting: Series, told: list[Told], attributes: Mapping[str, Any]) -> None:
    counting.add(told, attributes)


@never_raise("pages.gaps")
def _merge(counting: Series, gaps: Gaps) -> None:
    counting.merge(gaps)


if hasattr(os, "register_at_fork"):
    # The parent adds what waits.
    os.register_at_fork(after_in_child=_rows.clear)
