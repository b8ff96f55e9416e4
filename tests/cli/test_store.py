"""The store: what it keeps, how it stays small, what it refuses to open."""

import json
import os
import sqlite3
import stat
import threading

import pytest

from sottovoce.cli.kept import Request
from sottovoce.cli.otlp import Rows
from sottovoce.cli.store import Store, StoreError

SECOND = 10**9


def request(body=b"", **changes):
    values = {
        "id": 0, "at_ns": 1, "signal": "traces", "head": "POST /v1/traces", "encoding": "",
        "body": body, "size": len(body), "plain": len(body), "status": 200, "service": "s",
        "records": 1, **changes,
    }  # fmt: skip
    return Request(**values)


def span(trace="t", key="s", parent="", name="n", start=SECOND, end=2 * SECOND):
    return (trace, key, parent, name, 1, start, end, 0, "", "scope", "{}", "{}", "[]")


def point(
    name="h", *, temporality=2, at=1, start=0, count=1, buckets="[1, 0]", resource="{}", total=1.0
):
    return (
        name, "histogram", "s", temporality, 0, start, at, count, total, None, None, "[1.0]", buckets,
        "scope", "{}", resource,
    )  # fmt: skip


def test_what_is_kept_is_read_back_by_another_process(tmp_path, store):
    store.add(request(b"body"), Rows(spans=[span()]))
    with_own_connection = Store(tmp_path / "local.db")
    (kept,) = with_own_connection.requests()
    assert (kept.body, kept.id, kept.text()) == (b"body", 1, b"body")
    assert [found.name for found in with_own_connection.spans()] == ["n"]
    with_own_connection.close()


def test_the_newest_cumulative_point_of_each_process_counts_once(store):
    store.add(
        request(), Rows(points=[point(at=1, count=1), point(at=2, count=3, buckets="[2, 1]")])
    )
    store.add(request(), Rows(points=[point(at=9, count=5, buckets="[0, 5]", resource='{"p": 2}')]))
    (merged,) = store.points()
    assert (merged.count, merged.buckets) == (8, (2, 6))


def level(name, service, total, at, kind="sum"):
    resource = json.dumps({"service.name": service, "service.instance.id": f"{service} {at}"})
    return (
        name, kind, "By", 2, 0, at, at, 0, total, None, None, "[]", "[]", "scope", "{}", resource,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["sum", "gauge"])
def test_levels_of_processes_are_not_added(store, kind):
    names = ("process.memory.usage", "system.memory.usage")
    for at, service, total in ((3, "app", 30.0), (1, "app", 10.0), (2, "server", 20.0)):
        rows = Rows(points=[level(name, service, total, at, kind) for name in names])
        store.add(request(), rows)
    told = [(point.name, point.resource["service.name"], point.total) for point in store.points()]
    assert sorted(told) == [
        ("process.memory.usage", "app", 30.0),
        ("process.memory.usage", "server", 20.0),
        ("system.memory.usage", "app", 30.0),
    ]


def test_delta_points_are_added_up(store):
    for at in (1, 2, 3):
        store.add(request(), Rows(points=[point(at=at, temporality=1, count=2, buckets="[1, 1]")]))
    (merged,) = store.points()
    assert (merged.count, merged.buckets, merged.total) == (6, (3, 3), 3.0)


def test_a_span_that_was_sent_twice_is_one(store):
    for _ in range(2):
        store.add(request(), Rows(spans=[span()]))
    assert len(store.spans()) == 1


def test_only_what_came_after_a_request_is_shown_on_demand(store):
    store.add(request(), Rows(spans=[span("old")], points=[point("old")]))
    after = store.totals().last_id
    store.add(request(), Rows(spans=[span("new")], points=[point("new")]))
    assert [found.trace for found in store.spans(after)] == ["new"]
    assert [found.name for found in store.points(after)] == ["new"]
    assert [found.id for found in store.requests(after)] == [after + 1]
    assert [spans[0].trace for spans in store.traces(1)] == ["new"]


