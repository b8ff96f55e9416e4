"""Text of an environment variable → a value, or `Unusable`: how each kind of setting is read.

No parser raises anything else. Of a list the entries that can be used are kept; where leaving an
entry out could let more leave than was meant, what is kept is tighter (`endpoints`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

# Patterns, compiled when a value has to be looked at: most of a process's settings are unset.
# A scheme is needed, but for gRPC, which takes a bare host and port.
_ENDPOINT: Final = r"(?:(?:https?|unix)://\S+|(?![a-z]+://)[^\s/]+:\d+)"
_HOST: Final = r"(?:\*\.)?[\w.\-]+|\[?[0-9a-f:.%]+\]?"
_NAMED: Final = (
    r"(?:(?:\*\.)?[\w.\-]+|\[[0-9a-f:.%]+\])(?::\d{1,5})?(?:/[^\s=]*)?=[a-z0-9][a-z0-9_.\-]*"
)
_NAMED_ENDPOINT: Final = _NAMED + r"(?::(?:local|remote))?"

_TRUE: Final = frozenset({"1", "true", "on", "yes"})
_FALSE: Final = frozenset({"0", "false", "off", "no", ""})


class Unusable(ValueError):
    """A value that a parser refuses; the message names the choices.

    Attributes:
        wrong: of a list, the entries that cannot be used.
        kept: of a list, what to use instead of all of it; may be empty.
    """

    def __init__(
        self, choices: str, wrong: tuple[str, ...] = (), kept: tuple[str, ...] = ()
    ) -> None:
        super().__init__(choices)
        self.wrong = wrong
        self.kept = kept


def choice(*choices: str) -> Callable[[str], str]:
    """Make the parser of a word out of `choices`, in any case."""

    def parse(text: str) -> str:
        value = text.strip().lower()
        if value not in choices:
            raise Unusable(f"choose one of {', '.join(choices)}")
        return value

    return parse


def optional(parse: Callable[[str], str]) -> Callable[[str], str | None]:
    """Make the parser of what may also be left blank."""
    return lambda text: parse(text) if text.strip() else None


def boolean(text: str) -> bool:
    """Read yes or no in the usual words."""
    value = text.strip().lower()
    if value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise Unusable("choose true or false")


def true(text: str) -> bool:
    """As OpenTelemetry defines its booleans, so that the SDK and we never disagree."""
    value = text.strip().lower()
    if value not in {"", "true", "false"}:
        raise Unusable("choose true or false")
    return value == "true"


def seconds(text: str) -> float:
    """Read a number of seconds from 0 to 60."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 60:  # noqa: PLR2004 - the bound is in the message
        raise Unusable("give a number of seconds from 0 to 60")
    return value


def words(text: str) -> str | None:
    """Take the text as it is; None when it is blank."""
    return text.strip() or None


def address(text: str) -> str | None:
    """Read where an exporter sends to; None when it is blank."""
    value = text.strip()
    if value and not re.fullmatch(_ENDPOINT, value, re.IGNORECASE):
        raise Unusable("give an address such as http://127.0.0.1:4318")
    return value or None


def exporters(text: str) -> tuple[str, ...] | None:
    """Comma-separated exporters; None when nothing is said, empty when `none` is."""
    # Each once: an exporter that is named twice would send everything twice.
    names = tuple(dict.fromkeys(items(text)))
    return tuple(name for name in names if name.lower() != "none") if names else None


def items(text: str) -> tuple[str, ...]:
    """Take what stands between commas."""
    return tuple(item.strip() for item in text.split(",") if item.strip())


def hosts(text: str) -> tuple[str, ...]:
    """Comma-separated hosts, in lower case."""
    return _usable(
        items(text.lower()),
        lambda host: re.fullmatch(_HOST, host) is not None,
        "list hosts, without scheme, port and path, or *.example.org",
    )


def allowed(kinds: Collection[str]) -> Callable[[str], tuple[str, ...]]:
    """Make the parser of comma-separated ``KIND:NAME``."""

    def usable(item: str) -> bool:
        kind, _, name = item.partition(":")
        return kind in kinds and bool(name.strip("*"))

    # Said when it is needed: most processes allow nothing.
    return lambda text: _usable(
        items(text), usable, f"list {', '.join(f'{kind}:NAME' for kind in kinds)}"
    )


def packages(text: str) -> tuple[str, ...]:
    """Comma-separated names of packages."""
    return _usable(
        items(text),
        lambda name: name.isascii() and all(map(str.isidentifier, name.split("."))),
        "list packages, such as shop, shop.orders",
    )


def endpoints(text: str) -> tuple[str, ...]:
    """Comma-separated ``HOST[:PORT][/PATH]=PROVIDER``, with ``:local`` or ``:remote``.

    The first that fits a request counts, so that one that cannot be used may have been meant as
    an exception from those after it: it counts as somebody else's (``:remote``) where it says of
    which address it speaks, and where it does not, nothing after it is the operator's own.
    """
    # A path tells letters apart, a host does not.
    given = tuple(re.sub(r"\A[^/=]*", lambda host: host[0].lower(), each) for each in items(text))
    wrong: list[str] = []
    kept: list[str] = []
    unknown = False
    for item in given:
        if re.fullmatch(_NAMED_ENDPOINT, item):
            kept.append(item.removesuffix(":local") if unknown else item)
            continue
        wrong.append(item)
        named = re.match(_NAMED, item)
        if named:
            kept.append(f"{named[0]}:remote")
        else:
            unknown = True
    if wrong:
        raise Unusable(
            "list HOST[:PORT][/PATH]=PROVIDER, which may end in :local or :remote",
            tuple(wrong),
            tuple(kept),
        )
    return given


def _usable(given: Iterable[str], usable: Callable[[str], bool], choices: str) -> tuple[str, ...]:
    kept: list[str] = []
    wrong: list[str] = []
    for item in given:
        (kept if usable(item) else wrong).append(item)
    if wrong:
        raise Unusable(choices, tuple(wrong), tuple(kept))
    return tuple(kept)
