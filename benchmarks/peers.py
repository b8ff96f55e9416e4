"""Sottovoce beside other instrumentations: cost, memory, start-up, and which facts each gets right.

    python benchmarks/peers.py [--rounds 9] [--only NAME …] [--quick]

Each has an environment of its own (made by uv, kept in the cache folder) with the newest SDKs
that it supports; the same pipeline, prompts and provider on loopback, in another process, for
all. A round runs every case of every setting once, in a new order; what is shown is the median
over the rounds of (setting minus the same environment with nothing in it), CPU time of the
client's process, and the middle half of the rounds. Prints Markdown and writes
it to benchmarks/results/.
"""

import argparse
import hashlib
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results"
SDK = ["opentelemetry-sdk>=1.45,<2", "httpx<1"]


@dataclass(frozen=True)
class Peer:
    """One instrumentation.

    Attributes:
        requires: what its environment is made of; the first is whose version is shown.
        settings: name of a setting -> variables; `none` is added to every environment.
    """

    requires: tuple[str, ...]
    settings: dict = field(default_factory=lambda: {"default": {}})


PEERS = {
    "floor": Peer(("opentelemetry-sdk", "openai", "anthropic"), {"by hand": {}}),
    "sottovoce": Peer(
        (f"sottovoce @ {ROOT.as_uri()}", "openai", "anthropic"),
        {"default": {}, "no gate": {}},
    ),
    "official genai": Peer(
        (
            "opentelemetry-instrumentation-genai-openai",
            "opentelemetry-instrumentation-genai-anthropic",
            "openai",
            "anthropic",
        ),
        {"default": {}},
    ),
    "official openai-v2": Peer(
        # With the version of its shared part that it was made for.
        (
            "opentelemetry-instrumentation-openai-v2",
            "opentelemetry-util-genai<1.2",
            "openai",
            "anthropic",
        ),
        {"default": {}},
    ),
    "OpenLLMetry": Peer(
        (
            "opentelemetry-instrumentation-openai",
            "opentelemetry-instrumentation-anthropic",
            "openai",
            "anthropic",
        ),
        {"off": {"TRACELOOP_TRACE_CONTENT": "false"}, "default": {}},
    ),
    "OpenInference": Peer(
        (
            "openinference-instrumentation-openai",
            "openinference-instrumentation-anthropic",
            "openai",
            "anthropic",
        ),
        {
            "off": {
                "OPENINFERENCE_HIDE_INPUTS": "true",
                "OPENINFERENCE_HIDE_OUTPUTS": "true",
                "OPENINFERENCE_HIDE_LLM_INVOCATION_PARAMETERS": "true",
            },
            "default": {},
        },
    ),
    "OpenLIT": Peer(("openlit", "openai", "anthropic"), {"off": {}, "default": {}}),
    "Logfire": Peer(("logfire", "openai", "anthropic"), {"default": {}}),
}
# Case -> (how it is headed, calls a round).
CASES = {
    "chat": ("chat", 30),
    "stream": ("stream of 200", 4),
    "async_streams": ("50 async streams", 1),
    "embeddings": ("embeddings 8×1536", 10),
    "big": ("100 KB prompt", 20),
    "responses": ("responses", 20),
    "anthropic": ("anthropic", 20),
    "anthropic_stream": ("anthropic stream of 200", 4),
}
PER_CALL = {"async_streams": 50}


def say(text):
    print(f"-- {text}", file=sys.stderr, flush=True)


_made = set()


class Unmade(Exception):
    """An environment that cannot be made; the message is the installer's."""


