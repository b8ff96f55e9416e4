"""What it costs to ask whether a model id is public: import, first question, later ones."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time

BYTECODE = tempfile.TemporaryDirectory()

IMPORT = """
import collections, functools, logging, time, sottovoce.registry, sottovoce.settings
started = time.perf_counter()
import sottovoce.privacy.catalogue
print((time.perf_counter() - started) * 1e6)
"""
LOADED = """
import sottovoce.privacy.catalogue as catalogue, time
for _ in range(2):
    started = time.perf_counter()
    catalogue.is_public(_ * "x" or "gpt-4o")
    print((time.perf_counter() - started) * 1e6)
"""
UNSEEN = (
    "gpt-4o-2026-{:02}-{:02}",
    "claude-3-5-sonnet-2025{:02}{:02}",
    "ft:gpt-4o:acme::{:02}{:02}",
    "acme/gpt-4o-{:02}{:02}",
    "us.anthropic.claude-3-5-sonnet-2025{:02}{:02}-v2:0",
    "mlx-community/llama-3.2-{:02}{:02}",
    "mlx-community/Llama-3.2-3B-Instruct-{:02}{:02}bit",
)


def printed(code: str) -> list[float]:
    # As installed: with bytecode, which is read from a place of this run's own.
    environment = {
        **os.environ,
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONPYCACHEPREFIX": BYTECODE.name,
    }
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    return [float(line) for line in done.stdout.split()]


def main() -> None:
    from sottovoce.privacy import catalogue

    imports = statistics.median(printed(IMPORT)[0] for _ in range(15))
    firsts = statistics.median(printed(LOADED)[0] for _ in range(15))
    print(f"{'µs':48}{'median':>9}{'90 %':>9}")
    print(f"{'import':48}{imports:9.0f}")
    print(f"{'first question of a process, reads the list':48}{firsts:9.0f}")
    for form in UNSEEN:
        catalogue.is_public(form.format(1, 1))
        costs = []
        for month in range(1, 13):
            for day in range(2, 29):
                model = form.format(month, day)
                started = time.perf_counter()
                catalogue.is_public(model)
                costs.append((time.perf_counter() - started) * 1e6)
        costs.sort()
        name = f"not seen before: {form.format(12, 31)}"
        print(f"{name[:47]:48}{statistics.median(costs):9.1f}{costs[len(costs) * 9 // 10]:9.1f}")
    again = []
    for _ in range(50):
        started = time.perf_counter()
        for _ in range(10_000):
            catalogue.is_public("gpt-4o")
        again.append((time.perf_counter() - started) * 100)
    print(f"{'seen before':48}{statistics.median(again):9.2f}{sorted(again)[45]:9.2f}")


if __name__ == "__main__":
    main()
