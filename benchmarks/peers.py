"""Sottovoce beside other instrumentations: cost, memory, start-up, and which facts each gets right.

    python benchmarks/peers.py [--rounds 10] [--only NAME …] [--cases NAME …] [--quick]
    python benchmarks/peers.py --spans SITUATION [--only NAME …]

Each has an environment of its own (made by uv, kept in the cache folder) with the newest SDKs
that it supports; the same pipeline, prompts and provider for all. Costs are CPU time of the
process over the same environment with nothing in it: in every round both are new processes that
take turns by short batches, and of each the batch counts than which a tenth were quicker, so that
what else the machine does counts little. Processes differ by more than batches do, so there are
many rounds. `nothing twice` is what the measure itself gets wrong.
Prints Markdown and writes it to benchmarks/results/. With `--spans`, what each one
exports of a situation.
"""

import argparse
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "peers"))

import facts
from environments import PEERS, Unmade, Worker, say, versions

RESULTS = HERE / "results" / "peers.md"
# Case -> (how it is headed, calls a batch, batches a round).
CASES = {
    "chat": ("chat", 10, 12),
    "stream": ("stream of 200", 1, 10),
    "async_streams": ("50 async streams of 20", 1, 4),
    "embeddings": ("embeddings 8×1536", 10, 12),
    "big": ("100 KB prompt", 10, 12),
    "responses": ("responses", 10, 12),
    "anthropic": ("anthropic", 10, 12),
    "anthropic_stream": ("anthropic stream of 200", 2, 10),
}
PER_CALL = {"async_streams": 50}
MEMORY = {"long_stream": "1,000-chunk stream", "big": "100 KB prompt"}


