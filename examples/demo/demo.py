"""`make demo`: local and remote model calls, instrumented, gated, received, and shown.

    python examples/demo/demo.py [--db FILE] [--svg FILE]

Makes tiny models, starts sottovoce's receiver on loopback, runs a model server and `app.py`
under `opentelemetry-instrument`, shows what arrived, and looks for the sentence that the app
said to every model in every byte that left. Exits with 1 if it is found, or if a call that
the app made did not arrive.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from rich.text import Text

from sottovoce.cli import launch, view
from sottovoce.cli.local import DEFAULT_PORT, Receiver
from sottovoce.cli.search import Needle, search
from sottovoce.cli.store import Store

HERE = Path(__file__).parent
SAID = "Zephyrine counted forty-seven violet herons at Kettlewick before the rain."
# A fragment would betray the sentence as well.
LOOKED_FOR = (SAID, "Zephyrine", "violet herons", "Kettlewick")
QUIET = {
    # No compiler in the way of the first token, no hub, no warning about forks.
    "MLX_DISABLE_COMPILE": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
SERVER_START_S = 30.0
DURATIONS = ("gen_ai.client.operation.duration", "gen_ai.client.inference.duration")
INTERNAL, SERVER, CLIENT = 1, 2, 3


def main() -> int:
    arguments = argparse.ArgumentParser(description="sottovoce's demo")
    arguments.add_argument("--db", type=Path, help="keep what was received in this file")
    arguments.add_argument("--svg", type=Path, help="also draw the view as a picture")
    given = arguments.parse_args()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")
    # A request to end shall end the model server as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # What a shell starts in the background would hand on that it ignores Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sottovoce-demo-")))
        store = Store(given.db or folder / "demo.db", create=True)
        stack.callback(store.close)
        after = store.totals().last_id
        parts = models(folder)
        if not parts:
            say("neither mlx-lm nor llama-cpp-python is installed: there is nothing to show")
            return 1
        passed_on = collector()
        with Receiver(store, port=0, on_request=passed_on) as receiver:
            say(f"receiving OTLP at {receiver.endpoint}")
            heard = folder / "heard.txt"
            with contextlib.ExitStack() as serving:
                if "mlx" in parts:
                    say("opentelemetry-instrument python -m mlx_lm server")
                    server = model_server(folder, parts["mlx"], receiver.endpoint)
                    parts["server"] = serving.enter_context(server)
                say("opentelemetry-instrument python app.py")
                code = run_app(parts, heard, receiver.endpoint)
        out = view.console()
        out.print()
        view.render(store, out, after=after)
        if passed_on:
            passed_on.report()
        findings = [
            Finding(code == 0, f"the app ended with exit code {code}"),
            *arrived(store, after, parts),
            *silent(store, after, heard),
        ]
        for finding in findings:
            finding.say()
        if given.svg:
            given.svg.parent.mkdir(parents=True, exist_ok=True)
            verdict = [Text(str(f), style="bold green" if f.ok else "bold red") for f in findings]
            view.save_svg(store, given.svg, after=after, title="make demo", closing=verdict)
            say(f"drawn to {given.svg}")
    print(f"{time.monotonic() - began:.0f} s in all.", end=" ")
    print("Try it on your own app: sottovoce local -- python app.py")
    return 0 if all(finding.ok for finding in findings) else 1


def say(text: str) -> None:
    print(f"· {text}", flush=True)


class Finding(NamedTuple):
    """Something that was checked."""

    ok: bool
    text: str

    def __str__(self) -> str:
        return f"{'✓' if self.ok else '✗'} {self.text}"

    def say(self) -> None:
        print(self, flush=True)


def models(folder: Path) -> dict[str, str]:
    """Make the models whose runtimes are installed; name what is absent and what that costs."""
    sys.path.insert(0, str(HERE.parent))
    made: dict[str, str] = {}
    if find_spec("mlx_lm"):
        import tiny_mlx

        say("making a tiny random-weight MLX model")
        made["mlx"] = str(tiny_mlx.make(folder / "tiny-mlx", bits=4))
    else:
        say("mlx-lm is not installed: no MLX, no model server, so no openai and no httpx call")
    if find_spec("llama_cpp") and find_spec("gguf"):
        import tiny_gguf

        say("making a tiny random-weight GGUF model")
        made["gguf"] = str(tiny_gguf.make(folder / "tiny.gguf"))
    else:
        absent = "gguf" if find_spec("llama_cpp") else "llama-cpp-python"
        say(f"{absent} is not installed: the demo goes without llama.cpp")
    return made


@contextlib.contextmanager
def model_server(folder: Path, model: str, endpoint: str):
    """`mlx_lm.server` on a free port of loopback, instrumented as the app; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / "server.log"
    command = [
        sys.executable, "-m", "mlx_lm", "server",
        "--model", model, "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    with log.open("w") as output:
        server = subprocess.Popen(
            launch.instrumented(command),
            env=environment(endpoint, "model-server"),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{url}/health", server, log)
        yield url
    finally:
        # Ctrl-C, unlike SIGTERM, lets it send what it still has.
        server.send_signal(signal.SIGINT)
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def wait_for(url: str, server: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + SERVER_START_S
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2):
            return
        time.sleep(0.1)
    raise SystemExit(f"the model server did not start:\n{log.read_text()[-2000:]}")


def environment(endpoint: str, service: str) -> dict[str, str]:
    return {
        **launch.environment(endpoint),
        **QUIET,
        "OTEL_SERVICE_NAME": service,
        # The app's own span would be called _OTHER: a name may hold anything.
        "SOTTOVOCE_ALLOW": "span:demo",
        # The machine may be busy; nothing of the last batch shall be missing from the picture.
        "SOTTOVOCE_EXIT_TIMEOUT": "10",
    }


def run_app(parts: dict[str, str], heard: Path, endpoint: str) -> int:
    command = [sys.executable, str(HERE / "app.py"), "--said", SAID, "--heard", str(heard)]
    for name, value in parts.items():
        command += [f"--{name}", value]
    return launch.run(launch.instrumented(command), environment(endpoint, "demo"))


def arrived(store: Store, after: int, parts: dict[str, str]) -> list[Finding]:
    """Whether what the app did is there, call by call."""
    spans = store.spans(after)
    calls = [
        span
        for span in spans
        if "sottovoce.call.outcome" in span.attributes and not span.name.startswith("load_model")
    ]
    loads = [span for span in spans if span.name.startswith("load_model")]
    streams = [s for s in calls if "gen_ai.response.time_to_first_chunk" in s.attributes]
    failed = [s for s in calls if s.attributes["sottovoce.call.outcome"] == "failed"]
    counted = ["gen_ai.usage.output_tokens" in span.attributes for span in calls]
    timed = [point.count for point in store.points(after) if point.name in DURATIONS]
    engines = ("mlx" in parts) + ("gguf" in parts)
    remote = "server" in parts
    served = sum(span.kind == SERVER for span in calls)
    expected = (
        ("one tree", 1, len({span.trace for span in calls})),
        ("the app's own span", 1, sum(span.name == "demo" for span in spans)),
        # The server loads its own at its start, and tries to load the one that is not there.
        ("models loaded", engines + 2 * remote, len(loads)),
        ("calls in process", 2 * engines, sum(span.kind == INTERNAL for span in calls)),
        ("calls over HTTP", 4 * remote, sum(span.kind == CLIENT for span in calls)),
        ("calls that the server answered", 4 * remote, served),
        ("streams", engines + 2 * remote, len(streams)),
        ("failed calls", 2 * remote, len(failed)),
        ("calls with token counts", 2 * engines + 6 * remote, sum(counted)),
        ("calls in the duration histogram", 2 * engines + 4 * remote, sum(timed)),
    )
    missing = [
        Finding(False, f"{what}: expected {wanted}, {got} arrived")
        for what, wanted, got in expected
        if wanted != got
    ]
    return missing or [
        Finding(
            True,
            f"all {len(calls) - served} calls arrived in one tree, {served} of them with the "
            f"server's side, {remote:d} a failure as meant",
        )
    ]


def silent(store: Store, after: int, heard: Path) -> list[Finding]:
    """Whether nothing of the sentence left; and whether the search would have found it."""
    reports = [search(store.requests(after), text) for text in LOOKED_FOR]
    found = [
        Finding(
            False,
            f"what was said left in request {hit.request} ({hit.signal}, {hit.place}), as {hit.form}",
        )
        for report in reports
        for hit in report.hits
    ]
    said = heard.read_bytes() if heard.exists() else b""
    if found:
        return found
    if not reports[0].requests:
        return [Finding(False, "nothing was received, so nothing can be said about it")]
    if not all(Needle(text).find(said) for text in LOOKED_FOR):
        return [Finding(False, "the search does not even find the sentence in the app's prompts")]
    return [
        Finding(
            True,
            f"“{SAID}”, and parts of it, occur in none of the {reports[0].plain:,} bytes that left",
        ),
        Finding(
            True, f"the same search finds them in the {len(said):,} bytes of the app's own prompts"
        ),
    ]


class Collector:
    """Passes every request that the receiver gets on to a Collector, unchanged."""

    def __init__(self, endpoint: str, headers: dict[str, str]) -> None:
        self.endpoint = endpoint.rstrip("/")
        self.headers = headers
        self.accepted = 0
        self.failures: list[str] = []

    def __call__(self, request) -> None:
        headers = {**self.headers, "Content-Type": "application/x-protobuf"}
        if request.encoding:
            headers["Content-Encoding"] = request.encoding
        url = f"{self.endpoint}/v1/{request.signal}"
        try:
            post = urllib.request.Request(url, request.body, headers, method="POST")
            with urllib.request.urlopen(post, timeout=5):
                self.accepted += 1
        except (OSError, ValueError, HTTPException) as error:
            self.failures.append(f"{request.signal}: {error}")

    def report(self) -> None:
        say(f"the Collector at {self.endpoint} accepted {self.accepted} requests")
        for failure in self.failures:
            say(f"it did not take {failure}")


def collector() -> Collector | None:
    """The Collector that the environment names, or that answers where Collectors answer."""
    named = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "").strip()
    if named:
        pairs = os.environ.get("OTEL_EXPORTER_OTLP_HEADERS", "").split(",")
        headers = {
            name.strip(): urllib.parse.unquote(value.strip())
            for name, found, value in (pair.partition("=") for pair in pairs)
            if found
        }
        say(f"everything that leaves is passed on to {named}, too")
        return Collector(named, headers)
    usual = f"http://127.0.0.1:{DEFAULT_PORT}"
    empty = urllib.request.Request(
        f"{usual}/v1/traces", b"", {"Content-Type": "application/x-protobuf"}, method="POST"
    )
    try:
        with urllib.request.urlopen(empty, timeout=2) as answer:
            # Whatever else may listen there gets nothing.
            if answer.headers.get_content_type() != "application/x-protobuf":
                raise ValueError
            say(f"a Collector answers at {usual}: everything that leaves is passed on to it, too")
            return Collector(usual, {})
    except (OSError, ValueError, HTTPException):
        say("no Collector answers on this machine: our own receiver stands in")
        return None


if __name__ == "__main__":
    raise SystemExit(main())
