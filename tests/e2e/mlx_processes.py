"""mlx-lm's programs, launched as operators launch them; what they record arrives in a sink."""

import http.client
import json
import os
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from pathlib import Path

from e2e.conftest import free_ports

ROOT = Path(__file__).resolve().parents[2]
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAID = "a planted sentence"
CHAT = {"messages": [{"role": "user", "content": SAID}], "max_tokens": 5}


def make_model(folder, **size):
    """A tiny model in the folder `tiny` of `folder`, made by a process of its own."""
    more = f"import sys; sys.path.insert(0, {str(ROOT / 'examples')!r}); import tiny_mlx; "
    more += f"tiny_mlx.make('tiny', **{size!r})"
    environ = {**os.environ, "MLX_DISABLE_COMPILE": "1"}
    subprocess.run([sys.executable, "-c", more], cwd=folder, env=environ, check=True)
    return folder / "tiny"


def environ(folder, sink=None):
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "MLX_DISABLE_COMPILE": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    } | (
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": sink.endpoint,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "OTEL_METRIC_EXPORT_INTERVAL": "3600000",
            "SOTTOVOCE_EXIT_TIMEOUT": "60",
        }
        if sink
        else {}
    )


def command(programs, arguments, sink=None):
    """The words of a command, under the launcher when there is a `sink`.

    Args:
        programs: the `bin` folder of an environment.
        arguments: the program in it, or what follows the interpreter, and its arguments.
        sink: where telemetry goes.
    """
    program, *rest = arguments
    told = (
        [programs / "python", *arguments]
        if program.startswith("-")
        else [programs / program, *rest]
    )
    return [programs / "opentelemetry-instrument", *told] if sink else told


def run(programs, arguments, folder, sink=None, said=""):
    """Run a program to its end in `folder`; gives what it did. `said` is its input."""
    return subprocess.run(
        command(programs, arguments, sink),
        cwd=folder,
        env=environ(folder, sink),
        input=said.encode(),
        capture_output=True,
        timeout=300,
    )


@contextmanager
def serving(programs, how, folder, sink):
    """Run the server of the model `tiny` in `folder`; gives its port once it answers."""
    for _ in range(3):  # another process may take a port between finding and using it
        [port] = free_ports(1)
        words = command(programs, (*how, "--model", "tiny", "--port", str(port)), sink)
        log = folder / f"server-{port}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                words, cwd=folder, env=environ(folder, sink), stdout=out, stderr=out
            )
        if answering(process, port):
            break
        process.kill()
        process.wait(20)
    else:
        raise AssertionError(log.read_text())
    try:
        yield port
    finally:
        process.kill()
        process.wait(20)


def answering(process, port):
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        if answers(port):
            return True
        time.sleep(0.1)
    return False


def answers(port):
    try:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False


def ask(port, path, asked, status=200):
    """The answer to a request of a trace; of a stream its events, one after the other.

    One with another status is given as text.
    """
    headers = {"traceparent": f"00-{TRACE}-{SPAN}-01", "Content-Type": "application/json"}
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=120)) as connection:
        connection.request("POST", path, json.dumps(asked), headers)
        answer = connection.getresponse()
        text = answer.read().decode()
    assert answer.status == status, text
    if status != 200:
        return text
    if not asked.get("stream"):
        return [json.loads(text)]
    lines = (line.partition("data: ")[2] for line in text.splitlines())
    return [json.loads(line) for line in lines if line and line != "[DONE]"]
