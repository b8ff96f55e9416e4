"""One instrumentation in one process: does what `benchmarks/peers.py` asks on its standard input.

    python worker.py INSTRUMENTATION SETTING URL

Asked is one JSON object a line, answered likewise: ``{"case": NAME, "calls": N}`` gives the CPU
time in µs a call; ``{"memory": NAME}`` the peak and what stays, in KiB; ``{"check": true}`` what
was seen of each situation in the table of correctness. CPU time is that of the whole process;
queues are flushed before and after, outside the measurement, to exporters that keep nothing.
"""

import contextlib
import gc
import json
import os
import sys
import time
import tracemalloc

NAME, SETTING, URL = sys.argv[1:4]
# Some print banners: the answers go where standard output was, all else nowhere.
ANSWERS = os.fdopen(os.dup(1), "w", buffering=1)
NOWHERE = os.open(os.devnull, os.O_WRONLY)
os.dup2(NOWHERE, 1)

import setups

start_up_ms = setups.pydantic_plugins()

import calls


def measured(call, number):
    """CPU time of the process in µs a call, over `number` calls."""
    gc.collect()
    started = time.process_time_ns()
    for _ in range(number):
        call()
    return (time.process_time_ns() - started) / number / 1000


def memory(call):
    """KiB at the peak of a call, and after it; the least of two, as buffers of a socket vary."""
    call()
    found = []
    for _ in range(2):
        gc.collect()
        tracemalloc.start()
        base = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        call()
        held, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        found.append(((peak - base) / 1024, (held - base) / 1024))
    return dict(zip(("peak", "held"), map(min, zip(*found, strict=True)), strict=True))


def check(pipeline):
    """What was exported of each situation, by its name, and the metrics of all."""
    cases, found = calls.Checks(URL), {}
    for name in calls.CHECKS:
        pipeline.spans.clear()
        pipeline.logs.clear()
        pipeline.unended.scopes.clear()
        with contextlib.suppress(Exception):
            getattr(cases, name)()
        # A stream that nobody holds ends when it is collected; some end theirs in a thread.
        gc.collect()
        time.sleep(0.2)
        pipeline.flush()
        found[name] = {
            "unended": list(pipeline.unended.scopes.values()),
            "spans": [told(span) for span in pipeline.spans.get_finished_spans()],
            "logs": [one.to_json() for one in pipeline.logs.get_finished_logs()],
        }
    data = pipeline.reader.get_metrics_data()
    found["metrics"] = sorted(
        metric.name
        for resource in (data.resource_metrics if data else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
    )
    return found


def told(span):
    return {
        "scope": span.instrumentation_scope.name,
        "name": span.name,
        "kind": span.kind.name,
        "status": span.status.status_code.name,
        "attributes": {key: str(value) for key, value in (span.attributes or {}).items()},
        "events": [event.name for event in span.events],
        "text": span.to_json(),
    }


def main():
    global start_up_ms
    pipeline = None
    calls.load()
    if NAME != "none":
        pipeline, took = setups.set_up(NAME, SETTING, keep=SETTING.startswith("check"))
        start_up_ms += took
    cases = calls.Cases()
    # What is loaded only now is a cost of starting, too.
    first_call_ms = measured(cases.chat, 1) / 1000
    answer = {"start_up_ms": start_up_ms, "first_call_ms": first_call_ms}
    print(json.dumps(answer), file=ANSWERS)
    for line in sys.stdin:
        asked = json.loads(line)
        if "check" in asked:
            answer = check(pipeline)
        elif "memory" in asked:
            answer = memory(getattr(cases, asked["memory"]))
        else:
            answer = {"us": measured(getattr(cases, asked["case"]), asked["calls"])}
            if pipeline is not None:
                pipeline.flush()
            if asked.get("last_to_warm_up"):
                # Else a collection of everything that was imported falls into some batch.
                gc.collect()
                gc.freeze()
        print(json.dumps(answer, default=str), file=ANSWERS)


if __name__ == "__main__":
    main()
