"""The methods of an SDK that open calls, as a table, and what puts its door before them."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from sottovoce.call import Recorder
    from sottovoce.clients.door import Door
    from sottovoce.guard import ImportHooks, Patches


class Method(NamedTuple):
    """One method; where a version has none of that name, its door is left out.

    Attributes:
        module: that the app imports.
        owner: class in it.
        name: of the method.
        wrap: the door's method that makes the replacement.
    """

    module: str
    owner: str
    name: str
    wrap: Callable[[Any, Callable[..., Any]], Callable[..., Any]]


class Install(Protocol):
    """What a client's `install` is."""

    def __call__(
        self,
        recorder: Recorder,
        hooks: ImportHooks,
        patches: Patches,
        own_hosts: tuple[str, ...] = (),
    ) -> None:
        """Open a call for every model request of the SDK, now or once it is imported.

        Args:
            recorder: what turns the calls into telemetry.
            hooks: registers the import hooks; once they are stopped, kept wrappers pass through.
            patches: undoes everything.
            own_hosts: hosts of the operator's own, besides this machine.
        """


def installer(kind: type[Door], *methods: Method) -> Install:
    """Make the `install` of an SDK whose calls `kind` opens in these methods."""

    def install(
        recorder: Recorder,
        hooks: ImportHooks,
        patches: Patches,
        own_hosts: tuple[str, ...] = (),
    ) -> None:
        door = kind(recorder, hooks, own_hosts)
        for method in methods:
            hooks.when_imported(method.module, functools.partial(_patch, patches, door, method))

    return install


def _patch(patches: Patches, door: Door, method: Method, module: ModuleType, _late: bool) -> None:
    wrap = functools.partial(method.wrap, door)
    patches.wrap(getattr(module, method.owner), method.name, wrap)
