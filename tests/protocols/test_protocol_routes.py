import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from sottovoce.protocols import match, routes

SEGMENTS = st.sampled_from(
    ["", "http:", "v1", "chat", "completions", "models", "m:generateContent", "m:predict", "model",
     "converse", "deployments", "engines", "responses", "pipeline", "feature-extraction", "x?y",
     "publishers", "mistralai", "claude:rawPredict", "a" * 300]
)  # fmt: skip


def told(route):
    return route and [getattr(route, name) for name in routes.Route.__slots__]


@pytest.mark.parametrize(
    ("path", "operation", "protocol"),
    [
        ("/v1/chat/completions", "chat", "openai_chat"),
        ("/chat/completions", "chat", "openai_chat"),
        ("chat/completions", "chat", "openai_chat"),
        ("/api/v1/chat/completions", "chat", "openai_chat"),
        ("/openai/v1/chat/completions/", "chat", "openai_chat"),
        (
            "/openai/deployments/my-gpt/chat/completions?api-version=2024-10-21",
            "chat",
            "openai_chat",
        ),
        ("/v1beta/openai/chat/completions", "chat", "openai_chat"),
        ("/v1/projects/p/locations/l/endpoints/openapi/chat/completions", "chat", "openai_chat"),
        ("/v1/completions", "text_completion", "openai_completions"),
        ("/completions", "text_completion", "openai_completions"),
        ("completions", "text_completion", "openai_completions"),
        ("/v1/engines/copilot-codex/completions", "text_completion", "openai_completions"),
        ("/v1/responses", "chat", "openai_responses"),
        ("/openai/responses?api-version=preview", "chat", "openai_responses"),
        ("/v1/embeddings", "embeddings", "openai_embeddings"),
        ("/openai/deployments/e/embeddings", "embeddings", "openai_embeddings"),
        ("/v1/responses/compact", "chat", "openai_responses"),
        ("/v1/decisions", "generate_content", "openai_responses"),
        ("/v1/images/generations", "generate_content", "openai_images"),
        ("/v1/images/edits", "generate_content", "openai_images"),
        ("/v1/images/variations", "generate_content", "openai_images"),
        ("/openai/v1/audio/speech", "generate_content", "openai_audio"),
        ("/v1/audio/transcriptions", "generate_content", "openai_audio"),
        ("/openai/deployments/w/audio/translations", "generate_content", "openai_audio"),
        ("/v1/moderations", "moderation", "openai_moderations"),
        ("/v1/messages?beta=true", "chat", "anthropic_messages"),
        ("/v1/sonar", "chat", "openai_chat"),
        ("/v1/reranking", "rerank", "rerank"),
        ("/reranking", "rerank", "rerank"),
        ("/anthropic/v1/messages", "chat", "anthropic_messages"),
        (
            "/v1/projects/p/locations/l/publishers/anthropic/models/m@1:streamRawPredict",
            "chat",
            "anthropic_messages",
        ),
    ],
)
def test_a_path_is_known_by_its_end(path, operation, protocol):
    route = match("POST", path)
    assert (route.operation, route.protocol.name) == (operation, protocol)
    assert told(match("post", path)) == told(route)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models",
        "/v1/responses/resp_123",
        "/v1/responses/resp_123/cancel",
        "/v1/responses/resp_123/input_items",
        "/v1/responses/input_tokens",
        "/v1/chat/completions/chatcmpl-1",
        "/v1/chat/completions/chatcmpl-1/messages",
        "/v1/batches",
        "/v1/files?purpose=/v1/chat/completions",
        "/v1/audio/voices",
        "/v1/images",
        "/v1/videos",
        "/v1/messages/count_tokens",
        "/v1/messages/batches",
        "/v1/threads/thread_1/messages",
        "/v1/projects/p/locations/l/publishers/anthropic/models/count-tokens:rawPredict",
        "/surveys/myresponses",
        "/xchat/completionsx",
        "/v1/realtime#/v1/chat/completionsx",
    ],
)
def test_other_paths_are_nobodys_business(path):
    assert match("POST", path) is None


@pytest.mark.parametrize(
    "path", ["/v1/responses/resp_1", "responses/resp_1/", "/v1/responses/resp_1?stream=true"]
)
def test_a_response_is_fetched_with_a_get(path):
    route = match("GET", path)
    assert (route.operation, route.protocol.name) == ("fetch_response", "openai_responses")
    assert route.unmistakable
    assert told(match("get", path)) == told(route)
    assert match("DELETE", path) is None


