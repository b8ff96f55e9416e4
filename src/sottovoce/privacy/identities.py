"""What may be said of the model of a call and of the host that it runs on.

A public id of a model that runs here tells nothing of anybody; any other may name a tenant, a
product or a person, and leaves as a pseudonym.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from sottovoce.privacy import hosts, rules, tripwire

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sottovoce.privacy.pseudonyms import Pseudonyms
    from sottovoce.settings import Settings

PROVIDER: Final = "gen_ai.provider.name"
ADDRESS: Final = "server.address"

IN_PROCESS: Final = frozenset({"mlx", "llama_cpp"})
"""Providers whose models run in this process."""


class Identities:
    """What may be said of models and hosts, for one set of settings. Thread-safe.

    What was said of a name is remembered, and what is remembered is bounded in number and in
    the length of the names.
    """

    def __init__(self, settings: Settings, pseudonyms: Pseudonyms) -> None:
        self._own_hosts = settings.own_hosts
        self._remote_catalogue = settings.remote_model_ids == "catalogue"
        self._pseudonyms = pseudonyms
        self._local_addresses: set[str] = set()
        remember = lru_cache(maxsize=rules.REMEMBERED)
        self._known_model = remember(self._model)
        self._known_address = remember(self._address)
        self._known_place = remember(self._is_here)

    def model(self, raw: str, *, local: bool) -> str:
        """The id if it is public and local, else a pseudonym."""
        return (self._known_model if len(raw) <= rules.LONGEST else self._model)(raw, local)

    def _model(self, raw: str, local: bool) -> str:
        if self._pseudonyms.has_made(raw):
            return raw
        if not (local or self._remote_catalogue):
            return self._pseudonyms.model(raw)
        from sottovoce.privacy import catalogue  # noqa: PLC0415 - of use to some apps alone

        if local and catalogue.is_descriptor(raw):
            return raw
        # The operator's list may hold what he did not think of.
        known = catalogue.is_public(raw) and not tripwire.hit(raw)
        return raw if known else self._pseudonyms.model(raw)

    def address(self, host: str, *, local: bool) -> str:
        """The `server.address` of a host. `local`: it is this machine or the operator's own."""
        shown = (self._known_address if len(host) <= rules.LONGEST else self._address)(host)
        if local and len(self._local_addresses) < rules.REMEMBERED:
            # So that the gate, which sees the pseudonym alone, knows a span of ours as local.
            self._local_addresses.add(shown)
        return shown

    def _address(self, host: str) -> str:
        return hosts.host(host, self._pseudonyms)

    def is_pseudonym(self, text: str) -> bool:
        """Whether this process made `text` for somebody's name."""
        return self._pseudonyms.has_made(text)

    def is_local(self, attributes: Mapping[str, Any]) -> bool:
        """Whether the model of these attributes runs on this machine or on an own host."""
        address = attributes.get(ADDRESS)
        if address is None:
            return attributes.get(PROVIDER) in IN_PROCESS
        return isinstance(address, str) and (
            address in self._local_addresses
            or (len(address) <= rules.LONGEST and self._known_place(address))
        )

    def _is_here(self, address: str) -> bool:
        name = hosts.host_of(address)
        return hosts.is_loopback(name) or hosts.is_own(name, self._own_hosts)
