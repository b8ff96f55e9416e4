"""The search finds a text in the forms that wires give it, and only there."""

import base64
import gzip
import html
import json
import urllib.parse

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from sottovoce.cli.kept import Request
from sottovoce.cli.search import Needle, search

FORMS = {
    "utf-8": lambda text: text.encode(),
    "utf-16-le": lambda text: text.encode("utf-16-le"),
    "utf-16-be": lambda text: text.encode("utf-16-be"),
    "json": lambda text: json.dumps(text)[1:-1].encode(),
    "json in json": lambda text: json.dumps(json.dumps(text)[1:-1])[1:-1].encode(),
    "json, not ascii": lambda text: json.dumps(text, ensure_ascii=False)[1:-1].encode(),
    "percent": lambda text: urllib.parse.quote(text).encode(),
    "percent, all": lambda text: urllib.parse.quote(text, safe="").encode(),
    "form": lambda text: urllib.parse.quote_plus(text).encode(),
    "html": lambda text: html.escape(text).encode(),
    "hex": lambda text: text.encode().hex().encode(),
    "HEX": lambda text: text.encode().hex().upper().encode(),
    "base64": lambda text: base64.b64encode(text.encode()),
    "base64 after one byte": lambda text: base64.b64encode(b"?" + text.encode() + b"!"),
    "base64 after two bytes": lambda text: base64.b64encode(b"\xff?" + text.encode() + b"!?"),
    "base64url": lambda text: base64.urlsafe_b64encode(b"\xfb\xff\xfe" + text.encode()),
    "upper case": lambda text: text.upper().encode() if text.isascii() else text.encode(),
}


def request(body, **changes):
    values = {
        "id": 1, "at_ns": 1, "signal": "traces", "head": "POST /v1/traces", "encoding": "",
        "body": body, "size": len(body), "plain": 0, "status": 200, "service": "", "records": 0,
        **changes,
    }  # fmt: skip
    return Request(**values)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "text", ["violet herons", 'say "it\'s <ready>" & go/now', "Zürich 💜 déjà-vu"]
)
def test_a_text_is_found_in_every_form(form, text):
    data = b"\x00\x01before" + FORMS[form](text) + b"after\xff"
    if form.startswith("base64"):
        data = b"\x00\x01before " + FORMS[form](text) + b" after\xff"
    assert Needle(text).find(data) is not None


@given(
    text=st.text(min_size=8, max_size=40),
    form=st.sampled_from(sorted(set(FORMS) - {"upper case"})),
    before=st.binary(max_size=20),
    after=st.binary(max_size=20),
)
@settings(max_examples=200, deadline=None)
@example(text="000000:/", form="percent", before=b"", after=b"")
def test_any_text_is_found_in_every_form(text, form, before, after):
    assume(text.strip())
    assert Needle(text).find(before + FORMS[form](text) + after) is not None


def test_whatever_an_encoder_leaves_alone_the_text_is_found():
    for encoded in (b"http%3A//x/se%63ret", b"http:%2f%2fx%2fsecret", b"http%3A%2F%2Fx/secret"):
        assert Needle("http://x/secret").find(b"a" + encoded + b"b") is not None


@given(data=st.binary(max_size=2000))
@settings(max_examples=100, deadline=None)
def test_what_is_not_there_is_not_found(data):
    assert Needle("Zephyrine at Kettlewick").find(data) is None


def test_compressed_bodies_and_heads_are_looked_into_and_counted():
    body = gzip.compress(b"... violet herons ...")
    requests = [
        request(body, id=1, encoding="gzip"),
        request(b"nothing", id=2, head="POST /v1/logs?q=violet%20herons", signal="logs"),
        request(b"not gzip: VIOLET HERONS", id=3, encoding="gzip"),
        request(b"nothing", id=4),
    ]
    report = search(requests, "violet herons")
    assert [(hit.request, hit.signal, hit.place) for hit in report.hits] == [
        (1, "traces", "body"),
        (2, "logs", "head"),
        (3, "traces", "body"),
    ]
    assert report.hits[0].offset == 4
    heads = sum(len(found.head) for found in requests)
    assert (report.requests, report.plain) == (4, 21 + 7 + 23 + 7 + heads)


def test_an_empty_text_is_refused():
    with pytest.raises(ValueError, match="no text"):
        search([], "")
