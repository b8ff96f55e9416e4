"""`sottovoce policy`: what may leave and why, and what the gate would do to a file of telemetry."""

from __future__ import annotations

import difflib
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import click

from sottovoce import settings as settings_
from sottovoce.cli import shown, texts
from sottovoce.registry import ATTRIBUTES, DIALECTS, METRICS, PREFIXES, PROFILES

if TYPE_CHECKING:
    from sottovoce.cli.verdicts import Finding, Record

_LONGEST: Final = 100
_SHOWN_VALUES: Final = 12
_COLOURS: Final = {"kept": "green", "changed": "yellow", "dropped": "red", "added": "cyan"}
_LIKE: Final[tuple[tuple[type, str], ...]] = (
    (bool, "boolean"),
    (int, "int"),
    (float, "double"),
    (str, "string of {} characters"),
    (bytes, "{} bytes"),
    (tuple, "list of {}"),
    (dict, "mapping of {}"),
)
_PROFILE = click.option(
    "--profile",
    type=click.Choice(PROFILES),
    help="The privacy profile; by default that of SOTTOVOCE_PROFILE, else standard.",
)


@click.group()
def policy() -> None:
    """What may leave, why, and what the gate does to telemetry of yours."""


@policy.command(short_help="What becomes of ATTRIBUTE, and why; of all without one.")
@_PROFILE
@click.argument("attribute", required=False)
def show(profile: str | None, attribute: str | None) -> None:
    """Print rule, contract, sensitivity, reason and review of ATTRIBUTE, or of all.

    Of a metric it prints what is measured, and which attributes its points may carry.
    """
    chosen = _chosen(profile)[0]
    if attribute is None:
        _table(texts.read(), chosen)
        return
    name = _declared(attribute)
    if attribute in METRICS:
        _metric(attribute)
        if name is None and attribute not in DIALECTS:
            return
    if attribute in DIALECTS:
        said = DIALECTS[attribute][0]
        click.echo(f"{attribute} is a dialect's word: it leaves as {said}, under the rule of that.")
        name = name or said
    if name is None:
        _undeclared(attribute)
        return
    _one(texts.read(), name, chosen)


@policy.command(short_help="What the gate would do to telemetry in FILE.")
@_PROFILE
@click.option(
    "--signal",
    type=click.Choice(("traces", "metrics", "logs")),
    help="What a protobuf file holds, if that cannot be told.",
)
@click.option("--summary", is_flag=True, help="Print the summary only.")
@click.option("--show-values", is_flag=True, help="Print values that would not leave, too.")
@click.option(
    "--strict-exit", is_flag=True, help="Exit with 1 if anything would be dropped or changed."
)
@click.argument("file", type=click.File("rb"))
@click.pass_context
def check(
    context: click.Context,
    *,
    file: Any,
    profile: str | None,
    signal: str | None,
    summary: bool,
    show_values: bool,
    strict_exit: bool,
) -> None:
    """Print what the policy would do to each item of FILE (- reads standard input).

    FILE is OTLP: JSON, JSON lines as the Collector's file exporter writes them, or an export
    request in protobuf. Of what would not leave, only type and length are printed. Pseudonyms
    that another process made are other people's words here, and are hashed again.
    """
    from sottovoce.cli import otlp, otlp_file
    from sottovoce.cli.verdicts import Judge

    try:
        requests = otlp_file.read(file.read(), signal)
    except (OSError, otlp.Malformed) as error:
        name = shown.clean(getattr(file, "name", "-"))
        raise click.ClickException(f"{name}: {error}") from None
    name, settings = _chosen(profile)
    judge = Judge(settings)
    totals: Counter[tuple[str, str]] = Counter()
    for kind, message in requests:
        for record in judge.judge(kind, message):
            totals.update((finding.verdict, finding.rule) for finding in record.findings)
            if record.findings and not summary:
                _record(record, show_values)
    _summary(totals, name)
    touched = any(verdict in {"changed", "dropped"} for verdict, _ in totals)
    context.exit(1 if strict_exit and touched else 0)


def _chosen(profile: str | None) -> tuple[str, settings_.Settings]:
    """The profile that is asked for, and the settings of the environment with it."""
    settings, warnings = settings_.read()
    for warning in warnings:
        click.echo(f"sottovoce: {warning}", err=True)
    name = profile or settings.profile
    if name not in PROFILES:
        click.echo("the profile is off: nothing leaves; under standard it would be:", err=True)
        name = "standard"
    return name, settings.but(profile=name, disabled=False)


def _declared(name: str) -> str | None:
    """The entry that speaks of `name`: its own, or that of a beginning of it."""
    if name in ATTRIBUTES or name in PREFIXES:
        return name
    begun = [prefix for prefix in PREFIXES if name.startswith(f"{prefix}.")]
    return max(begun, key=len, default=None)


