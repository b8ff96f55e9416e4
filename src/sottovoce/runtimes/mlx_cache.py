"""What a prompt cache of mlx-lm holds: it leaves those tokens out of its prompt counts.

Seen in mlx-lm 0.28.0 to 0.32.2: a layer has an `offset`, the tokens that it has seen; a rotating
one has a `max_size`, and a list of layers for one block has `caches`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sottovoce.guard import never_raise

if TYPE_CHECKING:
    from collections.abc import Iterator


class Held(NamedTuple):
    """What a cache holds before a call.

    Attributes:
        tokens: that the model need not read again.
        window: most tokens that there is room for, where the cache forgets the oldest.
    """

    tokens: int = 0
    window: int | None = None


EMPTY: Final = Held()


def held(prompt_cache: Any, model: Any = None, asked: Any = None) -> Held:
    """Look at a cache; where there is none, at the one that mlx-lm will make. Never raises.

    Args:
        prompt_cache: layers, or None.
        model: who the cache will be made for: one that makes its own is not asked twice.
        asked: the window that the app asks for, of tokens.
    """
    if prompt_cache is not None:
        return _held(prompt_cache) or EMPTY
    if type(asked) is not int or asked < 1 or hasattr(model, "make_cache"):
        return EMPTY
    return Held(window=asked)


@never_raise("mlx.cache")
def _held(prompt_cache: Any) -> Held:
    # Layers of several kinds may lie in one cache; the one that holds most tells.
    tokens, windows = 0, []
    for offset, window in _layers(prompt_cache):
        tokens = max(tokens, offset if window is None else min(offset, window))
        windows.append(window)
    bounded = [window for window in windows if window is not None]
    return Held(tokens, max(bounded) if bounded and len(bounded) == len(windows) else None)


def _layers(layers: Any) -> Iterator[tuple[int, int | None]]:
    """Give of each layer that holds tokens how many it has seen, and its window."""
    if not isinstance(layers, (list, tuple)):
        return
    for layer in layers:
        inner = getattr(layer, "caches", None)
        if isinstance(inner, (list, tuple)):
            yield from _layers(inner)
            continue
        offset, window = getattr(layer, "offset", None), getattr(layer, "max_size", None)
        # Layers of a batch have one offset for each sequence, in an array: not asked for, it
        # would have to be computed.
        if type(offset) is int:
            yield offset, window if type(window) is int else None
