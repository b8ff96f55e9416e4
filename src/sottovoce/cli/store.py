"""The receiver's SQLite file: requests as they came, and spans, metric points and log records.

Bounded: when the file holds more than its share, the oldest requests go and their rows with
them, and the store counts how many went so that a search can say what it did not see. It is
a viewer's store: one writer, a schema without migrations.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from sottovoce.cli import series
from sottovoce.cli.kept import Log, Point, Request, Span, Totals

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sottovoce.cli.otlp import Rows

MAX_BYTES: Final = 256 * 1024 * 1024
"""Bytes that the file may hold before the oldest requests are purged."""

_VERSION: Final = 1
_APPLICATION: Final = 0x53566C63  # "SVlc": no other SQLite file is taken for ours

SCHEMA: Final = """
CREATE TABLE request (
  id INTEGER PRIMARY KEY AUTOINCREMENT, at_ns INTEGER, signal TEXT, head TEXT, encoding TEXT,
  body BLOB, size INTEGER, plain INTEGER, status INTEGER, service TEXT, records INTEGER);
CREATE TABLE span (
  request INTEGER REFERENCES request ON DELETE CASCADE, trace TEXT, id TEXT, parent TEXT,
  name TEXT, kind INTEGER, start_ns INTEGER, end_ns INTEGER, status INTEGER, message TEXT,
  scope TEXT, attributes TEXT, resource TEXT, events TEXT);
CREATE TABLE point (
  request INTEGER REFERENCES request ON DELETE CASCADE, name TEXT, kind TEXT, unit TEXT,
  temporality INTEGER, monotonic INTEGER, start_ns INTEGER, at_ns INTEGER, count INTEGER,
  total REAL, low REAL, high REAL, bounds TEXT, buckets TEXT, scope TEXT, attributes TEXT,
  resource TEXT);
CREATE TABLE log (
  request INTEGER REFERENCES request ON DELETE CASCADE, at_ns INTEGER, severity TEXT,
  event TEXT, body TEXT, trace TEXT, span TEXT, scope TEXT, attributes TEXT, resource TEXT);
