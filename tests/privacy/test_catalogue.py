import datetime as dt
import logging
import math
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from sottovoce.privacy import catalogue, templates
from sottovoce.privacy.catalogue import is_descriptor, is_public

PUBLIC = """
gpt-4o gpt-4o-mini gpt-4o-2024-08-06 gpt-4 gpt-4-0613 gpt-4-turbo-2024-04-09 gpt-4-1106-preview
gpt-3.5-turbo-0125 gpt-4.1-nano gpt-5-mini gpt-5.1 o1 o3-mini o4-mini o3-mini-2025-01-31
chatgpt-4o-latest gpt-4o-audio-preview-2024-12-17 text-embedding-3-small text-embedding-ada-002
dall-e-3 whisper-1 tts-1-hd omni-moderation-latest gpt-image-1 gpt-4o-mini-transcribe
openai/gpt-4o openai/gpt-oss-120b:free anthropic/claude-3.5-sonnet anthropic/claude-sonnet-4.5
claude-3-5-sonnet-20241022 claude-3-opus-20240229 claude-3-5-sonnet-latest
claude-sonnet-4-20250514 claude-opus-4-1 claude-haiku-4-5 claude-sonnet-4-5-20250929 claude-2.1
claude-3-5-sonnet-v2@20241022 claude-sonnet-4@20250514 claude-opus-4-8
anthropic.claude-3-5-sonnet-20241022-v2:0 us.anthropic.claude-3-5-sonnet-20241022-v2:0
eu.anthropic.claude-3-haiku-20240307-v1:0 apac.anthropic.claude-sonnet-4-20250514-v1:0
us.amazon.nova-pro-v1:0 amazon.titan-embed-text-v2:0 us.meta.llama3-3-70b-instruct-v1:0
cohere.embed-english-v3 mistral.mistral-large-2402-v1:0 us.deepseek.r1-v1:0
gemini-1.5-pro-002 gemini-2.5-flash-preview-05-20 gemini-2.5-flash-lite gemini-embedding-001
models/gemini-2.0-flash google/gemini-2.5-pro gemini-2.5-flash-preview-09-2025
mistral-large-latest mistral-small-2503 open-mistral-nemo codestral-latest pixtral-large-2411
command-r-plus command-r-08-2024 command-a-03-2025 embed-english-v3.0 rerank-v3.5
deepseek-chat deepseek-reasoner deepseek/deepseek-chat-v3-0324:free grok-2-1212 x-ai/grok-4
sonar-pro perplexity/sonar moonshotai/kimi-k2 kimi-k2-0905-preview llama-3.3-70b-versatile
meta-llama/llama-4-scout-17b-16e-instruct meta-llama/Llama-3.3-70B-Instruct-Turbo-Free
accounts/fireworks/models/llama-v3p1-8b-instruct openrouter/auto
mlx-community/Llama-3.2-3B-Instruct-4bit mlx-community/llama-3.2-3b-instruct-4bit
mlx-community/Qwen3-30B-A3B-4bit mlx-community/gpt-oss-20b-MXFP4-Q4
mlx-community/whisper-large-v3-turbo mlx-community/SmolLM2-135M-Instruct
meta-llama/Meta-Llama-3-8B Qwen/Qwen2.5-Coder-32B-Instruct Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4
mistralai/Mixtral-8x7B-Instruct-v0.1 google/gemma-2-9b-it google/gemma-3-27b-it-qat-q4_0-gguf
microsoft/Phi-3-mini-4k-instruct BAAI/bge-m3 openai/gpt-oss-20b openai/whisper-large-v3
TinyLlama/TinyLlama-1.1B-Chat-v1.0 HuggingFaceTB/SmolLM2-135M-Instruct
ibm-granite/granite-3.3-8b-instruct NousResearch/Hermes-3-Llama-3.1-8B
deepseek-ai/DeepSeek-R1-Distill-Qwen-7B bartowski/Llama-3.2-3B-Instruct-GGUF
bartowski/Qwen_Qwen3-8B-GGUF hf.co/bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M
lmstudio-community/gemma-3-4b-it-GGUF unsloth/Qwen3-8B-GGUF unsloth/Llama-3.2-1B-Instruct-bnb-4bit
ggml-org/gemma-3-1b-it-GGUF TheBloke/Mistral-7B-Instruct-v0.2-GPTQ
Llama-3.2-3B-Instruct-Q4_K_M.gguf qwen2.5-7b-instruct gemma-3-4b-it
llama3.2:3b llama3.2 llama3.1:8b-instruct-q4_K_M llama3.2:3b-instruct-q4_K_M qwen2.5-coder:7b
gemma3:4b mistral:latest deepseek-r1:8b mixtral:8x7b nomic-embed-text:v1.5 gpt-oss:20b
library/llama3.2:3b qwen3:30b-a3b-instruct-2507-q4_K_M
nomic-ai/nomic-embed-text-v1.5 sentence-transformers/all-MiniLM-L6-v2
""".split()