def environment(name, peer):
    """Make, or find, the environment of a peer; gives its interpreter."""
    cache = Path(
        os.environ.get("SOTTOVOCE_CACHE")
        or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sottovoce"
    )
    wanted = [*peer.requires, *SDK]
    # A new month, new releases of everyone.
    stamp = hashlib.sha256(
        json.dumps([wanted, sys.version, time.strftime("%Y-%m")]).encode()
    ).hexdigest()[:12]
    folder = cache / "peers" / f"{name.replace(' ', '-')}-{stamp}"
    python = folder / "bin" / "python"
    uv = Path(sys.executable).with_name("uv")
    done = folder / ".done"
    if not done.exists() or (name == "sottovoce" and name not in _made):
        say(f"making the environment of {name}")
        if not python.exists():
            subprocess.run([uv, "venv", "-q", "--python", sys.executable, folder], check=True)
        fresh = ["--reinstall-package", "sottovoce"] if name == "sottovoce" else []
        made = subprocess.run(
            [
                uv,
                "pip",
                "install",
                "-q",
                "--python",
                python,
                "--prerelease=if-necessary-or-explicit",
            ]
            + fresh
            + [*wanted, *explicit(wanted)],
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode:
            raise Unmade(made.stderr.strip().splitlines()[-1])
        done.touch()
    _made.add(name)
    return python


def explicit(wanted):
    """OpenTelemetry's beta packages, which an installer takes only when told."""
    if not any(one.startswith("opentelemetry-instrumentation") or "://" in one for one in wanted):
        return []
    return ["opentelemetry-instrumentation>=0.66b0", "opentelemetry-semantic-conventions>=0.66b0"]


class Worker:
    """A process with one setting of one peer."""

    def __init__(self, python, name, setting, variables, url):
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "SOTTOVOCE_"))}
        if name == "sottovoce":
            # What its launcher does before the app runs.
            variables = {**variables, "ANTHROPIC_OPEN_TELEMETRY": "false"}
        if name in {"none", "floor"}:
            variables = {**variables, "ANTHROPIC_OPEN_TELEMETRY": "false"}
        self.process = subprocess.Popen(
            [python, HERE / "peers" / "worker.py", name, setting, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**environ, **variables},
        )
        self.start_up_ms = self.hear()["start_up_ms"]

    def hear(self):
        while True:
            line = self.process.stdout.readline()
            if not line:
                raise Unmade("the process ended")
            if line.startswith("{"):  # some print banners
                return json.loads(line)

    def ask(self, **question):
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return self.hear()

    def end(self):
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def measure(peers, url, rounds, quick):
    """Added cost by (peer, setting) and case: a list of (median, lower, upper) in µs a call."""
    workers, bases, start_up, failed = {}, {}, {}, {}
    for name, peer in peers.items():
        try:
            python = environment(name, peer)
            bases[name] = Worker(python, "none", "none", {}, url)
            for setting, variables in peer.settings.items():
                workers[name, setting] = Worker(python, name, setting, variables, url)
                again = [
                    Worker(python, name, setting, variables, url) for _ in range(1 if quick else 4)
                ]
                start_up[name, setting] = statistics.median(each.start_up_ms for each in again)
                for each in again:
                    each.end()
        except Unmade as error:
            say(f"{name} left out: {error}")
            failed[name] = str(error)
            for key in [key for key in workers if key[0] == name]:
                workers.pop(key).end()
    added = {key: {case: [] for case in CASES} for key in workers}
    base = {name: {case: [] for case in CASES} for name in bases}
    for number in range(rounds + 1):
        say(f"round {number} of {rounds}" + (" (not counted)" if not number else ""))
        for case, (_, calls) in CASES.items():
            calls = max(1, calls // 4) if quick else calls
            for name in random.sample(list(bases), len(bases)):
                settings = [key for key in workers if key[0] == name]
                got = {}
                for key in random.sample([None, *settings], len(settings) + 1):
                    worker = bases[name] if key is None else workers[key]
                    got[key] = worker.ask(case=case, calls=calls)["us"] / PER_CALL.get(case, 1)
                if number:
                    base[name][case].append(got[None])
                    for key in settings:
                        added[key][case].append(got[key] - got[None])
    kept = {
        key: {case: worker.ask(memory=case) for case in ("stream", "big")}
        for key, worker in workers.items()
    }
    base_kept = {
        name: {case: worker.ask(memory=case) for case in ("stream", "big")}
        for name, worker in bases.items()
    }
    for worker in [*workers.values(), *bases.values()]:
        worker.end()
    checks = {}
    for name, peer in peers.items():
        if name in failed:
            continue
        for setting, variables in peer.settings.items():
            worker = Worker(environment(name, peer), name, f"check {setting}", variables, url)
            checks[name, setting] = worker.ask(check=True)
            worker.end()
    return added, base, start_up, kept, base_kept, checks, failed


def has(found, *values):
    """Whether one of the spans has one of `values`, under whatever key."""
    return any(v in values for span in found["spans"] for v in span["attributes"].values())


def models(found):
    """Spans that are about a model call: not those of HTTP alone."""
    return [
        span
        for span in found["spans"]
        if any(key.startswith(("gen_ai.", "llm.")) for key in span["attributes"])
        or "openai" in span["scope"]
    ]


def once(found):
    return len(models(found)) == 1


def ended(found):
    return bool(found["spans"]) and found["started"] == len(found["spans"])


def ok(found):
    return ended(found) and all(span["status"] != "ERROR" for span in found["spans"])


def tokens(found):
    return has(found, "11") and has(found, "7")


def clean(found):
    return bool(found["spans"]) and not any("planted" in span["text"] for span in found["spans"])


FACTS = {
    "one span a call": lambda c: once(c["chat"]),
    "one span a stream": lambda c: once(c["chat_stream"]),
    "one span, anthropic": lambda c: once(c["anthropic"]),
    "responses": lambda c: once(c["responses"]) and tokens(c["responses"]),
    "embeddings": lambda c: once(c["embeddings"]) and has(c["embeddings"], "8"),
    "tokens of a stream": lambda c: tokens(c["chat_stream"]),
    "tokens of a raw stream": lambda c: tokens(c["raw_stream"]),
    "tokens by iter_lines": lambda c: tokens(c["iter_lines"]),
    "cached tokens": lambda c: has(c["chat"], "3"),
    "reasoning tokens": lambda c: has(c["chat"], "2"),
    "finish reason": lambda c: "stop" in str([s["attributes"] for s in c["chat"]["spans"]]),
    "time to first chunk": lambda c: (
        any("time_to_first" in name for name in c["metrics"])
        or "time_to_first" in str([list(s["attributes"]) for s in c["chat_stream"]["spans"]])
    ),
    "chunk gaps": lambda c: any("time_per_output_chunk" in name for name in c["metrics"]),
    "break ends, no error": lambda c: ok(c["early_break"]),
    "never read ends, no error": lambda c: ok(c["never_read"]),
    "anthropic break ends, no error": lambda c: ok(c["anthropic_break"]),
    "cut is an error": lambda c: (
        ended(c["cut"]) and any(span["status"] == "ERROR" for span in c["cut"]["spans"])
    ),
    "retries counted": lambda c: any(
        "attempt" in key or "resend" in key or "retr" in key
        for span in c["retried"]["spans"]
        for key in span["attributes"]
    ),
    "raw HTTP seen": lambda c: bool(models(c["raw_http"])),
    "chat without content": lambda c: clean(c["chat"]),
    "errors without content": lambda c: clean(c["refused"]),
}


def figure(values):
    if len(values) < 2:
        return f"{values[0]:+,.0f}" if values else "–"
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:+,.0f} [{low:,.0f} to {high:,.0f}]"


