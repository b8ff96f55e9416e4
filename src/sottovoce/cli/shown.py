"""How a person reads it: received text made harmless, numbers with the unit that fits them."""

from __future__ import annotations

import math
import unicodedata
from typing import Any, Final

_HIDDEN: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_SECONDS: Final = ((1.0, 1.0, "s"), (1e-3, 1e3, "ms"), (1e-6, 1e6, "µs"), (0.0, 1e9, "ns"))
_BYTES: Final = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_PLURALS: Final = {"{token}": "tokens", "{call}": "calls"}


def clean(text: object, limit: int = 120) -> str:
    """`text` on one line, without anything that a terminal or a reader's eye obeys.

    Control characters, escape sequences, marks that turn the writing direction and what has
    no shape become visible escapes; more than `limit` characters are cut.
    """
    given = str(text)
    short = given[:limit]
    seen = "".join(
        char if unicodedata.category(char) not in _HIDDEN else _escape(char) for char in short
    )
    return seen + ("…" if len(given) > limit else "")


def _escape(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}"  # noqa: PLR2004 - Latin-1


def number(value: Any) -> float | None:
    """A finite number, or None for anything else that an attribute may hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def digits(value: float) -> str:
    """Three significant digits, without an exponent and without trailing zeros."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:  # noqa: PLR2004 - from here on whole numbers say enough
        return f"{value:,.0f}"
    places = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{min(places, 12)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def seconds(value: float) -> str:
    """A time in seconds in the unit that fits it: ``1.5 s``, ``20 ms``, ``41 µs``."""
    amount, unit = _scaled(value)
    return f"{amount} {unit}"


def _scaled(value: float) -> tuple[str, str]:
    if value == 0:
        return "0", "s"
    for least, factor, unit in _SECONDS:
        # A hair below, so that 0.9999 s reads as one second.
        if abs(value) >= least * 0.9995:
            return digits(value * factor), unit
    return "0", "s"


def size(count: float) -> str:
    """Bytes: ``512 B``, ``1.2 kB``, ``3.4 MB``."""
    for least, unit in _BYTES:
        if abs(count) >= least:
            return f"{digits(count / least)} {unit}"
    return f"{int(count)} B"


def amount(value: float, unit: str) -> str:
    """A value with its UCUM unit: seconds and bytes scaled, annotations such as ``{token}`` as words."""
    if unit == "s":
        return seconds(value)
    if unit == "ms":
        return seconds(value / 1e3)
    if unit == "By":
        return size(value)
    word = _PLURALS.get(unit, unit.strip("{}") if unit != "1" else "")
    return f"{digits(value)} {clean(word, 16)}".rstrip()


def bucket(low: float | None, high: float | None, unit: str) -> str:
    """A bucket's range, lower bound exclusive: ``10-20 ms``, ``≤ 10 ms``, ``5-16``.

    Args:
        low: None for the first bucket.
        high: None for the last one.
        unit: the metric's; counted units get whole numbers on both ends.
    """
    if unit in {"s", "ms"}:
        factor = 1.0 if unit == "s" else 1e-3
        if low is None or high is None:
            sign, value = ("≤", high) if low is None else (">", low)
            return f"{sign} {seconds((value or 0.0) * factor)}"
        (one, one_unit), (two, two_unit) = _scaled(low * factor), _scaled(high * factor)
        if low == 0 or one_unit == two_unit:
            return f"{one}–{two} {two_unit}"  # noqa: RUF001 - a range
        return f"{one} {one_unit}–{two} {two_unit}"  # noqa: RUF001 - a range
    if low is None:
        return f"≤ {digits(high or 0.0)}"
    if high is None:
        return f"> {digits(low)}"
    if unit.startswith("{") and low == int(low) and high == int(high):
        first = int(low) + 1
        return f"{first:,}" if first == int(high) else f"{first:,}–{int(high):,}"  # noqa: RUF001
    return f"{digits(low)}–{digits(high)}"  # noqa: RUF001 - a range
