"""`sottovoce models`: what the public model ids hash to, for whoever holds the key.

The pseudonyms are those of the settings' secret: run it where the telemetry was made, or with
the same `SOTTOVOCE_KEY`. The key id tells whether two machines have the same. In public mode
(`SOTTOVOCE_HASH_MODE`) models have a constant in the place of the secret, so any machine will do.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, NamedTuple

import click

from sottovoce import settings
from sottovoce.privacy import catalogue, pseudonyms

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sottovoce.privacy.pseudonyms import Pseudonyms

PUBLIC: Final = "public"


class Named(NamedTuple):
    """A public id, and what stands for it."""

    model: str
    pseudonym: str


@click.command(name="models")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "grafana"]),
    default="table",
    show_default=True,
    help="`grafana`: a value mapping for a panel's JSON.",
)
@click.option(
    "--search",
    "text",
    metavar="TEXT",
    default="",
    help="Only ids and pseudonyms with TEXT in them; also an id that is public but not listed.",
)
def models(form: str, text: str) -> None:
    """Show which pseudonym stands for which publicly known model id.

    Needs the secret that the telemetry was made with: SOTTOVOCE_KEY, SOTTOVOCE_KEY_FILE, or
    the one in the state directory; with SOTTOVOCE_HASH_MODE=public none.
    """
    chosen, warnings = settings.read()
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    made = pseudonyms.from_settings(chosen)
    if not made.is_kept and chosen.hash_mode != PUBLIC:
        raise click.ClickException(
            "there is no lasting secret, only one of this process: its pseudonyms occur in no "
            "telemetry. Set SOTTOVOCE_KEY or SOTTOVOCE_KEY_FILE to the one that your apps use."
        )
    found = named(made, text)
    click.echo(
        f"key {_key(made) or PUBLIC}, catalogue {catalogue.version()}, {len(found)} ids",
        err=form != "table",
    )
    printed = FORMATS[form](made, found)
    if printed:
        click.echo(printed)


def named(made: Pseudonyms, text: str = "") -> list[Named]:
    """The listed ids with `text` in them or in their pseudonyms, whatever its case."""
    ids = catalogue.ids()
    if catalogue.is_public(text) and text not in ids:
        # Any real date, any quantization: more ids are public than can be listed.
        ids = (text, *ids)
    wanted = text.lower()
    return [
        each
        for each in (Named(model, made.model(model)) for model in ids)
        if wanted in each.model.lower() or wanted in each.pseudonym
    ]


def _key(made: Pseudonyms) -> str | None:
    """What tells the secret from others; None for one of this process, which made no telemetry."""
    return made.key_id if made.is_kept else None


def _table(_made: Pseudonyms, found: list[Named]) -> str:
    return "\n".join(f"{each.pseudonym}  {each.model}" for each in found)


def _json(made: Pseudonyms, found: list[Named]) -> str:
    return json.dumps(
        {
            "key_id": _key(made),
            "catalogue": catalogue.version(),
            "models": {each.pseudonym: each.model for each in found},
        },
        indent=2,
    )


def _grafana(_made: Pseudonyms, found: list[Named]) -> str:
    """The value of ``fieldConfig.defaults.mappings`` of a panel."""
    options = {
        each.pseudonym: {"text": each.model, "index": index} for index, each in enumerate(found)
    }
    return json.dumps([{"type": "value", "options": options}], indent=2)


FORMATS: Final[Mapping[str, Callable[[Pseudonyms, list[Named]], str]]] = {
    "table": _table,
    "json": _json,
    "grafana": _grafana,
}
