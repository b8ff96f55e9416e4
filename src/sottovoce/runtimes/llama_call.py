"""What one call of a `Llama` adds up to, and the generators that tell it.

A call may run the engine many times. Each pass says how long its prompt is and yields its
tokens; what its first evaluation left out of the prompt was in the key-value cache.
"""

from __future__ import annotations

from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Final

from sottovoce import dropped
from sottovoce.protocols.protocol import Seen, checked
from sottovoce.runtimes.engine import EngineCall, pass_on

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

_OVERFLOW: Final = ("Requested tokens", "exceed context window")
"""How the message of the error for a prompt that is too long begins and goes on."""


class LlamaCall(EngineCall):
    """A call of one `Llama`: what its passes of the engine added up to."""

    __slots__ = (
        "ends",
        "evaluated",
        "last",
        "llama",
        "passes",
        "prefilling",
        "prompt",
        "seen",
        "tools",
    )

    llama: Any
    # Tokens of the prompts (None when one did not tell), and how many had to be evaluated.
    prompt: int | None
    evaluated: int
    passes: int
    # Whether what is evaluated now is prompt.
    prefilling: bool
    # The newest token, until it is known not to be an end-of-generation token.
    last: Any
    # Gives whether a token ends the generation; what chunks said so far.
    ends: Callable[[Any, Any], bool | None]
    seen: Seen
    # Whether the app offered tools.
    tools: bool

    def read(self, piece: Any) -> None:
        """Read why a choice ended, and which tools it calls."""
        if type(piece) is not dict:  # a token of `generate`
            return
        for choice in piece["choices"]:
            reason = choice["finish_reason"]
            if reason is not None:
                self.seen.finished(choice["index"], reason)
            if self.tools:
                for place, tool in enumerate(choice["delta"].get("tool_calls") or ()):
                    self.seen.tool(choice["index"], tool.get("index", place), tool.get("id"))

    def begin_pass(self, tokens: int | None) -> None:
        """A pass of the engine begins, with that many tokens of prompt."""
        self.drop_end()
        self.passes += 1
        self.prompt = None if tokens is None or self.prompt is None else self.prompt + tokens
        self.prefilling = True

    def prefilled(self) -> None:
        """The first token of a pass is there."""
        self.prefilling = False
        if not self.first_ns:
            self.first_ns = self.busy_ns + perf_counter_ns() - self.started_ns

    def drop_end(self) -> None:
        """Take the newest token off the count if it only ended the generation."""
        last, self.last = self.last, None
        # The garbage collector may have freed the model already.
        if last is not None and not dropped.collecting() and self.ends(self.llama, last):
            self.made -= 1

    def settle(self) -> None:
        """Write the sums over all passes."""
        facts = self.facts
        facts.update(checked(self.seen.candidates()))
        if self.passes:
            self.drop_end()
            facts["output_tokens"] = self.made
            if self.prompt is not None:
                facts["input_tokens"] = self.prompt
                cached = self.prompt - self.evaluated
                if self.first_ns and cached > 0:
                    facts["cache_read_tokens"] = cached
            if self.passes > 1:
                facts["passes"] = self.passes
        self.llama = None

    def blame(self, error: BaseException) -> BaseException | str:
        """Tell a prompt that is too long apart from other wrong values."""
        if type(error) is ValueError:
            start, rest = _OVERFLOW
            message = str(error)
            if message.startswith(start) and rest in message:
                return "context_length_exceeded"
        return error


def stream(inner: Generator[Any, Any, Any], call: LlamaCall) -> Generator[Any, Any, Any]:
    """Pass a stream on whose call is open already; the first `next` only starts it."""
    begun_ns = perf_counter_ns()
    try:
        yield
    except GeneratorExit:
        # Never read: it was over for the app when it got the stream.
        call.last_chunk_ns = begun_ns
        call.leave()
        inner.close()
        raise
    except BaseException as error:
        call.finish(error)
        inner.throw(error)
        raise
    return (yield from pass_on(inner, call))


def tokens(
    inner: Generator[Any, Any, Any],
    open_call: Callable[[], LlamaCall | None],
    prompt: int | None,
) -> Generator[Any, Any, Any]:
    """Pass on the tokens of a `generate` that the app called; what it sends goes on too."""
    call = open_call()
    if call is None:
        return (yield from inner)
    return (yield from pass_on(count(inner, call, prompt), call))


def count(
    inner: Generator[Any, Any, Any], call: LlamaCall, prompt: int | None
) -> Generator[Any, Any, Any]:
    """Pass on one pass of the engine and count its tokens for `call`."""
    call.begin_pass(prompt)
    sent = None
    try:
        while True:
            try:
                token = inner.send(sent)
            except StopIteration as stop:
                return stop.value
            if call.prefilling:
                call.prefilled()
            call.made += 1
            call.last = token
            sent = yield token
    finally:
        inner.close()


def length(tokens: Any) -> int | None:
    """Count tokens; None when they are no sequence."""
    try:
        return len(tokens)
    except Exception:  # noqa: BLE001 - an iterator, or an object of the app
        return None