PRIVATE = [
    "",
    "o",
    "gpt-4o:acme",
    "ft:gpt-4o:acme::id",
    "ft:gpt-4o:acme:proj",
    "ft:gpt-4o-mini-2024-07-18:acme::abc123",
    "gpt-4o-acme",
    "acme-gpt-4o",
    "acme/gpt-4o",
    "azure/acme-gpt-4o",
    "gpt-4o-deployment",
    "gpt4o-prod",
    "gpt-4o-2024-08-06-acme",
    "gpt-4o-2024-99-99",
    "gpt-4o-2023-02-29",
    "gpt-4o-1999-01-01",
    "gpt-4o-2029-01-01",
    "gpt-4o-２０２４-08-06",
    "gpt-4o-mini-2024-07-18-2024-07-19",
    "gpt-4o-mini-mini",
    "gpt-4o-latest-preview-mini-turbo-pro",
    "GPT-4o",
    "gpt-4O",
    "claude-acme",
    "claude-3-5-sonnet-20241322",
    "mlx-community/acme-secret-4bit",
    "mlx-community/acme-secret-7b",
    "mlx-community/Llama-3.2-3B-acme-4bit",
    "mlx-community/Llama-3.2-3B-Instruct-4bit-acme",
    "mlx-community/Llama-3.2-999B-Instruct-4bit",
    "mlx-community/Llama-3.2-3B-Instruct-9bit",
    "mlx-community/LLaMA-3.2-3B-Instruct-4bit",
    "bartowski/acme_Qwen3-8B-GGUF",
    "acme/Llama-3.2-3B",
    "a/meta-llama/Llama-3.2-3B",
    "meta-llama/Llama-3.2-3B/",
    "https://huggingface.co/meta-llama/Llama-3.2-3B",
    "/home/bob/llama3.gguf",
    "/models/Llama-3.2-3B-Instruct-Q4_K_M.gguf",
    "./Llama-3.2-3B-Instruct-Q4_K_M.gguf",
    "C:\\models\\gemma-3-4b-it.gguf",
    "../llama3.2",
    "llama3.2:acme",
    "llama3.2:3b:acme",
    "llama3.2:3b-acme",
    "llama3.2:",
    "acme/llama3.2:3b",
    "library/acme:3b",
    "registry.acme.example/llama3.2:3b",
    "gpt-4-11-22-33-44-55",
    "gpt-01-70-12-34-56-78",
    "gpt-4o\n",
    "gpt-4o ",
    " gpt-4o",
    "gpt-4o\x00",
    "gpt-4o\u200b",
    "gpt-4o#acme",
    "gpt-4o?key=acme",
    "gpt-4о",  # a Cyrillic letter
    "ｇｐｔ-4o",
    "h:0123456789ab",
    "accounts/acme/models/llama-v3",
    "accounts/acme/models/llama-v3p1-8b-instruct",
    "accounts/fireworks/models/acme-1",
    "arn:aws:bedrock:us-east-1::foundation-model/anthropic.claude-3-haiku-20240307-v1:0",
    "arn:aws:bedrock:us-east-1:123456789012:provisioned-model/abcdefghijkl",
    "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/abcdefghijkl",
    "us.acme.claude-3-haiku-20240307-v1:0",
    "acme.anthropic.claude-3-haiku-20240307-v1:0",
    "us.us.anthropic.claude-3-haiku-20240307-v1:0",
    "projects/acme/locations/us-central1/endpoints/1234567890",
    "tunedModels/acme-123",
    "mistral-small-latest:acme:20240101:abcdef12",
    "ft:open-mistral-7b:acme:20240101:abcdef12",
    "endpoint-abc",
    "ep-20250101123456-abcde",
    "lora-gpt-oss-20b",
]


@pytest.fixture
def own(tmp_path, monkeypatch, caplog):
    """Write the operator's file; a later question reads it."""
    path = tmp_path / "ids of bob"

    def write(text):
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        use(path)

    def use(place):
        monkeypatch.setenv("SOTTOVOCE_MODEL_CATALOGUE", str(place))
        catalogue.reload()
        caplog.clear()
        assert is_public("gpt-4o") in {True, False}

    write.use = use
    yield write
    monkeypatch.undo()
    catalogue.reload()


