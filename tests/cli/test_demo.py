"""`make demo` does what it says, and would say so if it did not."""

import importlib.util
import os
import signal
import socketserver
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sottovoce.cli.local import Receiver
from sottovoce.cli.otlp import Rows
from sottovoce.cli.store import Store

from .test_store import request

DEMO = Path(__file__).parents[2] / "examples" / "demo" / "demo.py"


@pytest.fixture
def demo():
    spec = importlib.util.spec_from_file_location("demo_of_sottovoce", DEMO)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def processes():
    listed = subprocess.check_output(["ps", "-axo", "pid=,ppid="], text=True)
    return [tuple(map(int, line.split())) for line in listed.splitlines()]


def run(*arguments, **environment):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return subprocess.run(
        [sys.executable, str(DEMO), *arguments],
        capture_output=True, text=True, timeout=300, env={**kept, **environment},
    )  # fmt: skip


@pytest.fixture
def listener():
    """Listens as something that is no Collector; set what it answers."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.recv(65536)
            self.request.sendall(self.server.answer)

    with socketserver.TCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-x\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nhi",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_what_is_no_collector_is_not_taken_for_one(demo, listener, answer, monkeypatch, capsys):
    listener.answer = answer
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    monkeypatch.setattr(demo, "DEFAULT_PORT", listener.server_address[1])
    assert demo.collector() is None
    assert "no Collector" in capsys.readouterr().out


def test_a_collector_where_collectors_answer_is_found(demo, receiver, monkeypatch):
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    monkeypatch.setattr(demo, "DEFAULT_PORT", receiver.port)
    assert demo.collector().endpoint == receiver.endpoint


def test_a_named_collector_that_speaks_something_else_is_reported(demo, listener, monkeypatch):
    listener.answer = b"SSH-2.0-x\r\n"
    url = f"http://127.0.0.1:{listener.server_address[1]}"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    collector = demo.collector()
    collector(request(b"x"))
    assert len(collector.failures) == 1


@pytest.mark.e2e
@pytest.mark.mlx
def test_the_demo_shows_every_call_and_nothing_that_was_said(tmp_path, demo):
    passed_on = Store(tmp_path / "collector.db", create=True)
    db, svg = tmp_path / "demo.db", tmp_path / "demo.svg"
    with Receiver(passed_on, port=0) as collector:
        done = run(
            "--db", str(db), "--svg", str(svg),
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint,
            OTEL_EXPORTER_OTLP_HEADERS="x-team=violet%20team",
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "✗" not in done.stdout
    assert "calls arrived in one tree, 4 of them with the server's side" in done.stdout
    assert f"“{demo.SAID}”, and parts of it, occur in none of the" in done.stdout
    assert "the same search finds them in the" in done.stdout
    # The app did put it on a span: the gate is what removed it.
    assert "removed or replaced by the gate" in done.stdout
    assert "nothing was removed" not in done.stdout
    assert "make&#160;demo" in svg.read_text(encoding="utf-8")

    own = Store(db)
    # The signals are sent side by side at the end: their order is not told.
    assert sorted(r.body for r in passed_on.requests()) == sorted(r.body for r in own.requests())
    assert all("x-team: violet team" in r.head for r in passed_on.requests())
    own.close()
    passed_on.close()


@pytest.mark.e2e
@pytest.mark.mlx
def test_the_demo_fails_when_nothing_arrives():
    done = run(SOTTOVOCE_PROFILE="off")
    assert done.returncode == 1
    assert "✗ one tree: expected 1, 0 arrived" in done.stdout
    assert "nothing was received" in done.stdout


def test_the_demo_fails_when_a_part_of_the_sentence_left(demo, store, tmp_path):
    heard = tmp_path / "heard"
    heard.write_text(demo.SAID)
    store.add(request(b"... KETTLEWICK ..."), Rows())
    (finding,) = demo.silent(store, 0, heard)
    assert not finding.ok and "left in request 1 (traces, body)" in finding.text
    assert all(finding.ok for finding in demo.silent(store, 1, heard)) is False


def test_the_demo_fails_when_its_own_search_is_blind(demo, store, tmp_path):
    heard = tmp_path / "heard"
    store.add(request(b"nothing"), Rows())
    heard.write_text("something else")
    assert [finding.ok for finding in demo.silent(store, 0, heard)] == [False]
    heard.write_text(demo.SAID)
    assert [finding.ok for finding in demo.silent(store, 0, heard)] == [True, True]


def test_what_is_not_installed_is_named_with_what_that_costs(demo, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    assert demo.models(tmp_path) == {}
    said = capsys.readouterr().out
    assert "mlx-lm is not installed: no MLX, no model server" in said
    assert "llama-cpp-python is not installed: the demo goes without llama.cpp" in said


@pytest.mark.e2e
@pytest.mark.mlx
def test_a_demo_that_is_ended_leaves_no_model_server_behind(tmp_path):
    process = subprocess.Popen([sys.executable, str(DEMO)], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if "python app.py" in line:
            break
    # The server answers by now, and the app may have been started.
    children = {pid for pid, parent in processes() if parent == process.pid}
    assert children
    process.send_signal(signal.SIGTERM)
    process.stdout.read()
    process.wait(60)
    process.stdout.close()
    assert not children & {pid for pid, _ in processes()}
