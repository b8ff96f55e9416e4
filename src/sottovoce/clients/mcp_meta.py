"""Trace context in ``params._meta`` of what mcp before 2.0 sends, which puts none there itself.

The names are the bare ones of the W3C (https://modelcontextprotocol.io/community/seps/414-request-meta),
as from 2.0 on. It goes where the policy lets it go, and never over what the app put there; the
app's request stays as it is: what is sent is a copy, whose arguments are the same objects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from sottovoce import guard

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sottovoce.steps import Step


def sent(
    step: Step, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Give ``send_request``'s arguments with the step's trace context in the request.

    They are as given where nothing may go along, and where there is no place for it. Never raises.
    """
    told = _told(step, args[0] if args else kwargs.get("request"))
    if told is None:
        return args, kwargs
    return ((told, *args[1:]), kwargs) if args else (args, {**kwargs, "request": told})


@guard.never_raise("mcp.meta")
def _told(step: Step, request: Any) -> Any:
    ask: Callable[..., Mapping[str, str] | None] | None = getattr(step.recorder, "carried", None)
    carried = ask(step, local=step.local) if ask is not None else None
    if not carried:
        return None
    # Seen in mcp 1.9 to 1.30: a model around one of the requests, or a request of the app's own.
    inner = getattr(request, "root", request)
    params = _with(inner.params, type(inner), carried)
    if params is None:
        return None
    told = inner.model_copy(update={"params": params})
    return told if inner is request else request.model_copy(update={"root": told})


def _with(params: Any, request: Any, carried: Mapping[str, str]) -> Any:
    """Give a copy of `params` with `carried`; ``None`` where one of its names is there."""
    if isinstance(params, dict):
        meta = params.get("_meta") or {}
        return None if carried.keys() & meta else {**params, "_meta": {**meta, **carried}}
    if params is None:
        made = _model(request, "params")
        return None if made is None else made(_meta=dict(carried))
    if params.meta is not None:
        meta = params.meta
        if carried.keys() & (meta.model_extra or {}):
            return None
        return params.model_copy(update={"meta": meta.model_copy(update=carried)})
    made = _model(type(params), "meta")
    return None if made is None else params.model_copy(update={"meta": made(**carried)})


def _model(owner: Any, field: str) -> Any:
    """Find the class of an optional field's value; ``None`` when that is no model."""
    declared = owner.model_fields[field].annotation
    return next((each for each in get_args(declared) if hasattr(each, "model_fields")), None)
