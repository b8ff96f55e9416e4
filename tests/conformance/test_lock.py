"""No entry of the registry changes without a review that names it, and reviews only grow."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SEMCONV = ROOT / "semconv"

REVIEW = """
  - id: {id}
    date: 2026-12-01
    reviewer: tester
    what: "A change."
    why: "To see what happens."
    privacy: "None."
    entries: [{entries}]
"""


@pytest.fixture
def registry(tmp_path):
    """A copy of the registry whose reviews are all accepted, to change."""
    copy = tmp_path / "semconv"
    shutil.copytree(SEMCONV, copy, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    done = generate(copy)
    assert done.returncode == 0, done.stdout + done.stderr
    return copy


def generate(registry, *arguments):
    return subprocess.run(
        [
            *(sys.executable, SEMCONV / "generate.py"),
            *("--registry", registry, "--root", registry.parent, *arguments),
        ],
        capture_output=True,
        text=True,
        check=False,
    )


def edit(registry, name, old, new):
    path = registry / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def review(registry, word, *entries):
    with (registry / "reviews.yaml").open("a") as file:
        file.write(REVIEW.format(id=word, entries=", ".join(map(repr, entries))))


CHANGES = [
    ("model/gen_ai.yaml", 'reason: "Every question', 'reason: "Each question', "attribute gen_ai.operation.name: changed"),
    ("model/gen_ai.yaml", "strict: cat12", "strict: drop", "attribute gen_ai.request.model: changed"),
    ("model/gen_ai.yaml", "sensitivity: public", "sensitivity: personal", "attribute gen_ai.operation.name: changed"),
    ("model/gen_ai.yaml", 'id: "plan", value: "plan"', 'id: "plan", value: "plot"', "attribute gen_ai.operation.name: changed"),
    ("model/gen_ai.yaml", "signals: [span, event, link, log, metric]", "signals: [span]", "attribute gen_ai.operation.name: changed"),
    ("model/resource.yaml", "contract: text", "contract: version_of_service", "resource service.name: changed"),
    ("model/withheld.yaml", "key: user.email", "key: user.mail", "attribute user.mail: added"),
    ("model/withheld.yaml", "key: user.email", "key: user.mail", "attribute user.email: removed"),
    ("model/withheld.yaml", "type: template[string]", "type: string", ": changed"),
    ("model/metrics.yaml", 'brief: "GenAI operation duration."', 'brief: "Duration."', "metric gen_ai.client.operation.duration: changed"),
    ("model/metrics.yaml", "boundaries: [0.01, ", "boundaries: [", "metric gen_ai.client.operation.duration: changed"),
    ("model/events.yaml", "ref: exception.escaped", "ref: error.type", "event exception: changed"),
    ("model/spans.yaml", "operations: [embeddings]", "operations: [embeddings, retrieval]", "span sottovoce.client.embeddings: changed"),
    ("contracts.yaml", "[0-9a-f]{16}", "[0-9a-f]{8,}", "contract pseudonym: changed"),
]  # fmt: skip


@pytest.mark.parametrize(("file", "old", "new", "told"), CHANGES)
def test_a_change_without_a_review_is_told_with_what_to_do(registry, file, old, new, told):
    edit(registry, file, old, new)
    done = generate(registry, "--check")
    assert done.returncode == 1
    assert told in done.stdout, done.stdout + done.stderr
    assert "append a review to semconv/reviews.yaml" in done.stdout
    assert "python semconv/generate.py --review" in done.stdout


def test_a_brief_of_an_attribute_may_be_reworded_freely(registry):
    edit(registry, "model/gen_ai.yaml", 'brief: "Whose model', 'brief: "The one whose model')
    assert generate(registry).returncode == 0


def test_a_review_that_names_the_change_is_accepted_and_covers_it(registry):
    edit(registry, "model/gen_ai.yaml", "strict: cat12", "strict: drop")
    review(registry, "strict-models", "attribute gen_ai.request.model")
    told = generate(registry, "--check")
    assert told.returncode == 1
    assert "run `python semconv/generate.py --review strict-models`" in told.stdout
    done = generate(registry, "--review", "strict-models")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "attribute gen_ai.request.model: covered by strict-models" in done.stdout
    assert generate(registry, "--check").returncode == 0
    lines = (registry / "registry.lock").read_text().splitlines()
    (line,) = [each for each in lines if each.startswith("attribute gen_ai.request.model ")]
    assert line.endswith(" strict-models")
    page = (registry.parent / "docs/TELEMETRY.md").read_text()
    assert "[strict-models](#strict-models)" in page
    assert "2026-12-01, tester; covers 1 entries." in page


def test_a_beginning_covers_what_begins_with_it(registry):
    edit(registry, "model/gen_ai.yaml", "strict: cat12", "strict: drop")
    review(registry, "models", "attribute gen_ai.request.*")
    assert generate(registry, "--review", "models").returncode == 0


def test_a_review_covers_nothing_that_it_does_not_name(registry):
    edit(registry, "model/gen_ai.yaml", "strict: cat12", "strict: drop")
    review(registry, "other", "attribute gen_ai.provider.name")
    done = generate(registry, "--review", "other")
    assert done.returncode == 1
    assert "attribute gen_ai.request.model: changed without a review" in done.stdout


def test_what_is_removed_keeps_its_line(registry):
    edit(registry, "model/withheld.yaml", "key: user.email", "key: user.mail")
    review(registry, "mail", "attribute user.email", "attribute user.mail")
    assert generate(registry, "--review", "mail").returncode == 0
    assert "\nattribute user.email - mail\n" in (registry / "registry.lock").read_text()
    assert generate(registry, "--check").returncode == 0
    edit(registry, "model/withheld.yaml", "key: user.mail", "key: user.email")
    done = generate(registry, "--check")
    assert "attribute user.email: added" in done.stdout
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("why: ", "why: Really. ", "was edited or moved"),
        ("date: 2026-11-21", "date: 2026-11-20", "was edited or moved"),
        ('entries: ["*"]', 'entries: ["attribute user.id"]', "was edited or moved"),
        ("id: first-registry", "id: zeroth-registry", "review first-registry was removed"),
    ],
)
def test_an_old_review_cannot_be_touched(registry, old, new, told):
    edit(registry, "reviews.yaml", old, new)
    done = generate(registry, "--check")
    assert done.returncode == 1
    assert told in done.stdout
    assert "put it back as it was" in done.stdout
    # Nor does accepting something new paper over it.
    review(registry, "later", "attribute user.id")
    done = generate(registry, "--review", "later")
    assert done.returncode == 1
    assert "put it back as it was" in done.stderr


def test_a_review_in_the_middle_changes_what_comes_after_it(registry):
    review(registry, "second", "attribute user.id")
    assert generate(registry, "--review", "second").returncode == 0
    lock = (registry / "registry.lock").read_text()
    edit(registry, "reviews.yaml", "privacy: ", "privacy: Truly, ")
    done = generate(registry, "--review", "second")
    assert done.returncode == 1
    assert (registry / "registry.lock").read_text() == lock


@pytest.mark.parametrize(
    ("word", "entries", "name", "told"),
    [
        ("a-review", ["attribute user.id"], "another", "has no review another"),
        ("a-review", ["attribute user.id"], "first-registry", "was accepted before"),
        ("a-review", ["attribute user.idd"], "a-review", "there is no entry attribute user.idd"),
        ("a-review", ["attribute nothing.*"], "a-review", "there is no entry attribute nothing.*"),
        ("a-review", ["*"], "a-review", "'*' is no entry such as"),
        ("a-review", ["user.id"], "a-review", "'user.id' is no entry such as"),
        ("a-review", [], "a-review", "`entries` is empty"),
        ("A review", ["attribute user.id"], "a-review", "`id` is no word"),
        ("first-registry", ["attribute user.id"], "a-review", "another review with this `id`"),
    ],
)
def test_a_review_that_is_none_is_refused_and_changes_nothing(registry, word, entries, name, told):
    lock = (registry / "registry.lock").read_text()
    review(registry, word, *entries)
    done = generate(registry, "--review", name)
    assert done.returncode == 1
    assert told in done.stderr, done.stderr
    assert (registry / "registry.lock").read_text() == lock


@pytest.mark.parametrize("field", ["date", "reviewer", "what", "why", "privacy", "entries"])
def test_each_field_of_a_review_is_needed(registry, field):
    review(registry, "a-review", "attribute user.id")
    path = registry / "reviews.yaml"
    head, _, tail = path.read_text().rpartition("  - id: a-review")
    kept = [line for line in tail.splitlines() if not line.startswith(f"    {field}:")]
    path.write_text(f"{head}  - id: a-review" + "\n".join(kept) + "\n")
    done = generate(registry, "--check")
    assert done.returncode == 1
    assert f"review a-review: `{field}` is" in done.stderr


def test_a_lock_that_was_written_by_hand_is_told(registry):
    edit(registry, "registry.lock", "event exception ", "event exception because ")
    done = generate(registry, "--check")
    assert done.returncode == 1
    assert "is not written by `--review`" in done.stderr


def test_a_review_that_was_never_accepted_cannot_cover(registry):
    path = registry / "registry.lock"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line.replace(" first-registry\n", " friday\n") for line in lines))
    done = generate(registry, "--check")
    assert done.returncode == 1
    assert "review friday is named and was never accepted" in done.stdout
