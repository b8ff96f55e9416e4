"""llama_cpp.server: each request that asks a model is a span, the parent of the model's own.

`create_app` makes the app, for ``python -m llama_cpp.server`` as well as for a server of the
user's own; ours is put around it as a middleware. Seen in llama-cpp-python 0.3.0 and 0.3.36.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from sottovoce.guard import never_raise
from sottovoce.runtimes.asgi import Served, ServedRequest

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from sottovoce.call import Recorder
    from sottovoce.guard import ImportHooks, Patches

ROUTES: Final = frozenset(
    {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/engines/copilot-codex/completions",
    }
)
"""What asks a model, with POST; listing models and counting tokens does not."""

_SCHEMES: Final = frozenset({"http", "https"})


def patch(
    module: ModuleType,
    make: Callable[[], Recorder],
    hooks: ImportHooks,
    patches: Patches,
) -> None:
    """Hook `llama_cpp.server.app`, which was just imported.

    Args:
        module: it.
        make: gives what turns requests into telemetry, always the same.
        hooks: once they are stopped, apps that were made meanwhile pass everything through.
        patches: keeps the original for `Patches.undo`.
    """

    @never_raise("llama_server.open")
    def open_(scope: Any) -> ServedRequest | None:
        if not hooks.active or scope["type"] != "http" or scope["method"] != "POST":
            return None
        path, root = scope["path"], scope.get("root_path", "")
        # From the table: the path itself goes no further.
        route = next((each for each in ROUTES if path in {each, root + each}), None)
        if route is None:
            return None
        recorder = make()
        enabled = getattr(recorder, "enabled", None)
        if enabled is not None and not enabled():
            return None
        scheme = scope.get("scheme", "http")
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in scope["headers"]
        }
        return ServedRequest(
            recorder, "POST", route, scheme if scheme in _SCHEMES else "http", headers
        )

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def create_app(*args: Any, **kwargs: Any) -> Any:
            app = original(*args, **kwargs)
            _surround(app)
            return app

        return create_app

    @never_raise("llama_server.app")
    def _surround(app: Any) -> None:
        if hooks.active:
            app.add_middleware(Served, open_=open_)

    patches.wrap(module, "create_app", wrap)
