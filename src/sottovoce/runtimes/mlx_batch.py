"""mlx-lm's batches: `batch_generate` is one call, each sequence of a `BatchGenerator` is one.

A `BatchGenerator` is what a server is built on: each sequence that is inserted is somebody's
request. Its call is open from the insertion, waiting included, until its finish reason, or
until it is removed or the generator is closed or dropped: then it was abandoned. When a step
fails, so do all sequences in the generator. Engine times are those of the steps, in which every
sequence waits for the others: how fast its prompt is read only one without company tells.

No object of the app is kept: what is known of a generator is found by its `key_of` and forgotten
when it dies. `batch_generate` makes a generator of its own, which only feeds the whole call.

Seen in mlx-lm 0.28.0 to 0.32.2. `BatchGenerator` was rewritten in 0.31.2: until then `insert`
takes prompts and `next` returns responses, since then `insert` passes segments of prompts on
to `insert_segments`, `next` returns a pair whose second part are the responses, and
`next_generated` returns those alone.
"""

from __future__ import annotations

import functools
import weakref
from contextvars import ContextVar
from itertools import repeat
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Final

from sottovoce.call import current_call
from sottovoce.guard import failed, never_raise
from sottovoce.runtimes import mlx_cache, mlx_call, mlx_models
from sottovoce.runtimes.engine import Arguments
from sottovoce.runtimes.identity import key_of
from sottovoce.runtimes.mlx_batch_calls import Batch, Sequence
from sottovoce.runtimes.mlx_cache import Held

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sottovoce.guard import Patches
    from sottovoce.runtimes.engine import Runtime

suppressed: Final[ContextVar[bool]] = ContextVar("sottovoce_mlx_suppressed", default=False)
"""Whether someone else records what mlx-lm generates here: its server's own thread sets it."""


def install(runtime: Runtime, module: Any, patches: Patches) -> None:
    """Patch `mlx_lm.generate`; what its version does not have is left alone."""
    patches.wrap(module, "batch_generate", functools.partial(_batch_generate, runtime))
    generator = getattr(module, "BatchGenerator", None)
    if not isinstance(generator, type):
        return
    # The one that both end in: the other only passes on to it.
    name = "insert_segments" if hasattr(generator, "insert_segments") else "insert"
    patches.wrap(generator, name, functools.partial(_insert, runtime))
    patches.wrap(generator, "next", _step)
    patches.wrap(generator, "next_generated", _step)
    patches.wrap(generator, "remove", _remove)
    patches.wrap(generator, "close", _close)


class _Generator:
    """What is known of a generator: how long it worked, and the calls of its sequences."""

    __slots__ = ("alive", "busy_ns", "calls", "first", "stepping", "whole")

    def __init__(self, alive: weakref.ref[Any], whole: Batch | None) -> None:
        # Calls `_forget` when the generator dies, as long as it is kept.
        self.alive = alive
        self.busy_ns = 0
        self.stepping = False
        self.calls: dict[Any, Sequence] = {}
        # The one that is there alone, until its first token.
        self.first: Sequence | None = None
        self.whole = whole

    def read(self, result: Any) -> None:
        """Count the tokens of a step that ended just now; may raise."""
        responses = result[1] if type(result) is tuple else result
        if self.whole is not None:
            self._feed(self.whole, responses)
            return
        calls, busy_ns = self.calls, self.busy_ns
        for response in responses:
            call = calls.get(response.uid)
            if call is None:
                continue
            call.chunk()
            call.made += 1
            if not call.first_ns:
                call.first_ns = busy_ns - call.began_ns
                self.first = None
            if response.finish_reason is not None:
                del calls[response.uid]
                call.reason = response.finish_reason
                call.peak = mlx_call.peak()
                call.finish()

    def _feed(self, whole: Batch, responses: Iterable[Any]) -> None:
        sizes, made = whole.sizes, 0
        for response in responses:
            uid = response.uid
            sizes[uid] = sizes.get(uid, 0) + 1
            made += 1
            reason = response.finish_reason
            if reason is not None and isinstance(reason, str):
                whole.reasons[uid] = reason
        if made:
            whole.made += made
            whole.steps += 1
            if not whole.first_ns:
                whole.first_ns = perf_counter_ns() - whole.started_ns

    def fail(self, error: BaseException) -> None:
        """A step failed, and with it all that the generator worked on."""
        for uid in list(self.calls):
            call = self.calls.pop(uid, None)
            if call is not None:
                call.finish(error)

    @never_raise("mlx.leave")
    def leave(self, uids: Iterable[Any]) -> None:
        """Nobody will read these sequences."""
        for uid in uids:
            call = self.calls.pop(uid, None)
            if call is not None:
                call.leave()


_generators: Final[dict[int, _Generator]] = {}


def _forget(key: int, _: object) -> None:
    """A generator died; this may run in the middle of anything."""
    generator = _generators.pop(key, None)
    if generator is not None and generator.calls:
        generator.leave(list(generator.calls))


def _of(generator: Any, whole: Batch | None = None) -> _Generator:
    key = key_of(generator)
    found = _generators.get(key)
    if found is None:
        # Not `weakref.finalize`, which takes ten times as long.
        alive = weakref.ref(generator, functools.partial(_forget, key))
        found = _generators[key] = _Generator(alive, whole)
    return found


