"""What a call of mlx-lm's server learns of one request: who answers, what was asked for, counts.

Output tokens are those that the server tells its client: the end of the text is one of them.

Seen in mlx-lm 0.28.4 to 0.32.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sottovoce import dropped
from sottovoce.call import Call
from sottovoce.guard import failed
from sottovoce.hardware import tiers
from sottovoce.runtimes import identity, mlx_call, mlx_models
from sottovoce.runtimes.engine import NS
from sottovoce.runtimes.identity import key_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sottovoce.call import Facts, Recorder
    from sottovoce.runtimes.mlx_drafts import Drafts

PROVIDER: Final = "mlx"

_OPERATIONS: Final = {"chat": "chat", "text": "text_completion"}
"""Type of mlx-lm's request → operation."""

_SETTINGS: Final = {
    # Where the request's arguments have them → fact, name, and whether 0 turns it off.
    "sampling": (
        ("request_temperature", "temperature", False),
        ("request_top_p", "top_p", False),
        ("request_top_k", "top_k", True),
    ),
    "logits": (
        ("request_frequency_penalty", "frequency_penalty", True),
        ("request_presence_penalty", "presence_penalty", True),
    ),
}


class Asked(NamedTuple):
    """A request for a completion, as `ResponseGenerator.generate` gets it.

    Attributes:
        engine: what has the `ModelProvider`.
        request: what was asked, of which only its type and the number of its tools are read.
        arguments: how it was asked.
        started_ns: `time.perf_counter_ns` at which the request came.
        asked_ns: when the engine was asked.
        handler: what answers the HTTP request; None where there is none.
    """

    engine: Any
    request: Any
    arguments: Any
    started_ns: int
    asked_ns: int
    handler: Any


class Answer(Call):
    """One request for a completion; its chunks are the tokens.

    Args:
        recorder: what turns the call into telemetry.
        operation: what the conventions call it.
        known: who answers, as far as is known.
        model: the public id of who is to answer, where nobody is known.
        served: whether a request over HTTP asks.
        start_ns: `time.perf_counter_ns` at which the request came.
    """

    __slots__ = ("began_ns", "cached", "drafts", "prompt", "reason")

    def __init__(  # noqa: PLR0917 - as `EngineCall`
        self,
        recorder: Recorder,
        operation: str,
        known: identity.Identity | None,
        model: str | None,
        served: bool,
        start_ns: int,
    ) -> None:
        # When the engine began with it; None: with others beside it.
        self.began_ns: int | None = 0
        # How many tokens its prompt has and how many of them a cache held; -1: not told.
        self.prompt = self.cached = -1
        # What ended it; what counts the work of its draft model.
        self.reason: Any = None
        self.drafts: Sequence[Drafts] = ()
        Call.__init__(
            self,
            recorder,
            operation=operation,
            provider=PROVIDER,
            model=known.name if known else model,
            in_process=True,
            served=served,
            local=True,
            start_ns=start_ns,
        )
        if known:
            self.facts.update(known.facts)
        dropped.keep(self)

    def began(
        self,
        asked: Asked,
        at_ns: int,
        prompt: object,
        loads: Mapping[Any, tuple[int, int]],
    ) -> None:
        """The engine began with it, or refused it. Never raises.

        Args:
            asked: the request.
            at_ns: when that was.
            prompt: its tokens, of which the number is taken.
            loads: of a `ModelProvider`, from when to when it loaded the model that it has.
        """
        # Written out, as below: `never_raise` costs a call more.
        try:
            self.began_ns = at_ns
            if isinstance(prompt, list):
                self.prompt = len(prompt)
            facts = self.facts
            facts["queue_s"] = (at_ns - asked.asked_ns) * NS
            from_ns, to_ns = loads.get(asked.engine.model_provider, (0, 0))
            if to_ns > asked.asked_ns:
                facts["load_s"] = (to_ns - max(from_ns, asked.asked_ns)) * NS
            self._join(key_of(asked.engine))
        except Exception:  # noqa: BLE001 - as it does
            failed("mlx_answer.began")

    def _join(self, engine: int) -> None:
        # Prompts are read side by side, and those of many wait inside the engine.
        present = list(_open.values())
        _open[key_of(self)] = engine, self
        if not present:
            return
        others = [each for of, each in present if of == engine and each.reason is None]
        for each in (self, *others) if others else ():
            if not each.first_chunk_ns:
                each.began_ns = None

    def read(self, token: Any) -> None:
        """Take note of a token. Never raises."""
        self.chunk()
        try:
            reason = token.finish_reason
        except Exception:  # noqa: BLE001 - a token of another shape is the app's all the same
            failed("mlx_answer.read")
        else:
            if reason is not None:
                self.reason = reason

    def read_context(self, context: Any) -> None:
        """Take the count that the other thread wrote before the first token. Never raises."""
        try:
            cached = getattr(context, "prompt_cache_count", -1)
            self.cached = cached if type(cached) is int else -1
        except Exception:  # noqa: BLE001 - as `never_raise` does
            failed("mlx_answer.read_context")

    def gather(self) -> None:
        """Write what is known of the answer. Never raises."""
        _open.pop(key_of(self), None)
        if self.is_open:
            try:
                self._gather()
            except Exception:  # noqa: BLE001 - as `never_raise` does
                failed("mlx_answer.gather")

    def _gather(self) -> None:
        facts, made = self.facts, self.chunks
        if self.prompt >= 0:
            facts["input_tokens"] = self.prompt
        if self.cached > 0:
            facts["cache_read_tokens"] = self.cached
        if isinstance(self.reason, str):
            facts["finish_reasons"] = [self.reason]
        if not made:
            return
        facts["output_tokens"] = made
        self._gather_pace(made)
        for drafts in self.drafts:
            if drafts.share is not None:
                facts["draft_accepted_share"] = drafts.share
        tier = tiers.in_use(mlx_call.peak())
        if tier is not None:
            facts["peak_memory"] = tier

    def _gather_pace(self, made: int) -> None:
        facts = self.facts
        facts["time_to_first_token_s"] = (self.first_chunk_ns - self.start_ns) * NS
        fresh, began_ns = self.prompt - max(0, self.cached), self.began_ns
        # A single token is not read but decoded.
        if fresh > 1 and began_ns is not None and self.first_chunk_ns > began_ns:
            facts["prefill_rate"] = fresh / ((self.first_chunk_ns - began_ns) * NS)
        decode_ns = self.last_chunk_ns - self.first_chunk_ns
        if made > 1 and decode_ns > 0:
            facts["time_per_output_token_s"] = decode_ns * NS / (made - 1)
            facts["decode_rate"] = (made - 1) / (decode_ns * NS)
        size = facts.get("context_size", 0)
        if size and self.prompt >= 0:
            facts["context_fill"] = min(1.0, (self.prompt + made) / size)


