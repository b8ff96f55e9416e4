"""What one call of a `Llama` adds up to, and the generators that tell it.

A call may run the engine many times. Each pass says how long its prompt is and yields its
tokens; what its first evaluation left out of the prompt was in the key-value cache. A draft
model's guesses are evaluated behind the newest token: each that was right is one evaluation
less than tokens.
"""

from __future__ import annotations

from contextvars import ContextVar
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Final

from sottovoce import dropped
from sottovoce.guard import failed, let_through
from sottovoce.protocols.checks import checked
from sottovoce.protocols.protocol import Seen
from sottovoce.runtimes.engine import NS, EngineCall

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from sottovoce.call import Recorder
    from sottovoce.runtimes.identity import Identity


COMPLETION: Final = "text_completion"

_REASONS: Final = frozenset({"stop", "length", "tool_calls", "function_call"})
"""Why llama-cpp-python's answers end."""

unwanted: ContextVar[bool] = ContextVar("sottovoce_llama_unwanted", default=False)
"""Whether a stream is read that began unrecorded; set and reset in one frame."""


class LlamaCall(EngineCall):
    """A call of one `Llama`: what its passes of the engine added up to.

    Args:
        llama: whose call it is.
        ends: gives whether a token ends the generation.
        tools: whether the app offered tools.
    """

    __slots__ = (
        "asked",
        "base",
        "cached",
        "decoded",
        "drafting",
        "ends",
        "engaged",
        "evaluated",
        "exhausted",
        "fed",
        "guessed",
        "in_pass",
        "last",
        "later_ns",
        "llama",
        "mark_ns",
        "passes",
        "prefilling",
        "prompt",
        "reason",
        "seen",
        "steps",
        "tools",
        "watched",
    )

    def __init__(  # noqa: PLR0917 - as `EngineCall`
        self,
        recorder: Recorder,
        operation: str,
        provider: str,
        identity: Identity | None,
        stream: bool,
        llama: Any,
        ends: Callable[[Any, Any], bool | None],
        tools: bool,
    ) -> None:
        self.llama, self.ends, self.tools = llama, ends, tools
        # Why the answer ended, and what else its choices said where that is not all.
        self.reason: str | None = None
        self.seen: Seen | None = None
        # Over all passes: tokens of the prompts (None when one did not tell), and how many of
        # them were in the cache; tokens after the first of a pass, and with a draft model the
        # evaluations that it took, and the guesses that were evaluated with them.
        self.prompt: int | None = 0
        self.cached = self.decoded = self.steps = self.guessed = self.passes = 0
        # Of this pass: tokens of its prompt, and how many had to be evaluated; how many tokens
        # there were before it; whether the engine itself ended it.
        self.asked: int | None = 0
        self.evaluated = self.base = 0
        self.exhausted = False
        # Tokens that somebody evaluated before the pass, as handlers of images do.
        self.fed = 0
        # Whether the engine runs, whether it is at the prompt, whether evaluations matter.
        self.in_pass, self.prefilling, self.watched = False, True, True
        # Whether a draft model guesses; whether one may be at work right now, a `Llama` perhaps.
        self.drafting = self.engaged = False
        # When this pass began on the engine's clock; what the prompts of later passes took.
        self.mark_ns = self.later_ns = 0
        # The newest token, until it is known not to be an end-of-generation token.
        self.last: Any = None
        EngineCall.__init__(self, recorder, operation, provider, identity, stream)

    def serves(self, llama: Any) -> bool:
        """Whether what `llama` does now is part of this call."""
        return self.llama is llama or self.engaged

    def read(self, piece: Any) -> None:
        """Read why a choice of a chunk ended, and which tools it calls."""
        if type(piece) is not dict:  # a token of `generate`, or a handler of the app's own
            return
        choices = piece.get("choices")
        if type(choices) is not list:
            return
        for choice in choices:
            if type(choice) is dict and (self.tools or choice.get("finish_reason") is not None):
                self._read_choice(choice, choice.get("index"), choice.get("delta"))

    def read_answer(self, answer: Any) -> None:
        """Read of a whole answer what `read` does of chunks; its counts cover the last pass only.

        Never raises.
        """
        # Anything else is the app's alone: an iterator must not lose its first item to us.
        choices = answer.get("choices") if type(answer) is dict else None
        if type(choices) is not list:
            return
        try:
            for place, choice in enumerate(choices):
                if type(choice) is dict:
                    self._read_choice(choice, choice.get("index", place), choice.get("message"))
        except Exception:  # noqa: BLE001 - as `never_raise` does
            failed("llama_cpp.answer")

    def _read_choice(self, choice: dict[str, Any], index: Any, said: Any) -> None:
        reason = choice.get("finish_reason")
        calls = said.get("tool_calls") if type(said) is dict else None
        if type(calls) is not list:
            calls = ()
        seen = self.seen
        if seen is None:
            plain = type(reason) is str and reason in _REASONS
            if plain and type(index) is int and index == 0 and not calls:
                # Nearly always: one choice, and its reason.
                self.reason = reason
                return
            seen = self.seen = Seen()
            seen.finished(0, self.reason)
        seen.finished(index, reason)
        for place, tool in enumerate(calls):
            if type(tool) is dict:
                function = tool.get("function")
                name = function.get("name") if type(function) is dict else None
                seen.tool(index, tool.get("index", place), tool.get("id"), name)

    def begin_pass(self, tokens: int | None) -> None:
        """A pass of the engine begins, with that many tokens of prompt."""
        if self.passes:
            self.drop_end()
            self.evaluated, self.exhausted, self.base = 0, False, self.made
            self.mark_ns = self._clock()
        self.passes += 1
        self.prompt = None if tokens is None or self.prompt is None else self.prompt + tokens
        self.asked = tokens
        self.drafting = self.engaged = _drafts(self.llama)
        self.in_pass = self.prefilling = self.watched = True

    def evaluate(self, tokens: int) -> None:
        """So many tokens are evaluated now; asked for while `watched` only."""
        if not self.in_pass:
            self.fed += tokens
        elif self.prefilling:
            self.evaluated += tokens
        else:
            self.steps += 1
            self.guessed += max(0, tokens - 1)

    def prefilled(self) -> None:
        """The first token of a pass is there."""
        clock = self._clock()
        if not self.first_ns:
            self.first_ns = clock
        else:
            self.later_ns += clock - self.mark_ns
        self.prompt_read()

    def prompt_read(self) -> None:
        """The prompt of a pass was evaluated."""
        self.prefilling, self.watched = False, self.drafting
        # While it runs, a completion tells nothing.
        self.reads = self.operation != COMPLETION
        # What was fed, images among it, was not counted as it went by, nor was it in the cache.
        if self.asked is not None and not self.fed:
            self.cached += max(0, self.asked - self.evaluated)
        self.fed = 0

    def end_pass(self) -> None:
        """The engine stopped, or will: the first time counts."""
        if self.in_pass:
            decoded = self.made - self.base - 1
            if decoded > 0:
                self.decoded += decoded
            self.in_pass, self.watched, self.engaged, self.reads = False, True, False, True

    def _clock(self) -> int:
        return self.busy_ns + perf_counter_ns() - self.started_ns

    def drop_end(self) -> None:
        """Take the newest token off the count if it only ended the generation."""
        last, self.last = self.last, None
        # The garbage collector may have freed the model already.
        if last is not None and not dropped.collecting() and self.ends(self.llama, last):
            self.made -= 1

    def settle(self) -> None:
        """Write the sums over all passes; asked again, what follows from times only."""
        if self.llama is not None:
            if self.seen is not None:
                self.facts.update(checked(self.seen.candidates()))
            elif self.reason is not None:
                self.facts["finish_reasons"] = [self.reason]
            if self.passes:
                self.end_pass()
                self._settle_tokens()
            self.llama = None
        if self.passes > 1:
            self._settle_times()

    def _settle_times(self) -> None:
        """Write what a time is for each token: of many passes each has its prompt and its first."""
        facts = self.facts
        facts.pop("time_per_output_token_s", None)
        read_ns = self.first_ns + self.later_ns
        if self.decoded:
            per_token = max(0, self.busy_ns - read_ns) / self.decoded
            facts["time_per_output_token_s"] = per_token * NS
        if read_ns and self.prompt is not None and self.prompt - self.cached > self.passes:
            facts["prefill_rate"] = (self.prompt - self.cached) / (read_ns * NS)

    def _settle_tokens(self) -> None:
        facts, size = self.facts, self.facts.get("context_size")
        if size and self.asked is not None and not self.prefilling:
            made = self.made - self.base
            # The newest token was not evaluated any more, unless the engine wanted another one.
            if made and not self.exhausted:
                made -= 1
            filled = (self.asked + made) / size
            facts["context_fill"] = filled if filled < 1 else 1.0
        self.drop_end()
        facts["output_tokens"] = self.made
        if self.prompt is not None:
            facts["input_tokens"] = self.prompt
            if self.cached:
                facts["cache_read_tokens"] = self.cached
        if self.passes > 1:
            facts["passes"] = self.passes
        if self.drafting and self.guessed:
            accepted = max(0, self.decoded - self.steps)
            facts["draft_accepted_share"] = min(1.0, accepted / self.guessed)


