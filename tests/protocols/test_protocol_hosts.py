import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.protocols import is_local, provider
from sottovoce.protocols.hosts import endpoint


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("api.openai.com", "openai"),
        ("API.OpenAI.com.", "openai"),
        ("eu.api.openai.com", "openai"),
        ("acme.openai.azure.com", "azure.ai.openai"),
        ("acme.cognitiveservices.azure.com", "azure.ai.openai"),
        ("acme.services.ai.azure.com", "azure.ai.inference"),
        ("models.inference.ai.azure.com", "azure.ai.inference"),
        ("api.anthropic.com", "anthropic"),
        ("api.cohere.com", "cohere"),
        ("api.deepseek.com", "deepseek"),
        ("api.groq.com", "groq"),
        ("api.mistral.ai", "mistral_ai"),
        ("api.moonshot.ai", "moonshot_ai"),
        ("api.perplexity.ai", "perplexity"),
        ("api.x.ai", "x_ai"),
        ("generativelanguage.googleapis.com", "gcp.gemini"),
        ("generativelanguage.mtls.googleapis.com", "gcp.gemini"),
        ("us-central1-aiplatform.googleapis.com", "gcp.vertex_ai"),
        ("us-central1-aiplatform.mtls.googleapis.com", "gcp.vertex_ai"),
        ("aiplatform.mtls.googleapis.com", "gcp.vertex_ai"),
        ("aiplatform.eu.rep.googleapis.com", "gcp.vertex_ai"),
        ("codestral.mistral.ai", "mistral_ai"),
        ("us-south.ml.cloud.ibm.com", "ibm.watsonx.ai"),
        ("api.together.xyz", "together_ai"),
        ("openrouter.ai", "openrouter"),
        ("eu.openrouter.ai", "openrouter"),
        ("us.openrouter.ai", "openrouter"),
        ("api.kimi.com", "moonshot_ai"),
        ("api.cerebras.ai", "cerebras"),
        ("router.huggingface.co", "hugging_face"),
    ],
)
def test_known_hosts_are_named_as_the_conventions_do(host, name):
    assert provider(host, 443) == (name, True)


def test_one_azure_host_serves_two_providers_by_path():
    host = "acme.services.ai.azure.com"
    assert provider(host, None, "/openai/v1/chat/completions")[0] == "azure.ai.openai"
    assert provider(host, None, "/models/chat/completions")[0] == "azure.ai.inference"


@pytest.mark.parametrize(
    "host",
    ["llm.example.org", "10.0.0.7", "api.openai.com.evil.test", "notapi.openai.com", "openai.com"],
)
def test_other_hosts_are_compatible_and_nobodys_in_particular(host):
    assert provider(host) == ("openai_compatible", None)


@pytest.mark.parametrize(
    ("port", "name"),
    [
        (11434, "ollama"),
        (1337, "osaurus"),
        (1234, "lm_studio"),
        (12434, "docker_model_runner"),
        (30000, "sglang"),
        (8080, "openai_compatible"),
    ],
)
def test_local_servers_are_told_by_their_default_ports(port, name):
    assert provider("127.0.0.1", port) == (name, False)
    assert provider("llm.example.org", port)[0] == "openai_compatible"


@pytest.mark.parametrize(
    "host",
    [
        "ollama",
        "gpu.lan",
        "Mac.local.",
        "host.docker.internal",
        "10.0.0.7",
        "192.168.1.2",
        "fd00::1",
    ],
)
def test_so_are_servers_in_a_network_of_ones_own_which_are_not_this_machine(host):
    assert provider(host, 11434) == ("ollama", None)
    assert provider(host, 1234) == ("lm_studio", None)
    assert provider(host, 8080) == provider(host) == ("openai_compatible", None)
    assert not is_local(host)


@pytest.mark.parametrize("host", ["8.8.8.8", "2606:4700::1", "134744072", "lan.example.org"])
def test_a_public_host_is_not_known_by_a_port(host):
    assert provider(host, 11434) == ("openai_compatible", None)


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST",
        "localhost.",
        "api.localhost",
        "127.0.0.1",
        "127.8.9.10",
        "::1",
        "[::1]",
        "0.0.0.0",
        "::ffff:127.0.0.1",
        "/run/llm.sock",
        "unix:/run/llm.sock",
        "",
        None,
    ],
)
def test_this_machine_is_local(host):
    assert is_local(host)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1.evil.test",
        "localhost.evil.test",
        "notlocalhost",
        "example.org",
        "192.168.1.2",
        "::2",
        "128.0.0.1",
        "2130706433",
        "[not an address]",
    ],
)
def test_what_cannot_be_shown_to_be_local_is_not(host):
    assert not is_local(host)


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("llm.example.org", True),
        ("LLM.example.org", True),
        ("a.corp.test", True),
        ("a.b.corp.test", True),
        ("corp.test", False),
        (".corp.test", False),
        ("evilcorp.test", False),
        ("llm.example.org.evil.test", False),
        ("xllm.example.org", False),
    ],
)
def test_own_hosts_are_local_by_name_or_below_a_domain(host, local):
    assert is_local(host, ("llm.example.org", "*.corp.test")) is local


NAMED = (
    "api.example.org",
    "localhost:8000=vllm",
    "llm.example.org/v1=openai_compatible:local",
    "llm.example.org=litellm:remote",
    "*.corp.test:8443/llm=jan",
    "[::1]:9000=sglang",
)


@pytest.mark.parametrize(
    ("host", "port", "path", "found"),
    [
        ("localhost", 8000, "/v1/chat/completions", ("vllm", None)),
        ("LOCALHOST.", 8000, "", ("vllm", None)),
        ("localhost", 8001, "/v1", None),
        ("127.0.0.1", 8000, "/v1", None),
        ("llm.example.org", 443, "/v1/chat/completions", ("openai_compatible", True)),
        ("llm.example.org", 443, "/v1", ("openai_compatible", True)),
        ("llm.example.org", 443, "/v10/chat/completions", ("litellm", False)),
        ("llm.example.org", None, "", ("litellm", False)),
        ("a.corp.test", 8443, "/llm/v1/", ("jan", None)),
        ("a.corp.test", 443, "/llm/v1/", None),
        ("corp.test", 8443, "/llm/v1/", None),
        ("::1", 9000, "/", ("sglang", None)),
        ("api.example.org", 443, "/", None),
        (None, None, "", None),
    ],
)
def test_the_operator_says_who_answers_at_an_address(host, port, path, found):
    named = endpoint(host, port, path, NAMED)
    assert (None if named is None else (named.provider, named.local)) == found


@settings(deadline=None)
@given(st.text(), st.none() | st.integers(), st.text(), st.lists(st.text()))
def test_no_address_makes_the_search_raise(host, port, path, named):
    endpoint(host, port, path, tuple(named))
    is_local(host, tuple(named))
    provider(host, port, path)
