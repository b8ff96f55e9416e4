"""The last look at every string that leaves: does it hold what no contract can have meant?

Contracts decide what leaves; this is what finds their mistakes. One alternation over the whole
text, of bounded pieces only, so that the time is linear in its length, with google-re2 (extra
``fast``) and without. Both are given the same pattern in the syntax that they share: no
lookaround, ASCII classes, and a blank on either side of the text in the place of anchors.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Final

from sottovoce import guard
from sottovoce.privacy.patterns import Pattern

if TYPE_CHECKING:
    from collections.abc import Callable

_START: Final = r"[^0-9A-Za-z]"
_ALNUM: Final = "[0-9A-Za-z]"
_TOKEN: Final = r"[0-9A-Za-z_\-]"  # noqa: S105 - a class of characters
_OCTET: Final = r"(?:[1-9]?\d|1\d\d|2[0-4]\d|25[0-5])"
# 0 is no address, and 127 is this machine.
_FIRST_OCTET: Final = r"(?:[1-9]\d?|1[013-9]\d|12[0-689]|2[0-4]\d|25[0-5])"
_HEX4: Final = "[0-9A-Fa-f]{1,4}"

PATTERNS: Final[tuple[tuple[str, str], ...]] = (
    (
        "e-mail address",
        r"[^ @](?:@|%40)[^ @./]{1,63}(?:\.[^ @./]{1,63}){0,8}\.(?:[A-Za-z]{2}|[^\x00-\x7f])",
    ),
    # Phones, with a plus or with separators: bare digits cannot be told from a counter.
    ("phone, E.164", r"[^0-9A-Za-z.]\+[1-9](?:[ ./()\-]{0,2}\d){7,14}"),
    ("phone, from abroad", r"[^0-9A-Za-z.]00[1-9]\d{0,2}[ ./\-](?:[ ./\-]?\d){6,12}[^0-9A-Za-z]"),
    (
        "phone, North America",
        r"[^0-9A-Za-z.\-]\(?[2-9]\d{2}\)?[ .\-]{1,2}\d{3}[ .\-]\d{4}[^0-9A-Za-z\-]",
    ),
    ("phone, with a trunk zero", r"[^0-9A-Za-z.\-]\(?0\d{2,4}\)?[ /\-]\d{5,9}[^0-9A-Za-z\-]"),
    # National ids, with the separators that they are written with.
    ("social security number, US", r"[^0-9A-Za-z\-]\d{3}[ \-]\d{2}[ \-]\d{4}[^0-9A-Za-z\-]"),
    ("insurance number, UK", r"[^0-9A-Za-z][A-Z]{2} \d{2} \d{2} \d{2} [A-D][^0-9A-Za-z]"),
    ("insurance number, CA", r"[^0-9A-Za-z\-]\d{3}[ \-]\d{3}[ \-]\d{3}[^0-9A-Za-z\-]"),
    ("CPF, BR", r"[^0-9A-Za-z]\d{3}\.\d{3}\.\d{3}-\d{2}[^0-9A-Za-z]"),
    ("Aadhaar, IN", r"[^0-9A-Za-z]\d{4} \d{4} \d{4}[^0-9A-Za-z]"),
    ("NIR, FR", r"[^0-9A-Za-z][12] \d{2} \d{2} \d{2} \d{3} \d{3}[^0-9A-Za-z]"),
    ("DNI, ES", r"[^0-9A-Za-z\-]\d{8}-[A-Z][^0-9A-Za-z\-]"),
    ("codice fiscale, IT", r"[^0-9A-Za-z][A-Z]{6}\d{2}[A-EHLMPRST]\d{2}[A-Z]\d{3}[A-Z][^0-9A-Za-z]"),
    ("IBAN", r"[^0-9A-Za-z][A-Z]{2}\d{2}(?: [0-9A-Z]{4}){3}"),
    # Keys of providers and of what is used beside them.
    ("key, sk-", rf"{_START}(?:sk|pk|rk)[_\-]{_TOKEN}{{16}}"),
    ("key, Google", rf"{_START}AIza{_TOKEN}{{30}}"),
    ("token, Google", rf"{_START}ya29\.{_TOKEN}{{10}}"),
    (
        "key, with a prefix",
        rf"{_START}(?:gsk_|hf_|xai-|r8_|pplx-|csk-|fw_|npm_|nvapi-|jina_|lsv2_|tgp_v1_|dop_v1_|phc_|whsec_){_TOKEN}{{0,8}}{_ALNUM}{{16}}",
    ),
    ("key, AWS", rf"{_START}(?:AKIA|ASIA)[0-9A-Z]{{16}}"),
    ("token, GitHub", rf"{_START}(?:gh[oprsu]_{_ALNUM}{{20}}|github_pat_{_TOKEN}{{20}})"),
    ("token, GitLab", rf"{_START}glpat-{_TOKEN}{{16}}"),
    ("token, Slack", rf"{_START}xox[abeoprs]-{_TOKEN}{{10}}"),
    ("token, PyPI", rf"{_START}pypi-{_TOKEN}{{30}}"),
    ("key, SendGrid", rf"{_START}SG\.{_TOKEN}{{16}}"),
    ("authorization", rf"{_START}(?:[Bb]earer|BEARER|[Bb]asic|BASIC)[ :=]{{1,2}}[0-9A-Za-z_\-.~+/]{{8}}"),
    ("private key", r"-----BEGIN "),
    ("JWT", rf"{_START}eyJ{_TOKEN}{{10}}"),
    ("password in a URL", r"://[^ /@]{1,64}@"),
    ("home, POSIX", r"(?:/|%2[Ff])(?:home|Users)(?:/|%2[Ff])[^ /{<:]"),
    ("home, root's", r"[^0-9A-Za-z.}>]/(?:root)/"),
    ("home, Windows", r"[A-Za-z]:[/\\]{1,2}(?:Users|Documents and Settings)[/\\]"),
    ("home, short", rf"[^0-9A-Za-z.}}>/]~{_TOKEN}{{0,32}}[/\\]"),
    ("IPv4 address", rf"[^0-9A-Za-z.]{_FIRST_OCTET}(?:\.{_OCTET}){{3}}(?:[^0-9A-Za-z.]|\.[^0-9A-Za-z])"),
    ("IPv6 address", rf"[^0-9A-Za-z:]{_HEX4}(?::{_HEX4}){{7}}[^0-9A-Za-z:]"),
    (
        "IPv6 address, short",
        rf"[^0-9A-Za-z:](?:[23][0-9A-Fa-f]{{3}}|[Ff][CDEFcdef][0-9A-Fa-f]{{2}})(?::{_HEX4}){{0,6}}::",
    ),
    ("hardware address", r"[^0-9A-Za-z:\-](?:[0-9A-Fa-f]{2}[:\-]){5}[0-9A-Fa-f]{2}[^0-9A-Za-z:\-]"),
)  # fmt: skip
"""What is looked for, and its pattern; of any text the first that applies is reported."""

_SHORTEST: Final = len("-----BEGIN")
_MARKS: Final = frozenset("@%/\\:")
_DOTS: Final = 3
_FEWEST_DIGITS: Final = 8

_ALTERNATION: Final = "|".join(f"(?:{pattern})" for _, pattern in PATTERNS)

# Digits as cards have them: together, or in groups.
_DIGITS: Final = Pattern(r"(?<![\w.])\d[\d \-]{11,}\d(?![\w])(?!\.\d)")
_LONGEST_CARD: Final = 19
_GROUP: Final = range(3, 7)
# Issuers, each with the lengths of its numbers: a time in nanoseconds has 19 digits, too.
_CARD: Final = Pattern(
    r"4(?:\d{12}|\d{15})|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}"
    r"|3[47]\d{13}|(?:30[0-5]|36\d|3[89]\d)\d{11}|35(?:2[89]|[3-8]\d)\d{12}"
    r"|(?:6011|64[4-9]\d|65\d\d)\d{12}|(?:62|50|5[6-8]|6[037])\d{14,17}"
)


def compiled(engine: Any) -> Callable[[str], Any]:
    """The alternation's ``search``, compiled by `engine`: the module `re` or `re2`."""
    search: Callable[[str], Any] = (
        re.compile(_ALTERNATION, re.ASCII) if engine is re else engine.compile(_ALTERNATION)
    ).search
    return search


