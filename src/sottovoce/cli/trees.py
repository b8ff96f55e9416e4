"""Traces as trees: a line a span, and below it in few words whose model it was and how it did."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

from rich.cells import set_cell_size
from rich.text import Text

from sottovoce.cli import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.console import Console

    from sottovoce.cli.kept import Span

_MAX_SPANS: Final = 200
_KINDS: Final = ("", "internal", "server", "client", "producer", "consumer")
_ERROR: Final = 2
_OUTCOMES: Final = {"completed": "green", "failed": "bold red"}
_COLUMNS: Final = (
    ("kind", 8, "<"),
    ("duration", 8, ">"),
    ("in→out", 9, ">"),
    ("first", 8, ">"),
    ("chunks", 6, ">"),
    ("outcome", 9, "<"),
)
_NO_OUTPUT: Final = frozenset({"embeddings", "rerank", "moderation"})
"""Operations whose answers are not made of tokens."""

_WAITS: Final = (
    ("sottovoce.request.queue.wait", "queued"),
    ("sottovoce.model.load.wait", "model loading"),
)
_NOTICED_S: Final = 0.01
_LAST_NS: Final = 4_102_444_800 * 10**9  # the year 2100: every platform's localtime takes it


def drawn(traces: Iterable[list[Span]], out: Console) -> Iterator[Text]:
    """Every trace under a heading; neighbours of one span each and one service share theirs."""
    for service, group in groupby(traces, _alone):
        together = list(group)
        if service is None or len(together) == 1:
            for spans in together:
                count = f"{len(spans)} span{'' if len(spans) == 1 else 's'}"
                yield _heading(f"trace {shown.clean(spans[0].trace, 32)}", spans, count)
                yield from _rows(spans, out, _MAX_SPANS)
        else:
            spans = [spans[0] for spans in together]
            yield _heading(f"{len(spans)} traces of one span each", spans)
            yield from _rows(spans, out, len(spans))


def _alone(spans: list[Span]) -> str | None:
    return _service(spans[0]) if len(spans) == 1 else None


def _service(span: Span) -> str:
    return shown.clean(span.resource.get("service.name", "unknown service"), 40)


def _heading(title: str, spans: list[Span], count: str = "") -> Text:
    start = min(span.start_ns for span in spans)
    end = max(span.end_ns for span in spans)
    heading = Text(title, style="bold cyan")
    clock = time.strftime("%H:%M:%S", time.localtime(min(start, _LAST_NS) / 1e9))
    told = f"  {_service(spans[0])}  {clock}  {_duration(start, end)}  {count}".rstrip()
    return heading.append(told, style="dim")


def _rows(spans: list[Span], out: Console, most: int) -> Iterator[Text]:
    others = sum(column[1] + 1 for column in _COLUMNS)
    name_width = max(16, out.width - others)
    header = Text(set_cell_size("span", name_width), style="dim", no_wrap=True)
    for name, size, align in _COLUMNS:
        header.append(f" {name:{align}{size}}")
    yield header
    for shown_spans, (prefix, below, span) in enumerate(
        _tree(spans, name_width // 2, ascii_only=out.options.ascii_only)
    ):
        if shown_spans >= most:
            yield Text(f"… and {len(spans) - shown_spans} more spans", style="dim")
            break
        yield _line(prefix, span, name_width)
        detail = _detail(span)
        for row in detail.wrap(out, max(16, out.width - len(below))) if detail else ():
            yield Text.assemble((below, "dim"), row)
    yield Text()


def _tree(spans: list[Span], indent: int, *, ascii_only: bool) -> Iterator[tuple[str, str, Span]]:
    """Spans depth first, with the lines to draw before the name and below it.

    A span whose parent did not arrive is a root; so is, once, each cycle of parents. From
    `indent` columns on the tree gets no wider.
    """
    ids = {(span.trace, span.id) for span in spans}
    children: dict[tuple[str, str], list[Span]] = defaultdict(list)
    roots = []
    for span in spans:
        if (span.trace, span.parent) in ids and span.parent != span.id:
            children[span.trace, span.parent].append(span)
        else:
            roots.append(span)
    tee, corner, through = ("|- ", "`- ", "|  ") if ascii_only else ("├─ ", "└─ ", "│  ")
    seen: set[tuple[str, str]] = set()
    for first in (*roots, *spans):
        todo = [("", "", first)]
        while todo:
            prefix, below, span = todo.pop()
            if (span.trace, span.id) in seen:
                continue
            seen.add((span.trace, span.id))
            under = children.get((span.trace, span.id), [])
            yield prefix, below + (through if under else "   "), span
            deep = len(below) >= indent
            for index, child in enumerate(reversed(under)):
                last = index == 0
                todo.append(
                    (
                        below + (corner if last else tee),
                        below if deep else below + ("   " if last else through),
                        child,
                    )
                )


def _line(prefix: str, span: Span, name_width: int) -> Text:
    attributes = span.attributes
    outcome = attributes.get("sottovoce.call.outcome") or ("error" if span.status == _ERROR else "")
    first = shown.number(attributes.get("gen_ai.response.time_to_first_chunk"))
    cells = (
        _KINDS[span.kind] if 0 <= span.kind < len(_KINDS) else "?",
        _duration(span.start_ns, span.end_ns),
        _tokens(attributes),
        "" if first is None else shown.seconds(first),
        _count(attributes.get("sottovoce.response.chunks")),
        shown.clean(outcome, 9),
    )
    failed = span.status == _ERROR
    style = _OUTCOMES.get(str(outcome), "bold red" if failed else "yellow")
    name = shown.clean(span.name)
    room = max(4, name_width - len(prefix))
    text = Text(prefix, style="dim", no_wrap=True, overflow="ellipsis")
    padded = set_cell_size(name if len(name) <= room else name[: room - 1] + "…", room)
    text.append(padded, style="not dim bold red" if failed else "not dim bold")
    for (title, size, align), cell in zip(_COLUMNS, cells, strict=True):
        text.append(
            f" {cell:{align}{size}}", style=f"not dim {style if title == 'outcome' else ''}"
        )
    return text


def _detail(span: Span) -> Text:
    """Whose model it was, and what is worth a word: dim, and often one line."""
    get = span.attributes.get
    # A local model's name may be made of these facts already.
    named = str(get("gen_ai.request.model", ""))
    words = [
        shown.clean(value, 40)
        for key in (
            "gen_ai.provider.name", "sottovoce.model.architecture",
            "sottovoce.model.parameters", "sottovoce.model.quantization",
        )
        if (value := get(key)) is not None
        and (key == "gen_ai.provider.name" or str(value) not in named)
    ]  # fmt: skip
    answered = get("gen_ai.response.model")
    if answered is not None and answered != get("gen_ai.request.model"):
        words.append(f"answered by {shown.clean(answered, 40)}")
    words += _waits(span.attributes)
    words += _engine(span.attributes)
    cached = _count(get("gen_ai.usage.cache_read.input_tokens"))
    if cached not in {"", "0"}:
        words.append(f"{cached} cached")
    reasons = get("gen_ai.response.finish_reasons")
    if isinstance(reasons, list) and reasons:
        counted = Counter(shown.clean(reason, 20) for reason in reasons).most_common(4)
        words.append(
            "finish " + ",".join(word if n == 1 else f"{word} ×{n}" for word, n in counted)  # noqa: RUF001
        )
    words += _rates(span.attributes)
    address = get("server.address")
    if address is not None:
        port = get("server.port")
        words.append(shown.clean(address, 40) + (f":{shown.clean(port, 6)}" if port else ""))
    detail = Text(" · ".join(words), style="dim")
    error = get("error.type")
    if error is not None:
        detail.append((" · " if words else "") + shown.clean(error, 60), style="not dim red")
    return detail


def _waits(attributes: dict[str, Any]) -> Iterator[str]:
    """What kept a model server from its work, where a person would notice."""
    for key, what in _WAITS:
        waited = shown.number(attributes.get(key))
        if waited is not None and waited >= _NOTICED_S:
            yield f"{what} {shown.seconds(waited)}"


def _engine(attributes: dict[str, Any]) -> Iterator[str]:
    """How a local engine was set up, where it is not the usual way."""
    get = attributes.get
    if get("sottovoce.model.adapted") is True:
        yield "adapted"
    offload = get("sottovoce.model.offload")
    if offload is not None and offload != "none":
        yield f"offload {shown.clean(offload, 12)}"
    batch = _count(get("sottovoce.request.batch.size"))
    if batch:
        yield f"batch {batch}"
    accepted = shown.number(get("sottovoce.draft.acceptance_rate"))
    if accepted is not None:
        yield f"draft {_percent(accepted)} accepted"


def _rates(attributes: dict[str, Any]) -> Iterator[str]:
    """What a local engine did with its time and its context."""
    used = shown.number(attributes.get("sottovoce.context.utilization"))
    if used is not None:
        yield f"context {_percent(used)}"
    rates = [
        f"{phase} {shown.digits(rate)}"
        for phase in ("prefill", "decode")
        if (rate := shown.number(attributes.get(f"sottovoce.{phase}.throughput"))) is not None
    ]
    if rates:
        yield " · ".join(rates) + " tokens/s"


def _percent(share: float) -> str:
    return f"{shown.digits(round(share * 100, 1))} %"


def _duration(start_ns: int, end_ns: int) -> str:
    return shown.seconds(max(0, end_ns - start_ns) / 1e9)


def _count(value: Any) -> str:
    found = shown.number(value)
    return "" if found is None else f"{found:,.0f}"


def _tokens(attributes: dict[str, Any]) -> str:
    given = _count(attributes.get("gen_ai.usage.input_tokens"))
    made = _count(attributes.get("gen_ai.usage.output_tokens"))
    if given and not made and str(attributes.get("gen_ai.operation.name")) in _NO_OUTPUT:
        return given
    return f"{given or '?'}→{made or '?'}" if given or made else ""
