"""Sampling parameters of mlx-lm: an app hands over functions, so those are remembered.

`make_sampler` and the makers of penalties return closures that show nothing of what they were
made with. What they were made with is kept for as long as the closure lives and not longer.

Seen in mlx-lm 0.28.0 to 0.32.2. min-p and XTC have no name in the conventions.
"""

from __future__ import annotations

import functools
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from sottovoce.guard import never_raise
from sottovoce.runtimes.engine import Arguments

if TYPE_CHECKING:
    from collections.abc import Callable

    from sottovoce.call import Facts
    from sottovoce.guard import Patches

_asked: Final[WeakKeyDictionary[FunctionType, Facts]] = WeakKeyDictionary()
_MOST_PROCESSORS: Final = 16


def install(module: Any, patches: Patches) -> None:
    """Patch `mlx_lm.sample_utils`; makers that it does not have are left alone."""
    patches.wrap(module, "make_sampler", lambda original: _maker(original, _sampling))
    patches.wrap(module, "make_presence_penalty", lambda original: _maker(original, _presence))
    patches.wrap(module, "make_frequency_penalty", lambda original: _maker(original, _frequency))


def asked(sampler: Any, processors: Any = None) -> Facts:
    """Give what a sampler and a sequence's logits processors were made with. Never raises."""
    facts = dict(_asked.get(sampler, ())) if type(sampler) is FunctionType else {}
    if isinstance(processors, (list, tuple)):
        for processor in processors[:_MOST_PROCESSORS]:
            if type(processor) is FunctionType:
                facts.update(_asked.get(processor, ()))
    return facts  # type: ignore[return-value]


def _maker(
    original: Callable[..., Any], learn: Callable[[dict[str, Any]], Facts]
) -> Callable[..., Any]:
    """Wrap what makes a function of parameters: remember what `learn` makes of them."""
    arguments = Arguments(original)

    @never_raise("mlx.sampling")
    def remember(made: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if type(made) is FunctionType:
            _asked[made] = learn(arguments.named(args, kwargs))

    @functools.wraps(original)
    def make(*args: Any, **kwargs: Any) -> Any:
        made = original(*args, **kwargs)
        remember(made, args, kwargs)
        return made

    return make


def _sampling(named: dict[str, Any]) -> Facts:
    temperature = _number(named.get("temp", 0.0))
    if temperature is None:
        return {}
    facts: Facts = {"request_temperature": temperature}
    # Without a temperature the likeliest token is taken, and one function does that for all.
    if temperature == 0:
        return facts
    top_p, top_k = _number(named.get("top_p")), named.get("top_k")
    if top_p is not None and 0 < top_p < 1:
        facts["request_top_p"] = top_p
    if type(top_k) is int and top_k > 0:
        facts["request_top_k"] = top_k
    return facts


def _presence(named: dict[str, Any]) -> Facts:
    penalty = _number(named.get("penalty"))
    return {} if penalty is None else {"request_presence_penalty": penalty}


def _frequency(named: dict[str, Any]) -> Facts:
    penalty = _number(named.get("penalty"))
    return {} if penalty is None else {"request_frequency_penalty": penalty}


def _number(value: Any) -> float | None:
    return float(value) if type(value) is float or type(value) is int else None
