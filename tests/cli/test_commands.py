"""The command line, as processes."""

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

SOTTOVOCE = [sys.executable, "-c", "import sys; from sottovoce.cli import main; sys.exit(main())"]


def command(*arguments, **options):
    return subprocess.run(
        [*SOTTOVOCE, *arguments], capture_output=True, text=True, timeout=60, **options
    )


def post(endpoint, text):
    body = json.dumps(
        {"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "00" * 16, "name": text}]}]}]}
    )
    urllib.request.urlopen(
        urllib.request.Request(
            f"{endpoint}/v1/traces", body.encode(), {"Content-Type": "application/json"}
        ),
        timeout=20,
    ).close()


@contextlib.contextmanager
def started(*arguments, **options):
    process = subprocess.Popen(
        [*SOTTOVOCE, *arguments], stdout=subprocess.PIPE, text=True, **options
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()


def endpoint_of(process):
    return re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())[0]


@pytest.mark.parametrize("absent", [["click"], ["starlette", "uvicorn"], ["rich"]])
def test_without_the_extra_one_line_says_what_to_install(absent):
    code = f"import sys\nfor name in {absent}: sys.modules[name] = None\nfrom sottovoce.cli import main\nsys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code, "view"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "pip install 'sottovoce[local]'" in done.stderr and absent[0] in done.stderr


def test_the_installed_command_is_this_one():
    done = subprocess.run(
        [str(Path(sys.executable).with_name("sottovoce")), "--version"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "sottovoce" in done.stdout


def test_received_here_and_viewed_there(tmp_path):
    db = tmp_path / "x.db"
    with started("local", "--port", "0", "--db", str(db), stderr=subprocess.PIPE) as process:
        endpoint = endpoint_of(process)
        told = f"OTEL_EXPORTER_OTLP_ENDPOINT={endpoint} opentelemetry-instrument"
        line = process.stdout.readline()
        assert told in line and line.endswith(f"sottovoce view --db {db}\n")
        post(endpoint, "violet herons")
        viewed = command("view", "--db", str(db))
        assert (viewed.returncode, viewed.stderr) == (0, "")
        assert "violet herons" in viewed.stdout
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert process.stderr.read() == ""
        process.stderr.close()
    found = command("view", "--db", str(db), "--search", "VIOLET herons")
    assert found.returncode == 1
    assert "request 1, traces, body, byte " in found.stdout
    absent = command("view", "--db", str(db), "--search", "unsaid")
    assert absent.returncode == 0
    assert re.search(r"none of the \d+ bytes of 1 requests", absent.stdout)
    assert command("view", "--db", str(db), "--search", "").returncode == 2


def test_a_picture_is_drawn_on_demand(tmp_path):
    db, svg = tmp_path / "x.db", tmp_path / "x.svg"
    with started("local", "--port", "0", "--db", str(db)) as process:
        post(endpoint_of(process), "a span")
    done = command("view", "--db", str(db), "--svg", str(svg))
    assert done.returncode == 0
    assert svg.read_text(encoding="utf-8").startswith("<svg")
    refused = command("view", "--db", str(db), "--svg", str(tmp_path / "absent" / "x.svg"))
    assert refused.returncode == 1 and "Traceback" not in refused.stderr


def test_a_terminal_sees_one_line_a_batch(tmp_path):
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with started(
        "local", "--port", "0", "--db", str(tmp_path / "x.db"), stderr=theirs, env=environment
    ) as process:
        post(endpoint_of(process), "a span")
        seen = b""
        while b"\n" not in seen and select.select([ours], [], [], 20)[0]:
            seen += os.read(ours, 4096)
    os.close(ours)
    os.close(theirs)
    assert "traces      1 records" in re.sub(r"\x1b\[[0-9;]*m", "", seen.decode())


def test_what_came_begins_on_a_line_of_its_own_in_a_terminal(tmp_path):
    ours, theirs = pty.openpty()
    here = ("local", "--port", "0", "--db", str(tmp_path / "x.db"), "--")
    write = "import sys; sys.stderr.write('^C')"
    with started(*here, sys.executable, "-c", write, stderr=theirs) as process:
        os.close(theirs)
        seen = b""
        with contextlib.suppress(OSError):  # the end, on Linux
            while more := os.read(ours, 4096):
                seen += more
        assert process.wait(20) == 0
    os.close(ours)
    assert b"^C\r\n" in seen


def test_other_addresses_ports_and_files_are_refused_in_one_line(tmp_path, receiver):
    db = ["--db", str(tmp_path / "x.db")]
    (tmp_path / "text").write_text("no database" * 100)
    for arguments, words in (
        (["local", "--host", "0.0.0.0", *db], "loopback only"),
        (["local", "--port", str(receiver.port), *db], f"port {receiver.port}"),
        (["local", "--db", str(tmp_path / "text")], "cannot be used as a store"),
        (["view", "--db", str(tmp_path / "absent.db")], "sottovoce local"),
        (["local", "--port", "0", *db, "--", "no-such-command-here"], "no command no-such-command-here"),
    ):  # fmt: skip
        done = command(*arguments)
        assert done.returncode == 1, arguments
        assert words in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr


REPORT = """
import json, os, sys
print(json.dumps({k: v for k, v in os.environ.items() if k.startswith("OTEL_EXPORTER_OTLP")}))
from opentelemetry import trace
with trace.get_tracer("x").start_as_current_span("said: violet herons"):
    pass
sys.exit(7)
"""


def test_a_command_runs_instrumented_sends_here_and_keeps_its_exit_code(tmp_path):
    environment = {
        **os.environ,
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:9",
        "OTEL_TRACES_EXPORTER": "none",
        "XDG_STATE_HOME": str(tmp_path),
    }
    done = command("local", "--port", "0", "--", sys.executable, "-c", REPORT, env=environment)
    assert done.returncode == 7, done.stderr
    first, _, rest = done.stdout.partition("\n")
    seen = json.loads(first)
    assert set(seen) == {"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_PROTOCOL"}
    assert re.fullmatch(r"http://127\.0\.0\.1:[1-9]\d+", seen["OTEL_EXPORTER_OTLP_ENDPOINT"])
    assert "not for this command: OTEL_EXPORTER_OTLP_ENDPOINT" in done.stderr
    # The span went through the launcher, our distribution and its gate.
    assert "1 span" in rest
    assert "violet" not in rest
    again = command("view", env=environment)
    assert "1 span" in again.stdout


def test_options_of_a_command_are_its_own_without_dashes_too(tmp_path):
    here = ("local", "--port", "0", "--db", str(tmp_path / "x.db"))
    done = command(*here, sys.executable, "-c", REPORT)
    assert done.returncode == 7, done.stderr
    assert "1 span" in done.stdout


def test_a_script_that_is_no_command_is_told_how_to_run(tmp_path):
    script = tmp_path / "app.py"
    script.write_text("print('ran')")
    done = command("local", "--port", "0", "--db", str(tmp_path / "x.db"), "--", str(script))
    assert done.returncode == 1
    assert f"did you mean: python {script}" in done.stderr


def test_the_help_shows_what_each_command_is_for_in_whole():
    for arguments in ((), ("policy",)):
        assert "..." not in command(*arguments, "--help").stdout.partition("Commands:")[2]


def test_a_command_sends_soon_unless_its_environment_says_when(tmp_path):
    said = {
        name: value for name, value in os.environ.items()
        if name not in {"OTEL_BSP_SCHEDULE_DELAY", "OTEL_METRIC_EXPORT_INTERVAL"}
    }  # fmt: skip
    said |= {"OTEL_METRIC_EXPORT_INTERVAL": "30000", "XDG_STATE_HOME": str(tmp_path)}
    tell = (
        "import os; print(*(os.environ[name] for name in "
        "('OTEL_BSP_SCHEDULE_DELAY', 'OTEL_METRIC_EXPORT_INTERVAL')))"
    )
    done = command("local", "--port", "0", "--", sys.executable, "-c", tell, env=said)
    assert done.stdout.partition("\n")[0] == "500 30000", done.stderr


@pytest.mark.parametrize(("asked", "code"), [((), 7), (("--port", "PORT"), 1)])
def test_a_command_gets_a_free_port_where_the_usual_one_is_in_use(tmp_path, receiver, asked, code):
    program = (
        f"from sottovoce.cli import commands, main; commands.DEFAULT_PORT = {receiver.port}; main()"
    )
    asked = [each.replace("PORT", str(receiver.port)) for each in asked]
    done = subprocess.run(
        [sys.executable, "-c", program, "local", *asked, "--", sys.executable, "-c", REPORT],
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, done.stderr
    if code == 7:
        told = json.loads(done.stdout.partition("\n")[0])["OTEL_EXPORTER_OTLP_ENDPOINT"]
        assert f"receiving OTLP at {told} into" in " ".join(done.stderr.split())
        assert not told.endswith(f":{receiver.port}")
        assert "1 span" in done.stdout
    else:
        assert f"port {receiver.port}" in done.stderr


def test_a_command_that_sends_nothing_is_told_why_that_may_be(tmp_path):
    environment = {**os.environ, "OTEL_SDK_DISABLED": "true", "XDG_STATE_HOME": str(tmp_path)}
    done = command("local", "--port", "0", "--", sys.executable, "-c", REPORT, env=environment)
    assert done.returncode == 7
    assert "OTEL_SDK_DISABLED=true" in " ".join(done.stderr.split())


def test_what_came_before_the_command_is_not_shown(tmp_path):
    db = tmp_path / "x.db"
    with started("local", "--port", "0", "--db", str(db)) as process:
        post(endpoint_of(process), "an older span")
    done = command("local", "--port", "0", "--db", str(db), "--", sys.executable, "-c", "")
    assert done.returncode == 0
    assert "an older span" not in done.stdout


def test_the_command_is_ended_by_the_signal_that_ends_us(tmp_path):
    waits = "import time; print('up', flush=True); time.sleep(60)"
    with started(
        "local", "--port", "0", "--db", str(tmp_path / "x.db"), "--", sys.executable, "-c", waits
    ) as process:
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