CREATE TABLE purged (requests INTEGER);
CREATE INDEX span_request ON span(request);
CREATE INDEX span_trace ON span(trace);
CREATE INDEX point_request ON point(request);
CREATE INDEX log_request ON log(request);
INSERT INTO purged VALUES (0);
"""


class StoreError(Exception):
    """The file cannot be used; the message is for the person who named it."""


class Store:
    """An open store; every method may be called from any thread.

    A file that turns out to be damaged when it is read raises `StoreError` there and then.

    Args:
        path: the file.
        create: make the file when it is absent, else that is an error.
        max_bytes: bytes that it may hold before the oldest requests are purged.

    Raises:
        StoreError: the file is absent, no store, of another version, or cannot be written.
    """

    def __init__(self, path: Path, *, create: bool = False, max_bytes: int = MAX_BYTES) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        if not create and not path.exists():
            raise StoreError(f"there is no store at {path}: run `sottovoce local` first")
        try:
            if create:
                path.parent.mkdir(parents=True, exist_ok=True)
                # What apps send is for their developer's eyes; SQLite's side files follow suit.
                os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._connection = sqlite3.connect(
                path, check_same_thread=False, isolation_level=None, timeout=10
            )
            self._connection.row_factory = sqlite3.Row
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"cannot open {path}: {error}") from error
        try:
            self._prepare()
        except sqlite3.Error as error:
            self._connection.close()
            raise StoreError(f"{path} cannot be used as a store: {error}") from error
        except StoreError:
            self._connection.close()
            raise

    def _prepare(self) -> None:
        run = self._connection.execute
        if self._is_empty():
            run("PRAGMA auto_vacuum = INCREMENTAL")
            with self._transaction():
                # Looked at again: another process may have been making it as well.
                if self._is_empty():
                    for statement in SCHEMA.split(";"):
                        run(statement)
                    run(f"PRAGMA application_id = {_APPLICATION}")
                    run(f"PRAGMA user_version = {_VERSION}")
            # Locked: by who is doing the same.
            with suppress(sqlite3.OperationalError):
                run("PRAGMA journal_mode = WAL")
        (application,) = run("PRAGMA application_id").fetchone()
        (version,) = run("PRAGMA user_version").fetchone()
        if (application, version) != (_APPLICATION, _VERSION):
            raise StoreError(f"{self.path} is no store of this version; name another with --db")
        run("PRAGMA foreign_keys = ON")
        run("PRAGMA synchronous = NORMAL")
        run("PRAGMA journal_size_limit = 4194304")

    def _is_empty(self) -> bool:
        (tables,) = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        return not tables

    def close(self) -> None:
        """Close the file; the store cannot be used any more."""
        with self._lock:
            self._connection.close()

    def add(self, request: Request, rows: Rows) -> None:
        """Keep a request and what it said; purge the oldest ones when there is no room.

        The request's `id` is chosen here; what it carries is ignored.

        Raises:
            StoreError: the disk is full or the file was damaged.
        """
        try:
            with self._lock, self._transaction() as run:
                cursor = run(
                    _insert("request", 11),
                    (
                        None, request.at_ns, request.signal, request.head, request.encoding,
                        request.body, request.size, request.plain, request.status,
                        request.service, request.records,
                    ),
                )  # fmt: skip
                key = cursor.lastrowid
                for table, width, found in (
                    ("span", 14, rows.spans),
                    ("point", 17, rows.points),
                    ("log", 10, rows.logs),
                ):
                    self._connection.executemany(
                        _insert(table, width), ((key, *row) for row in found)
                    )
            with self._lock:
                self._purge()
        except sqlite3.Error as error:
            raise StoreError(f"{self.path} cannot be written: {error}") from error

    def _used(self) -> int:
        run = self._connection.execute
        (pages,) = run("PRAGMA page_count").fetchone()
        (free,) = run("PRAGMA freelist_count").fetchone()
        (size,) = run("PRAGMA page_size").fetchone()
        return int((pages - free) * size)

    def _purge(self) -> None:
        if self._used() <= self._max_bytes:
            return
        room = self._max_bytes * 4 // 5
        while self._used() > room:
            with self._transaction() as run:
                (kept,) = run("SELECT count(*) FROM request").fetchone()
                if kept <= 1:
                    break
                gone = run(
                    "DELETE FROM request WHERE id IN (SELECT id FROM request ORDER BY id LIMIT ?)",
                    (max(1, kept // 10),),
                ).rowcount
                run("UPDATE purged SET requests = requests + ?", (gone,))
        self._connection.execute("PRAGMA incremental_vacuum").fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[Any]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield self._connection.execute
            self._connection.execute("COMMIT")
        except BaseException:
            # A full disk may have rolled it back already; one left open would block the next.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def _rows(self, query: str, *parameters: Any) -> list[Any]:
        try:
            with self._lock, closing(self._connection.execute(query, parameters)) as cursor:
                return cursor.fetchall()
        except sqlite3.Error as error:
            raise StoreError(f"{self.path} cannot be read: {error}") from error

    def _json(self, text: str) -> Any:
        """What `otlp` wrote as JSON into a column."""
        try:
            return json.loads(text)
        except (TypeError, ValueError) as error:
            raise StoreError(f"{self.path} cannot be read: a row was damaged") from error

    def totals(self) -> Totals:
        """Counts of everything in the store."""
        requests, size, plain, unseen, last = self._rows(
            "SELECT count(*), total(size * (body != x'')), total(plain), total(size > 0 AND body = x''), "
            "coalesce(max(id), 0) FROM request"
        )[0]
        spans, points, logs = (
            self._rows(f"SELECT count(*) FROM {table}")[0][0]  # noqa: S608 - our own names
            for table in ("span", "point", "log")
        )
        ((purged,),) = self._rows("SELECT requests FROM purged")
        return Totals(
            int(requests), int(size), int(plain), int(unseen), purged, spans, points, logs, last
        )

    def requests(self, after: int = 0) -> Iterator[Request]:
        """Requests in the order they came, one at a time in memory."""
        while True:
            found = self._rows("SELECT * FROM request WHERE id > ? ORDER BY id LIMIT 1", after)
            if not found:
                return
            request = Request(*found[0])
            after = request.id
            yield request

    def traces(self, limit: int, after: int = 0) -> list[list[Span]]:
        """The spans of the newest `limit` traces, oldest trace first, by start time.

        Args:
            limit: traces at most.
            after: only what came with requests after this id.
        """
        newest = self._rows(
            "SELECT trace FROM span WHERE request > ? GROUP BY trace "
            "ORDER BY max(end_ns) DESC LIMIT ?",
            after, limit,
        )  # fmt: skip
        return [self._trace(trace, after) for (trace,) in reversed(newest)]

    def _trace(self, trace: str, after: int) -> list[Span]:
        found: dict[str, Span] = {}
        for row in self._rows(
            "SELECT trace, id, parent, name, kind, start_ns, end_ns, status, message, scope, "
            "attributes, resource, events FROM span WHERE trace = ? AND request > ? "
            "ORDER BY start_ns, end_ns DESC",
            trace, after,
        ):  # fmt: skip
            # An exporter that got no answer sends again: one span, however often it came.
            read = {name: self._json(row[name]) for name in ("attributes", "resource", "events")}
            found[row["id"]] = Span(**{**dict(row), **read})
        return list(found.values())

    def spans(self, after: int = 0) -> list[Span]:
        """Every span, by trace and start time."""
        return [span for trace in self.traces(-1, after) for span in trace]

    def points(self, after: int = 0) -> list[Point]:
        """Metric points, added up over processes and exports, see `series.added_up`."""
        return series.added_up(
            Point(
                **{
                    **dict(row),
                    "bounds": tuple(self._json(row["bounds"])),
                    "buckets": tuple(self._json(row["buckets"])),
                    "attributes": self._json(row["attributes"]),
                    "resource": self._json(row["resource"]),
                }
            )
            for row in self._rows(
                "SELECT name, kind, unit, temporality, monotonic, start_ns, at_ns, count, total, "
                "low, high, bounds, buckets, scope, attributes, resource FROM point "
                "WHERE request > ? ORDER BY at_ns",
                after,
            )
        )

    def logs(self, after: int = 0) -> list[Log]:
        """Log records, oldest first."""
        return [
            Log(**{**dict(row), "attributes": self._json(row["attributes"])})
            for row in self._rows(
                "SELECT at_ns, severity, event, body, trace, span, scope, attributes FROM log "
                "WHERE request > ? ORDER BY at_ns",
                after,
            )
        ]


def _insert(table: str, width: int) -> str:
    marks = ", ".join("?" * width)
    return f"INSERT INTO {table} VALUES ({marks})"  # noqa: S608 - our own names
