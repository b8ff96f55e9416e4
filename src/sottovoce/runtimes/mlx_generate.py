"""Generating with MLX, as mlx-lm and mlx-vlm share it: a stream, and a whole that reads one.

One call for one generation. `generate` loops over `stream_generate` inside the library: the
outer function opens the call and the inner one only feeds it. A stream's call is opened when
the app asks for the first token, because nothing is done before that and a stream that is
never started would otherwise never end.
"""

from __future__ import annotations

import functools
from contextvars import ContextVar
from types import GeneratorType
from typing import TYPE_CHECKING, Any

from sottovoce.call import current_call
from sottovoce.guard import failed
from sottovoce.runtimes.engine import Arguments, pass_on
from sottovoce.runtimes.mlx_batch import suppressed
from sottovoce.runtimes.mlx_call import Generation

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from sottovoce.runtimes.engine import Runtime

    Begin = Callable[[dict[str, Any], bool], Generation]
    """Opens the call: takes the arguments by name, and whether the app gets a stream."""


served: ContextVar[Callable[[dict[str, Any]], Callable[[Any], None] | None] | None] = ContextVar(
    "sottovoce_mlx_served", default=None
)
"""Who records what is generated here in the place of a call of its own: what gives, for the
arguments by name, what reads each response, if anything. Never raises; set and reset in one frame."""


def stream_generate(
    runtime: Runtime, begin: Begin, original: Callable[..., Any]
) -> Callable[..., Any]:
    """Wrap a `stream_generate`; the result stays a generator."""
    opened = _opener(runtime, begin, original)

    @functools.wraps(original)
    def stream_generate(*args: Any, **kwargs: Any) -> Any:
        # Making the generator runs nothing of it, but raises what a bad call should raise.
        inner = original(*args, **kwargs)
        if type(inner) is not GeneratorType or not runtime.active:
            return inner
        serving = served.get()
        if serving is not None:
            read = serving(kwargs)
            return inner if read is None else _feed(inner, read)
        whole = current_call.get()
        if isinstance(whole, Generation) and not whole.stream and not whole.fed:
            whole.fed = True
            return _feed(inner, whole.read)
        return pass_on(inner, functools.partial(opened, args, kwargs, True))

    return stream_generate


def generate(runtime: Runtime, begin: Begin, original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a `generate`: one call whose inner stream only feeds it."""
    opened = _opener(runtime, begin, original)

    @functools.wraps(original)
    def generate(*args: Any, **kwargs: Any) -> Any:
        call = opened(args, kwargs, False)
        if call is None:
            return original(*args, **kwargs)
        result = runtime.run(call, original, args, kwargs)
        call.finish()
        return result

    return generate


def _opener(
    runtime: Runtime, begin: Begin, original: Callable[..., Any]
) -> Callable[[tuple[Any, ...], dict[str, Any], bool], Generation | None]:
    arguments = Arguments(original)

    def opened(args: tuple[Any, ...], kwargs: dict[str, Any], stream: bool) -> Generation | None:
        # Written out: `never_raise` costs a call more.
        try:
            if runtime.recording and not suppressed.get():
                return begin(arguments.named(args, kwargs), stream)
        except Exception:  # noqa: BLE001 - as it does
            failed("mlx.open")
        return None

    return opened


def _feed(inner: Generator[Any, Any, Any], read: Callable[[Any], None]) -> Generator[Any, Any, Any]:
    """Pass on the stream inside `generate` or a server, which read it without a pause."""
    try:
        for response in inner:
            try:
                read(response)
            except Exception:  # noqa: BLE001 - a response of another shape is the app's all the same
                failed("runtime.read")
            yield response
    finally:
        inner.close()
