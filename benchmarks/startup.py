"""What starting costs: the launcher over plain Python and over the stock SDK, instrumenting from
code, what the first call loads, and our imports.

    python benchmarks/startup.py [rounds]

Every figure is a fresh process; the variants are interleaved, so that a noisy machine is
noisy for all. Processes end by `os._exit`, so that the end of a pipeline is not counted.
The stock SDK is what its own configurator sets up from the same variables, with
sottovoce's entry points hidden.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 15
BIN = Path(sys.executable).parent
LEAVE = "import os; os._exit(0)"

STOCK = """
from opentelemetry.sdk._configuration import _OTelSDKConfigurator
from opentelemetry.instrumentation.distro import DefaultDistro
class Configurator(_OTelSDKConfigurator):
    pass
class Distro(DefaultDistro):
    pass
"""
STOCK_ENTRY_POINTS = """[opentelemetry_distro]
stock = stock:Distro
[opentelemetry_configurator]
stock = stock:Configurator
"""

# What the SDK's configurator loads for OTLP over HTTP, and the launcher before it.
THE_SDK = """
import opentelemetry.instrumentation.auto_instrumentation._load
import opentelemetry.sdk._configuration
import opentelemetry.exporter.otlp.proto.http.trace_exporter
import opentelemetry.exporter.otlp.proto.http.metric_exporter
import requests
"""
OURS = """
import sottovoce.distro
import sottovoce.delivery.pipeline
import sottovoce.instrumentors
"""
HOOKS = """
import sottovoce.clients.generated
import sottovoce.transports.httpx
import sottovoce.runtimes.mlx
import sottovoce.runtimes.llama_cpp
"""
CLIENTS = """
import httpx, openai
import opentelemetry.instrumentation.instrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
given = {"tracer_provider": TracerProvider(), "meter_provider": MeterProvider()}
"""
INSTRUMENT = """
from sottovoce import HTTPXInstrumentor, OpenAIInstrumentor
OpenAIInstrumentor().instrument(**given)
HTTPXInstrumentor().instrument(**given)
"""
# A transport asks for both when the first request comes that asks a model.
FIRST_CALL = """
import sottovoce.transports.sending
sottovoce.protocols.routes.match("POST", "/v1/chat/completions")
"""
# Processor time of the thread: what else the machine does is none of ours.
# Collected before: a full collection of what the SDKs are made of falls on whoever is next.
COUNTED = """
import gc, time
{before}
gc.collect()
began = time.thread_time()
{counted}
print(time.thread_time() - began)
"""


def environment(**variables):
    foreign = ("OTEL_", "SOTTOVOCE_", "PYTHON")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return {**kept, **variables}


def distribution(folder, name, entry_points):
    info = folder / f"{name}-9.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 9\n")
    (info / "entry_points.txt").write_text(entry_points)


def process(command, env):
    """Seconds of wall clock and of CPU that a process took."""
    began = time.perf_counter()
    child = subprocess.Popen(command, env=env)
    _, status, usage = os.wait4(child.pid, 0)
    took = time.perf_counter() - began
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0, command
    return took, usage.ru_utime + usage.ru_stime


def printed(program, env):
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return float(done.stdout)


def spread(values):
    low, _, high = statistics.quantiles(values, n=4)
    return f"{statistics.median(values) * 1e3:8.1f} ({low * 1e3:.1f} to {high * 1e3:.1f})"


def lowest(values):
    """The tenth part that was disturbed least."""
    return sorted(values)[len(values) // 10] * 1e3


def main():
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "stock.py").write_text(STOCK)
        distribution(folder, "stock", STOCK_ENTRY_POINTS)
        # A distribution of the same name that is found first hides the installed one.
        distribution(folder, "sottovoce", "")
        plain = [sys.executable, "-c", LEAVE]
        launched = [str(BIN / "opentelemetry-instrument"), *plain]
        endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
        stock = {
            **endpoint,
            "PYTHONPATH": made,
            "OTEL_TRACES_EXPORTER": "otlp",
            "OTEL_METRICS_EXPORTER": "otlp",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        }
        variants = {
            "plain python": (plain, environment()),
            "launcher, stock SDK": (launched, environment(**stock)),
            "launcher, sottovoce, no destination": (launched, environment()),
            "launcher, sottovoce": (launched, environment(**endpoint)),
        }
        figures = {name: [] for name in variants}
        counted = {
            "import of the core over the SDK": (THE_SDK, OURS),
            "import of the hooks over both": (THE_SDK + OURS, HOOKS),
            "instrumenting openai and httpx": (CLIENTS, INSTRUMENT),
            "loading for the first call": (CLIENTS + INSTRUMENT, FIRST_CALL),
            "import sottovoce": ("", "import sottovoce"),
        }
        parts = {name: [] for name in counted}
        for _ in range(ROUNDS):
            for name, (command, env) in variants.items():
                figures[name].append(process(command, env))
            for name, (before, program) in counted.items():
                program = COUNTED.format(before=before, counted=program)
                parts[name].append(printed(program, environment()))

    print(f"Start-up, median of {ROUNDS} (quartiles), milliseconds\n")
    print(f"{'':38}{'wall':>26}{'CPU':>26}")
    for name, taken in figures.items():
        wall, cpu = zip(*taken, strict=True)
        print(f"{name:38}{spread(wall):>26}{spread(cpu):>26}")
    for over in ("plain python", "launcher, stock SDK"):
        pairs = zip(figures["launcher, sottovoce"], figures[over], strict=True)
        wall, cpu = zip(*((a - c, b - d) for (a, b), (c, d) in pairs), strict=True)
        print(f"{'sottovoce over ' + over:38}{spread(wall):>26}{spread(cpu):>26}")
        ours, theirs = ([one[1] for one in figures[each]] for each in ("launcher, sottovoce", over))
        print(f"{'':10}undisturbed{lowest(ours) - lowest(theirs):69.1f}")
    print(f"\n{'':38}{'CPU':>26}")
    for name, taken in parts.items():
        print(f"{name:38}{spread(taken):>26}{lowest(taken):9.1f} undisturbed")


if __name__ == "__main__":
    main()
