"""mlx-lm in process: `load`, `generate` and `stream_generate` become calls.

One call for one generation. `generate` loops over `stream_generate` inside mlx-lm: the outer
function opens the call and the inner one only feeds it. A stream's call is opened when the
app asks for the first token, because mlx-lm does nothing before that and a stream that is
never started would otherwise never end.

The operation is ``text_completion``: mlx-lm takes a finished prompt, as text or tokens, and
whether a chat template made it cannot be known. The conventions' ``chat`` is for messages.

Token counts are the engine's own, one response for each token, so they are exact for streams
that were abandoned or failed. The end-of-sequence token that mlx-lm counts on ``stop`` is not
part of the output (llama-cpp-python does not count it either), prompt tokens that came from a
prompt cache are part of the input. Engine times are measured inside the generator, so what
the app does between two tokens is not in them.

Seen in mlx-lm 0.31.3 and 0.32.2. The package's attribute ``mlx_lm.generate`` is a function
that shadows the module of that name, so patches go to module *objects*.
"""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from contextvars import ContextVar
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Final

from sottovoce.call import Call, current_call
from sottovoce.guard import failed, never_raise
from sottovoce.runtimes import identity

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping
    from types import ModuleType

    from sottovoce.call import Recorder
    from sottovoce.guard import ImportHooks, Patches

PROVIDER: Final = "mlx"
OPERATION: Final = "text_completion"

_FLOATS: Final = {"float64": "f64", "float32": "f32", "float16": "f16", "bfloat16": "bf16"}
_NS: Final = 1e-9

models: Final = identity.Identities()
"""Identities of the models that are loaded in this process."""


def install(recorder: Recorder, hooks: ImportHooks, patches: Patches, settings: Any = None) -> None:
    """Patch mlx-lm when the app imports it, or at once if it already did.

    Args:
        recorder: what turns calls into telemetry.
        hooks: import hooks; once stopped, wrappers that the app still holds pass through.
        patches: keeps the originals for `Patches.undo`.
        settings: unused; instrumentors hand it to every runtime.
    """
    del settings
    engine = _Engine(recorder, hooks)

    def patch(module: ModuleType, late: bool, makers: Mapping[str, Callable[[Any], Any]]) -> None:
        for name, make in makers.items():
            patches.wrap(module, name, make)
        if late:
            patches.rebind()

    loaders = {
        "load": engine.load,
        "sharded_load": engine.load,
        "load_model": engine.load,
    }
    generators = {"stream_generate": engine.stream_generate, "generate": engine.generate}
    hooks.when_imported("mlx_lm.utils", lambda module, late: patch(module, late, loaders))
    hooks.when_imported("mlx_lm.generate", lambda module, late: patch(module, late, generators))


