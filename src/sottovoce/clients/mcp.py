"""Model Context Protocol: requests as the client sends them and as the server answers them.

Of a request the method, the name of the tool or prompt, and how it ended are looked at; never
arguments, results, URIs or messages. From mcp 2.0 on the package makes a span of its own for
each request; what is recorded here takes its place, so that there is one span on each side.

Trace context goes with a request (in ``params._meta``, where the package puts it from 2.0 on)
to child processes and to hosts of the operator's own, and is taken from there by the server.
"""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any, Final

from sottovoce import guard, steps
from sottovoce.clients import mcp_meta, mcp_peers
from sottovoce.steps import Step

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import ModuleType

    from sottovoce.call import Recorder
    from sottovoce.guard import ImportHooks, Patches
    from sottovoce.steps import Tokens

    Opened = tuple[Step, Tokens | None]

_NAMED: Final = frozenset({"tools/call", "prompts/get"})
"""Methods whose ``name`` is a tool's or a prompt's."""

_ERRORS: Final = frozenset({"MCPError", "McpError"})
"""Classes of errors that carry the protocol's code: of 2.x, and of 1.x."""

_INVALID_PARAMS: Final = "-32602"

_TOOL_ERROR: Final = "tool_error"
_VERSION_HEADER: Final = "mcp-protocol-version"
_SESSION_HEADER: Final = "mcp-session-id"
_LONGEST: Final = 256


def install(
    make: Callable[[], Recorder],
    hooks: ImportHooks,
    patches: Patches,
    own_hosts: tuple[str, ...] = (),
) -> None:
    """Record every request over MCP, now or once the package is imported.

    Args:
        make: gives what turns steps into telemetry.
        hooks: registers the import hooks; once it is stopped, kept wrappers pass through.
        patches: undoes everything.
        own_hosts: hosts of the operator's own, besides this machine.
    """
    both = _Sides(make, hooks)
    mcp_peers.install(hooks, patches, own_hosts)

    def patch(owner: str | None, **names: Callable[..., Any]) -> Callable[..., None]:
        def run(module: ModuleType, _late: bool) -> None:
            target = getattr(module, owner, None) if owner else module
            for name, replacement in names.items() if target is not None else ():
                patches.wrap(target, name, replacement)

        return run

    # Seen in mcp 2.3. `otel_span` and `inject_trace_context` are the package's own telemetry.
    on = hooks.when_imported
    on(
        "mcp.shared.jsonrpc_dispatcher",
        patch("JSONRPCDispatcher", send_raw_request=both.send_raw),
    )
    on(
        "mcp.shared.jsonrpc_dispatcher",
        patch(None, otel_span=_own_span, inject_trace_context=_injection),
    )
    on("mcp.shared.direct_dispatcher", patch("DirectDispatcher", send_raw_request=both.send_here))
    on("mcp.server._otel", patch("OpenTelemetryMiddleware", __call__=both.middleware))
    # Seen in mcp 1.9 to 1.30.
    on("mcp.shared.session", patch("BaseSession", send_request=both.send_typed))
    on("mcp.shared.session", patch("RequestResponder", respond=_responding))
    on("mcp.server.lowlevel.server", patch("Server", _handle_request=both.handle))


