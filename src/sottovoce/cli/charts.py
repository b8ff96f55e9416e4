"""Histograms as small bar charts: one chart an attribute set, one bar a real bucket."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from sottovoce.cli import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from rich.console import Console, RenderableType

    from sottovoce.cli.kept import Point

_HISTOGRAMS: Final = frozenset({"histogram", "exponential_histogram"})
_CHART_WIDTH: Final = 48
_RANGE_WIDTH: Final = 15
_MAX_CHARTS: Final = 200
_EIGHTHS: Final[tuple[str, ...]] = ("", *"▏▎▍▌▋▊▉")
_MAX_BARS: Final = 64
_GAP: Final = 2  # empty buckets in a row that are still drawn

# What an attribute set is called, in this order; the other attributes follow as key=value.
_PLAIN: Final = (
    "gen_ai.operation.name",
    "mcp.method.name",
    "gen_ai.provider.name",
    "gen_ai.request.model",
    "gen_ai.tool.name",
    "gen_ai.agent.name",
    "gen_ai.token.type",
    "gen_ai.token.modality",
    "sottovoce.memory.state",
    "system.memory.state",
)
_FACTS: Final = (
    "sottovoce.model.architecture",
    "sottovoce.model.parameters",
    "sottovoce.model.quantization",
)
_QUIET: Final = frozenset({"server.address", "server.port", "gen_ai.response.model"})


def histograms(points: Iterable[Point], console: Console) -> Iterator[RenderableType]:
    """A block a metric, its charts side by side as the width allows."""
    drawn = 0
    wanted = (point for point in points if point.kind in _HISTOGRAMS and point.count)
    for (name, unit), grouped in groupby(wanted, key=lambda point: (point.name, point.unit)):
        group = list(grouped)
        drawn += len(group)
        if drawn > _MAX_CHARTS:
            yield Text("… and more metrics, not drawn", style="dim")
            return
        charts = [
            _chart(title, point, ascii_only=console.options.ascii_only)
            for title, point in zip(_titles(group), group, strict=True)
        ]
        heading = Text(shown.clean(name), style="bold cyan")
        heading.append(f"  {shown.clean(unit, 16)}", style="dim")
        yield Group(heading, Padding(_side_by_side(charts, console.width), (0, 0, 1, 2)))


def attribute_set(attributes: dict[str, Any], *, server: bool = True) -> str:
    """An attribute set in few words: ``chat mlx h:0123456789ab input``.

    Args:
        attributes: the set.
        server: whether to name the host and port as well.
    """
    words = [shown.clean(attributes[key], 60) for key in _PLAIN if key in attributes]
    # A local model's name may be made of these facts already.
    named = str(attributes.get("gen_ai.request.model", ""))
    words += [
        shown.clean(attributes[key], 60)
        for key in _FACTS
        if key in attributes and str(attributes[key]) not in named
    ]
    answered = attributes.get("gen_ai.response.model")
    if answered is not None and answered != attributes.get("gen_ai.request.model"):
        words.append(f"→ {shown.clean(answered, 60)}")
    if server and "server.address" in attributes:
        port = attributes.get("server.port")
        words.append(shown.clean(attributes["server.address"], 60))
        words[-1] += f":{shown.clean(port, 6)}" if port else ""
    words += [
        f"{shown.clean(key, 60)}={shown.clean(value, 60)}"
        for key, value in attributes.items()
        if key not in {*_PLAIN, *_FACTS, *_QUIET}
    ]
    return " ".join(words) or "(no attributes)"


def _titles(group: Sequence[Point]) -> list[str]:
    """Short titles where they tell the sets of a metric apart, else long ones."""
    short = [attribute_set(point.attributes, server=False) for point in group]
    if len(set(short)) == len(short):
        return short
    long = [attribute_set(point.attributes) for point in group]
    # A call that ended before its answer came differs in this alone.
    return [
        f"{title} (no response)"
        if long.count(title) > 1 and "gen_ai.response.model" not in point.attributes
        else title
        for title, point in zip(long, group, strict=True)
    ]


def bar(value: float, most: float, width: int, *, ascii_only: bool) -> str:
    """A bar of `width` cells for `most`, in eighths of a cell where the terminal has them."""
    if value <= 0 or most <= 0:
        return ""
    eighths = max(1, round(value / most * width * 8))
    if ascii_only:
        return "#" * max(1, eighths // 8)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8]


def _side_by_side(charts: Sequence[RenderableType], width: int) -> Table:
    columns = max(1, width // (_CHART_WIDTH + 1))
    grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
    for _ in range(columns):
        grid.add_column(ratio=1)
    for start in range(0, len(charts), columns):
        row = charts[start : start + columns]
        grid.add_row(*row, *[""] * (columns - len(row)))
    return grid


def _chart(title: str, point: Point, *, ascii_only: bool) -> Group:
    return Group(
        Text(title, style="bold", overflow="fold"),
        _summary(point),
        *_bars(point, ascii_only=ascii_only),
    )


def _summary(point: Point) -> Text:
    # A counted unit stands in the heading; a time needs its unit on every number.
    unit = "1" if point.unit.startswith("{") else point.unit
    if point.count == 1:
        return Text(f"1 ×  {shown.amount(point.total, unit)}", style="dim")  # noqa: RUF001
    words = [f"{point.count:,} ×", f"mean {shown.amount(point.total / point.count, unit)}"]  # noqa: RUF001
    if point.low is not None and point.high is not None:
        words.append(f"min {shown.amount(point.low, unit)}")
        words.append(f"max {shown.amount(point.high, unit)}")
    return Text("  ".join(words), style="dim", overflow="fold")


def _bars(point: Point, *, ascii_only: bool) -> Iterator[Text]:
    filled = [index for index, count in enumerate(point.buckets) if count]
    if not filled:
        return
    most = max(point.buckets)
    edges = [None, *point.bounds, None]
    width = _CHART_WIDTH - _RANGE_WIDTH - len(f"{most:,}") - 6
    before = filled[0]
    for index in filled[:_MAX_BARS]:
        empty = range(before + 1, index)
        if len(empty) > _GAP:
            yield Text(f"{'⋮':>{_RANGE_WIDTH}}", style="dim")
        else:
            for at in empty:
                yield _range(edges, at, point.unit).append("·", style="dim")
        before = index
        count = point.buckets[index]
        line = _range(edges, index, point.unit)
        line.append(bar(count, most, width, ascii_only=ascii_only), style="green")
        yield line.append(f" {count:,}")
    if len(filled) > _MAX_BARS:
        yield Text(f"… and {len(filled) - _MAX_BARS:,} more buckets", style="dim")


def _range(edges: Sequence[float | None], index: int, unit: str) -> Text:
    """The label of a bar."""
    label = shown.bucket(edges[index], edges[index + 1], unit)
    return Text(f"{label:>{_RANGE_WIDTH}} ", no_wrap=True, overflow="ellipsis")