@pytest.mark.parametrize("model", PUBLIC)
def test_public_ids_are_known(model):
    assert is_public(model)


@pytest.mark.parametrize("model", PRIVATE)
def test_private_ids_are_not(model):
    assert not is_public(model)


def test_every_listed_id_is_public_and_so_is_its_lower_case():
    listed = catalogue.ids()
    assert list(listed) == sorted(set(listed)) and len(listed) > 3000
    assert [model for model in listed if not is_public(model)] == []
    assert [model for model in listed if not is_public(model.lower())] == []


def test_the_shipped_list_says_its_version():
    assert catalogue.version() == catalogue.VERSION
    assert f"\nversion: {catalogue.VERSION}\n" in SHIPPED


# How much room ids leave. -------------------------------------------------------------------


def test_what_is_accepted_is_finite_and_small():
    """A pseudonym has 48 bits; all ids that are accepted, on all hosts and in both cases, 26."""
    counts = catalogue.accepted()
    assert math.log2(2 * sum(counts.values())) < 26
    assert max(counts.values()) < catalogue.MOST_IDS
    assert counts["perplexity"] < 1000 < counts["openai"]


def test_a_templates_count_is_that_of_the_strings_it_spells():
    words = {"w": templates.vocabulary("a|b;c")}
    made = templates.parse("x[-{w}](1|2|3[.5])[-{mmdd=0613}]", words, 2027)
    assert made.count() == 4 * 4 * 367
    assert len(set(made.listed())) == 3 * 4 * 2
    spelled = [
        text
        for w in ("", "-a", "-b", "-c")
        for n in ("1", "2", "3", "3.5")
        for d in ("", *(f"-{m:02}{d:02}" for m in range(14) for d in range(33)))
        if made.ends(text := f"x{w}{n}{d}", {0}) >= {len(text)}
    ]
    assert len(spelled) == len(set(spelled)) == made.count()


FORMS = {
    "yyyy-mm-dd": "%Y-%m-%d",
    "yyyymmdd": "%Y%m%d",
    "yymm": "%y%m",
    "mm-yyyy": "%m-%Y",
    "mmdd": "%m%d",
    "mm-dd": "%m-%d",
}


@pytest.mark.parametrize("form", templates.FORMS)
def test_a_form_of_dates_has_as_many_as_there_are(form):
    first, last = dt.date(templates.FIRST_YEAR, 1, 1), dt.date(2027, 12, 31)
    days = [first + dt.timedelta(day) for day in range((last - first).days + 1)]
    real = {day.strftime(FORMS[form]) for day in days}
    made = templates.parse(f"x{{{form}}}", {}, 2027)
    assert made.count() == len(real)
    assert all(made.ends(f"x{date}", {0}) for date in real)


def test_only_real_dates_from_2019_to_next_year_are_dates():
    for year in range(2015, 2032):
        for month in range(14):
            for day in range(33):
                try:
                    is_date = 2019 <= dt.date(year, month, day).year <= 2027
                except ValueError:
                    is_date = False
                assert is_public(f"claude-3-opus-{year}{month:02}{day:02}") == is_date


# A second reader of the list, which knows nothing of the first: regular expressions. ---------

SHIPPED = Path(catalogue.__file__).with_name("catalogue.txt").read_text(encoding="ascii")
YEAR = r"20(?:19|2[0-7])"
MONTH = r"(?:0[1-9]|1[0-2])"
DAYS = r"(?:0[1-9]|1\d|2[0-8])"
DAY = [
    rf"{MONTH}%s{DAYS}",
    r"(?:0[13-9]|1[0-2])%s(?:29|30)",
    r"(?:0[13578]|1[02])%s31",
]
DATES = {
    "yyyy-mm-dd": "|".join([*(f"{YEAR}-{d % '-'}" for d in DAY), "(?:2020|2024)-02-29"]),
    "yyyymmdd": "|".join([*(f"{YEAR}{d % ''}" for d in DAY), "(?:2020|2024)0229"]),
    "yymm": rf"(?:19|2[0-7]){MONTH}",
    "mm-yyyy": rf"{MONTH}-{YEAR}",
    "mmdd": "|".join([*(d % "" for d in DAY), "0229"]),
    "mm-dd": "|".join([*(d % "-" for d in DAY), "02-29"]),
}


