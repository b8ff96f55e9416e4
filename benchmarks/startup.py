"""What starting costs: the launcher over plain Python and over the stock SDK, and our imports.

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
IMPORT = """
import time
{before}
began = time.perf_counter()
{counted}
print(time.perf_counter() - began)
"""
PUBLIC = """
import time
began = time.perf_counter()
import sottovoce
print(time.perf_counter() - began)
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
        imports, hooks, public = [], [], []
        for _ in range(ROUNDS):
            for name, (command, env) in variants.items():
                figures[name].append(process(command, env))
            program = IMPORT.format(before=THE_SDK, counted=OURS)
            imports.append(printed(program, environment()))
            program = IMPORT.format(before=THE_SDK + OURS, counted=HOOKS)
            hooks.append(printed(program, environment()))
            public.append(printed(PUBLIC, environment()))

    print(f"Start-up, median of {ROUNDS} (quartiles), milliseconds\n")
    print(f"{'':38}{'wall':>26}{'CPU':>26}")
    for name, taken in figures.items():
        wall, cpu = zip(*taken, strict=True)
        print(f"{name:38}{spread(wall):>26}{spread(cpu):>26}")
    for over in ("plain python", "launcher, stock SDK"):
        pairs = zip(figures["launcher, sottovoce"], figures[over], strict=True)
        wall, cpu = zip(*((a - c, b - d) for (a, b), (c, d) in pairs), strict=True)
        print(f"{'sottovoce over ' + over:38}{spread(wall):>26}{spread(cpu):>26}")
    print(f"\n{'import of the core over the SDK':38}{spread(imports):>26}")
    print(f"{'import of the hooks over both':38}{spread(hooks):>26}")
    print(f"{'import sottovoce':38}{spread(public):>26}")


if __name__ == "__main__":
    main()
