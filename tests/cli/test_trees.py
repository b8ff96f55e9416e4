"""What a person sees of traces: headings, one line a call, and what is worth a word."""

import json
import re

import pytest

from sottovoce.cli.otlp import Rows

from .test_store import request
from .test_view import flat, seen

NOW = 10**18


def alone(trace, start=NOW, service="app", **facts):
    """The only span of a trace."""
    attributes = json.dumps({key.replace("__", "."): value for key, value in facts.items()})
    resource = json.dumps({"service.name": service})
    return (
        trace, trace, "", f"call {trace}", 1, start, start + 9, 0, "", "", attributes, resource, "[]",
    )  # fmt: skip


def test_neighbours_of_one_span_share_a_heading(store):
    parent = alone("c", NOW + 30)
    child = ("c", "child", "c", *parent[3:])
    singles = (alone("a", NOW), alone("b", NOW + 10), alone("d", NOW + 60, "other"))
    store.add(request(), Rows(spans=[*singles, parent, child]))
    headings = [flat(line) for line in seen(store).splitlines() if re.match(r"trace |\d", line)]
    assert [re.sub(r" \d\d:\d\d:\d\d", "", line) for line in headings[:3]] == [
        "2 traces of one span each app 19 ns", "trace c app 9 ns 2 spans",
        "trace d other 9 ns 1 span",
    ]  # fmt: skip


def test_many_traces_of_one_span_are_all_drawn(store):
    store.add(request(), Rows(spans=[alone(str(key), NOW + key) for key in range(300)]))
    assert len(re.findall("^call ", seen(store, traces=1000), re.MULTILINE)) == 300


def test_what_a_local_engine_did_is_told_in_few_words(store):
    name = {"gen_ai__request__model": "llama-lt_1M-4bit", "gen_ai__provider__name": "mlx"}
    facts = {
        "sottovoce__model__architecture": "llama", "sottovoce__model__quantization": "4bit",
        "sottovoce__model__adapted": True, "sottovoce__model__offload": "partial",
        "sottovoce__request__batch__size": 3, "sottovoce__draft__acceptance_rate": 0.914,
        "sottovoce__context__utilization": 0.0278, "sottovoce__prefill__throughput": 6687.97,
        "sottovoce__decode__throughput": 898.6,
        "gen_ai__response__finish_reasons": ["length", "stop", "length"],
        "sottovoce__request__queue__wait": 0.25, "sottovoce__model__load__wait": 3.5,
    }  # fmt: skip
    store.add(request(), Rows(spans=[alone("a", **name, **facts)]))
    assert (
        "mlx · queued 250 ms · model loading 3.5 s · adapted · offload partial · batch 3 · draft 91.4 % accepted · finish length ×2,stop "
        "· context 2.8 % · prefill 6,688 · decode 899 tokens/s"
    ) in flat(seen(store))


def test_the_usual_is_not_told(store):
    usual = {
        "sottovoce__model__adapted": False, "sottovoce__model__offload": "none",
        "sottovoce__request__queue__wait": 0.0001, "sottovoce__model__load__wait": 0.0,
    }  # fmt: skip
    store.add(request(), Rows(spans=[alone("a", gen_ai__provider__name="mlx", **usual)]))
    assert re.search(r"^ +mlx$", seen(store), re.MULTILINE)


@pytest.mark.parametrize(("operation", "told"), [("embeddings", "16"), ("chat", "16→?")])
def test_only_answers_of_tokens_lack_their_count(store, operation, told):
    facts = {"gen_ai__operation__name": operation, "gen_ai__usage__input_tokens": 16}
    store.add(request(), Rows(spans=[alone("a", **facts)]))
    assert re.search(rf"internal +9 ns +{re.escape(told)} *$", seen(store), re.MULTILINE)