def expression(template, words):
    def one(found):
        token = found[0]
        if token[0] == "{":
            name = token[1:-1].partition("=")[0]
            return f"(?:{DATES[name] if name in DATES else words[name]})"
        return {"[": "(?:(?:", "]": "))?", "(": "(?:", ")": ")", "|": "|"}.get(
            token, re.escape(token)
        )

    return re.sub(r"\{[^}]*\}|[^{}]", one, template)


def second_reading(text):
    words, shared, sections, current = {}, {}, [], None
    for line in text.splitlines():
        line = line.partition("#")[0].strip()
        if not line or line.startswith("version:"):
            continue
        if line.startswith("["):
            name, *plus = line[1:-1].split(" +")
            current = [[place for p in plus for place in shared[p]], []]
            sections.append(current)
        elif line.startswith("places "):
            current = [shared.setdefault(line[7:], []), None]
        elif line.startswith(("at ", "also ")):
            befores, _, after = line.partition(" ")[2].partition(" ")
            after = re.compile(expression(after, words))
            current[0] += [("" if b == "-" else b, after) for b in befores.split(",")]
        elif ":=" in line:
            name, _, rest = line.partition(" := ")
            words[name] = "|".join(
                re.escape(word.strip()) for word in re.split(r"[|;]", rest) if word.strip()
            )
        else:
            current[1].append(expression(line, words))
    return [(places, re.compile("|".join(names))) for places, names in sections]


READINGS = [second_reading(SHIPPED), second_reading(SHIPPED.lower())]


def is_spelled(model):
    for places, names in READINGS[model == model.lower()]:
        for before, after in places:
            if model.startswith(before):
                rest = model[len(before) :]
                for cut in range(2, len(rest) + 1):
                    if after.fullmatch(rest[cut:]) and names.fullmatch(rest[:cut]):
                        return True
    return False


PIECES = st.sampled_from(
    "- : / . _ @ 1 2 0 b B -4bit -mini -2024-08-06 -0613 -latest :free -instruct -preview .gguf us. "
    "-GGUF :q4_K_M openai/ mlx-community/ -acme acme- :acme acme/ ft: h: o -Q4_K_M 7b -v1:0 A é".split()
)
MODELS = st.sampled_from(PUBLIC) | st.sampled_from(catalogue.ids())


@st.composite
def mutated(draw):
    model = draw(MODELS)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(model)))
        until = draw(st.integers(at, min(at + 4, len(model))))
        model = model[:at] + draw(PIECES | st.just("") | st.text(max_size=2)) + model[until:]
    return model[: catalogue.LONGEST]


@given(mutated() | MODELS)
@limits(max_examples=600, deadline=None)
def test_a_mutated_id_is_public_only_if_a_second_reader_of_the_list_finds_it(model):
    assert is_public(model) == is_spelled(model)


FOREIGN = st.text(
    st.characters(exclude_characters="".join(templates.LETTERS)), min_size=1, max_size=4
)


@given(MODELS, FOREIGN, st.data())
@limits(max_examples=300, deadline=None)
def test_characters_that_ids_do_not_have_make_no_public_id(model, foreign, data):
    at = data.draw(st.integers(0, len(model)))
    assert not is_public(model[:at] + foreign + model[at:])


@given(MODELS, st.from_regex(r"[a-z]{5,12}", fullmatch=True), st.data())
@limits(max_examples=300, deadline=None)
def test_a_word_of_ones_own_anywhere_makes_no_public_id(model, word, data):
    if word in SHIPPED.lower():
        word = "acmecorp"
    at = data.draw(st.integers(0, len(model)))
    for joined in (word, f"-{word}", f"{word}-", f":{word}", f"{word}/"):
        assert not is_public(model[:at] + joined + model[at:])


@given(st.sampled_from([model for model in catalogue.ids() if model != model.lower()]), st.data())
@limits(max_examples=300, deadline=None)
def test_case_carries_nothing(model, data):
    letters = [at for at, letter in enumerate(model) if letter.isalpha()]
    chosen = set(data.draw(st.lists(st.sampled_from(letters), min_size=1, unique=True)))
    mixed = "".join(c.swapcase() if at in chosen else c for at, c in enumerate(model))
    assert is_public(mixed) == is_spelled(mixed)
    if mixed.lower() != mixed and mixed.upper() == mixed:
        assert not is_public(mixed)


@given(st.text(max_size=120))
@limits(max_examples=300, deadline=None)
def test_no_text_raises(text):
    assert is_public(text) in {True, False}
    assert is_descriptor(text) in {True, False}