_open: Final[dict[int, tuple[int, Answer]]] = {}
"""Answers that are being read, and whose: by `key_of` both."""


def opened(
    recorder: Recorder, asked: Asked, known: identity.Identity | None = None
) -> Answer | None:
    """Open the call of a request. Never raises.

    Args:
        recorder: what turns the call into telemetry.
        asked: the request.
        known: who answers; None of a request that the engine refused or has not begun with.
    """
    try:
        facts, handler = _facts(asked), asked.handler
        model = None
        if known is None:
            model = _hub_id(asked.engine.model_provider, asked.arguments.model.model)
        # Opened last: what fails above must not leave a call behind that nobody ends.
        call = Answer(
            recorder,
            _OPERATIONS.get(asked.request.request_type, "text_completion"),
            known,
            model,
            handler is not None,
            asked.started_ns,
        )
        call.began_ns = asked.asked_ns
        call.stream = handler is None or getattr(handler, "stream", False) is True
        call.facts.update(facts)
    except Exception:  # noqa: BLE001 - as `never_raise` does
        failed("mlx_answer.open")
        return None
    return call


def known(asked: Asked) -> identity.Identity | None:
    """Say who answers, unless another request had its model loaded since. Never raises."""
    try:
        provider, name = asked.engine.model_provider, asked.arguments.model.model
        key, model = provider.model_key, provider.model
        if model is None or key is None:
            return None
        # The server's own model is known by its place as `default_model` (until 0.30), or the
        # other way round.
        if key[0] == name or any(
            getattr(provider, table, {}).get(name) == key[0]
            for table in ("default_model_map", "_model_map")
        ):
            return mlx_models.known(model, provider.tokenizer)
    except Exception:  # noqa: BLE001 - as `never_raise` does
        failed("mlx_answer.identity")
    return None


def _hub_id(provider: Any, asked: Any) -> str | None:
    """Give the public id of what was asked for, where it has one."""
    if asked == "default_model":
        asked = provider.cli_args.model
    return identity.hub_id(asked)


def _facts(asked: Asked) -> Facts:
    """Say what was asked for, the server's defaults included."""
    arguments = asked.arguments
    facts: dict[str, Any] = {}
    for group, settings in _SETTINGS.items():
        given = getattr(arguments, group, None)
        for fact, name, zero_is_off in settings:
            value = getattr(given, name, None)
            if (type(value) is float or type(value) is int) and (value or not zero_is_off):
                facts[fact] = value
    limit = arguments.max_tokens
    if type(limit) is int and limit > 0:
        facts["request_max_tokens"] = limit
    for fact, listed in (
        ("request_stop_count", getattr(arguments, "stop_words", None)),
        ("request_tool_count", getattr(asked.request, "tools", None)),
    ):
        if isinstance(listed, list) and listed:
            facts[fact] = len(listed)
    return facts  # type: ignore[return-value]
