"""A real Collector as a process: started on free loopback ports, read by what it wrote."""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "collector-config"
NO_COLLECTOR = 3  # tools/collector.py: neither a Collector nor Go


@pytest.fixture(scope="session")
def otelcol() -> Path:
    """The Collector's program, built when it is not there yet (minutes, once)."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "collector.py"), "--path"],
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode == NO_COLLECTOR and os.environ.get("CI", "").lower() not in (
        "1",
        "true",
        "yes",
    ):
        pytest.skip(
            "NO COLLECTOR AND NO GO: what leaves the process was not tested end to end. "
            "Run tools/collector.py to see how to get one."
        )
    assert done.returncode == 0, "tools/collector.py found and built no Collector, see its output"
    return Path(done.stdout.strip())


def free_ports(count: int) -> list[int]:
    """Ports for servers that must be told theirs.

    Below those that a system gives to whoever connects, or asks for any: what else runs here may
    take one of those before the server does.
    """
    found: set[int] = set()
    while len(found) < count:
        port = secrets.choice(range(10_000, 30_000))
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.add(port)
    return sorted(found)


def plain(value: dict[str, Any]) -> Any:
    """An OTLP JSON AnyValue as Python has it."""
    ((kind, inner),) = value.items() or (("stringValue", None),)
    if kind == "intValue":
        return int(inner)
    if kind == "arrayValue":
        return [plain(each) for each in inner.get("values", [])]
    if kind == "kvlistValue":
        return mapping(inner.get("values", []))
    return inner


def mapping(attributes: list[dict[str, Any]]) -> dict[str, Any]:
    return {each["key"]: plain(each["value"]) for each in attributes}


@dataclass
class Collector:
    """One running Collector. `stop` first, then look at what it wrote: stopping flushes."""

    program: Path
    folder: Path
    configs: tuple[Path, ...] = (CONFIG / "local.yaml",)
    environ: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen | None = None

    @property
    def out(self) -> Path:
        return self.folder / "telemetry.jsonl"

    @property
    def log(self) -> Path:
        """What the Collector itself printed on standard output and error."""
        return self.folder / "collector.log"

    def start(self) -> "Collector":
        self.folder.mkdir(parents=True, exist_ok=True)
        for _ in range(3):  # another process may take a port between finding and using it
            grpc, http, health = free_ports(3)
            self.grpc = f"127.0.0.1:{grpc}"
            self.http = f"http://127.0.0.1:{http}"
            environ = {
                "PATH": os.environ["PATH"],
                "HOME": str(self.folder),
                "SOTTOVOCE_COLLECTOR_OUT": str(self.out),
                "SOTTOVOCE_COLLECTOR_GRPC": self.grpc,
                "SOTTOVOCE_COLLECTOR_HTTP": f"127.0.0.1:{http}",
                "SOTTOVOCE_COLLECTOR_HEALTH": f"127.0.0.1:{health}",
                **self.environ,
            }
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(
                    [str(self.program), *(f"--config={each}" for each in self.configs)],
                    env=environ,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            if self._healthy(f"http://127.0.0.1:{health}/"):
                return self
            self.stop()
        raise AssertionError(f"the Collector did not start:\n{self.log.read_text()}")

    def _healthy(self, url: str) -> bool:
        assert self.process is not None
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                with urllib.request.urlopen(url, timeout=2):
                    return True
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
        return False

    def stop(self) -> "Collector":
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)
        return self

    def wait_for(self, text: str, seconds: float = 30) -> None:
        """Wait until `text` is in what the Collector wrote."""
        deadline = time.monotonic() + seconds
        while text not in (self.out.read_text() if self.out.exists() else ""):
            assert time.monotonic() < deadline, f"{text!r} never came:\n{self.log.read_text()}"
            time.sleep(0.05)

    def requests(self) -> list[dict[str, Any]]:
        """The OTLP requests that it wrote, as the file exporter spells them."""
        return [json.loads(line) for line in self.out.read_text().splitlines()]

    def _each(self, signal: str, scopes: str, items: str) -> Iterator[dict[str, Any]]:
        for request in self.requests():
            for resource in request.get(signal, ()):
                origin = mapping(resource.get("resource", {}).get("attributes", []))
                for scope in resource.get(scopes, ()):
                    for item in scope.get(items, ()):
                        yield {
                            **item,
                            "attributes": mapping(item.get("attributes", [])),
                            "resource": origin,
                            "scope": scope.get("scope", {}).get("name", ""),
                        }

    def spans(self) -> list[dict[str, Any]]:
        return list(self._each("resourceSpans", "scopeSpans", "spans"))

    def log_records(self) -> list[dict[str, Any]]:
        return list(self._each("resourceLogs", "scopeLogs", "logRecords"))

    def points(self) -> dict[str, list[dict[str, Any]]]:
        """Metric name -> its points, attributes as a mapping. What came last is the total."""
        found: dict[str, list[dict[str, Any]]] = {}
        for metric in self._each("resourceMetrics", "scopeMetrics", "metrics"):
            (kind,) = {"sum", "gauge", "histogram", "exponentialHistogram"} & metric.keys()
            found[metric["name"]] = [
                {
                    **point,
                    "attributes": mapping(point.get("attributes", [])),
                    "unit": metric.get("unit", ""),
                    "resource": metric["resource"],
                }
                for point in metric[kind]["dataPoints"]
            ]
        return found

    def everything(self) -> str:
        """Every byte that it wrote or printed, as text."""
        return self.out.read_text() + self.log.read_text()


@pytest.fixture
def collectors(otelcol: Path, tmp_path: Path) -> Iterator[Any]:
    """Makes Collectors with local.yaml or other configurations; ends them all."""
    made: list[Collector] = []

    def make(*configs: Path, **environ: str) -> Collector:
        folder = tmp_path / f"collector-{len(made)}"
        each = Collector(otelcol, folder, configs or (CONFIG / "local.yaml",), environ)
        made.append(each)
        return each.start()

    try:
        yield make
    finally:
        for each in made:
            each.stop()


@pytest.fixture
def collector(collectors) -> Collector:
    """A Collector with local.yaml."""
    return collectors()
