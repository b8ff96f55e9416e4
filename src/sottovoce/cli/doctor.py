"""`sottovoce doctor`: what of this environment would be recorded, where it would go, who else is there."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

import click
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from sottovoce.cli import environment, view
from sottovoce.cli.shown import clean

if TYPE_CHECKING:
    from rich.console import Console

    from sottovoce.cli.environment import Environment

_GOOD: Final = "hooked"
_SHOWN: Final = 2


@click.command(name="doctor", short_help="Libraries, hooks, destination, other telemetry.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
)
def doctor(form: str) -> None:
    """Look at this environment: libraries, hooks, destination, other telemetry.

    Imports the libraries that are installed, in a process of its own. The exit code is 1 when
    something would go unrecorded that should not: no destination, a setting that cannot be
    used, a library that our hooks do not know.
    """
    err = view.console(sys.stderr)
    err.print(Text("looking at the installed libraries …", style="dim"))
    found = environment.look()
    if form == "json":
        click.echo(json.dumps({**asdict(found), "problems": problems(found)}, indent=2))
    else:
        _show(view.console(), found)
    sys.exit(1 if problems(found) else 0)


def problems(found: Environment) -> list[str]:
    """Say what should be mended, each with what to do."""
    told = [clean(warning, 400) for warning in found.warnings]
    if found.unknown:
        told.append(
            f"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS names {', '.join(map(clean, found.unknown))}, "
            "which switches nothing off: there is no such instrumentor. Ours begin with `sottovoce_`."
        )
    if found.problem is not None:
        told.append(f"The libraries could not be looked at: {found.problem}.")
    if not found.metrics:
        told.append(
            "The profile is `off`, so nothing is recorded, whatever the destination. Set "
            "SOTTOVOCE_PROFILE=standard, or unset it."
        )
    elif not any(found.destinations.values()):
        told.append(
            "There is no destination, so nothing would be recorded. Set "
            "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318, or run: sottovoce local"
        )
    hosts = {found.destinations[signal].rpartition(" ")[2] for signal in found.silent}
    told += [
        f"Nothing answers at {clean(host)} now, and what is sent there is lost. Start the "
        "Collector there, or run: sottovoce local"
        for host in sorted(hosts)
    ]
    told += [
        f"{each.name} {each.version or ''}: {each.state}. Its calls are recorded only where the "
        "HTTP library beneath it is; please report the version."
        for each in found.libraries
        if each.state not in {_GOOD, "disabled"}
    ]
    return told


def _show(out: Console, found: Environment) -> None:
    out.print(Text.assemble(("Environment", "bold"), f"  Python {found.python}"))
    for name, version in found.versions.items():
        out.print(f"  {name} {version}")
    out.print(Text("\nSettings that differ from the defaults", style="bold"))
    for name, value in found.settings.items():
        out.print(Text(f"  {name}={clean(value)}"))
    if not found.settings:
        out.print("  none")
    out.print(Text("\nWhere to", style="bold"))
    for signal, destination in found.destinations.items():
        silent = ", where nothing answers now" if signal in found.silent else ""
        out.print(Text(f"  {signal:8} {clean(destination) or 'nowhere'}{silent}"))
    out.print(Text("\nWhat would be recorded", style="bold"))
    _table(
        out,
        ("library", "version", "instrumentor", "state", "hooks"),
        [
            (each.name, each.version or "?", each.instrumentor, each.state, _short(each.hooks))
            for each in found.libraries
        ],
    )
    if found.missing:
        out.print(_below(f"not installed: {', '.join(found.missing)}", style="dim"))
    out.print(Text("\nAs what", style="bold"))
    for kind, names in (("spans", found.spans), ("metrics", found.metrics)):
        out.print(_below(f"{kind:8} {clean(', '.join(names), 2000) or 'none'}"))
    out.print(Text("\nThis machine", style="bold"))
    said = ", ".join(f"{name} {word}" for name, word in found.machine.items())
    out.print(_below(f"{'is':8} {clean(said, 400) or 'not told'}"))
    read = clean(", ".join(found.gauges), 2000) or "nothing: no runtime is hooked"
    out.print(_below(f"{'tells':8} {read}"))
    out.print(Text("\nOther telemetry", style="bold"))
    _table(
        out,
        ("package", "version", "what we do about it"),
        [(each.name, each.version or "", each.treatment) for each in found.others],
    )
    if not found.others:
        out.print("  none that matters here")
    told = problems(found)
    out.print(Text("\nTo mend" if told else "\nNothing to mend", style="bold"))
    for each in told:
        out.print(_below(each))


def _below(text: str, style: str = "") -> Padding:
    """Text under a heading: its second line is indented as its first."""
    return Padding.indent(Text(text, style=style), 2)


def _short(hooks: tuple[str, ...]) -> str:
    shown = [".".join(hook.split(".")[-2:]) for hook in hooks[:_SHOWN]]
    rest = len(hooks) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


def _table(out: Console, head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    if not rows:
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 2))
    for name in head:
        table.add_column(name, style="dim" if name == "hooks" else None, overflow="fold")
    for row in rows:
        table.add_row(*(Text(clean(cell, 400)) for cell in row))
    out.print(table)
