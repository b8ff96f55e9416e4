"""The gate against the Collector's redaction processor with the same allow-list: CPU a span.

Run: ``python benchmarks/redaction.py [rounds]``. Two Collectors of the same build get the same
spans of 40 attributes over OTLP/HTTP and hand them to an exporter that only counts; one has
`redaction/allow_traces` of collector-config/allow.yaml before it. What the processor costs is
the difference of the CPU time of the two processes (/proc/PID/stat, so Linux only); rounds are
interleaved. It does less than the gate: keys only, no values, no names, no types.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import yaml
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import SynchronousMultiSpanProcessor

from gate import FOREIGN, OURS, Sink, cost, span_of
from sottovoce.privacy.policy import Policy
from sottovoce.privacy.spans import SpanGate
from sottovoce.settings import Settings

ROOT = Path(__file__).resolve().parents[1]

TICKS = os.sysconf("SC_CLK_TCK")
# So many that a tick of the clock, 10 ms, is less than 0.2 µs a span.
BATCH, BATCHES = 500, 120


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Collector:
    """A Collector that receives spans, does `processors` and counts."""

    def __init__(self, program, folder, processors):
        port, health = free_port(), free_port()
        allow = yaml.safe_load((ROOT / "collector-config" / "allow.yaml").read_text())
        named = {name: allow["processors"][name] for name in processors}
        config = {
            "receivers": {"otlp": {"protocols": {"http": {"endpoint": f"127.0.0.1:{port}"}}}},
            "processors": named,
            "exporters": {"debug": {"verbosity": "basic"}},
            "extensions": {"health_check": {"endpoint": f"127.0.0.1:{health}"}},
            "service": {
                "extensions": ["health_check"],
                "telemetry": {"metrics": {"level": "none"}, "logs": {"level": "error"}},
                "pipelines": {
                    "traces": {
                        "receivers": ["otlp"],
                        "processors": processors,
                        "exporters": ["debug"],
                    }
                },
            },
        }
        path = folder / f"{port}.yaml"
        path.write_text(json.dumps(config))
        self.url = f"http://127.0.0.1:{port}/v1/traces"
        self.process = subprocess.Popen([program, f"--config={path}"], stderr=subprocess.DEVNULL)
        for _ in range(200):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{health}/", timeout=1).close()
                return
            except OSError:
                time.sleep(0.05)
        self.stop()
        raise SystemExit("the Collector did not start")

    def spent(self):
        """CPU seconds of the process so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def cost(self, body):
        """Microseconds a span, of sending `BATCHES` requests of `BATCH` spans."""
        begin = self.spent()
        for _ in range(BATCHES):
            request = urllib.request.Request(
                self.url, body, {"Content-Type": "application/x-protobuf"}
            )
            urllib.request.urlopen(request, timeout=30).close()
        return (self.spent() - begin) * 1e6 / (BATCH * BATCHES)

    def stop(self):
        self.process.terminate()
        self.process.wait(10)


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    program = subprocess.run(
        [sys.executable, ROOT / "tools" / "collector.py", "--path"],
        stdout=subprocess.PIPE,
        text=True,
    ).stdout.strip()
    if not program or not Path("/proc/self/stat").exists():
        print("needs Linux, and a Collector: see tools/collector.py")
        return
    gate, plain = (
        SpanGate(Policy(Settings(key="a secret of the benchmark"))),
        SynchronousMultiSpanProcessor(),
    )
    for processor in (gate, plain):
        processor.add_span_processor(Sink())
    spans = {"own span, all kept": span_of(OURS), "foreign span, 24 dropped": span_of(FOREIGN)}
    with tempfile.TemporaryDirectory() as folder:
        bare = Collector(program, Path(folder), [])
        redacting = Collector(program, Path(folder), ["redaction/allow_traces"])
        try:
            print(
                f"{'CPU, µs a span of 40 attributes':33}{'Collector':>10}{'with redaction':>16}"
                f"{'added':>7}   lowest .. highest{'our gate adds':>16}"
            )
            for name, span in spans.items():
                body = encode_spans([span] * BATCH).SerializeToString()
                alone, within, added, by_gate = [], [], [], []
                for turn in range(rounds + 1):
                    received, redacted = bare.cost(body), redacting.cost(body)
                    gated = cost(gate.on_end, span) - cost(plain.on_end, span)
                    if turn:  # the first is the warm-up
                        alone.append(received)
                        within.append(redacted)
                        added.append(redacted - received)
                        by_gate.append(gated)
                print(
                    f"{name:33}{statistics.median(alone):10.2f}{statistics.median(within):16.2f}"
                    f"{statistics.median(added):7.2f}   {min(added):6.2f} .. {max(added):7.2f}"
                    f"{statistics.median(by_gate):16.2f}"
                )
        finally:
            bare.stop()
            redacting.stop()


if __name__ == "__main__":
    main()