def _undeclared(name: str) -> None:
    seen = shown.clean(name, _LONGEST)
    click.echo(f"{seen} is not declared: it would be dropped, and counted as `unknown`.")
    known = {*ATTRIBUTES, *PREFIXES, *METRICS}
    below = sorted(other for other in known if other.startswith(f"{name.rstrip('.')}."))
    if below:
        click.echo(f"Below it: {', '.join(below)}")
        return
    near = difflib.get_close_matches(name[:_LONGEST], sorted(known), n=5)
    if near:
        click.echo(f"Near it: {', '.join(near)}")


def _table(told: dict[str, dict[str, Any]], profile: str) -> None:
    head = ("attribute", "rule", "contract", "sensitivity", "review", "reason")
    rows = [
        (
            f"{name}.<key>" if name in PREFIXES else name,
            entry["rules"][PROFILES.index(profile)],
            *(entry[field] for field in head[2:]),
        )
        for name, entry in told["attributes"].items()
    ]
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head) - 1)]
    for row in [head, *rows]:
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        click.echo("  ".join([*padded, row[-1]]))


def _metric(name: str) -> None:
    metric = METRICS[name]
    recorded = " and ".join(sorted(metric.vocabulary, reverse=True))
    rows = [
        ("what", metric.description),
        ("metric", f"{metric.instrument}, in {metric.unit}"),
        ("attributes", ", ".join(sorted(metric.attributes)) or "none"),
        (
            "vocabulary",
            recorded or "of others: it is let through, sottovoce does not record it",
        ),
    ]
    if metric.boundaries:
        rows.insert(2, ("buckets", ", ".join(f"{bound:.12g}" for bound in metric.boundaries)))
    click.echo(name)
    for title, text in rows:
        click.echo(f"  {title:<12}{text}")


def _one(told: dict[str, dict[str, Any]], name: str, profile: str) -> None:
    entry = told["attributes"][name]
    attribute = ATTRIBUTES[name] if name in ATTRIBUTES else PREFIXES[name]
    rules = dict(zip(PROFILES, entry["rules"], strict=True))
    rule = rules.pop(profile)
    click.echo(f"{name}.<key>" if name in PREFIXES else name)
    rows = [
        ("what", entry["brief"]),
        ("rule", f"{rule} ({profile}): {told['rules'][rule]}"),
        ("elsewhere", ", ".join(f"{other}: {its}" for other, its in rules.items())),
        ("type", attribute.type),
        ("contract", f"{entry['contract']}: {told['contracts'][entry['contract']]}"),
        ("on", ", ".join(sorted(attribute.signals))),
        (
            "sensitivity",
            f"{entry['sensitivity']}: {told['sensitivities'][entry['sensitivity']]}",
        ),
        ("why", entry["reason"]),
        ("review", f"{entry['review']}: {told['reviews'].get(entry['review'], 'none yet')}"),
    ]
    if attribute.values:
        values = sorted(attribute.values)
        more = len(values) - _SHOWN_VALUES
        known = ", ".join(values[:_SHOWN_VALUES]) + (f" and {more} more" if more > 0 else "")
        rows.insert(4, ("values", known))
    for title, text in rows:
        click.echo(f"  {title:<12}{text}")


def _record(record: Record, show_values: bool) -> None:
    click.secho(record.title, bold=True)
    for finding in record.findings:
        where = f"{finding.place} " if finding.place not in {"", "attribute"} else ""
        line = f"{where}{shown.clean(finding.name, _LONGEST)}"
        verdict = click.style(f"{finding.verdict:<8}", fg=_COLOURS[finding.verdict])
        click.echo(f"  {verdict}{line}{_told(finding, show_values)}")


def _told(finding: Finding, show_values: bool) -> str:
    """What may be said of the value: what leaves of it; else only what it was like."""
    text = ""
    if finding.verdict in {"kept", "added"} and finding.becomes is not None:
        text = f" = {_value(finding.becomes)}"
    elif finding.verdict == "changed":
        text = f" to {_value(finding.becomes)}"
    if finding.rule:
        given = _value(finding.given) if show_values else described(finding.given)
        text += f" by {finding.rule} ({given})"
    return text


def _value(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return shown.clean(text, _LONGEST)


def described(value: Any) -> str:
    """Type and length of a value, and nothing else of it."""
    for kind, text in _LIKE:
        if isinstance(value, kind):
            return text.format(len(value) if hasattr(value, "__len__") else "")
    return "nothing"


def _summary(totals: Counter[tuple[str, str]], profile: str) -> None:
    click.secho(f"under {profile}", bold=True)
    if not totals:
        click.echo("  nothing to judge")
    order = list(_COLOURS)
    for (verdict, rule), times in sorted(
        totals.items(), key=lambda item: (order.index(item[0][0]), -item[1], item[0][1])
    ):
        by = f" by {rule}" if rule else ""
        click.echo(f"  {click.style(f'{verdict:<8}', fg=_COLOURS[verdict])}{times:>6}{by}")
