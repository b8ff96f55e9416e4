"""HTTP libraries: which there are, who uses the hooks in them, and who records what no SDK sent.

A library's room (`httpx.py`, `requests.py`, …) is loaded when the app imports the library, and
what reads requests and answers when the first request comes that could be a call: exporters and
much else import urllib3 and http.client without ever asking a model.

Libraries sit on one another (requests on urllib3, urllib3 on http.client): a request is an
attempt, and its answer is read, at the outermost that is hooked.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from sottovoce import guard
from sottovoce.call import current_call

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType

    from sottovoce.call import Recorder
    from sottovoce.protocols.routes import Route
    from sottovoce.transports.sending import Sending, Where


class Transport:
    """The hooks of one HTTP library.

    Args:
        room: our module, which has ``patch(transport, module)``.
        modules: the library's, whose import makes the room act.

    Attributes:
        own_hosts: hosts of the operator's own, besides this machine.
        patches: what the room replaced.
        recorder: of requests that no SDK made; ``None`` while they are left alone.
        users: hooks are in place, and act, while this is not 0.
    """

    def __init__(self, room: str, *modules: str) -> None:
        self.modules = modules
        self.own_hosts: tuple[str, ...] = ()
        self.patches = guard.Patches()
        self.recorder: Recorder | None = None
        self.users = 0
        self._begin: Callable[..., Sending | None] | None = None
        self._match: Callable[[str, str], Route | None] | None = None
        self._enabled: Callable[[], bool] | None = None
        self._hooks = guard.ImportHooks()
        self._room = room

    def install_wire(self) -> None:
        """Hook the library, now or when it is imported; each call needs a `remove_wire`."""
        self.users += 1
        if self.users > 1:
            return
        self._hooks = guard.ImportHooks()
        self.patches = guard.Patches()
        for module in self.modules:
            self._hooks.when_imported(module, self._patch)

    def remove_wire(self) -> None:
        """Undo one `install_wire`; the last one puts everything back. Calls in flight still end."""
        if self.users == 0:
            return
        self.users -= 1
        if self.users == 0:
            self._hooks.stop()
            self.patches.undo()

    def set_raw_recorder(self, recorder: Recorder | None, own_hosts: tuple[str, ...] = ()) -> None:
        """Record requests that no SDK made, too, while a recorder is set.

        Args:
            recorder: what turns such calls into telemetry; ``None`` to leave them alone.
            own_hosts: hosts of the operator's own, besides this machine.
        """
        self.own_hosts = own_hosts
        # One that cannot say whether it wants calls wants all.
        self._enabled = getattr(recorder, "enabled", None)
        self.recorder = recorder

    @property
    def records(self) -> bool:
        """Whether a request that no SDK makes is recorded, in this frame. May raise."""
        if self.recorder is None or self.users == 0:
            return False
        return self._enabled is None or self._enabled()

    def begin(
        self,
        method: str,
        path: str,
        body: Any,
        where: Callable[..., Where],
        *of: Any,
        tries: bool = False,
    ) -> Sending | None:
        """Say for which call a request is sent, or open one for it; ``None`` to leave it alone.

        May raise: whoever calls it is in the way of the app, and guarded itself.

        Args:
            method: of the request.
            path: of its URL; the whole URL does as well.
            body: as the library was given it; read where it is text or a dict, never consumed.
            where: says where it goes, when given `of`.
            of: arguments of `where`.
            tries: each time is an attempt, also below another library.
        """
        # A model is asked with a POST; what it makes in the background is fetched with a GET.
        if method != "POST" and method.upper() != "POST" and "/responses/" not in path:
            return None
        call = current_call.get()
        if call is None and (self.recorder is None or self.users == 0):
            return None
        match = self._match
        if match is None:
            if call is None and not self.records:
                # An exporter's, perhaps the last of the process: what is imported at its end can
                # change its exit code (CPython forgets there that it was interrupted).
                return None
            match = self._match = import_module("sottovoce.protocols.routes").match
        # Most requests ask no model, which is told sooner than whether one would be recorded.
        route = match(method, path)
        if call is None and (route is None or not self.records):
            return None
        begin = self._begin
        if begin is None:
            begin = self._begin = import_module(f"{__name__}.sending").begin
        return begin(self, route, method, body, where, *of, tries=tries)

    def _patch(self, module: ModuleType, _late: bool) -> None:
        import_module(f"{__name__}.{self._room}").patch(self, module)


TRANSPORTS: Final[Mapping[str, Transport]] = {
    "httpx": Transport("httpx", "httpx", "httpx2"),
    "requests": Transport("requests", "requests"),
    "aiohttp": Transport("aiohttp", "aiohttp"),
    "urllib3": Transport("urllib3", "urllib3"),
    "http_client": Transport("http_client", "http.client"),
    "lm15": Transport("lm15", "lm15.transports", "dspy._vendor.lm15.transports"),
}
"""By our name for the library."""

BENEATH_SDKS: Final = ("httpx", "requests", "aiohttp", "urllib3")
"""What providers' SDKs send their requests with."""


def install_wire(*names: str) -> None:
    """Hook these libraries, now or when they are imported; each call needs a `remove_wire`.

    Args:
        names: from `TRANSPORTS`; those of `BENEATH_SDKS` when absent.
    """
    for name in names or BENEATH_SDKS:
        TRANSPORTS[name].install_wire()


def remove_wire(*names: str) -> None:
    """Undo one `install_wire` of the same names."""
    for name in names or BENEATH_SDKS:
        TRANSPORTS[name].remove_wire()


def set_raw_recorder(name: str, recorder: Recorder | None, own_hosts: tuple[str, ...] = ()) -> None:
    """Record requests that the app itself makes with a library; see `Transport`."""
    TRANSPORTS[name].set_raw_recorder(recorder, own_hosts)
