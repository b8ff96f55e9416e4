"""What a prompt cache of mlx-lm holds: it leaves those tokens out of its prompt counts.

Seen in mlx-lm 0.28.0 to 0.32.2: a layer has an `offset`, the tokens that it has seen; a rotating
one has a `max_size`, and a list of layers for one block has `caches`.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from sottovoce.guard import never_raise


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
    if not isinstance(prompt_cache, (list, tuple)):
        return EMPTY
    # Layers of several kinds may lie in one cache; the one that holds most tells.
    tokens, widest, bounded = 0, 0, True
    seen: set[type] = set()
    last: type | None = None
    for layer in prompt_cache:
        kind = type(layer)
        # Layers of a kind advance together, and there are many.
        if kind is last or kind in seen:
            continue
        last = kind
        seen.add(kind)
        inner = getattr(layer, "caches", None)
        if inner is None:
            offset, window = getattr(layer, "offset", None), getattr(layer, "max_size", None)
        else:
            offset, window = _held(inner) or EMPTY
        # Layers of a batch have one offset for each sequence, in an array: not asked for, it
        # would have to be computed.
        if type(offset) is not int:
            continue
        if type(window) is int:
            offset, widest = min(offset, window), max(widest, window)
        else:
            bounded = False
        tokens = max(tokens, offset)
    return Held(tokens, widest if bounded and widest else None)
