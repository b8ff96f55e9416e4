"""`sottovoce doctor`, as a process in this environment, which has every library."""

import json
import os
import socket
import subprocess
import sys
import textwrap
from importlib.metadata import entry_points

import pytest

from sottovoce import hardware

SOTTOVOCE = [sys.executable, "-c", "import sys; from sottovoce.cli import main; sys.exit(main())"]

RUNTIMES = {
    entry.name
    for entry in entry_points(group="opentelemetry_instrumentor")
    if entry.value.startswith("sottovoce.") and entry.load().in_process
}


def doctor(*arguments, path="", **environment):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "SOTTOVOCE_"))}
    return subprocess.run(
        [*SOTTOVOCE, "doctor", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**clean, "PYTHONPATH": str(path), "COLUMNS": "200", **environment},
    )


@pytest.fixture(scope="module")
def port():
    """Of a server that takes connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture(scope="module")
def found(port):
    done = doctor(
        "--format",
        "json",
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://user:planted@127.0.0.1:{port}/planted?planted",
        OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="sottovoce_groq,somebody_elses",
        SOTTOVOCE_KEY="planted secret key",
    )
    assert "planted" not in done.stdout + done.stderr
    return {**json.loads(done.stdout), "code": done.returncode}


def test_every_client_and_runtime_of_this_environment_is_hooked(found):
    states = {each["instrumentor"]: each["state"] for each in found["libraries"]}
    assert states.pop("sottovoce_groq") == "disabled"
    assert set(states.values()) == {"hooked"}
    assert {"sottovoce_openai", "sottovoce_anthropic", "sottovoce_httpx"} <= set(states)
    openai = next(each for each in found["libraries"] if each["name"] == "openai")
    assert openai["version"].split(".")[0].isdigit()
    assert "openai._base_client.SyncAPIClient.request" in openai["hooks"]
    assert all(each["version"] for each in found["libraries"])
    http = next(each for each in found["libraries"] if each["name"] == "http.client")
    assert http["version"] == found["python"]
    assert (found["problems"], found["code"]) == ([], 0)


def test_it_says_where_to_and_what_differs(found, port):
    assert found["destinations"]["traces"] == f"otlp_proto_http to 127.0.0.1:{port}"
    assert found["silent"] == []
    assert found["destinations"]["logs"] == ""
    assert found["settings"]["SOTTOVOCE_KEY"] == "(set)"
    assert any(each["name"] == "anthropic" for each in found["others"])
    assert {"chat", "embeddings", "execute_tool"} <= set(found["spans"])
    assert "gen_ai.client.token.usage" in found["metrics"]
    assert "gen_ai.client.inference.duration" not in found["metrics"]


def test_it_says_what_kind_of_machine_this_is_and_what_is_read_of_it(found):
    assert found["machine"] == hardware.profile().attributes()
    installed = {each["instrumentor"] for each in found["libraries"]} & RUNTIMES
    assert ("process.memory.usage" in found["gauges"]) is bool(installed)
    assert ("sottovoce.engine.memory.peak" in found["gauges"]) is ("sottovoce_mlx" in installed)


def test_a_library_that_we_do_not_know_and_no_destination_are_to_mend(tmp_path):
    package = tmp_path / "groq"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "_base_client.py").write_text("")
    info = tmp_path / "rival-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rival\nVersion: 1.0\n")
    points = """
        [opentelemetry_instrumentor]
        openai = opentelemetry.instrumentation.openai_v2:OpenAIInstrumentor
        [opentelemetry_distro]
        rival = rival:Distro
    """
    (info / "entry_points.txt").write_text(textwrap.dedent(points))
    done = doctor(path=tmp_path, OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=",".join(RUNTIMES))
    assert done.returncode == 1
    assert "tells    nothing: no runtime is hooked" in done.stdout
    assert "groq" in done.stdout and "left alone" in done.stdout
    assert "There is no destination" in done.stdout
    kinds = done.stdout.partition("As what\n")[2].partition("\nThis machine")[0].splitlines()
    mend = done.stdout.partition("To mend\n")[2].splitlines()
    for lines in (kinds, mend):
        assert len(lines) > 2 and all(line.startswith("  ") for line in lines if line)
    assert "sottovoce_openai records the same calls" in done.stdout
    assert "another distro" in done.stdout


def test_a_name_that_switches_nothing_off_is_to_mend(port):
    done = doctor(
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{port}",
        OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="sottovoce_groq,sottovoce_opnai,cohere",
    )
    assert done.returncode == 1
    mend = done.stdout.partition("To mend\n")[2]
    assert "names sottovoce_opnai, cohere, which switches nothing off" in mend
    assert "groq" not in mend


def test_a_library_that_fails_to_import_and_a_collector_that_does_not_answer_are_named(tmp_path):
    (tmp_path / "groq.py").write_text("raise RuntimeError('planted')")
    with socket.socket() as closed:
        # Bound, but not listening: nobody else can take the port meanwhile.
        closed.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{closed.getsockname()[1]}"
        done = doctor(path=tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://{host}")
    assert done.returncode == 1
    assert f"traces   otlp_proto_http to {host}, where nothing answers now\n" in done.stdout
    assert "logs     nowhere\n" in done.stdout
    assert done.stdout.count(f"Nothing answers at {host} now") == 1
    assert "groq" in done.stdout
    assert "planted" not in done.stdout + done.stderr


def test_a_profile_that_lets_nothing_leave_is_what_is_to_mend(port):
    done = doctor(SOTTOVOCE_PROFILE="off", OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{port}")
    assert done.returncode == 1
    assert "The profile is `off`" in done.stdout
    assert "There is no destination" not in done.stdout


def test_what_an_app_would_be_warned_of_only_later_is_to_mend(port, tmp_path):
    done = doctor(
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{port}",
        OTEL_EXPORTER_OTLP_HEADRES="a=planted",
        OTEL_SOMEBODY_ELSES="1",
        SOTTOVOCE_KEY="planted",
        SOTTOVOCE_MODEL_CATALOGUE=str(tmp_path / "none"),
        XDG_STATE_HOME=str(tmp_path),
    )
    assert done.returncode == 1
    mend = done.stdout.partition("To mend\n")[2]
    assert "HEADRES is none of OpenTelemetry's variables; is OTEL_EXPORTER_OTLP_HEADERS" in mend
    assert "SOTTOVOCE_KEY: a secret needs at least 16 bytes" in mend
    assert "SOTTOVOCE_MODEL_CATALOGUE: the file cannot be used (there is none)" in mend
    assert "SOMEBODY" not in mend
    assert "planted" not in done.stdout + done.stderr