@contextmanager
def provider():
    """The provider's URL, in a process of its own."""
    server = subprocess.Popen(
        [sys.executable, HERE / "peers" / "server.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
    finally:
        server.stdin.close()
        server.wait(10)
        server.stdout.close()


def checked(names):
    """What each setting exported of each situation; and why others are left out, by name."""
    checks, left_out = {}, {}
    with provider() as url:
        for name in names:
            say(f"checking {name}")
            try:
                for setting in instrumenting(name):
                    with Worker(name, setting, url, keep=True) as worker:
                        checks[name, setting] = worker.ask(check=True)
            except Unmade as error:
                say(f"{name} left out: {error}")
                left_out[name] = str(error)
    return checks, left_out


def instrumenting(name):
    """The settings whose facts are compared: what is written by hand says what it was told."""
    return [] if name == "floor" else list(PEERS[name].settings)


class Costs:
    """Lists with a figure a round, by (peer, setting); of `None` the bare environment's."""

    def __init__(self):
        self.added, self.bare, self.start_up, self.memory = {}, {}, {}, {}
        self.first_call, self.remembered = {}, set()

    def round(self, name, cases, seed, quick):
        """Measure one peer once: its settings and nothing, taking turns."""
        settings = [None, *PEERS[name].settings]
        with ExitStack() as stack:
            workers = {}
            for setting in random.sample(settings, len(settings)):
                worker = stack.enter_context(Worker(name, setting, "-", seed=seed))
                workers[setting] = worker
                self.start_up.setdefault((name, setting), []).append(worker.start_up_ms)
                self.first_call.setdefault((name, setting), []).append(worker.first_call_ms)
            for worker in workers.values():
                for case in cases:
                    worker.ask(case=case, calls=1 if case in PER_CALL else 3)
                worker.ask(case="chat", calls=10, last_to_warm_up=True)
            for case in cases:
                took = in_turn(workers, case, quick)
                bare = took.pop(None)
                self.bare.setdefault(name, {}).setdefault(case, []).append(bare)
                for setting, cost in took.items():
                    of_setting = self.added.setdefault((name, setting), {})
                    of_setting.setdefault(case, []).append(cost - bare)
            if name not in self.remembered:
                self.remember(name, workers)

    def remember(self, name, workers):
        """KiB, by setting and case: allocations do not differ from round to round."""
        self.remembered.add(name)
        for case in MEMORY:
            kept = {setting: worker.ask(memory=case) for setting, worker in workers.items()}
            bare = kept.pop(None)
            for setting, of in kept.items():
                over = {key: of[key] - bare[key] for key in ("peak", "held")}
                self.memory.setdefault((name, setting), {})[case] = over


def in_turn(workers, case, quick):
    """µs a call by setting: the tenth part that was disturbed least."""
    _, calls, batches = CASES[case]
    taken = {setting: [] for setting in workers}
    for _ in range(batches // 3 if quick else batches):
        for setting in random.sample(list(workers), len(workers)):
            taken[setting].append(workers[setting].ask(case=case, calls=calls)["us"])
    return {
        setting: sorted(each)[len(each) // 10] / PER_CALL.get(case, 1)
        for setting, each in taken.items()
    }


def figure(values):
    """The median of the rounds, and its standard error."""
    if len(values) < 2:
        return f"{values[0]:+,.0f}"
    # Of a median: 1.25 times that of a mean, where figures are normal.
    off = 1.25 * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.median(values):+,.0f} ± {off:,.0f}"


def table(head, lines):
    rule = ["---"] * len(head)
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in [head, rule, *lines])


def label(key):
    return f"{key[0]}, {key[1]}"


def over(found, key):
    """The least disturbed of one over the least disturbed of its bare environment."""
    return min(found[key]) - min(found[key[0], None])


def report(costs, checks, left_out, cases, rounds):
    def cost(key, case, values):
        if key in checks and not facts.recorded(checks[key], case):
            return "no span"
        return figure(values)

    judged = {key: facts.judged(found) for key, found in checks.items()}
    keys = [(name, setting) for name in PEERS for setting in PEERS[name].settings]
    shown = {k: costs.added[k] for k in keys if k in costs.added and k[0] not in left_out}
    names = [name for name in PEERS if name in costs.bare and name not in left_out]
    out = [
        f"# Sottovoce beside its peers, {time.strftime('%Y-%m-%d')}",
        f"Python {platform.python_version()}, {os.cpu_count()} cores, {rounds} rounds. CPU "
        "time that the client's process takes more, in µs a call (a stream for streams): medians "
        "of the rounds, and their standard error. The provider is in memory, each event of a stream a "
        "read of its own; `nothing twice` is what the measure itself gets wrong.",
        table(
            ["", *(CASES[case][0] for case in cases)],
            [
                [label(key), *(cost(key, case, taken[case]) for case in cases)]
                for key, taken in shown.items()
            ],
        ),
        "The same calls with nothing in the environment cost, in µs:",
        table(
            ["", *(CASES[case][0] for case in cases)],
            [
                [name, *(f"{statistics.median(taken[case]):,.0f}" for case in cases)]
                for name, taken in ((name, costs.bare[name]) for name in names)
            ],
        ),
        "Memory in KiB above the same call with nothing (peak / still held after the call, where a "
        "span waits for its export). Start-up: milliseconds of CPU for instrumenting, with what "
        "it imports besides the SDKs' and OpenTelemetry's own modules; and what the first "
        "call takes more than without.",
        table(
            ["", *MEMORY.values(), "start-up ms", "first call ms"],
            [
                [
                    label(key),
                    *(
                        "{peak:+.0f} / {held:+.0f}".format_map(costs.memory[key][case])
                        for case in MEMORY
                    ),
                    f"{statistics.median(costs.start_up[key]):.0f}",
                    f"{over(costs.first_call, key):+.0f}",
                ]
                for key in shown
            ],
        ),
        "Which facts each one gets:",
        table(
            ["", *map(label, judged)],
            [
                [fact, *(mark(key, fact, of[fact]) for key, of in judged.items())]
                for fact in facts.FACTS
            ],
        ),
        "● yes, – no, n/a: it does not instrument anthropic. anthropic 2 makes a span itself "
        "unless a variable forbids it: it does for the facts, as users have it, and not for "
        "the costs; OpenLIT needs anthropic < 1, which makes none. Spans of HTTP alone are not "
        "counted. The refused request's error repeats the prompt, as some of a provider's do.",
    ]
    out += [f"Left out: {name}: {why}" for name, why in left_out.items()]
    out.append("Versions: " + "; ".join(map(versions, names)))
    return "\n\n".join(out) + "\n"


def mark(key, fact, right):
    if "anthropic" in fact and "anthropic" not in PEERS[key[0]].clients:
        return "n/a"
    return "●" if right else "–"


def show_spans(situation, checks):
    for key, found in checks.items():
        of = found[situation]
        print(f"\n== {label(key)}: {len(of['spans'])} ended, not {of['unended']}")
        for span in of["spans"]:
            print(f"{span['scope']}: {span['name']} {span['kind']} {span['status']}")
            for name, value in span["attributes"].items():
                print(f"    {name} = {value[:150]}")
            for event in span["events"]:
                print(f"    event {event}")
        print("    logs", [text[:300] for text in of["logs"]])
        print("    metrics", found["metrics"], "ok" if "planted" not in str(of) else "CONTENT")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--only", nargs="*", choices=list(PEERS))
    parser.add_argument("--cases", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--quick", action="store_true", help="a third of the batches")
    parser.add_argument("--spans", metavar="SITUATION", help="print spans, measure nothing")
    given = parser.parse_args()
    checks, left_out = checked(given.only or PEERS)
    if given.spans:
        show_spans(given.spans, checks)
        return
    names = [name for name in given.only or PEERS if name not in left_out]
    costs = Costs()
    for number in range(given.rounds):
        say(f"round {number + 1} of {given.rounds}")
        for name in random.sample(names, len(names)):
            try:
                costs.round(name, given.cases, number, given.quick)
            except Unmade as error:
                say(f"{name} left out: {error}")
                left_out[name] = str(error)
                names.remove(name)
    text = report(costs, checks, left_out, given.cases, given.rounds)
    print(text)
    # Parts of it are not the result.
    if not (given.only or given.quick) and given.cases == list(CASES):
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(text)


if __name__ == "__main__":
    main()
