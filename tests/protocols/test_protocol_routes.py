import pytest

from sottovoce.protocols import match


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
        ("/v1/completions", "text_completion", "openai_completions"),
        ("/completions", "text_completion", "openai_completions"),
        ("completions", "text_completion", "openai_completions"),
        ("/v1/engines/copilot-codex/completions", "text_completion", "openai_completions"),
        ("/v1/responses", "chat", "openai_responses"),
        ("/openai/responses?api-version=preview", "chat", "openai_responses"),
        ("/v1/embeddings", "embeddings", "openai_embeddings"),
        ("/openai/deployments/e/embeddings", "embeddings", "openai_embeddings"),
    ],
)
def test_a_path_is_known_by_its_end(path, operation, protocol):
    route = match("POST", path)
    assert (route.operation, route.protocol.name) == (operation, protocol)
    assert match("post", path) == route


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "//",
        "/v1/models",
        "/v1/responses/resp_123",
        "/v1/responses/resp_123/cancel",
        "/v1/responses/resp_123/input_items",
        "/v1/responses/input_tokens",
        "/v1/chat/completions/chatcmpl-1",
        "/v1/chat/completions/chatcmpl-1/messages",
        "/v1/batches",
        "/v1/files?purpose=/v1/chat/completions",
        "/v1/images/generations",
        "/v1/audio/speech",
        "/surveys/myresponses",
        "/xchat/completionsx",
        "/v1/realtime#/v1/chat/completionsx",
    ],
)
def test_other_paths_are_nobodys_business(path):
    assert match("POST", path) is None


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS", ""])
def test_only_a_post_asks_a_model(method):
    assert match(method, "/v1/chat/completions") is None


def test_a_longer_name_before_is_not_chat():
    assert match("POST", "/xchat/completions").operation == "text_completion"


def test_a_deployment_in_the_path_is_the_model_where_the_body_names_none():
    route = match("POST", "/openai/deployments/my%20gpt/chat/completions?api-version=1")
    assert route.facts == {"request_model": "my gpt"}