def table(head, lines):
    rule = ["---"] * len(head)
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in [head, rule, *lines])


def label(key):
    return f"{key[0]}, {key[1]}"


def report(peers, results, rounds):
    added, base, start_up, kept, base_kept, checks, failed = results
    out = [
        f"# Sottovoce beside its peers, {time.strftime('%Y-%m-%d')}",
        f"Python {platform.python_version()}, {os.cpu_count()} cores, {rounds} rounds. Added CPU "
        "time of the client's process in µs a call (a stream for streams): median and middle half.",
        table(
            ["", *(head for head, _ in CASES.values())],
            [
                [label(key), *(figure(cases[case]) for case in CASES)]
                for key, cases in added.items()
            ],
        ),
        "The same calls with nothing in the environment cost, in µs:",
        table(
            ["", *(head for head, _ in CASES.values())],
            [
                [name, *(f"{statistics.median(cases[case]):,.0f}" for case in CASES)]
                for name, cases in base.items()
                if cases["chat"]
            ],
        ),
        "Memory in KiB above the same call with nothing (peak / still held), and start-up "
        "(instrumenting, with what it imports, after the SDKs and OpenTelemetry's):",
        table(
            ["", "1,000-chunk stream", "100 KB prompt", "start-up ms"],
            [
                [
                    label(key),
                    *(
                        f"{cases[case]['peak'] - base_kept[key[0]][case]['peak']:+.0f} / "
                        f"{cases[case]['held'] - base_kept[key[0]][case]['held']:+.0f}"
                        for case in ("stream", "big")
                    ),
                    f"{start_up[key]:.0f}",
                ]
                for key, cases in kept.items()
            ],
        ),
        "Which facts each one gets (● yes, ? none of its spans reached the exporter of the check):",
        table(
            ["", *map(label, checks)],
            [
                [fact, *(judged(check, found) for found in checks.values())]
                for fact, check in FACTS.items()
            ],
        ),
    ]
    out += [f"Left out: {name}: {why}" for name, why in failed.items()]
    out.append("Versions: " + "; ".join(versions(peers, failed)))
    return "\n\n".join(out) + "\n"


def judged(check, found):
    if not found["chat"]["spans"]:
        return "?"
    try:
        return "●" if check(found) else "–"
    except (KeyError, TypeError):
        return "–"


def versions(peers, failed):
    for name, peer in peers.items():
        if name in failed:
            continue
        listed = subprocess.run(
            [Path(sys.executable).with_name("uv"), "pip", "list", "-q", "--format=json"]
            + ["--python", environment(name, peer)],
            capture_output=True,
            text=True,
            check=True,
        )
        have = {each["name"]: each["version"] for each in json.loads(listed.stdout)}
        wanted = [one.partition(" ")[0] for one in peer.requires]
        yield f"{name}: " + ", ".join(f"{one} {have.get(one, '?')}" for one in wanted)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", nargs="*", choices=list(PEERS))
    parser.add_argument("--quick", action="store_true", help="a quarter of the calls")
    given = parser.parse_args()
    peers = {name: PEERS[name] for name in given.only or PEERS}
    server = subprocess.Popen(
        [sys.executable, HERE / "peers" / "server.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        url = f"http://127.0.0.1:{int(server.stdout.readline())}"
        results = measure(peers, url, given.rounds, given.quick)
    finally:
        server.stdin.close()
        server.wait(10)
    text = report(peers, results, given.rounds)
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "peers.md").write_text(text)


if __name__ == "__main__":
    main()
