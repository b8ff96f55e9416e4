"""mlx-lm's server before it had an engine: a request is answered in the thread of its connection.

`APIHandler.do_POST` has the model loaded and hands its prompt to `handle_completion`, which
generates. What is asked stands in attributes of the handler by then.

Seen in mlx-lm 0.28.0 to 0.28.3.
"""

from __future__ import annotations

import functools
from time import perf_counter_ns
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

from sottovoce.guard import never_raise
from sottovoce.runtimes import mlx_generate, mlx_request
from sottovoce.runtimes.engine import Arguments

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sottovoce.guard import Patches
    from sottovoce.runtimes.mlx_answer import Answer, Asked

    Opened = Callable[[mlx_request.Request, Asked], Answer | None]
    """Opens the call of a request, or says of one that is open who answers it."""

    Loads = Mapping[Any, tuple[int, int]]
    """As `Answer.began` gets it."""

_SAMPLING: Final = ("temperature", "top_p", "top_k")
_MODEL: Final = {"model": "requested_model", "adapter": "adapter", "draft": "requested_draft_model"}
"""Name in later versions → the handler's attribute."""


def install(handler: Any, patches: Patches, opened: Opened, loads: Loads) -> None:
    """Patch the class `APIHandler`."""
    patches.wrap(handler, "handle_completion", functools.partial(_complete, opened, loads))
    patches.wrap(handler, "get_prompt_cache", _reuse)


@never_raise("mlx_handler.ask")
def ask(request: mlx_request.Request) -> None:
    """The model that the handler of `request` wants is loaded now, if it is not there."""
    handler = request.handler
    body = handler.body
    stop = body.get("stop")
    asked = SimpleNamespace(
        request_type="chat" if handler.path.endswith("chat/completions") else "text",
        tools=body.get("tools"),
    )
    arguments = SimpleNamespace(
        model=SimpleNamespace(**{name: getattr(handler, of) for name, of in _MODEL.items()}),
        sampling=SimpleNamespace(**{name: getattr(handler, name) for name in _SAMPLING}),
        max_tokens=handler.max_tokens,
        stop_words=[stop] if isinstance(stop, str) else stop,
    )
    request.ask(handler, asked, arguments)


def _complete(opened: Opened, loads: Loads, original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `APIHandler.handle_completion`, which generates and answers."""
    arguments = Arguments(original)

    @never_raise("mlx_handler.open")
    def begin(prompt: Any) -> Callable[[dict[str, Any]], Callable[[Any], None]] | None:
        request = mlx_request.current.get()
        asked = request.taken() if request is not None else None
        if request is None or asked is None:
            return None
        call = request.call = opened(request, asked)
        if call is None:
            return None
        call.began(asked, perf_counter_ns(), prompt, loads)
        return functools.partial(_reader, request, call)

    @functools.wraps(original)
    def handle_completion(*args: Any, **kwargs: Any) -> Any:
        reader = begin(arguments.named(args, kwargs).get("prompt"))
        if reader is None:
            return original(*args, **kwargs)
        reading = mlx_generate.served.set(reader)
        try:
            return original(*args, **kwargs)
        finally:
            mlx_generate.served.reset(reading)

    return handle_completion


def _reader(
    request: mlx_request.Request, call: Answer, named: dict[str, Any]
) -> Callable[[Any], None]:
    drafted = request.draft(named)
    if drafted is None:
        return call.read

    def read(piece: Any) -> None:
        call.read(piece)
        drafted(piece)

    return read


def _reuse(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `APIHandler.get_prompt_cache`, which leaves of a prompt what no cache holds."""

    @never_raise("mlx_handler.reuse")
    def note(prompt: Any, rest: Any) -> None:
        request = mlx_request.current.get()
        if request is not None and request.call is not None:
            request.call.cached = len(prompt) - len(rest)

    @functools.wraps(original)
    def get_prompt_cache(handler: Any, prompt: Any, *args: Any, **kwargs: Any) -> Any:
        rest = original(handler, prompt, *args, **kwargs)
        note(prompt, rest)
        return rest

    return get_prompt_cache