@pytest.mark.parametrize(
    "path",
    [
        "/v1/responses",
        "/v1/responses/",
        "/v1/responses/resp_1/input_items",
        "/myresponses/resp_1",
        "/v1/chat/completions/chatcmpl-1",
    ],
)
def test_other_things_that_are_fetched_are_not_responses(path):
    assert match("GET", path) is None


def test_a_response_of_somebody_elses_is_told_by_its_id():
    assert not match("GET", "/surveys/responses/17").unmistakable


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS", ""])
def test_only_a_post_asks_a_model(method):
    assert match(method, "/v1/chat/completions") is None


def test_a_longer_name_before_is_not_chat():
    assert match("POST", "/xchat/completions").operation == "text_completion"


def test_a_deployment_in_the_path_is_the_model_where_the_body_names_none():
    route = match("POST", "/openai/deployments/my%20gpt/chat/completions?api-version=1")
    assert route.facts == {"request_model": "my gpt"}


def test_a_path_that_says_what_comes_out_and_a_deployment_tells_both():
    route = match("POST", "/openai/deployments/w/audio/translations")
    assert route.facts == {"output_type": "text", "request_model": "w"}


@pytest.mark.parametrize(
    ("path", "sign"),
    [
        ("", "max_new_tokens"),
        ("/", "max_new_tokens"),
        ("http://localhost:8080/", "max_new_tokens"),
        ("/generate", "inputs"),
        ("/completion", "prompt"),
        ("/infill", "input_prefix"),
        ("/api/v1/chat", "input"),
        ("http://localhost:8080/embedding?x=1", "content"),
    ],
)
def test_what_others_use_too_is_known_by_a_key_of_the_body(path, sign):
    route = match("POST", path)
    assert (route.sign, route.unmistakable) == (sign, False)


@given(st.text("POST/:?%.ax= ") | st.lists(SEGMENTS).map("/".join) | st.text())
@limits(max_examples=500, deadline=None)
def test_no_path_raises_and_only_what_asks_a_model_is_remembered(path):
    first = match("POST", path)
    assert told(match("POST", path)) == told(first)
    plain = path.partition("?")[0]
    assert told(match("POST", f"{plain}?key=secret")) == told(match("POST", plain))
    assert not any("?" in kept or len(kept) > 256 for kept in routes._matched)
    if first is None:
        assert path not in routes._matched


@pytest.mark.parametrize("before", ["http", "https", "http+unix", "000000", "", "x/y"])
def test_a_host_without_a_path_is_the_root_whatever_it_is_called(before):
    assert told(match("POST", f"{before}://embeddings")) == told(match("POST", ""))
    assert told(match("POST", f"{before}://embeddings/?key=secret")) == told(match("POST", ""))


def test_few_paths_are_remembered_however_many_models_they_name():
    for number in range(2000):
        assert match("POST", f"/model/m{number}/converse").facts["request_model"] == f"m{number}"
    assert len(routes._matched) <= 512


def test_a_host_in_front_is_no_part_of_what_is_remembered():
    assert match("POST", "https://user:secret@host.example/v1/embeddings").operation == "embeddings"
    assert not any("secret" in kept or "host.example" in kept for kept in routes._matched)


LOADED = """
import sys, threading
from sottovoce.protocols.routes import match
loaded = lambda: sorted(n.rpartition(".")[2] for n in sys.modules if n.startswith("sottovoce.protocols."))
before = loaded()
assert match("POST", "/orders/17") is None
assert loaded() == before, loaded()
together = threading.Barrier(8)
found = []
def first():
    together.wait()
    found.append(match("POST", "/v1/messages").protocol.name)
threads = [threading.Thread(target=first) for _ in range(8)]
[each.start() for each in threads]
[each.join(60) for each in threads]
assert found == ["anthropic_messages"] * 8, found
print(*before, "|", *loaded())
"""


def test_a_protocol_is_loaded_by_the_first_path_that_asks_for_it_in_any_thread():
    ran = subprocess.run(
        [sys.executable, "-c", LOADED], capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.stderr == ""
    before, after = (set(names.split()) for names in ran.stdout.split("|"))
    assert before == {"paths", "routes"}
    assert "anthropic_messages" in after
    assert not {"gemini", "bedrock_invoke", "cohere", "ollama", "openai_responses"} & after


def test_every_row_names_a_protocol_that_there_is():
    rows = [*routes.ROUTES.values()]
    for each in (each for found in routes.VERBS.values() for each in found):
        rows += [each.route, *(row for _, row in each.models)]
    assert len({row.protocol for row in rows}) > 20
    for row in rows:
        assert row.route().protocol.name
        assert row.route().sign == row.sign