def count(
    inner: Generator[Any, Any, Any],
    known: LlamaCall | Callable[[], LlamaCall | None],
    prompt: int | None,
) -> Generator[Any, Any, Any]:
    """Pass on one pass of the engine, and what is sent to it, and count its tokens.

    Args:
        inner: the engine.
        known: the call that they count for, or what gives it at the first token: None of a pass
            that is not to be recorded.
        prompt: how many tokens it has; None where that cannot be told.
    """
    call = known if isinstance(known, LlamaCall) else known()
    if call is None:
        return (yield from inner)
    call.begin_pass(prompt)
    drafting = call.drafting
    sent = None
    try:
        while True:
            try:
                token = inner.send(sent)
            except StopIteration as stop:
                # A stopping criterion may have been met by the first token already.
                if call.prefilling:
                    call.prompt_read()
                call.exhausted = True
                return stop.value
            if call.prefilling:
                call.prefilled()
            call.made += 1
            call.last = token
            if drafting:
                call.engaged = False
            sent = yield token
            if drafting:
                call.engaged = True
    finally:
        inner.close()
        call.end_pass()


def unrecorded(inner: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """Pass a stream on that the app wanted no record of, nor of what it runs when it is read."""
    sent: Any = None
    thrown: BaseException | None = None
    while True:
        unwanted_before = unwanted.set(True)
        try:
            piece = inner.send(sent) if thrown is None else inner.throw(thrown)
        except StopIteration as stop:
            return stop.value
        finally:
            thrown = None
            unwanted.reset(unwanted_before)
        try:
            sent = yield piece
        except GeneratorExit:
            inner.close()
            raise
        except BaseException as error:  # noqa: BLE001 - thrown in by the app, for the engine
            thrown = error


def _drafts(llama: Any) -> bool:
    try:
        return llama.draft_model is not None
    except Exception:  # noqa: BLE001 - a `Llama` that was never made
        failed("llama_cpp.draft")
        return False


def length(tokens: Any) -> int | None:
    """Count tokens; None when they are no sequence."""
    try:
        return len(tokens)
    except Exception:  # noqa: BLE001 - an iterator, or an object of the app
        let_through()
        return None
