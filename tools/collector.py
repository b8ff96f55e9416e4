"""Find or build the OpenTelemetry Collector that our configurations and tests run on.

The first of these that exists: the program that `$OTELCOL` names; `otelcol-sottovoce`,
`otelcol-contrib` or `otelcol` on PATH, when it takes our configurations; a build of
`collector-config/builder.yaml` by the machine's Go, made once and kept under
`$OTELCOL_CACHE`, else `$XDG_CACHE_HOME/sottovoce/collector`. Nothing prebuilt is downloaded.

Exit status: 0 with the path on standard output (progress goes to standard error), 1 when it
cannot be built or `$OTELCOL` cannot be used, 3 when there is neither a Collector nor Go.
Needs Python's standard library alone, so that it runs before any environment exists.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

CONFIG = Path(__file__).resolve().parent.parent / "collector-config"
MANIFEST = CONFIG / "builder.yaml"
NAME = "otelcol-sottovoce"
ON_PATH = (NAME, "otelcol-contrib", "otelcol")
BUILDER = "go.opentelemetry.io/collector/cmd/builder"
CORE = "go.opentelemetry.io/collector/otelcol"
NO_COLLECTOR = 3
TICK_S = 10

NO_GO = f"""\
There is no OpenTelemetry Collector here and no Go to build one.
  What it costs: the end-to-end tests (tests/e2e) cannot run; nothing else needs it.
  How to get it, any one of:
    Go 1.26 or newer   https://go.dev/dl/, `brew install go`, or your distribution's golang
                       when it is new enough (Debian 12's is not); then `make collector`
                       (two minutes on 2 cores, 1.5 GB of Go caches; from 1.21 on Go fetches a newer Go)
    a ready Collector  put otelcol-contrib on PATH, or OTELCOL=/path/to/it
  It must have the components of {MANIFEST.parent.name}/{MANIFEST.name}.
"""


class Failure(Exception):
    """The Collector that was asked for cannot be used or built; the message says why."""


class NoCollector(Failure):
    """Neither a Collector nor Go is on this machine."""


def say(text: str) -> None:
    """Print progress, away from standard output, which carries the path alone."""
    print(text, file=sys.stderr, flush=True)


def find(environ: Mapping[str, str]) -> Path:
    """Return the Collector's path, building it when there is none.

    Raises:
        NoCollector: without a Collector and without Go.
        Failure: when `$OTELCOL` cannot be run, or the build fails.
    """
    named = environ.get("OTELCOL")
    if named:
        path = shutil.which(named)
        if path is None:
            raise Failure(f"OTELCOL={named}: no such program")
        return Path(path).resolve()
    for name in ON_PATH:
        path = shutil.which(name)
        if path is None:
            continue
        reason = refusal(path)
        if not reason:
            return Path(path).resolve()
        say(f"{path} is not used: it does not take our configuration ({reason})")
    return built(environ)


def refusal(program: str) -> str:
    """Why `program` cannot run our configurations; empty when it can."""
    command = [program, "validate", f"--config={CONFIG / 'local.yaml'}"]
    command += [f"--config={CONFIG / 'backend.yaml'}"]
    environ = {**os.environ, "SOTTOVOCE_BACKEND": "http://127.0.0.1:4318"}
    try:
        done = subprocess.run(
            command, env=environ, capture_output=True, text=True, check=False, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return ""
    lines = (done.stderr or done.stdout).strip().splitlines()
    return lines[-1] if lines else f"status {done.returncode}"


def built(environ: Mapping[str, str]) -> Path:
    """Return the cached build of the manifest, made now if it is not there."""
    home = environ.get("OTELCOL_CACHE")
    if home:
        root = Path(home)
    else:
        root = Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        root = root / "sottovoce" / "collector"
    manifest = MANIFEST.read_text(encoding="utf-8")
    # Comments may change without a new build.
    essence = "\n".join(re.sub(r"\s*(#.*)?$", "", line) for line in manifest.splitlines())
    key = hashlib.sha256(f"{platform.system()}-{platform.machine()}\n{essence}".encode())
    room = root.resolve() / key.hexdigest()[:16]
    program = room / NAME
    if program.is_file():
        return program
    go = shutil.which("go")
    if go is None:
        raise NoCollector(NO_GO)
    room.mkdir(parents=True, exist_ok=True)
    with locked(room / "lock"):
        if not program.is_file():
            with tempfile.TemporaryDirectory(prefix="build-", dir=room) as folder:
                build(go, manifest, Path(folder), environ)
                Path(folder, NAME).replace(program)
    return program


def build(go: str, manifest: str, folder: Path, environ: Mapping[str, str]) -> None:
    """Build `manifest` in `folder`, with Go's own settings (GOFLAGS, GOPROXY, …) as they are."""
    version = re.search(r"^  version: (\S+)$", manifest, re.MULTILINE)
    modules = re.findall(r"^  - gomod: (\S+) (\S+)$", manifest, re.MULTILINE)
    if version is None or not modules:
        raise Failure(f"{MANIFEST}: no version or no module found in it")
    settings = folder / MANIFEST.name
    settings.write_text(manifest.replace("dist:\n", f"dist:\n  output_path: {folder}\n", 1))
    environ = {**environ, "GOWORK": "off", "CGO_ENABLED": "0"}
    # A build in the background of someone's work.
    os.nice(10)
    started = time.monotonic()
    say(f"Building the OpenTelemetry Collector {version[1]} (once, minutes) into {folder.parent}")
    # The builder writes the sources. It would also run `go mod tidy`, which fetches whatever
    # the tests of every component import; `go get` fetches what the program itself needs,
    # and refuses when the versions of the manifest contradict each other.
    steps: Sequence[tuple[str, Sequence[str]]] = (
        (
            "writing the sources",
            (
                "run",
                f"{BUILDER}@v{version[1]}",
                f"--config={settings}",
                "--skip-compilation",
                "--skip-get-modules",
            ),
        ),
        ("naming the module", ("mod", "init", NAME)),
        (
            "fetching the modules",
            ("get", f"{CORE}@v{version[1]}", *(f"{name}@{at}" for name, at in modules)),
        ),
        (
            "compiling",
            ("build", "-v", "-mod=mod", "-trimpath", "-ldflags=-s -w", "-o", NAME, "."),
        ),
    )
    for number, (what, arguments) in enumerate(steps, 1):
        say(f"[{number}/{len(steps)}] {what}")
        step([go, *arguments], folder, environ)
    say(f"Built in {time.monotonic() - started:.0f} s")


def step(command: Sequence[str], folder: Path, environ: Mapping[str, str]) -> None:
    """Run one step, with a sign of life every few seconds and its last lines if it fails."""
    started = time.monotonic()
    last: deque[str] = deque(maxlen=25)
    count = 0
    with subprocess.Popen(
        command,
        cwd=folder,
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:

        def read() -> None:
            nonlocal count
            for line in process.stdout or ():
                last.append(line.rstrip())
                count += 1

        reader = threading.Thread(target=read)
        reader.start()
        while reader.is_alive():
            reader.join(TICK_S)
            if reader.is_alive():
                at = last[-1] if last else ""
                say(f"      {time.monotonic() - started:4.0f} s, {count} done, now {at[:90]}")
    if process.returncode:
        raise Failure(
            "\n".join(last)
            + f"\n`{' '.join(command[:3])} …` failed with status {process.returncode}."
            + "\nThe build needs Go 1.26 or newer and a module proxy (`go env GOPROXY`)."
        )


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the file's lock: of two builds at once the second waits for the first's result."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Run the command line; returns the exit status."""
    summary = __doc__ or ""
    parser = argparse.ArgumentParser(description=summary.partition("\n")[0])
    parser.add_argument("--path", action="store_true", help="print the path and nothing else")
    parser.add_argument(
        "--optional",
        action="store_true",
        help="succeed where there is neither a Collector nor Go, unless CI is set",
    )
    options = parser.parse_args()
    try:
        path = find(os.environ)
    except NoCollector as missing:
        say(str(missing))
        in_ci = os.environ.get("CI", "").lower() in {"1", "true", "yes"}
        return 0 if options.optional and not in_ci else NO_COLLECTOR
    except Failure as failure:
        say(str(failure))
        return 1
    if options.path:
        print(path)
    else:
        print(f"Collector: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
