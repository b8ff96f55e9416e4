"""The openai SDK beyond text: pictures, sounds, judgements, responses made in the background."""

import httpx2
import openai
import pytest

from servers import media
from servers.fixtures import fresh
from servers.provider import ANSWER, MODEL, WORDS
from sottovoce import guard
from sottovoce.call import current_call

# Of variations and translations, in openai 3.52.
pytestmark = pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")

PICTURE = ("picture.png", b"\x89PNG a secret picture", "image/png")
SOUND = ("sound.mp3", b"\xff\xfb a secret sound", "audio/mpeg")
DRAWN = {
    "input_tokens": 50,
    "output_tokens": 50,
    "input_text_tokens": 10,
    "input_image_tokens": 40,
    "output_type": "image",
}
HEARD = {
    "input_tokens": 14,
    "output_tokens": 45,
    "input_text_tokens": 10,
    "input_audio_tokens": 4,
    "output_type": "text",
}
SAID = {"output_type": "speech"}
TOLD = {"response_model": MODEL, "finish_reasons": ["stop"], "input_tokens": 11}


def draw(client, **more):
    return client.images.generate(model="tiny", prompt="a secret prompt", **more)


def edit(client, **more):
    return client.images.edit(model="tiny", image=PICTURE, prompt="a secret prompt", **more)


def vary(client):
    return client.images.create_variation(model="tiny", image=PICTURE)


def transcribe(client, **more):
    return client.audio.transcriptions.create(model="tiny", file=SOUND, **more)


def translate(client):
    return client.audio.translations.create(model="tiny", file=SOUND, prompt="a secret prompt")


def speak(client, **more):
    asked = {"model": "tiny", "voice": "alloy", "input": "a secret text", **more}
    return client.audio.speech.create(**asked)


def judge(client):
    return client.moderations.create(model="tiny", input="a secret text")


def decide(client):
    question = {"type": "predicate", "question": "a secret question"}
    return client.decisions.create(model="tiny", input="a secret text", questions=[question])


WHOLE = {
    "decisions": (
        decide,
        "generate_content",
        {"output_type": "json", "input_tokens": 11, "output_tokens": 7, "cache_read_tokens": 3},
    ),
    "images": (draw, "generate_content", DRAWN),
    "edits": (edit, "generate_content", DRAWN),
    "variations": (vary, "generate_content", DRAWN),
    "transcriptions": (transcribe, "generate_content", HEARD),
    "translations": (translate, "generate_content", HEARD),
    "speech": (speak, "generate_content", SAID),
    "moderations": (judge, "moderation", {"response_model": MODEL}),
}
STREAMS = {
    "images": (lambda c: draw(c, stream=True), 2, DRAWN),
    "edits": (lambda c: edit(c, stream=True), 2, DRAWN),
    "transcriptions": (lambda c: transcribe(c, stream=True), WORDS, HEARD),
}


@pytest.fixture(scope="module")
def running():
    with media.serve() as server:
        yield server


@pytest.fixture
def server(running):
    return fresh(running)


@pytest.fixture
def client(driver, server, calls):
    client = driver.client(server)
    yield client
    driver.close(client)


def answered(call, facts):
    assert (call.outcome, call.error) == ("completed", None)
    assert {**call.facts, **facts} == call.facts
    assert "secret" not in repr(call.facts)
    assert not guard.undecodable
    return True


@pytest.mark.parametrize("name", WHOLE)
def test_whole_answers(driver, client, calls, server, name):
    ask, operation, facts = WHOLE[name]
    driver.do(ask, client)
    assert answered(calls.only, facts)
    call = calls.only
    assert (call.operation, call.model, call.stream, call.chunks) == (operation, "tiny", False, 0)
    assert (call.attempts, len(server.requests)) == (1, 1)


@pytest.mark.parametrize("name", STREAMS)
def test_streams(driver, client, calls, name):
    ask, chunks, facts = STREAMS[name]
    opened = driver.do(ask, client)
    assert not calls.ended_calls
    assert len(driver.items(opened)) == chunks + 1
    # The last event of a picture is too large to be parsed: its end is looked at.
    guard.undecodable.pop("size", None)
    assert answered(calls.only, facts)
    # The last event says that it is over.
    assert (calls.only.stream, calls.only.chunks) == (True, chunks)


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_that_is_left_early_was_abandoned(driver, client, calls, name):
    opened = driver.do(STREAMS[name][0], client)
    driver.items(opened, 1)
    driver.close(opened)
    assert (calls.only.outcome, calls.only.error) == ("abandoned", None)


@pytest.mark.parametrize("name", WHOLE)
def test_refused_and_retried(driver, server, calls, name):
    ask, _, facts = WHOLE[name]
    client = driver.client(server, max_retries=1)
    server.play("400")
    with pytest.raises(openai.BadRequestError):
        driver.do(ask, client)
    assert calls.ended_calls[0].error is openai.BadRequestError
    server.play("503")
    driver.do(ask, client)
    assert answered(calls.ended_calls[1], facts)
    assert calls.ended_calls[1].attempts == 2
    driver.close(client)


