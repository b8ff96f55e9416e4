"""llama_cpp.server: each request that asks a model is a span, the parent of the model's own.

`create_app` makes the app, for ``python -m llama_cpp.server`` as well as for a server of the
user's own; ours is put around it as a middleware. Seen in llama-cpp-python 0.3.0 and 0.3.36.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from sottovoce.guard import failed, never_raise
from sottovoce.runtimes.asgi import Headers, Served, ServedRequest

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from sottovoce.call import Recorder
    from sottovoce.guard import ImportHooks, Patches

ROUTES: Final = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/engines/copilot-codex/completions",
)
"""What asks a model, with POST; listing models and counting tokens does not."""


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

    def open_(scope: Any) -> ServedRequest | None:
        # Written out: `never_raise` costs a call more.
        try:
            route = _route(scope) if hooks.active else None
            if route is None:
                return None
            recorder = make()
            enabled = getattr(recorder, "enabled", None)
            if enabled is not None and not enabled():
                return None
            scheme = scope.get("scheme")
            return ServedRequest(
                recorder,
                "POST",
                route,
                "https" if scheme == "https" else "http",
                Headers(scope["headers"]),
            )
        except Exception:  # noqa: BLE001 - as it does
            failed("llama_server.open")
            return None

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


def _route(scope: Any) -> str | None:
    """Give the route of `ROUTES` that a scope fits, if any; may raise."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return None
    path, root = scope["path"], scope.get("root_path", "")
    # From the table: the path itself goes no further.
    for route in ROUTES:
        if path == route or (root and path == root + route):
            return route
    return None
