"""What a person wants to see of a store: trace trees, histograms, what the gate changed.

Everything that was received is untrusted: it is shown as `Text`, never as markup, after
`shown.clean`, and its amount is bounded.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from sottovoce.cli import charts, series, shown, texts, trees

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from typing import IO

    from rich.console import RenderableType

    from sottovoce.cli.kept import Log, Point
    from sottovoce.cli.search import Report
    from sottovoce.cli.store import Store

WIDTH: Final = 100
"""Columns when the output is no terminal."""

DROPPED: Final = "sottovoce.gate.dropped"
OWN_ERRORS: Final = {
    "sottovoce.hook.errors": "hook",
    "sottovoce.decode.errors": "decode",
}
_MAX_LOGS: Final = 10
_MAX_COUNTERS: Final = 60
_MAX_HITS: Final = 10
_FONT_FACE: Final = re.compile(r"@font-face\s*\{.*?\}", re.DOTALL)


def console(file: IO[str] | None = None, *, record: bool = False) -> Console:
    """A console as wide as the terminal, or `WIDTH` columns without colour when piped."""
    made = Console(file=file, record=record, highlight=False, markup=False, emoji=False)
    if not made.is_terminal:
        made.width = WIDTH
    return made


def render(store: Store, out: Console, *, after: int = 0, traces: int = 20) -> None:
    """Print what came with requests after the id `after`: `traces` traces at most."""
    for part in _parts(store, out, after, traces):
        out.print(part)


def save_svg(
    store: Store,
    path: Path,
    *,
    after: int = 0,
    traces: int = 20,
    title: str = "sottovoce view",
    closing: Iterable[Text] = (),
) -> None:
    """Draw the view as a picture that needs nothing from a network.

    Args:
        store: what to draw.
        path: the file to write.
        after: only what came with requests after this id.
        traces: the newest traces to draw.
        title: of the window that is drawn around it.
        closing: lines to end with.

    Raises:
        OSError: the file cannot be written.
    """
    with path.open("w", encoding="utf-8") as file, open_null() as nowhere:
        recorder = Console(
            file=nowhere, record=True, width=WIDTH, force_terminal=True,
            color_system="truecolor", legacy_windows=False,
            highlight=False, markup=False, emoji=False,
        )  # fmt: skip
        render(store, recorder, after=after, traces=traces)
        for line in closing:
            recorder.print(line)
        file.write(_FONT_FACE.sub("", recorder.export_svg(title=title)))


def open_null() -> IO[str]:
    """A file that keeps nothing."""
    import os

    return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123 - no path, the caller closes


def _parts(store: Store, out: Console, after: int, limit: int) -> Iterator[RenderableType]:
    calls = store.traces(limit, after)
    points = store.points(after)
    yield Rule("calls", align="left", style="cyan")
    if not calls:
        yield Text("no spans arrived", style="yellow")
    yield from trees.drawn(calls, out)
    yield Rule("metrics", align="left", style="cyan")
    if not points:
        yield Text("no metrics arrived", style="yellow")
    yield from charts.histograms(points, out)
    yield from _counters(points)
    yield from _logs(store.logs(after))
    yield Rule("removed or replaced by the gate, by rule", align="left", style="cyan")
    yield from _ledger(points, out)
    yield Rule("received", align="left", style="cyan")
    yield from _received(store, after)


def _counters(points: list[Point]) -> Iterator[Text]:
    found = [
        point
        for point in points
        if point.kind in {"sum", "gauge", "summary"}
        and point.name != DROPPED
        and point.name not in OWN_ERRORS
    ]
    services = {
        told for point in found if series.is_level(point) and (told := series.service(point))
    }
    for point in found[:_MAX_COUNTERS]:
        line = Text(shown.clean(point.name), style="bold cyan")
        of = series.service(point) if len(services) > 1 and series.is_level(point) else ""
        line.append(f"  {shown.clean(of, 40)}" if of else "", style="not bold dim")
        told = f"  {charts.attribute_set(point.attributes)}" if point.attributes else ""
        line.append(f"{told}  ", style="not bold default")
        line.append(shown.amount(point.total, point.unit), style="not bold green")
        yield line
    if len(found) > _MAX_COUNTERS:
        yield Text(f"… and {len(found) - _MAX_COUNTERS} more counters", style="dim")
    if found:
        yield Text()


def _logs(logs: list[Log]) -> Iterator[RenderableType]:
    if not logs:
        return
    yield Rule("log records", align="left", style="cyan")
    for log in logs[-_MAX_LOGS:]:
        line = Text(shown.clean(log.severity, 12), style="yellow", no_wrap=True)
        line.append(f" {shown.clean(log.event or log.scope, 60)}", style="default")
        line.append(f" {shown.clean(log.body)}" if log.body else " (no body)", style="dim")
        yield line
    if len(logs) > _MAX_LOGS:
        yield Text(f"… the last {_MAX_LOGS} of {len(logs)} records", style="dim")
    yield Text()


def _ledger(points: list[Point], out: Console) -> Iterator[Text]:
    dropped: Counter[tuple[str, str]] = Counter()
    errors: Counter[str] = Counter()
    for point in points:
        if point.name == DROPPED:
            signal = shown.clean(point.attributes.get("sottovoce.gate.signal", "?"), 12)
            rule = shown.clean(point.attributes.get("sottovoce.gate.rule", "?"), 24)
            dropped[signal, rule] += int(point.total)
        elif point.name in OWN_ERRORS:
            where = next(iter(point.attributes.values()), "?")
            errors[f"{OWN_ERRORS[point.name]} {shown.clean(where, 60)}"] += int(point.total)
    for (signal, rule), count in dropped.most_common():
        row = f"{signal:<9} {rule:<14} {count:>6,}  "
        why = Text(texts.of_ledger(rule)).wrap(out, max(20, out.width - len(row)))
        yield Text.assemble(row, (str(why[0]) if why else "", "dim"), no_wrap=True)
        for more in why[1:]:
            yield Text.assemble(" " * len(row), (str(more), "dim"), no_wrap=True)
    if not dropped:
        yield Text("nothing was removed or replaced, or no metrics came that tell", style="dim")
    wrong = {place: count for place, count in errors.items() if count}
    if wrong:
        yield Text("errors of our own, which the app never saw:", style="bold red")
        for place, count in wrong.items():
            yield Text(f"  {place}  {count:,}")
    else:
        yield Text("errors of our own: none", style="green")
    yield Text()


def _received(store: Store, after: int) -> Iterator[Text]:
    by_status: Counter[int] = Counter()
    by_signal: Counter[str] = Counter()
    size = plain = 0
    for request in store.requests(after):
        by_status[request.status] += 1
        by_signal[request.signal] += 1
        size += len(request.body)
        plain += request.plain
    parts = ", ".join(f"{count} {shown.clean(signal)}" for signal, count in by_signal.items())
    yield Text(
        f"{sum(by_signal.values())} requests ({parts or 'none'}), {shown.size(size)} on the wire, "
        f"{shown.size(plain)} decompressed"
    )
    refused = {status: count for status, count in by_status.items() if status >= 400}  # noqa: PLR2004
    if refused:
        listed = ", ".join(f"{count} with {status}" for status, count in sorted(refused.items()))
        yield Text(f"refused: {listed}", style="yellow")
    purged = store.totals().purged
    if purged:
        yield Text(f"{purged} older requests were purged to make room", style="yellow")


def render_search(store: Store, report: Report, text: str, out: Console) -> None:
    """Print whether a searched text was found, and what could not be looked at."""
    word = shown.clean(text, 80)
    totals = store.totals()
    if report.hits:
        out.print(
            Text(f"“{word}” occurs in {len(report.hits)} places of what left:", style="bold red")
        )
        for hit in report.hits[:_MAX_HITS]:
            out.print(
                Text(
                    f"  request {hit.request}, {hit.signal}, {hit.place}, byte {hit.offset:,}, as {hit.form}"
                )
            )
        if len(report.hits) > _MAX_HITS:
            out.print(Text(f"  … and {len(report.hits) - _MAX_HITS} more"))
    else:
        out.print(
            Text(
                f"“{word}” occurs in none of the {report.plain:,} bytes of {report.requests} requests",
                style="bold green",
            )
        )
        out.print(
            Text(
                "looked for in bodies (decompressed), request lines and headers, as UTF-8, UTF-16, "
                "JSON, percent-encoded, HTML, hexadecimal and base64",
                style="dim",
            )
        )
    for count, why in (
        (totals.purged, "were purged before and could not be searched"),
        (totals.unseen, "were refused for their size and could not be searched"),
    ):
        if count:
            out.print(Text(f"{count} requests {why}", style="yellow"))
