"""Which facts of a situation an instrumentation got: judged by what it exported.

A fact counts under whatever name, in an attribute of a span or as a part of one; the numbers that
the provider of `server.py` gives are found nowhere else. Spans that an SDK makes itself
are no instrumentation's.
"""

import re

OF_THE_SDK = "com.anthropic.sdk.python"


def models(found):
    """Spans that are about a model call: not those of HTTP alone."""
    return [
        span
        for span in found["spans"]
        if any(key.startswith(("gen_ai.", "llm.")) for key in span["attributes"])
        or "openai" in span["scope"]
    ]


def own(found):
    return [span for span in models(found) if span["scope"] != OF_THE_SDK]


def has(found, *numbers):
    """Whether the instrumentation's spans say all of these."""
    said = " ".join(v for span in own(found) for v in span["attributes"].values())
    return all(re.search(rf"\b{number}\b", said) for number in numbers)


def once(found):
    return len(models(found)) == 1 and bool(own(found))


def ended(found):
    return bool(own(found)) and not any(scope != OF_THE_SDK for scope in found["unended"])


def ok(found):
    return ended(found) and all(span["status"] != "ERROR" for span in own(found))


def failed(found):
    return ended(found) and any(span["status"] == "ERROR" for span in own(found))


def tokens(found):
    return has(found, 1011, 707)


def clean(found):
    told = [span["text"] for span in own(found)] + found["logs"]
    return bool(own(found)) and not any("planted" in text for text in told)


def named(found, *parts):
    """Whether an attribute or an event of a span is called so."""
    return any(
        part in name.lower()
        for span in own(found)
        for name in [*span["attributes"], *span["events"]]
        for part in parts
    )


def retried(found):
    """By a number, or by a span for each attempt."""
    attempts = [span for span in found["spans"] if "http.status_code" in span["attributes"]]
    return named(found, "attempt", "resend", "retr") or len(attempts) > 1


def measured(checks, *parts):
    return any(part in name for name in checks["metrics"] for part in parts)


FIRST = ("time_to_first", "first_token", "first_chunk", "first token")
FACTS = {
    "one span a call": lambda c: once(c["chat"]),
    "one span a stream": lambda c: once(c["chat_stream"]),
    "one span, anthropic": lambda c: once(c["anthropic"]),
    "one span, anthropic stream": lambda c: once(c["anthropic_stream"]),
    "responses": lambda c: once(c["responses"]) and tokens(c["responses"]),
    "embeddings": lambda c: once(c["embeddings"]) and has(c["embeddings"], 909),
    "tokens": lambda c: tokens(c["chat"]),
    "tokens of a stream": lambda c: tokens(c["chat_stream"]),
    "tokens of a raw stream": lambda c: tokens(c["raw_stream"]),
    "tokens by iter_lines": lambda c: tokens(c["iter_lines"]),
    "tokens by iter_lines, streamed": lambda c: tokens(c["iter_lines_stream"]),
    "cached tokens": lambda c: has(c["chat"], 303),
    "reasoning tokens": lambda c: has(c["chat"], 202),
    "finish reason": lambda c: has(c["chat"], "stop"),
    "time to first chunk": lambda c: named(c["chat_stream"], *FIRST) or measured(c, *FIRST),
    "chunk gaps": lambda c: (
        measured(c, "time_per_output_chunk", "time_per_output_token", "time_between")
        or named(c["chat_stream"], "time_per_output", "time_between")
    ),
    "break ends, no error": lambda c: ok(c["early_break"]),
    "never read ends, no error": lambda c: ok(c["never_read"]),
    "anthropic break ends, no error": lambda c: ok(c["anthropic_break"]),
    "cut is an error": lambda c: failed(c["cut"]),
    "retries counted": lambda c: retried(c["retried"]),
    "raw HTTP seen": lambda c: bool(own(c["raw_http"])),
    "chat without content": lambda c: clean(c["chat"]),
    "errors without content": lambda c: clean(c["refused"]),
}
# Situation in which a case's span must be there, else it has no cost to speak of.
SEEN_IN = {
    "chat": "chat",
    "stream": "chat_stream",
    "async_streams": "async_streams",
    "embeddings": "embeddings",
    "big": "chat",
    "responses": "responses",
    "anthropic": "anthropic",
    "anthropic_stream": "anthropic_stream",
}


def judged(checks):
    """Fact -> whether this one gets it."""
    return {fact: bool(test(checks)) for fact, test in FACTS.items()}


def recorded(checks, case):
    return bool(own(checks[SEEN_IN[case]]))