@pytest.mark.parametrize(
    "model", ["-" * 100_000, "gpt-" * 50_000, "llama3.2:" + "q4_k_" * 50_000, "é" * 10**6]
)
def test_a_long_id_is_neither_looked_at_nor_remembered(model):
    before = catalogue._is_public.cache_info().currsize
    assert not is_public(model)
    assert not is_descriptor(model)
    assert catalogue._is_public.cache_info().currsize == before


def test_descriptors_are_of_the_registrys_vocabularies_alone():
    assert is_descriptor("llama-lt_1M-4bit")
    for other in ("acme-lt_1M-4bit", "llama-acme-4bit", "llama-lt_1M-acme", "llama-4bit", "llama"):
        assert not is_descriptor(other)


# The operator's file. ------------------------------------------------------------------------


def test_the_operators_file_adds_ids(own, caplog):
    own("# ours, published\nacme/rocket-7b\nacme/Rocket-{mlx}\n")
    assert not caplog.records
    assert is_public("acme/rocket-7b") and is_public("acme/Rocket-8bit") and is_public("gpt-4o")
    assert not is_public("acme/rocket-8b") and not is_public("acme/rocket")
    assert catalogue.version() == f"{catalogue.VERSION}+file"
    assert "acme/rocket-7b" in catalogue.ids()


def test_a_file_with_a_version_replaces_the_list(own, caplog):
    own("version: 2030.01\nq := 4bit;8bit\n[acme]\nat acme/ [-{q}]\nrocket-{yyyymmdd}\n")
    assert not caplog.records
    assert is_public("acme/rocket-20310228-8bit") and not is_public("acme/rocket-20320101")
    assert not is_public("gpt-4o")
    assert catalogue.version() == "2030.01"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("acme/rocket\nacme/[rocket", "line 2 has a bracket"),
        ("acme/rocket]", "a bracket"),
        ("acme/rocket}", "a character that ids do not have"),
        ("acme/rocket 7b", "line 1 has a space"),
        ("[acme]\nat acme/ {secret}", "line 2 has a vocabulary that is not defined"),
        ("acme/{yyyymmdd=20241399}", "a date that is none"),
        ("{mmdd}", "an id that begins with a date"),
        ("[a]b[c]", "a bracket where ids have none"),
        ("(a|bc)", "fewer than two"),
        ("q := a|b c", "a character that ids do not have"),
        ("acme/rocket*", "a character that ids do not have"),
        ("[acme +nowhere]", "places that are not defined"),
        ("at acme", "a place that does not end"),
        ("version: soon\nacme/rocket", "no version such as"),
        ("version: 2100.01\nacme/rocket", "no version such as"),
        ("acme/" + "(a|b|c|d|e|f|g|h)" * 9, "more than ten million"),
        ("(" * 100_000, "RecursionError"),
        ("acme/rocket-é", "UnicodeDecodeError"),
        (b"\xff\xfe\x00", "UnicodeDecodeError"),
        (b"a" * (catalogue.MOST_BYTES + 1), "more than 1 MiB"),
    ],
)
def test_a_file_that_cannot_be_used_is_warned_about_once_and_the_shipped_list_used(
    own, caplog, text, words
):
    own(text)
    assert is_public("gpt-4o") and not is_public("acme/rocket")
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    said = record.getMessage()
    assert words in said and catalogue.VERSION in said and "SOTTOVOCE_MODEL_CATALOGUE" in said
    assert not {"acme", "rocket", "secret", "bob"} & set(re.findall(r"\w+", said))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are POSIX's")
def test_a_file_that_is_none_is_not_waited_for(own, caplog, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", tmp_path / "absent", tmp_path):
        own.use(place)
        assert is_public("gpt-4o")
        [record] = caplog.records
        assert "there is none" in record.getMessage()


@given(st.text("acme/(|)[]{}:=@ ;\n#-ymdversion20", max_size=60))
@limits(max_examples=300, deadline=None)
def test_no_list_raises_anything_but_that_it_is_malformed(text):
    try:
        made = catalogue._made(("version: 2026.11\nq := a;b\ngpt-4o", text), checked=True)
        made.counts()
    except templates.Malformed:
        return
    assert made.is_public("gpt-4o")


def test_an_id_of_the_operator_that_is_an_address_stays_a_pseudonym(own, make_policy):
    own("joe@acme.example\nacme-7b\n")
    policy = make_policy()
    assert policy.model("acme-7b", local=True) == "acme-7b"
    assert policy.model("joe@acme.example", local=True).startswith("h:")