class _Arguments:
    """Finds an argument by name in what a call was given, whatever its position."""

    def __init__(self, function: Callable[..., Any]) -> None:
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):
            parameters = ()  # type: ignore[assignment]
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        self._position = {
            entry.name: index for index, entry in enumerate(parameters) if entry.kind in positional
        }

    def get(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the argument that was given as `name`, or None."""
        if name in kwargs:
            return kwargs[name]
        position = self._position.get(name)
        return args[position] if position is not None and position < len(args) else None


class _Generation:
    """One generation while it runs: what to record once it is over."""

    __slots__ = (
        "busy_ns",
        "cached",
        "call",
        "first_ns",
        "made",
        "prompt",
        "reason",
        "taken",
    )

    def __init__(self, call: Call, cached: int) -> None:
        self.call = call
        self.cached = cached
        self.busy_ns = 0
        self.first_ns = 0
        self.prompt: Any = None
        self.made: Any = 0
        self.reason: Any = None
        # Whether a generator already feeds this call; only for calls of `generate`.
        self.taken = False

    @never_raise("mlx.end")
    def end(self, error: BaseException | None = None) -> None:
        """The engine is done, or failed with `error`."""
        if self.call.is_open:
            self._write_facts()
        if error is None:
            self.call.end()
        else:
            self.call.fail(error)

    @never_raise("mlx.leave")
    def leave(self) -> None:
        """The app stopped reading; after the last token that is no abandonment."""
        if self.call.is_open:
            self._write_facts()
        if self.reason is None:
            self.call.abandon()
        else:
            self.call.end(at_ns=self.call.last_chunk_ns or None)

    def _write_facts(self) -> None:
        facts = self.call.facts
        facts["engine_duration_s"] = self.busy_ns * _NS
        if not self.first_ns:
            return
        facts["time_to_first_token_s"] = self.first_ns * _NS
        if isinstance(self.prompt, int):
            facts["input_tokens"] = self.prompt + self.cached
            if self.cached:
                facts["cache_read_tokens"] = self.cached
        if isinstance(self.reason, str):
            facts["finish_reasons"] = [self.reason]
        if isinstance(self.made, int):
            facts["output_tokens"] = max(0, self.made - (self.reason == "stop"))
            if self.made > 1:
                per_token = (self.busy_ns - self.first_ns) / (self.made - 1)
                facts["time_per_output_token_s"] = per_token * _NS


_whole: ContextVar[_Generation | None] = ContextVar("sottovoce_mlx_whole", default=None)
"""The `generate` call whose inner stream has not begun; set and reset in one frame."""

_loading: ContextVar[bool] = ContextVar("sottovoce_mlx_loading", default=False)
"""Whether an outer loader already measures; set and reset in one frame."""


class _Engine:
    """Makes the wrappers; each passes through once the hooks are stopped."""

    def __init__(self, recorder: Recorder, hooks: ImportHooks) -> None:
        self._recorder = recorder
        self._hooks = hooks
        self._loaded = getattr(recorder, "loaded", None)
        self._enabled = getattr(recorder, "enabled", None)

    def stream_generate(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `mlx_lm.generate.stream_generate`; the result stays a generator."""
        arguments = _Arguments(original)

        @functools.wraps(original)
        def stream_generate(*args: Any, **kwargs: Any) -> Any:
            # Making the generator runs nothing of it, but raises what a bad call should raise.
            inner = original(*args, **kwargs)
            if not self._hooks.active or not inspect.isgenerator(inner):
                return inner
            whole = _whole.get()
            if whole is not None and not whole.taken:
                whole.taken = True
                return _feed(inner, whole)
            return _stream(inner, lambda: self._open(arguments, args, kwargs, stream=True))

        return stream_generate

    def generate(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `mlx_lm.generate.generate`: one call whose inner stream only feeds it."""
        arguments = _Arguments(original)

        @functools.wraps(original)
        def generate(*args: Any, **kwargs: Any) -> Any:
            generation = self._open(arguments, args, kwargs, stream=False)
            if generation is None:
                return original(*args, **kwargs)
            current = current_call.set(generation.call)
            whole = _whole.set(generation)
            entered = self._recorder.enter(generation.call)
            try:
                text = original(*args, **kwargs)
            except BaseException as error:
                generation.end(error)
                raise
            else:
                generation.end()
                return text
            finally:
                self._recorder.leave(entered)
                _whole.reset(whole)
                current_call.reset(current)

        return generate

    def load(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a loader: remember who was loaded, record how long the app waited for it.

        A download, when the hub's cache does not have the model, is part of that time.
        """
        arguments = _Arguments(original)

        @functools.wraps(original)
        def load(*args: Any, **kwargs: Any) -> Any:
            if not self._hooks.active or _loading.get():
                return original(*args, **kwargs)
            # Before the call: a download would make a hub id exist here only afterwards.
            asked = _asked_for(arguments, args, kwargs)
            started = perf_counter_ns()
            loading = _loading.set(True)
            try:
                result = original(*args, **kwargs)
            except Exception as error:
                self._record_load({}, (perf_counter_ns() - started) * _NS, error)
                raise
            finally:
                _loading.reset(loading)
            seconds = (perf_counter_ns() - started) * _NS
            known = _remember(result, asked)
            facts = {"request_model": known.name, **known.facts} if known else {}
            self._record_load(facts, seconds, None)
            return result

        return load

    @never_raise("mlx.load")
    def _record_load(self, facts: Any, seconds: float, error: Exception | None) -> None:
        if self._loaded is not None:
            self._loaded(PROVIDER, facts, seconds, error)

    @never_raise("mlx.open")
    def _open(
        self,
        arguments: _Arguments,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        stream: bool,
    ) -> _Generation | None:
        if not self._hooks.active or (self._enabled is not None and not self._enabled()):
            return None
        model = arguments.get("model", args, kwargs)
        known = models.get(model) or _late_identity(model, arguments.get("tokenizer", args, kwargs))
        limit = arguments.get("max_tokens", args, kwargs)
        cached = _cached_tokens(arguments.get("prompt_cache", args, kwargs))
        # Opened last: what fails above must not leave a call behind that nobody ends.
        call = Call(
            self._recorder,
            operation=OPERATION,
            provider=PROVIDER,
            model=known.name if known else None,
            in_process=True,
            local=True,
        )
        call.stream = stream
        facts = call.facts
        if stream:
            facts["request_stream"] = True
        if known:
            facts.update(known.facts)
        # -1 asks for no limit.
        if type(limit) is int and limit > 0:
            facts["request_max_tokens"] = limit
        return _Generation(call, cached or 0)


def _stream(
    inner: Generator[Any, Any, Any], open_call: Callable[[], _Generation | None]
) -> Generator[Any, Any, Any]:
    """Pass a stream on; its call is open from the first `next` until the stream is over."""
    generation = open_call()
    if generation is None:
        return (yield from inner)
    call = generation.call
    set_current, reset_current = current_call.set, current_call.reset
    first = True
    thrown: BaseException | None = None
    while True:
        # In the same frame and never across the yield: the next step may run in another
        # thread or context.
        current = set_current(call)
        started = perf_counter_ns()
        try:
            response = next(inner) if thrown is None else inner.throw(thrown)
        except StopIteration as stop:
            generation.busy_ns += perf_counter_ns() - started
            generation.end()
            return stop.value
        except BaseException as error:
            generation.busy_ns += perf_counter_ns() - started
            generation.end(error)
            # Our frame is in the traceback: a reference here would make a cycle.
            thrown = None
            raise
        finally:
            reset_current(current)
        thrown = None
        call.chunk()
        generation.busy_ns += call.last_chunk_ns - started
        try:
            generation.made = response.generation_tokens
            generation.reason = response.finish_reason
            if first:
                first = False
                generation.first_ns = generation.busy_ns
                generation.prompt = response.prompt_tokens
        except Exception:  # noqa: BLE001 - a response of another shape is the app's all the same
            failed("mlx.response")
        try:
            yield response
        except GeneratorExit:
            generation.leave()
            inner.close()
            raise
        except BaseException as error:  # noqa: BLE001 - thrown in by the app, for the engine
            thrown = error


def _feed(inner: Generator[Any, Any, Any], generation: _Generation) -> Generator[Any, Any, Any]:
    """Pass on the stream inside `generate`, which reads it without a pause."""
    started = perf_counter_ns()
    try:
        for response in inner:
            try:
                generation.made = response.generation_tokens
                generation.reason = response.finish_reason
                if not generation.first_ns:
                    generation.first_ns = perf_counter_ns() - started
                    generation.prompt = response.prompt_tokens
            except Exception:  # noqa: BLE001 - as in `_stream`
                failed("mlx.response")
            yield response
    finally:
        generation.busy_ns = perf_counter_ns() - started
        inner.close()


@never_raise("mlx.asked")
def _asked_for(arguments: _Arguments, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    for name in ("path_or_hf_repo", "repo", "model_path"):
        asked = arguments.get(name, args, kwargs)
        if asked is not None:
            return identity.hub_id(asked)
    return None


@never_raise("mlx.remember")
def _remember(result: Any, public_id: str | None) -> identity.Identity | None:
    """Identify the model that a loader returned, first in its tuple."""
    model = result[0]
    known = _identify(model, public_id)
    models.put(model, known)
    return known


@never_raise("mlx.late")
def _late_identity(model: Any, tokenizer: Any) -> identity.Identity | None:
    """Identify a model that was loaded before we were here, once."""
    public_id = identity.snapshot_id(getattr(tokenizer, "name_or_path", None))
    known = _identify(model, public_id)
    models.put(model, known)
    return known


def _identify(model: Any, public_id: str | None) -> identity.Identity:
    """Describe a model by its own modules: no file is read."""
    # A type that mlx-lm serves with another's code (mistral with llama) may be in no
    # vocabulary; the module that holds the code is.
    architecture = identity.architecture(
        getattr(model, "model_type", None),
        getattr(getattr(model, "args", None), "model_type", None),
        type(model).__module__.removeprefix("mlx_lm.models."),
    )
    parameters = 0
    weights: Counter[str] = Counter()
    for module in model.modules():
        # A quantised layer packs its weights into 32-bit words, with scales beside them.
        bits = getattr(module, "bits", None)
        packed = isinstance(bits, int) and "scales" in module
        for name, array in module.items():
            if name.startswith("_") or not hasattr(array, "dtype"):
                continue
            if packed and name in {"scales", "biases"}:
                continue
            size = array.size
            if packed and name == "weight":
                size = size * 32 // bits
                mode = getattr(module, "mode", "affine")
                weights[f"{bits}bit" if mode == "affine" else str(mode)] += size
            else:
                dtype = str(array.dtype).rpartition(".")[2]
                weights[_FLOATS.get(dtype, identity.OTHER)] += size
            parameters += size
    # Mixed models are named by what most of their weights are.
    most = weights.most_common(1)
    return identity.describe(public_id, architecture, most[0][0] if most else None, parameters)


@never_raise("mlx.cache")
def _cached_tokens(prompt_cache: Any) -> int:
    """Tokens that a prompt cache already holds: mlx-lm's prompt count leaves them out."""
    if not isinstance(prompt_cache, (list, tuple)):
        return 0
    offsets = (getattr(layer, "offset", 0) for layer in prompt_cache)
    return max((offset for offset in offsets if type(offset) is int), default=0)
