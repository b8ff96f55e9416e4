"""mlx-lm in process: `load`, `generate`, `stream_generate` and their kin become calls.

How one generation is one call stands in `mlx_generate.py`, batches in `mlx_batch.py`; what
mlx-lm's relatives do is in `mlx_others.py`, loaded when the app imports one.

The operation is ``text_completion``: mlx-lm takes a finished prompt, as text or tokens, and
whether a chat template made it cannot be known. The conventions' ``chat`` is for messages.

Seen in mlx-lm 0.28.0 to 0.32.2. The package's attribute ``mlx_lm.generate`` is a function
that shadows the module of that name, so patches go to module *objects*.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from sottovoce.runtimes import (
    mlx_batch,
    mlx_cache,
    mlx_generate,
    mlx_main,
    mlx_models,
    mlx_sampling,
)
from sottovoce.runtimes.engine import Runtime
from sottovoce.runtimes.mlx_call import Generation, Speculation
from sottovoce.runtimes.mlx_models import PROVIDER

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType

    from sottovoce.call import Recorder
    from sottovoce.guard import ImportHooks, Patches

    Patch = Callable[[Runtime, ModuleType, Patches], None]

LOADERS: Final = ("load", "sharded_load", "load_model")
ADAPTERS: Final = {"load_adapters": True, "remove_lora_layers": False}
"""Functions of `mlx_lm.tuner.utils`, and whether the model has an adapter afterwards."""


def install(recorder: Recorder, hooks: ImportHooks, patches: Patches, settings: Any = None) -> None:
    """Patch mlx-lm and its relatives when the app imports them, or at once if it already did.

    Args:
        recorder: what turns calls into telemetry.
        hooks: import hooks; once stopped, wrappers that the app still holds pass through.
        patches: keeps the originals for `Patches.undo`.
        settings: unused; instrumentors hand it to every runtime.
    """
    del settings
    engine = Runtime(PROVIDER, recorder, hooks)

    late = False

    def when_imported(name: str, patch: Patch) -> None:
        def imported(module: ModuleType, was_there: bool) -> None:
            nonlocal late
            patch(engine, module, patches)
            late = late or was_there

        hooks.when_imported(name, imported)

    for name, patch in MODULES.items():
        when_imported(name, patch)
    # Hooks of modules that were there have run by now, and others may have taken their functions.
    if late:
        patches.rebind()
    mlx_main.when_run(
        "mlx_lm.generate", hooks, patches, lambda module: _generators(engine, module, patches)
    )


def _samplers(_: Runtime, module: ModuleType, patches: Patches) -> None:
    mlx_sampling.install(module, patches)


def _adapters(_: Runtime, module: ModuleType, patches: Patches) -> None:
    for name, adapted in ADAPTERS.items():
        patches.wrap(module, name, functools.partial(mlx_models.adapter, adapted))


def _loaders(engine: Runtime, module: ModuleType, patches: Patches) -> None:
    for name in LOADERS:
        patches.wrap(module, name, functools.partial(mlx_models.loader, engine))


def _generators(engine: Runtime, module: ModuleType, patches: Patches) -> None:
    begin = functools.partial(_open, engine)
    for wrap in (mlx_generate.stream_generate, mlx_generate.generate):
        patches.wrap(module, wrap.__name__, functools.partial(wrap, engine, begin))
    mlx_batch.install(engine, module, patches)


def _others(engine: Runtime, module: ModuleType, patches: Patches) -> None:
    from sottovoce.runtimes import mlx_others  # noqa: PLC0415 - of use to few apps

    mlx_others.install(engine, module, patches)


def _vlm_server(engine: Runtime, module: ModuleType, patches: Patches) -> None:
    from sottovoce.runtimes import mlx_vlm_server  # noqa: PLC0415 - as above

    mlx_vlm_server.install(engine, module, patches)


MODULES: Final[Mapping[str, Patch]] = {
    "mlx_lm.sample_utils": _samplers,
    "mlx_lm.tuner.utils": _adapters,
    "mlx_lm.utils": _loaders,
    "mlx_lm.generate": _generators,
    "mlx_vlm.utils": _others,
    "mlx_vlm.generate.dispatch": _others,
    "mlx_vlm.generate": _others,
    "mlx_vlm.generate.ar": _others,
    "mlx_vlm.server.generation": _vlm_server,
    "mlx_vlm.server.app": _vlm_server,
    "mlx_embeddings.utils": _others,
    "mlx_whisper.load_models": _others,
    "mlx_whisper.transcribe": _others,
}
"""Module → what patches it once it is imported."""


def _open(runtime: Runtime, named: dict[str, Any], stream: bool) -> Generation:
    model, alone = named.get("model"), named.get("draft_model") is None
    # A cache that has to be taken back never forgets: with a draft no window counts.
    window = named.get("max_kv_size") if alone else None
    kind = Generation if alone else Speculation
    return kind(
        runtime,
        mlx_models.known(model, named.get("tokenizer")),
        stream,
        mlx_cache.held(named.get("prompt_cache"), model, window),
        named,
    )