def test_the_oldest_requests_go_when_there_is_no_room(tmp_path):
    limit = 400_000
    store = Store(tmp_path / "small.db", create=True, max_bytes=limit)
    for number in range(60):
        store.add(
            request(os.urandom(20_000), service=str(number)),
            Rows(spans=[span(trace=str(number))]),
        )
    totals = store.totals()
    kept = [int(found.service) for found in store.requests()]
    assert kept == list(range(60 - len(kept), 60))
    assert 5 < len(kept) < 20
    assert totals.purged == 60 - len(kept)
    assert {found.trace for found in store.spans()} == {str(number) for number in kept}
    store.close()
    assert (tmp_path / "small.db").stat().st_size <= limit + 60_000


def test_the_newest_request_stays_even_when_it_is_too_large(tmp_path):
    store = Store(tmp_path / "small.db", create=True, max_bytes=10_000)
    store.add(request(bytes(50_000)), Rows())
    assert store.totals().requests == 1
    store.close()


def test_a_store_survives_a_new_start(tmp_path):
    for _ in range(2):
        store = Store(tmp_path / "x.db", create=True)
        store.add(request(), Rows())
        store.close()
    store = Store(tmp_path / "x.db")
    assert store.totals().requests == 2
    store.close()


def test_only_its_owner_may_read_it(tmp_path, store):
    store.add(request(b"x"), Rows())
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name


def test_a_file_that_is_no_store_is_left_alone(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("do not touch" * 100)
    with pytest.raises(StoreError, match="notes.txt"):
        Store(text, create=True)
    assert text.read_text() == "do not touch" * 100

    other = tmp_path / "other.db"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE request (precious)")
    connection.commit()
    connection.close()
    with pytest.raises(StoreError, match="no store of this version"):
        Store(other, create=True)

    with pytest.raises(StoreError, match="sottovoce local"):
        Store(tmp_path / "absent.db")
    assert not (tmp_path / "absent.db").exists()
    with pytest.raises(StoreError):
        Store(text / "below.db", create=True)


def test_many_who_make_the_same_store_at_once_all_get_it(tmp_path):
    errors = []

    def make(path, together):
        together.wait()
        try:
            Store(path, create=True).close()
        except StoreError as error:
            errors.append(error)

    for attempt in range(20):
        together = threading.Barrier(4)
        threads = [
            threading.Thread(target=make, args=(tmp_path / f"{attempt}.db", together))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not errors


def test_two_receivers_fill_one_store(tmp_path, store):
    other = Store(tmp_path / "local.db", create=True)
    threads = [
        threading.Thread(target=lambda to=to: [to.add(request(b"x"), Rows()) for _ in range(50)])
        for to in (store, other)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.totals().requests == other.totals().requests == 100
    other.close()


def test_a_full_disk_refuses_what_does_not_fit_and_nothing_after_it(store):
    (pages,) = store._connection.execute("PRAGMA page_count").fetchone()
    store._connection.execute(f"PRAGMA max_page_count = {pages + 5}")
    for _ in range(2):
        with pytest.raises(StoreError, match="full"):
            store.add(request(b"x" * 400_000), Rows())
    store.add(request(b"small"), Rows())
    assert store.totals().requests == 1


def test_a_damaged_file_is_named_when_it_is_read(tmp_path, store):
    store.add(request(b"x" * 50_000), Rows(spans=[span()], points=[point()]))
    store._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    path = tmp_path / "local.db"
    sound = path.read_bytes()
    for name, bytes_ in (
        ("pages.db", sound[:4096] + b"\xee" * (len(sound) - 4096)),
        ("row.db", sound.replace(b"scope{}{}[]", b"scope{]{}[]")),
    ):
        assert bytes_ != sound
        (tmp_path / name).write_bytes(bytes_)
        damaged = Store(tmp_path / name)
        with pytest.raises(StoreError, match=f"{name} cannot be read"):
            damaged.spans()
        damaged.close()


def test_an_error_while_writing_leaves_nothing_half_written(store):
    with pytest.raises(StoreError):
        store.add(request(), Rows(spans=[span(), ("too", "short")]))
    assert store.totals().requests == store.totals().spans == 0
    store.add(request(), Rows(spans=[span()]))
    assert store.totals().spans == 1
