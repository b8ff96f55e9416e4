"""Who answers at a host: the provider's name, and whether the host is this machine or the operator's.

Local is decided by names and addresses alone, never by resolving: what cannot be shown to
be local is not.
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

UNKNOWN: Final = "openai_compatible"
"""The provider of a host that no row names."""

HOSTS: Final[dict[str, str]] = {
    # In the conventions' list of `gen_ai.provider.name`.
    "api.openai.com": "openai",
    "api.anthropic.com": "anthropic",
    "claude.googleapis.com": "anthropic",
    "api.cohere.com": "cohere",
    "api.cohere.ai": "cohere",
    "api.deepseek.com": "deepseek",
    "api.groq.com": "groq",
    "api.mistral.ai": "mistral_ai",
    "codestral.mistral.ai": "mistral_ai",
    "api.moonshot.ai": "moonshot_ai",
    "api.moonshot.cn": "moonshot_ai",
    "api.kimi.com": "moonshot_ai",
    "api.perplexity.ai": "perplexity",
    "api.x.ai": "x_ai",
    "generativelanguage.googleapis.com": "gcp.gemini",
    "generativelanguage.mtls.googleapis.com": "gcp.gemini",
    "aiplatform.googleapis.com": "gcp.vertex_ai",
    "aiplatform.mtls.googleapis.com": "gcp.vertex_ai",
    "models.inference.ai.azure.com": "azure.ai.inference",
    # Ours.
    "api.cerebras.ai": "cerebras",
    "api.deepinfra.com": "deepinfra",
    "api.fireworks.ai": "fireworks_ai",
    "api.sambanova.ai": "sambanova",
    "api.together.ai": "together_ai",
    "api.together.xyz": "together_ai",
    "api.voyageai.com": "voyage",
    "integrate.api.nvidia.com": "nvidia",
    "ollama.com": "ollama",
    "openrouter.ai": "openrouter",
    "router.huggingface.co": "hugging_face",
    "api-inference.huggingface.co": "hugging_face",
}

DOMAINS: Final[tuple[tuple[str, str], ...]] = (
    (".api.openai.com", "openai"),
    (".openai.azure.com", "azure.ai.openai"),
    (".cognitiveservices.azure.com", "azure.ai.openai"),
    (".services.ai.azure.com", "azure.ai.inference"),
    (".models.ai.azure.com", "azure.ai.inference"),
    (".api.x.ai", "x_ai"),
    (".openrouter.ai", "openrouter"),
    ("-aiplatform.googleapis.com", "gcp.vertex_ai"),
    ("-aiplatform.mtls.googleapis.com", "gcp.vertex_ai"),
    (".aiplatform.googleapis.com", "gcp.vertex_ai"),
    (".ml.cloud.ibm.com", "ibm.watsonx.ai"),
    (".endpoints.huggingface.cloud", "hugging_face"),
)
"""Endings of host names, the first that fits counts."""

PATHS: Final[tuple[tuple[str, str, str], ...]] = (
    (".services.ai.azure.com", "/openai/", "azure.ai.openai"),
)
"""(Ending of a host name, beginning of a path, provider) where one host serves several."""

SERVICES: Final[tuple[tuple[str, str, str], ...]] = (
    ("bedrock-runtime", "amazonaws.com", "aws.bedrock"),
    ("bedrock-runtime-fips", "amazonaws.com", "aws.bedrock"),
    ("bedrock-runtime", "amazonaws.com.cn", "aws.bedrock"),
    ("bedrock-runtime", "api.aws", "aws.bedrock"),
    ("bedrock-mantle", "api.aws", "aws.bedrock"),
    ("aiplatform", "rep.googleapis.com", "gcp.vertex_ai"),
)
"""(Label of a host name, its ending, provider) where regions stand between the two."""

LOCAL_PORTS: Final[dict[int, str]] = {
    1234: "lm_studio",
    1337: "osaurus",  # and Jan's, which the operator can name
    11434: "ollama",
    12434: "docker_model_runner",
    30000: "sglang",
}
"""Default ports of local servers, on this machine and in the networks of homes and offices."""

PRIVATE: Final = (".local", ".lan", ".home", ".internal", ".home.arpa")
"""Endings of names that no public one has (RFC 6762 appendix G, RFC 8375, ICANN's ``.internal``)."""


_ENDPOINT = r"(.+?)(?::(\d+))?(/[^=]*)?=([^:]+)(?::(local|remote))?"


class Endpoint:
    """An address that the operator named.

    Attributes:
        host: lower-case; ``*.example.org`` for every host below one.
        port: None for every port.
        path: what the path begins with, whole segments; "" for every path.
        provider: who answers there.
        local: whether it is this machine or the operator's own; None for what the host says.
    """

    __slots__ = ("host", "local", "path", "port", "provider")

    def __init__(
        self, host: str, port: int | None, path: str, provider: str, *, local: bool | None
    ) -> None:
        self.host = host
        self.port = port
        self.path = path
        self.provider = provider
        self.local = local


def endpoint(
    host: str | None, port: int | None, path: str, own_hosts: tuple[str, ...]
) -> Endpoint | None:
    """Find what the operator said of an address: of several endpoints the first that fits.

    Args:
        host: of the URL, in any case.
        port: TCP port.
        path: of the URL.
        own_hosts: may hold endpoints, ``HOST[:PORT][/PATH]=PROVIDER[:local|remote]``.
    """
    name = _plain(host)
    for found in _endpoints(own_hosts):
        if (
            _is(name, found.host)
            and found.port in {None, port}
            and f"{path}/".startswith(found.path)
        ):
            return found
    return None


@lru_cache(maxsize=8)
def _endpoints(own_hosts: tuple[str, ...]) -> tuple[Endpoint, ...]:
    found = (re.fullmatch(_ENDPOINT, text) for text in own_hosts if "=" in text)
    return tuple(
        Endpoint(
            _plain(match[1]),
            int(match[2]) if match[2] else None,
            match[3].rstrip("/") + "/" if match[3] else "",
            match[4],
            local=None if match[5] is None else match[5] == "local",
        )
        for match in found
        if match is not None
    )


def _is(name: str, pattern: str) -> bool:
    if pattern.startswith("*."):
        return name.endswith(pattern[1:]) and len(name) >= len(pattern)
    return name == pattern


def provider(host: str | None, port: int | None = None, path: str = "") -> tuple[str, bool | None]:
    """Name the provider behind an address, by the conventions' list where it is in it.

    Args:
        host: of the URL, without port; None or a path for a Unix socket.
        port: TCP port, None for the scheme's own.
        path: of the URL.

    Returns:
        The name, and whether the host is known to be a third party's: True for a
        provider's, False for this machine, None when it cannot be told.
    """
    name = _plain(host)
    if is_local(name):
        return (LOCAL_PORTS.get(port, UNKNOWN) if port is not None else UNKNOWN), False
    for ending, beginning, found in PATHS:
        if name.endswith(ending) and path.startswith(beginning):
            return found, True
    known = HOSTS.get(name) or _by_domain(name)
    if known:
        return known, True
    served = LOCAL_PORTS.get(port) if port is not None else None
    return (served if served and _is_private(name) else UNKNOWN), None


def is_local(host: str | None, own_hosts: Iterable[str] = ()) -> bool:
    """Tell whether `host` is this machine or one of the operator's own.

    Args:
        host: as in a URL, in any case, with or without brackets; None, "" or a path is a
            Unix socket.
        own_hosts: lower-case names, or ``*.example.org`` for every host below one.
    """
    name = _plain(host)
    if _is_loopback(name):
        return True
    return any(_is(name, pattern) for pattern in own_hosts)


def _plain(host: str | None) -> str:
    if not host:
        return ""
    return host.lower().strip("[]").rstrip(".")


@lru_cache(maxsize=512)
def _is_loopback(name: str) -> bool:
    if not name or name.startswith(("/", "unix:")):
        return True
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ip_address(name.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    # Connecting to the unspecified address reaches this machine.
    return address.is_loopback or address.is_unspecified


@lru_cache(maxsize=512)
def _is_private(name: str) -> bool:
    """Whether a host that is not this machine is one of a network of somebody's own, by its name."""
    if "." not in name and ":" not in name:
        return not name.isdigit()  # a container, a machine in the same office
    if name.endswith(PRIVATE):
        return True
    try:
        return ip_address(name.partition("%")[0]).is_private
    except ValueError:
        return False


@lru_cache(maxsize=512)
def _by_domain(name: str) -> str | None:
    for ending, found in DOMAINS:
        if name.endswith(ending):
            return found
    labels = name.split(".")
    for label, ending, found in SERVICES:
        if label in labels and name.endswith("." + ending):
            return found
    return None
