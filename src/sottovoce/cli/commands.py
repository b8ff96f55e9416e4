"""The commands: `sottovoce local` receives, `sottovoce view` shows."""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from rich.text import Text

from sottovoce import settings
from sottovoce.cli import launch, shown, view
from sottovoce.cli.doctor import doctor
from sottovoce.cli.local import DEFAULT_PORT, CannotListen, Receiver
from sottovoce.cli.models import models
from sottovoce.cli.policy import policy
from sottovoce.cli.search import search
from sottovoce.cli.store import Store, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from sottovoce.cli.kept import Request
    from sottovoce.cli.search import Report


def _default_db() -> Path:
    """The file in the user's state directory, so that both commands mean the same one."""
    directory = settings.state_dir()
    return Path(directory, "local.db") if directory else Path("sottovoce.db")


_DB = click.option(
    "--db",
    type=click.Path(dir_okay=False, path_type=Path),
    default=_default_db,
    show_default="local.db in the state directory",
    help="The SQLite file of what was received.",
)
_OK: Final = 200


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sottovoce")
def commands() -> None:
    """Telemetry of model calls, without a word of what was said."""
    # A terminal without these characters gets question marks, not a traceback.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


# What follows COMMAND is the command's, also without --.
@commands.command(
    context_settings={"allow_interspersed_args": False},
    short_help="Receive OTLP on this machine; run a command and show what it sent.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    show_default=f"{DEFAULT_PORT}; a free one for COMMAND if that is in use",
    help="TCP port; 0 takes a free one.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="A loopback address.")
@_DB
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def local(
    context: click.Context, port: int | None, host: str, db: Path, command: tuple[str, ...]
) -> None:
    """Receive OTLP over HTTP into a file, on this machine only.

    With COMMAND (after --, if you like), run it under opentelemetry-instrument with this receiver as its
    endpoint, then show what arrived and exit with its exit code.
    """
    err = view.console(sys.stderr)
    try:
        store = Store(db, create=True)
    except StoreError as error:
        raise click.ClickException(str(error)) from None
    try:
        if command:
            context.exit(_run(store, command, port, host, err))
        _listen(store, DEFAULT_PORT if port is None else port, host, err)
    except (CannotListen, StoreError, launch.CannotLaunch) as error:
        raise click.ClickException(str(error)) from None
    finally:
        store.close()


commands.add_command(doctor)
commands.add_command(policy)
commands.add_command(models)


@commands.command(name="view")
@_DB
@click.option(
    "--svg", type=click.Path(dir_okay=False, path_type=Path), help="Also draw it as an SVG picture."
)
@click.option(
    "--search",
    "text",
    metavar="TEXT",
    help="Tell whether TEXT occurs in any byte received; the exit code is 1 if it does.",
)
@click.option(
    "--traces",
    type=click.IntRange(1, 1000),
    default=20,
    show_default=True,
    help="The newest traces to show.",
)
@click.pass_context
def view_(
    context: click.Context, db: Path, svg: Path | None, text: str | None, traces: int
) -> None:
    """Show calls, metrics and what the gate removed."""
    out = view.console()
    try:
        store = Store(db)
    except StoreError as error:
        raise click.ClickException(str(error)) from None
    try:
        if text is not None:
            report = _search(store, text)
            view.render_search(store, report, text, out)
            context.exit(1 if report.hits else 0)
        view.render(store, out, traces=traces)
        if svg is not None:
            view.save_svg(store, svg, traces=traces)
            click.echo(f"drawn to {svg}", err=True)
    except (OSError, StoreError) as error:
        raise click.ClickException(str(error)) from None
    finally:
        store.close()


def _search(store: Store, text: str) -> Report:
    try:
        return search(store.requests(), text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--search") from None


_NOTHING_CAME: Final = (
    "Nothing came. Usual reasons: the command made no model call; its Python is another one, "
    "without sottovoce (python -I and frozen apps skip the launcher too: use sottovoce.start()); "
    "SOTTOVOCE_PROFILE=off or OTEL_SDK_DISABLED=true; or it was killed before its last export."
)


def _listen(store: Store, port: int, host: str, err: Console) -> None:
    """Receive until interrupted."""
    each = _announce(err) if err.is_terminal else None
    receiver = Receiver(store, port=port, host=host, on_request=each)
    click.echo(f"receiving OTLP at {receiver.endpoint} into {store.path}; stop with Ctrl-C")
    variable = f"OTEL_EXPORTER_OTLP_ENDPOINT={receiver.endpoint}"
    where = "" if store.path == _default_db() else f" --db {shlex.quote(str(store.path))}"
    click.echo(
        f"elsewhere: {variable} opentelemetry-instrument python app.py; sottovoce view{where}"
    )
    sys.stdout.flush()
    # uvicorn raises what it was stopped by again, after the last answer.
    with contextlib.suppress(KeyboardInterrupt):
        receiver.serve()


def _announce(err: Console) -> Callable[[Request], None]:
    def announce(request: Request) -> None:
        line = Text(time.strftime("%H:%M:%S "), style="dim")
        line.append(f"{request.signal:<8}", style="cyan")
        line.append(f"{request.records:>5} records {shown.size(request.size):>8}  ")
        line.append(shown.clean(request.service, 40), style="dim")
        if request.status != _OK:
            line.append(f"  refused with {request.status}", style="bold red")
        err.print(line)

    return announce


def _receiver(store: Store, port: int | None, host: str) -> Receiver:
    """Listen where a command of ours is told to send: at any port, unless one was asked for."""
    if port is not None:
        return Receiver(store, port=port, host=host)
    try:
        return Receiver(store, port=DEFAULT_PORT, host=host)
    except CannotListen:
        # A Collector, or another `sottovoce local`; an address that is wrong is so again.
        return Receiver(store, port=0, host=host)


def _run(store: Store, command: tuple[str, ...], port: int | None, host: str, err: Console) -> int:
    """Run a command that sends here; show what came and return its exit code."""
    before = store.totals().last_id
    with _receiver(store, port, host) as receiver:
        err.print(Text(f"receiving OTLP at {receiver.endpoint} into {store.path}", style="dim"))
        if ignored := launch.overridden():
            err.print(Text(f"not for this command: {', '.join(ignored)}", style="dim"))
        code = launch.run(launch.instrumented(command), launch.environment(receiver.endpoint))
    if err.is_terminal:
        err.print()  # Ctrl-C leaves its ^C where the cursor was
    view.render(store, view.console(), after=before)
    if store.totals().last_id == before:
        err.print(Text(_NOTHING_CAME, style="yellow"))
    return code
