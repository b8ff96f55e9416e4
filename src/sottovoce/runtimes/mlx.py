"""mlx-lm in process: `load`, `generate`, `stream_generate` and their kin become calls.

One call for one generation. `generate` loops over `stream_generate` inside mlx-lm: the outer
function opens the call and the inner one only feeds it. A stream's call is opened when the
app asks for the first token, because mlx-lm does nothing before that and a stream that is
never started would otherwise never end. Batches are in `mlx_batch.py`.

The operation is ``text_completion``: mlx-lm takes a finished prompt, as text or tokens, and
whether a chat template made it cannot be known. The conventions' ``chat`` is for messages.

Seen in mlx-lm 0.28.0 to 0.32.2. The package's attribute ``mlx_lm.generate`` is a function
that shadows the module of that name, so patches go to module *objects*.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, Final

from sottovoce.call import current_call
from sottovoce.guard import failed, never_raise
from sottovoce.runtimes import mlx_batch, mlx_cache, mlx_main, mlx_models, mlx_sampling
from sottovoce.runtimes.engine import Arguments, Runtime, pass_on
from sottovoce.runtimes.mlx_call import Generation, Speculation
from sottovoce.runtimes.mlx_models import PROVIDER

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import ModuleType

    from sottovoce.call import Recorder
    from sottovoce.guard import ImportHooks, Patches

LOADERS: Final = ("load", "sharded_load", "load_model")
ADAPTERS: Final = {"load_adapters": True, "remove_lora_layers": False}
"""Functions of `mlx_lm.tuner.utils`, and whether the model has an adapter afterwards."""


def install(recorder: Recorder, hooks: ImportHooks, patches: Patches, settings: Any = None) -> None:
    """Patch mlx-lm when the app imports it, or at once if it already did.

    Args:
        recorder: what turns calls into telemetry.
        hooks: import hooks; once stopped, wrappers that the app still holds pass through.
        patches: keeps the originals for `Patches.undo`.
        settings: unused; instrumentors hand it to every runtime.
    """
    del settings
    engine = _Mlx(PROVIDER, recorder, hooks)

    def samplers(module: ModuleType) -> None:
        mlx_sampling.install(module, patches)

    def loaders(module: ModuleType) -> None:
        for name in LOADERS:
            patches.wrap(module, name, functools.partial(mlx_models.loader, engine))

    def generators(module: ModuleType) -> None:
        patches.wrap(module, "stream_generate", engine.stream_generate)
        patches.wrap(module, "generate", engine.generate)
        mlx_batch.install(engine, module, patches)

    def when_imported(name: str, patch: Callable[[ModuleType], None]) -> None:
        def imported(module: ModuleType, late: bool) -> None:
            patch(module)
            if late:
                patches.rebind()

        hooks.when_imported(name, imported)

    def adapters(module: ModuleType) -> None:
        for name, adapted in ADAPTERS.items():
            patches.wrap(module, name, functools.partial(mlx_models.adapter, adapted))

    when_imported("mlx_lm.sample_utils", samplers)
    when_imported("mlx_lm.tuner.utils", adapters)
    when_imported("mlx_lm.utils", loaders)
    when_imported("mlx_lm.generate", generators)
    mlx_main.when_run("mlx_lm.generate", hooks, patches, generators)


class _Mlx(Runtime):
    """Makes the wrappers."""

    def stream_generate(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `mlx_lm.generate.stream_generate`; the result stays a generator."""
        arguments = Arguments(original)

        @functools.wraps(original)
        def stream_generate(*args: Any, **kwargs: Any) -> Any:
            # Making the generator runs nothing of it, but raises what a bad call should raise.
            inner = original(*args, **kwargs)
            if not self.active or not inspect.isgenerator(inner):
                return inner
            whole = current_call.get()
            if isinstance(whole, Generation) and not whole.stream and not whole.fed:
                whole.fed = True
                return _feed(inner, whole)
            return _stream(inner, lambda: self._open(arguments, args, kwargs, stream=True))

        return stream_generate

    def generate(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `mlx_lm.generate.generate`: one call whose inner stream only feeds it."""
        arguments = Arguments(original)

        @functools.wraps(original)
        def generate(*args: Any, **kwargs: Any) -> Any:
            call = self._open(arguments, args, kwargs, stream=False)
            if call is None:
                return original(*args, **kwargs)
            text = self.run(call, original, args, kwargs)
            call.finish()
            return text

        return generate

    @never_raise("mlx.open")
    def _open(
        self,
        arguments: Arguments,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        stream: bool,
    ) -> Generation | None:
        if not self.recording or mlx_batch.suppressed.get():
            return None
        named = arguments.named(args, kwargs)
        model, alone = named.get("model"), named.get("draft_model") is None
        # A cache that has to be taken back never forgets: with a draft no window counts.
        window = named.get("max_kv_size") if alone else None
        kind = Generation if alone else Speculation
        return kind(
            self,
            identity=mlx_models.known(model, named.get("tokenizer")),
            stream=stream,
            held=mlx_cache.held(named.get("prompt_cache"), model, window),
            asked=named,
        )


def _stream(
    inner: Generator[Any, Any, Any], open_call: Callable[[], Generation | None]
) -> Generator[Any, Any, Any]:
    """Pass a stream on; its call is open from the first `next` until the stream is over."""
    call = open_call()
    del open_call  # it holds the arguments
    if call is None:
        return (yield from inner)
    return (yield from pass_on(inner, call))


def _feed(inner: Generator[Any, Any, Any], call: Generation) -> Generator[Any, Any, Any]:
    """Pass on the stream inside `generate`, which reads it without a pause."""
    try:
        for response in inner:
            try:
                call.read(response)
            except Exception:  # noqa: BLE001 - a response of another shape is the app's all the same
                failed("runtime.read")
            yield response
    finally:
        inner.close()