@cache
def _search() -> Callable[[str], Any]:
    # At first use: compiling costs milliseconds, which an app that sends nothing does not pay.
    try:
        import re2  # noqa: PLC0415 - an extra

        return compiled(re2)
    except Exception:  # noqa: BLE001 - whatever is called `re2` there, ours works
        guard.let_through()
        return compiled(re)


@lru_cache(maxsize=4096)
def hit(text: str) -> bool:
    """Whether `text`, of at most some hundred characters, must not leave."""
    return not is_harmless(text) and trips(text, _search())


def is_harmless(text: str) -> bool:
    """Whether no pattern can apply to `text`, as can be said of most short words.

    Each needs one of `_MARKS`, ten characters or eight digits, but for an IPv4 address.
    """
    return (
        len(text) < _SHORTEST
        and _MARKS.isdisjoint(text)
        and text.count(".") < _DOTS
        and sum(map(str.isdigit, text)) < _FEWEST_DIGITS
    )


def trips(text: str, search: Callable[[str], Any]) -> bool:
    """Whether `search`, of `compiled`, or the arithmetic of cards finds something in `text`."""
    padded = f" {text} "
    try:
        found = search(padded) is not None
    except UnicodeError:
        # A lone surrogate, which RE2 cannot be given.
        found = search(padded.encode("ascii", "replace").decode()) is not None
    return found or has_card(text)


def has_card(text: str) -> bool:
    """Whether digits in `text` are the number of a payment card: issuer, length, check digit."""
    return any(_is_card_in(run[0]) for run in _DIGITS.finditer(text))


def _is_card_in(run: str) -> bool:
    groups = run.replace("-", " ").split()
    for first in range(len(groups)):
        digits = ""
        for group in groups[first:]:
            if digits and not (len(group) in _GROUP and len(groups[first]) in _GROUP):
                break
            digits += group
            if len(digits) > _LONGEST_CARD:
                break
            if _CARD.fullmatch(digits) and _luhn(digits):
                return True
    return False


def _luhn(digits: str) -> bool:
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (sum(doubled) + sum(map(int, digits[-1::-2]))) % 10 == 0