@pytest.mark.parametrize("kind", ["audio/mpeg", "application/octet-stream", "text/plain"])
@pytest.mark.parametrize("how", ["whole", "pieces"])
def test_sound_is_never_looked_at(driver, client, calls, server, kind, how):
    server.play(kind)
    if how == "whole":
        assert driver.do(speak, client).content == media.SOUND
    else:
        asked = {"model": "tiny", "voice": "alloy", "input": "a secret text"}
        manager = client.audio.speech.with_streaming_response.create(**asked)
        opened = driver.enter(manager)
        assert not calls.ended_calls
        assert b"".join(driver.items(opened.iter_bytes())) == media.SOUND
        driver.leave(manager)
    assert answered(calls.only, SAID)
    assert "input_tokens" not in calls.only.facts


def test_speech_as_events(driver, client, calls):
    asked = {"model": "tiny", "voice": "alloy", "input": "a secret text", "stream_format": "sse"}
    manager = client.audio.speech.with_streaming_response.create(**asked)
    opened = driver.enter(manager)
    assert driver.items(opened.iter_lines())
    driver.leave(manager)
    assert answered(calls.only, {**SAID, "input_tokens": 14, "output_tokens": 101})
    assert (calls.only.stream, calls.only.chunks) == (True, WORDS)


def test_a_transcript_that_is_plain_text_is_never_looked_at(driver, client, calls):
    assert driver.do(transcribe, client, response_format="text").strip() == ANSWER
    assert answered(calls.only, {"output_type": "text"})
    assert "input_tokens" not in calls.only.facts


def test_what_is_queued_is_no_completed_generation(driver, client, calls, server):
    asked = {"model": "tiny", "input": "a secret text", "background": True}
    assert driver.do(client.responses.create, **asked).status == "queued"
    assert answered(calls.only, {"response_model": MODEL})
    assert not {"finish_reasons", "input_tokens", "output_tokens"} & calls.only.facts.keys()
    server.play("in_progress", "ok")
    assert driver.do(client.responses.retrieve, "resp_1").status == "in_progress"
    assert driver.do(client.responses.retrieve, "resp_1").output_text == ANSWER
    _, polled, fetched = calls.ended_calls
    assert [call.operation for call in calls.ended_calls] == ["chat", *["fetch_response"] * 2]
    assert answered(polled, {"response_model": MODEL})
    assert "finish_reasons" not in polled.facts
    assert answered(fetched, TOLD)


def test_a_stream_that_is_fetched(driver, client, calls):
    opened = driver.do(client.responses.retrieve, "resp_1", stream=True)
    assert current_call.get() is None
    assert driver.items(opened)
    assert answered(calls.only, TOLD)
    call = calls.only
    assert (call.operation, call.stream, call.chunks) == ("fetch_response", True, WORDS + 6)
    assert call.facts["request_stream"] is True


def test_a_stream_that_is_fetched_without_the_sdk(server, raw_calls):
    with httpx2.Client(verify=False) as http:
        http.get(server.url + "/v1/responses/resp_1?stream=true").raise_for_status()
        http.get(server.url + "/v1/responses/17").raise_for_status()
        http.get(server.url + "/v1/models").raise_for_status()
    assert answered(raw_calls.only, TOLD)
    assert (raw_calls.only.operation, raw_calls.only.stream) == ("fetch_response", True)


def test_a_fetch_that_fails(driver, client, calls, server):
    server.play("404")
    with pytest.raises(openai.NotFoundError):
        driver.do(client.responses.retrieve, "resp_1")
    assert calls.only.error is openai.NotFoundError


def test_what_only_manages_responses_is_no_call(driver, client, calls):
    driver.items(driver.do(client.responses.input_items.list, "resp_1"))
    with pytest.raises(openai.NotFoundError):
        driver.do(client.responses.cancel, "resp_1")
    assert not calls.opened_calls


def test_uploads_without_the_sdk_are_never_read(server, raw_calls):
    with httpx2.Client(verify=False) as http:
        form = {"model": "tiny", "prompt": "a secret prompt"}
        http.post(server.url + "/v1/audio/transcriptions", data=form, files={"file": SOUND})
    assert answered(raw_calls.only, HEARD)
    assert raw_calls.only.model is None


def test_a_deployment_on_azure(driver, server, calls):
    cls = openai.AsyncAzureOpenAI if driver.name == "async" else openai.AzureOpenAI
    options = {"azure_endpoint": server.url, "api_version": "2025-04-01-preview"}
    client = driver.client(server, cls=cls, base_url=None, **options)
    driver.do(draw, client)
    driver.do(transcribe, client)
    assert server.requests[0][0].startswith("/openai/deployments/tiny/images/generations?")
    assert answered(calls.ended_calls[0], DRAWN)
    assert answered(calls.ended_calls[1], HEARD)
    assert {call.provider for call in calls.ended_calls} == {"azure.ai.openai"}
    driver.close(client)
