"""The peers, an environment for each, and a process in it."""

import hashlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CLIENTS = ("openai", "anthropic")
SDK = ("opentelemetry-sdk>=1.45,<2", "httpx<1")
PATIENCE = 120  # seconds for an answer
UV = Path(sys.executable).with_name("uv")


@dataclass(frozen=True)
class Peer:
    """One instrumentation.

    Attributes:
        requires: what its environment is made of, besides the SDKs; the first is shown.
        settings: name of a setting -> variables. One named `nothing…` instruments nothing.
        clients: the SDKs that it instruments.
    """

    requires: tuple[str, ...]
    settings: dict = field(default_factory=lambda: {"default": {}})
    clients: tuple[str, ...] = CLIENTS


PEERS = {
    "floor": Peer((), {"nothing twice": {}, "by hand": {}}),
    "sottovoce": Peer((f"sottovoce @ {ROOT.as_uri()}",), {"default": {}, "no gate": {}}),
    "official genai": Peer(
        (
            "opentelemetry-instrumentation-genai-openai",
            "opentelemetry-instrumentation-genai-anthropic",
        )
    ),
    "official openai-v2": Peer(
        # With the version of its shared part that it was made for.
        ("opentelemetry-instrumentation-openai-v2", "opentelemetry-util-genai<1.2"),
        clients=("openai",),
    ),
    "OpenLLMetry": Peer(
        ("opentelemetry-instrumentation-openai", "opentelemetry-instrumentation-anthropic"),
        {"off": {"TRACELOOP_TRACE_CONTENT": "false"}, "default": {}},
    ),
    "OpenInference": Peer(
        ("openinference-instrumentation-openai", "openinference-instrumentation-anthropic"),
        {
            "off": {
                "OPENINFERENCE_HIDE_INPUTS": "true",
                "OPENINFERENCE_HIDE_OUTPUTS": "true",
                "OPENINFERENCE_HIDE_LLM_INVOCATION_PARAMETERS": "true",
            },
            "default": {},
        },
    ),
    "OpenLIT": Peer(("openlit",), {"off": {}, "default": {}}),
    "Logfire": Peer(("logfire",)),
}
# What a process of the benchmark must not inherit.
FOREIGN = ("OTEL_", "SOTTOVOCE_", "PYTHON", "TRACELOOP_", "OPENINFERENCE_", "OPENLIT_", "LOGFIRE_")
FOREIGN += ("OPENAI_", "ANTHROPIC_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
# anthropic 2 makes spans of its own: no part of anybody's cost. What is exported is checked
# with them, as users have them; our launcher sets the variable.
NO_OWN_SPANS = {"ANTHROPIC_OPEN_TELEMETRY": "false"}
# A plugin of pydantic that comes with an instrumentation is part of its cost.
NO_PLUGINS = {"PYDANTIC_DISABLE_PLUGINS": "__all__"}


class Unmade(Exception):
    """An environment that cannot be made, or a process that ended; the message says why."""


def say(text):
    print(f"-- {text}", file=sys.stderr, flush=True)


@lru_cache
def environment(name):
    """Make, or find, the environment of a peer; gives its interpreter."""
    cache = Path(
        os.environ.get("SOTTOVOCE_CACHE")
        or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sottovoce"
    )
    wanted = [*PEERS[name].requires, *CLIENTS, *SDK]
    # A new month, new releases of everyone.
    stamp = hashlib.sha256(
        json.dumps(["compiled", wanted, sys.version, time.strftime("%Y-%m")]).encode()
    ).hexdigest()[:12]
    folder = cache / "peers" / f"{name.replace(' ', '-')}-{stamp}"
    python, done = folder / "bin" / "python", folder / ".done"
    if not done.exists() or name == "sottovoce":
        say(f"making the environment of {name}")
        if not python.exists():
            subprocess.run([UV, "venv", "-q", "--python", sys.executable, folder], check=True)
        options = ["--prerelease=if-necessary-or-explicit", "--compile-bytecode"]
        if name == "sottovoce":
            options += ["--reinstall-package", "sottovoce"]
        made = subprocess.run(
            [UV, "pip", "install", "-q", "--python", python, *options, *wanted, *explicit(wanted)],
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode:
            raise Unmade(made.stderr.strip().splitlines()[-1])
        done.touch()
    return python


def explicit(wanted):
    """OpenTelemetry's beta packages, which an installer takes only when told."""
    if not any(one.startswith("opentelemetry-instrumentation") or "://" in one for one in wanted):
        return []
    return ["opentelemetry-instrumentation>=0.66b0", "opentelemetry-semantic-conventions>=0.66b0"]


def versions(name):
    """What is installed of what was asked for, as one line."""
    listed = subprocess.run(
        [UV, "pip", "list", "-q", "--format=json", "--python", environment(name)],
        capture_output=True,
        text=True,
        check=True,
    )
    have = {each["name"]: each["version"] for each in json.loads(listed.stdout)}
    wanted = [*PEERS[name].requires, "opentelemetry-sdk", *CLIENTS]
    bare = [one.partition(" ")[0].partition("<")[0] for one in wanted]
    return f"{name}: " + ", ".join(f"{one} {have.get(one, '?')}" for one in bare)


class Worker:
    """A process with one setting of one peer, or (`setting` None) with nothing in its environment.

    `seed` orders what is hashed; with `keep` everything that is exported is kept, to be checked.
    """

    def __init__(self, name, setting, url, seed=0, keep=False):
        nothing = setting is None or setting.startswith("nothing")
        runs = "none" if nothing else name
        kept = {k: v for k, v in os.environ.items() if not k.upper().startswith(FOREIGN)}
        own = NO_PLUGINS if nothing else PEERS[name].settings[setting]
        if not keep or name == "sottovoce":
            own = {**own, **NO_OWN_SPANS}
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        self.process = subprocess.Popen(
            [
                environment(name),
                HERE / "worker.py",
                runs,
                f"check {setting}" if keep else str(setting),
                url,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env={**kept, **own, "PYTHONHASHSEED": str(seed)},
        )
        self.what = f"{name}, {setting}"
        told = self.hear()
        self.start_up_ms, self.first_call_ms = told["start_up_ms"], told["first_call_ms"]

    def hear(self):
        # One line an answer: nothing of it waits in a buffer.
        if not select.select([self.process.stdout], [], [], PATIENCE)[0]:
            self.process.kill()
            raise Unmade(f"no answer in {PATIENCE} s ({self.what})")
        line = self.process.stdout.readline()
        if not line:
            raise Unmade(f"the process ended ({self.what}): {self.last_words()}")
        return json.loads(line)

    def ask(self, **question):
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return self.hear()

    def last_words(self):
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "no reason given"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.errors.close()