class _Sides:
    """Opens and closes the steps of both sides."""

    def __init__(self, make: Callable[[], Recorder], hooks: ImportHooks) -> None:
        self._source = steps.Source()
        self._source.add(make)
        self._hooks = hooks

    def send_raw(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """``JSONRPCDispatcher.send_raw_request(method, params, opts=None)``."""

        @functools.wraps(original)
        async def send(dispatcher: Any, *args: Any, **kwargs: Any) -> Any:
            opened = self._sent(dispatcher, args, kwargs)
            return await _run(opened, original, dispatcher, *args, **kwargs)

        return send

    def send_here(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """The same of a server in this process."""

        @functools.wraps(original)
        async def send(dispatcher: Any, *args: Any, **kwargs: Any) -> Any:
            opened = self._sent(None, args, kwargs)
            return await _run(opened, original, dispatcher, *args, **kwargs)

        return send

    def send_typed(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """``BaseSession.send_request(request, result_type, …)``."""

        @functools.wraps(original)
        async def send(session: Any, *args: Any, **kwargs: Any) -> Any:
            opened = self._sent_typed(session, args, kwargs)
            if opened is not None:
                args, kwargs = mcp_meta.sent(opened[0], args, kwargs)
            result = await _run(opened, original, session, *args, **kwargs)
            if opened is not None and opened[0].method == "initialize":
                mcp_peers.agreed(session, opened[0].version)
            return result

        return send

    def middleware(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """``OpenTelemetryMiddleware.__call__(ctx, call_next)``, in whose place we record."""

        @functools.wraps(original)
        async def call(middleware: Any, ctx: Any, call_next: Any) -> Any:
            if not self._hooks.active:
                return await original(middleware, ctx, call_next)
            opened = self._asked(ctx)
            return await _run(opened, call_next, ctx)

        return call

    def handle(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """``Server._handle_request(message, req, …)``; how it ended is told to `_responding`."""

        @functools.wraps(original)
        async def run(server: Any, *args: Any, **kwargs: Any) -> Any:
            opened = self._asked_typed(args, kwargs)
            return await _run(opened, original, server, *args, **kwargs)

        return run

    @guard.never_raise("mcp.sent")
    def _sent(
        self, dispatcher: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Opened | None:
        method, params, opts = [
            args[place] if len(args) > place else kwargs.get(name)
            for place, name in enumerate(("method", "params", "opts"))
        ]
        recorder = self._recorder()
        if recorder is None or type(method) is not str:
            return None
        peer = mcp_peers.HERE if dispatcher is None else mcp_peers.behind(dispatcher)
        step = self._client_step(recorder, peer, method, _of(params, "name"))
        step.version = _text(_of(_of(opts, "headers"), _VERSION_HEADER)) or step.version
        return step, steps.enter(step)

    @guard.never_raise("mcp.sent_typed")
    def _sent_typed(
        self, session: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Opened | None:
        recorder = self._recorder()
        request = args[0] if args else kwargs.get("request")
        request = getattr(request, "root", request)
        method = getattr(request, "method", None)
        if recorder is None or type(method) is not str:
            return None
        peer = mcp_peers.behind(session)
        name = getattr(getattr(request, "params", None), "name", None)
        step = self._client_step(recorder, peer, method, name)
        return step, steps.enter(step)

    @staticmethod
    def _client_step(recorder: Recorder, peer: mcp_peers.Peer, method: str, name: Any) -> Step:
        return Step(
            recorder,
            "mcp_client",
            _text(name) if method in _NAMED else None,
            method=method,
            local=peer.local,
            address=peer.host,
            port=peer.port,
            transport=peer.transport,
            version=peer.version,
            session=_text(peer.session()) if peer.session is not None else None,
        )

    @guard.never_raise("mcp.asked")
    def _asked(self, ctx: Any) -> Opened | None:
        recorder = self._recorder()
        # A notification has no id, and no span.
        if recorder is None or ctx.request_id is None or type(ctx.method) is not str:
            return None
        name = _of(ctx.params, "name") if ctx.method in _NAMED else None
        step = _server_step(recorder, ctx.method, name, ctx.request, ctx.meta)
        step.version = _text(ctx.protocol_version)
        return step, steps.enter(step)

    @guard.never_raise("mcp.asked_typed")
    def _asked_typed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opened | None:
        recorder = self._recorder()
        message, request = [
            args[place] if len(args) > place else kwargs.get(name)
            for place, name in enumerate(("message", "req"))
        ]
        method = getattr(request, "method", None)
        if recorder is None or type(method) is not str:
            return None
        params = getattr(request, "params", None)
        name = getattr(params, "name", None) if method in _NAMED else None
        http = getattr(getattr(message, "message_metadata", None), "request_context", None)
        meta = getattr(getattr(params, "meta", None), "model_extra", None)
        step = _server_step(recorder, method, name, http, meta)
        return step, steps.enter(step)

    def _recorder(self) -> Recorder | None:
        return self._source.recorder() if self._hooks.active else None


def _server_step(recorder: Recorder, method: str, name: Any, http: Any, meta: Any) -> Step:
    session = http.headers.get(_SESSION_HEADER) if http is not None else None
    pipe = "pipe" if mcp_peers.served_by_pipe.get() else None
    return Step(
        recorder,
        "mcp_server",
        _text(name),
        method=method,
        transport=pipe if http is None else "tcp",
        session=_text(session),
        carrier=_carrier(meta),
    )


def _carrier(meta: Any) -> dict[str, str] | None:
    """Give the other side's trace context, and nothing else of what came along."""
    parent = _text(_of(meta, "traceparent"))
    return None if parent is None else {"traceparent": parent}


def _of(mapping: Any, key: str) -> Any:
    return mapping.get(key) if isinstance(mapping, dict) else None


def _text(value: Any) -> str | None:
    return value if type(value) is str and 0 < len(value) <= _LONGEST else None


async def _run(
    opened: Opened | None, work: Callable[..., Any], /, *args: Any, **kwargs: Any
) -> Any:
    """Do `work` within the step, and end the step as it ends."""
    if opened is None:
        return await work(*args, **kwargs)
    step, tokens = opened
    try:
        # Arguments that it does not take are refused at once.
        result = await work(*args, **kwargs)
    except BaseException as error:
        steps.leave(step, tokens)
        steps.close(step, _code(error) or error)
        raise
    steps.leave(step, tokens)
    _learn(step, result)
    steps.close(step)
    return result


@guard.never_raise("mcp.code")
def _code(error: BaseException) -> str | None:
    """Give the protocol's code of an error; ``None`` when it has none."""
    name = type(error).__name__
    if name == "ValidationError":
        # pydantic's: the server answers with this code.
        return _INVALID_PARAMS
    if name not in _ERRORS:
        return None
    code = getattr(getattr(error, "error", None), "code", None)
    return str(int(code)) if isinstance(code, int) else None


@guard.never_raise("mcp.learn")
def _learn(step: Step, result: Any) -> None:
    """See whether the tool failed, and on which version the two sides agreed."""
    if step.method == "tools/call":
        failed = _of(result, "isError")
        # `is_error` in 2.x, `isError` in 1.x.
        if failed is None:
            failed = getattr(result, "is_error", getattr(result, "isError", None))
        if failed is True:
            step.fail(_TOOL_ERROR)
    elif step.method == "initialize":
        named = _of(result, "protocolVersion")
        step.version = _text(named or getattr(result, "protocolVersion", None)) or step.version


def _responding(original: Callable[..., Any]) -> Callable[..., Any]:
    """``RequestResponder.respond(response)``: what the server of 1.x answers is seen here."""

    @functools.wraps(original)
    async def respond(responder: Any, *args: Any, **kwargs: Any) -> Any:
        _answered(args[0] if args else kwargs.get("response"))
        return await original(responder, *args, **kwargs)

    return respond


@guard.never_raise("mcp.answered")
def _answered(response: Any) -> None:
    step = steps.current_step.get()
    if step is None or step.kind != "mcp_server":
        return
    code = getattr(response, "code", None)
    if isinstance(code, int):
        step.fail(str(int(code)))
    else:
        _learn(step, getattr(response, "root", response))


class _NoSpan:
    """Takes what the package would tell its own span."""

    def __getattr__(self, _name: str) -> Callable[..., None]:
        return _ignore


def _ignore(*_args: Any, **_kwargs: Any) -> None:
    pass


_NO_SPAN: Final = _NoSpan()


def _own_span(original: Callable[..., Any]) -> Callable[..., Any]:
    """Let the package make no span for a request that has one already."""

    @functools.wraps(original)
    def otel_span(*args: Any, **kwargs: Any) -> Any:
        step = steps.current_step.get()
        if step is None or step.kind != "mcp_client" or not step.is_open:
            return original(*args, **kwargs)
        return _nothing()

    return otel_span


@contextlib.contextmanager
def _nothing() -> Generator[_NoSpan]:
    yield _NO_SPAN


def _injection(original: Callable[..., Any]) -> Callable[..., Any]:
    """Let trace context go with a request no further than the policy lets it."""

    @functools.wraps(original)
    def inject(*args: Any, **kwargs: Any) -> Any:
        step = steps.current_step.get()
        if step is not None and step.kind == "mcp_client" and _withheld(step):
            return None
        return original(*args, **kwargs)

    return inject


def _withheld(step: Step) -> bool:
    withholds = getattr(step.recorder, "withholds", None)
    return True if withholds is None else bool(withholds(step))
