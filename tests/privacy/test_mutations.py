"""Each rule of the gate, taken out: a secret of the leak corpus gets out. So the corpus tests it.

What is taken out is replaced by what lets everything through, in a process that is otherwise
as it should be; and with every rule in its place nothing gets out (`test_leak_corpus.py`).
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
from opentelemetry.sdk.trace import Event

from privacy import leaks
from sottovoce.privacy import ranges, rules, spans, tripwire
from sottovoce.privacy.identities import Identities
from sottovoce.privacy.judging import Judge
from sottovoce.privacy.logs import LogGate
from sottovoce.privacy.metrics import MetricGate
from sottovoce.privacy.origin import Origins
from sottovoce.privacy.policy import Policy
from sottovoce.privacy.spans import SpanCleaner
from sottovoce.registry import ATTRIBUTES, PROFILES
from sottovoce.registry import rules as rules_of

MUTATIONS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {}


def mutation(mutate):
    MUTATIONS[mutate.__name__.strip("_")] = mutate
    return mutate


def around(patch, owner, name, change):
    """Let `change` have the last word on what a method returns: (result, self, arguments)."""
    method = getattr(owner, name)
    patch.setattr(
        owner, name, lambda self, *given, **more: change(method(self, *given, **more), self, *given)
    )


def verbatim(*_):
    return lambda value: value


class Everything:
    def __contains__(self, _):
        return True


@mutation
def the_type_of_what_is_kept(patch):
    slow = Judge._slow
    patch.setattr(
        Judge,
        "_slow",
        lambda self, signal, value, entry, *given: (
            value if entry.rule == "keep" else slow(self, signal, value, entry, *given)
        ),
    )


@mutation
def the_range_of_numbers(patch):
    patch.setattr(ranges, "LARGEST", 1 << 62)


@mutation
def cat12(patch):
    patch.setattr(Identities, "_model", lambda _self, raw, _local: raw)


@mutation
def count(patch):
    around(
        patch,
        Judge,
        "_elements",
        lambda result, _self, _signal, value, entry, *_: (
            tuple(value) if entry.rule == "count" else result
        ),
    )


@mutation
def the_shape_of_what_is_kept(patch):
    patch.setattr(rules, "_SHAPES", {})


@mutation
def the_length_of_strings(patch):
    patch.setattr(rules, "text", lambda value: value if value.isprintable() else rules.CONTROL)


@mutation
def control_characters(patch):
    patch.setattr(
        rules, "text", lambda value: value if len(value) <= rules.LONGEST else rules.TOO_LONG
    )


@mutation
def the_tripwire(patch):
    patch.setattr(tripwire, "hit", lambda _: False)


@mutation
def drop(patch):
    patch.setattr(rules, "NAMES", Everything())
    patch.setattr(rules, "_drop", verbatim)


@mutation
def unknown_keys(patch):
    around(
        patch,
        Judge,
        "judged",
        lambda kept, _self, mapping, *_: {
            **{key: value for key, value in mapping.items() if key not in ATTRIBUTES},
            **kept,
        },
    )


@mutation
def the_name_of_a_span(patch):
    patch.setattr(SpanCleaner, "_name", lambda _self, name, *_: name)


@mutation
def the_description_of_a_status(patch):
    def restored(clean, _self, given):
        clean._status = given.status
        return clean

    around(patch, SpanCleaner, "clean", restored)


@mutation
def trace_state(patch):
    patch.setattr(Origins, "context", lambda _self, context: context)


@mutation
def the_names_of_events(patch):
    patch.setattr(spans, "EVENTS", Everything())


@mutation
def the_attributes_of_events(patch):
    patch.setattr(
        SpanCleaner,
        "_events",
        lambda _self, given: tuple(Event(each.name, each.attributes) for each in given),
    )


@mutation
def links(patch):
    patch.setattr(SpanCleaner, "_links", lambda _self, given: tuple(given))


@mutation
def resources(patch):
    patch.setattr(Origins, "_resource", lambda _self, resource: resource)


@mutation
def scopes(patch):
    patch.setattr(Origins, "_scope", lambda _self, scope: scope)


@mutation
def scope_names(patch):
    patch.setattr(Policy, "scope", lambda _self, name: name)


def _restores_of_a_record(*names):
    def restored(clean, _self, given):
        for name in names:
            setattr(clean.log_record, name, getattr(given.log_record, name))
        return clean

    return lambda patch: around(patch, LogGate, "clean", restored)


MUTATIONS |= {
    f"the {name} of a log record": _restores_of_a_record(name)
    for name in ("body", "event_name", "severity_text", "attributes")
}


@mutation
def the_names_of_metrics(patch):
    patch.setattr(MetricGate, "_metric", lambda _self, given, _scope: given)


def _restores_of_a_metric(name):
    def restored(metric, _self, given, _scope):
        return None if metric is None else replace(metric, **{name: getattr(given, name)})

    return lambda patch: around(patch, MetricGate, "_metric", restored)


def _restores_of_a_point(name):
    def restored(point, _self, given, *_):
        return replace(point, **{name: getattr(given, name)})

    return lambda patch: around(patch, MetricGate, "_point", restored)


MUTATIONS |= {
    f"the {name} of a metric": _restores_of_a_metric(name) for name in ("description", "unit")
}
MUTATIONS |= {
    f"the {name} of a point": _restores_of_a_point(name) for name in ("attributes", "exemplars")
}


def escaped(patch, mutate):
    """What gets out in the first profile in which anything does; some rules are of one alone."""
    with patch.context() as inside:
        mutate(inside)
        for profile in ("standard", "strict"):
            found = leaks.survivors(leaks.replay(leaks.policy_of(profile)).messages())
            if found:
                return found
    return []


@pytest.mark.parametrize("name", MUTATIONS)
def test_without_this_a_secret_gets_out(monkeypatch, name):
    assert escaped(monkeypatch, MUTATIONS[name])


# Rules that judge strings, as the registry names them: one that is added has to be tested.
USED = {rule for profile in PROFILES for rule in rules_of(profile).values()}
# Not the one of users' ids, which are dropped before it unless a setting asks for them; and
# names of scopes are asked for at `Policy.scope`, above.
JUDGING = sorted(USED & set(rules._FACTORIES) - {"keep", "hash_user", "scope"})


@pytest.mark.parametrize("rule", JUDGING)
def test_without_this_rule_a_secret_gets_out(monkeypatch, rule):
    assert escaped(monkeypatch, lambda patch: patch.setitem(rules._FACTORIES, rule, verbatim))


def test_with_all_of_them_nothing_gets_out(monkeypatch):
    assert escaped(monkeypatch, lambda _: None) == []