def _batch_generate(runtime: Runtime, original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `mlx_lm.generate.batch_generate`: one call for all its prompts."""
    arguments = Arguments(original)

    @never_raise("mlx.open")
    def begin(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Batch | None:
        if not runtime.recording or suppressed.get():
            return None
        named = arguments.named(args, kwargs)
        model, window = named.get("model"), named.get("max_kv_size")
        held = mlx_cache.held(None, model, window)
        caches = [
            mlx_cache.held(each, model, window) for each in _sized(named.get("prompt_caches"))
        ]
        if caches:
            held = Held(sum(each.tokens for each in caches), caches[0].window)
        return Batch(
            runtime,
            len(_sized(named.get("prompts"))),
            mlx_models.known(model, named.get("tokenizer")),
            held,
            named,
        )

    @functools.wraps(original)
    def batch_generate(*args: Any, **kwargs: Any) -> Any:
        call = begin(args, kwargs)
        if call is None:
            return original(*args, **kwargs)
        result = runtime.run(call, original, args, kwargs)
        call.learn(result)
        call.finish()
        return result

    return batch_generate


def _insert(runtime: Runtime, original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap what takes new sequences: each begins a call."""
    arguments = Arguments(original)

    @functools.wraps(original)
    def insert(*args: Any, **kwargs: Any) -> Any:
        uids = original(*args, **kwargs)
        if not suppressed.get() and runtime.recording:
            # Written out: `never_raise` costs a call more.
            try:
                _begin(runtime, arguments.named(args, kwargs), uids)
            except Exception:  # noqa: BLE001 - as it does
                failed("mlx.insert")
        return uids

    return insert


def _begin(runtime: Runtime, named: dict[str, Any], uids: list[Any]) -> None:
    generator = named["self"]
    prompts = named["segments"] if "segments" in named else named["prompts"]
    whole = current_call.get()
    if isinstance(whole, Batch) and not whole.fed:
        whole.fed = True
        # In the order of the prompts, whichever is done first.
        whole.sizes = dict(zip(uids, map(_length, prompts), strict=False))
        whole.prompt = sum(whole.sizes.values())
        if named.get("caches") is not None:
            for uid, cache in zip(uids, _each(named, "caches"), strict=False):
                whole.sizes[uid] += mlx_cache.held(cache).tokens
        _of(generator, whole)
        return
    model, window = generator.model, getattr(generator, "max_kv_size", None)
    known = mlx_models.known(model)
    batch = _of(generator)
    each = zip(
        uids,
        prompts,
        _each(named, "caches"),
        _each(named, "max_tokens"),
        _each(named, "samplers", generator.sampler),
        _each(named, "logits_processors", getattr(generator, "logits_processors", None)),
        strict=False,
    )
    call = None
    for uid, prompt, cache, limit, sampler, processors in each:
        call = batch.calls[uid] = Sequence(
            runtime,
            batch,
            _length(prompt),
            known,
            mlx_cache.held(cache, model, window),
            {"max_tokens": limit, "sampler": sampler, "logits_processors": processors},
        )
    if call is not None:
        first, batch.first = batch.first, None
        if len(batch.calls) == 1:
            batch.first, call.alone = call, True
        elif first is not None:
            first.alone = False


def _step(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `next` and `next_generated`, of which none calls the other."""

    @functools.wraps(original)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        batch = _generators.get(key_of(self))
        if batch is None or batch.stepping:
            return original(self, *args, **kwargs)
        batch.stepping = True
        started = perf_counter_ns()
        try:
            # It runs for every token, and nothing is unpacked quickest.
            result = original(self, *args, **kwargs) if args or kwargs else original(self)
        except BaseException as error:
            batch.busy_ns += perf_counter_ns() - started
            batch.stepping = False
            batch.fail(error)
            raise
        batch.busy_ns += perf_counter_ns() - started
        batch.stepping = False
        try:
            batch.read(result)
        except Exception:  # noqa: BLE001 - responses of another shape are the app's all the same
            failed("runtime.read")
        return result

    return step


def _remove(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `remove`: the app gave those sequences up."""
    arguments = Arguments(original)

    @functools.wraps(original)
    def remove(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        batch = _generators.get(key_of(self))
        if batch is not None:
            uids = arguments.named((self, *args), kwargs).get("uids")
            # Not an iterator: who reads one takes it from the app.
            if isinstance(uids, (list, tuple, set, frozenset)):
                batch.leave(uids)
        return result

    return remove


def _close(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `close`, which `__del__` calls as well."""

    @functools.wraps(original)
    def close(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        batch = _generators.get(key_of(self))
        if batch is not None and batch.calls:
            batch.leave(list(batch.calls))
        return result

    return close


def _each(named: dict[str, Any], name: str, default: Any = None) -> Iterable[Any]:
    """Give an option's value for each sequence: one that is not given, or one for all, repeats."""
    values = named.get(name)
    if isinstance(values, (list, tuple)):
        return (default if value is None else value for value in values)
    return repeat(default if values is None else values)


def _sized(values: Any) -> list[Any] | tuple[Any, ...]:
    return values if isinstance(values, (list, tuple)) else ()


def _length(prompt: Any) -> int:
    """Count the tokens of a prompt, a list of them or a list of lists of them."""
    if isinstance(prompt, (list, tuple)):
        nested = prompt and isinstance(prompt[0], (list, tuple))
        return sum(map(len, prompt)) if nested else len(prompt)
    # Of anything else only an array has tokens to count.
    return len(prompt) if hasattr(prompt, "__len__") and not isinstance(prompt, str) else 0
