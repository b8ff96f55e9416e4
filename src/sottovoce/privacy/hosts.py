"""What may be said of a host: a known provider, this machine, or its class and a pseudonym."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sottovoce.privacy.patterns import Pattern

if TYPE_CHECKING:
    from sottovoce.privacy.pseudonyms import Pseudonyms

PROVIDER_HOSTS: Final = frozenset({
    "api.anthropic.com", "api.cerebras.ai", "api.cohere.com", "api.cohere.ai", "api.deepseek.com",
    "api.fireworks.ai", "api.groq.com", "api.mistral.ai", "api.moonshot.ai", "api.openai.com",
    "api.perplexity.ai", "api.together.xyz", "api.together.ai", "api.x.ai", "codestral.mistral.ai",
    "eu.api.openai.com", "generativelanguage.googleapis.com", "api-inference.huggingface.co",
    "models.inference.ai.azure.com", "router.huggingface.co", "openrouter.ai",
    "us.api.openai.com",
})  # fmt: skip

# A tenant names these hosts, or a region does: only what comes after it may be seen.
_TENANT_SUFFIXES: Final = (
    "openai.azure.com",
    "services.ai.azure.com",
    "cognitiveservices.azure.com",
    "inference.ml.azure.com",
    "aiplatform.googleapis.com",
    "amazonaws.com",
    "amazonaws.com.cn",
    "api.aws",
    "cloudflare.com",
    "endpoints.huggingface.cloud",
)
_LOOPBACK: Final = Pattern(r"127(?:\.\d{1,3}){3}")
_AUTHORITY: Final = Pattern(
    r"(?:https?://(?:[^/?#@]*@)?)?(\[[0-9a-fA-F:.]+\]|[^/?#:@\s]+)(?::\d{1,5})?(?:[/?#]|$)"
)
CLASSES: Final = frozenset({"private", "public_other"})
"""What is said of a host that may not be named, alone or with its pseudonym."""
HERE: Final = frozenset({"localhost", "127.0.0.1", "::1", "[::1]"})
_PRIVATE: Final = Pattern(
    r"10(?:\.\d{1,3}){3}|192\.168(?:\.\d{1,3}){2}|172\.(?:1[6-9]|2\d|3[01])(?:\.\d{1,3}){2}"
    r"|169\.254(?:\.\d{1,3}){2}|100\.(?:6[4-9]|[7-9]\d|1[01]\d|12[0-7])(?:\.\d{1,3}){2}"
    r"|\[?f(?:[cd][0-9a-f]{2}|e[89ab][0-9a-f]):[0-9a-f:.%]*\]?"
    r"|[^.:]*|.*\.(?:local|internal|lan|home|corp|intranet|localhost)|/.*"
)


def is_loopback(address: str) -> bool:
    """Whether `address` is this machine by name or number."""
    name = address.lower()
    return name in HERE or (name[:4] == "127." and _LOOPBACK.fullmatch(name) is not None)


def is_own(address: str, own_hosts: tuple[str, ...]) -> bool:
    """Whether `address` is one of `own_hosts`: exact names, or ``*.example.org``."""
    address = address.lower()
    return any(
        address.endswith(own[1:]) if own.startswith("*.") else address == own for own in own_hosts
    )


def host_of(address: str) -> str:
    """The host of `address`, which may be a URL or have a port: other instrumentations write so."""
    if address.replace(".", "").replace("-", "").isalnum():
        # Nearly always: a name, or a number with dots.
        return address
    found = _AUTHORITY.match(address)
    return found[1] if found is not None else address


def host(address: str, pseudonyms: Pseudonyms) -> str:
    """What may be said of a host: a known provider's name, loopback, or its class and 12 hex."""
    if address in PROVIDER_HOSTS:
        return address
    name = host_of(address).lower().rstrip(".")
    if name in PROVIDER_HOSTS or name in HERE or pseudonyms.has_made(name):
        return name
    if is_loopback(name):
        # Nine digits to choose freely: which of them it is stays here.
        return "127.0.0.1"
    for suffix in _TENANT_SUFFIXES:
        if name == suffix or name.endswith("." + suffix):
            return suffix
    kind = "private" if len(name) > 255 or _PRIVATE.fullmatch(name) else "public_other"  # noqa: PLR2004 - a name's longest
    return pseudonyms.host(name, kind)
