import copy
import hashlib
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from farm.errors import BadInput
from farm.ports import Outcome, Stage
from safety.clauses import Band, Pixels, Quarantine, Siblings, Spike
from safety.policy import DEMO, Policy, load, parse

DOCUMENT: dict[str, Any] = yaml.safe_load(DEMO.read_text())


def changed(*path: str | int, to: Any) -> str:
    """The demo policy with one value replaced, or added."""
    document = copy.deepcopy(DOCUMENT)
    part: Any = document
    for step in path[:-1]:
        part = part[step]
    part[path[-1]] = to
    return yaml.safe_dump(document)


def test_the_bundled_policy_loads_and_says_that_it_is_a_toy() -> None:
    policy = load()
    assert "toy" in policy.about
    assert [concept.name for concept in policy.concepts_of(Stage.FRAME)] == ["red-triangle", "red-ring"]
    assert load(DEMO).hash == policy.hash


def test_the_hash_follows_the_meaning_not_the_writing() -> None:
    text = DEMO.read_text()
    assert (
        parse("# another comment\n" + text).hash == parse(yaml.safe_dump(DOCUMENT, sort_keys=True)).hash == load().hash
    )


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("name",), "other"),
        (("concepts", 0, "band", "t_low"), 0.123),
        (("concepts", 1, "words"), "Other words."),
        (("prompt_rules", 1, "patterns"), ["forbidden"]),
        (("templates",), ["{}"]),
    ],
)
def test_every_change_of_meaning_changes_the_hash(path: tuple[str | int, ...], value: Any) -> None:
    assert parse(changed(*path, to=value)).hash != load().hash


def test_a_policy_cannot_be_changed() -> None:
    policy = load()
    with pytest.raises(FrozenInstanceError):
        policy.name = "other"  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        policy.concepts[0].band.t_low = 0.9  # type: ignore[misc]


@pytest.mark.parametrize(
    ("path", "field", "near"),
    [
        (("prompt_rule",), "prompt_rule", "prompt_rules"),
        (("concepts", 0, "phrase"), "concepts.0.phrase", "phrases"),
        (("concepts", 1, "band", "tlow"), "concepts.1.band.tlow", "t_low"),
        (("prompt_rules", 0, "outcom"), "prompt_rules.0.outcom", "outcome"),
        (("document",), "document", "concepts"),
    ],
)
def test_an_unknown_key_is_refused_where_it_stands_naming_the_nearest(
    path: tuple[Any, ...], field: str, near: str
) -> None:
    with pytest.raises(BadInput) as caught:
        parse(changed(*path, to="x"))
    assert caught.value.field == field
    assert near in str(caught.value.fix)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("concepts", 0, "band"), {"t_low": 0.8, "t_high": 0.8}),
        (("concepts", 0, "band"), {"t_low": 0.9, "t_high": 0.1}),
        (("concepts", 0, "band", "t_low"), -0.01),
        (("concepts", 0, "band", "t_high"), 1.01),
        (("concepts", 0, "band", "t_low"), True),
        (("concepts", 0, "band", "t_low"), "0.2"),
        (("concepts", 0, "calibration", "a"), -1.0),  # would turn the filter round
        (("concepts", 0, "calibration", "b"), float("nan")),
        (("concepts", 0, "phrases"), []),
        (("concepts", 0, "pixels"), "black"),
        (("concepts", 0, "applies"), ["prompt"]),
        (("concepts", 0, "words"), "  "),
        (("concepts", 1, "name"), "red-triangle"),
        (("concepts",), []),
        (("prompt_rules", 0, "outcome"), "maybe"),
        (("prompt_rules", 1, "words"), ""),
        (("prompt_rules", 1, "patterns"), ["*"]),
        (("prompt_rules", 1, "patterns"), ["!?"]),
        (("templates",), ["no place for it"]),
        (("name",), None),
    ],
)
def test_contradictions_are_refused(path: tuple[Any, ...], value: Any) -> None:
    with pytest.raises(BadInput):
        parse(changed(*path, to=value))


def test_a_policy_under_which_nothing_is_judged_is_refused() -> None:
    document = copy.deepcopy(DOCUMENT)
    for concept in document["concepts"]:
        concept["applies"] = ["frame"]
    with pytest.raises(BadInput, match="applies to input"):
        parse(yaml.safe_dump(document))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "just words",
        "[1, 2",
        "name: demo\nname: other",
        "concepts: [{name: a, name: b}]",
        "a: &x [1]\nb: *x",
        "a: &x [*x]",
        "name: a\n<<: {name: b}",
        "a: !!python/object/apply:os.system [id]",
        "when: 2026-01-01",
        "a: .inf",
        "a: b\n---\nc: d",
        "? [1]\n: 2",
        "[" * 900,
        'a: "\\ud800"',
        "a: \x00",
    ],
)
def test_what_is_not_plain_yaml_is_refused_kindly(text: str) -> None:
    with pytest.raises(BadInput):
        parse(text)


@given(st.text(max_size=60))
def test_no_text_breaks_the_parser(text: str) -> None:
    with pytest.raises(BadInput):
        parse(text)


def keys_of(part: Any) -> list[Any]:
    if isinstance(part, dict):
        return [part, *(deeper for value in part.values() for deeper in keys_of(value))]
    return [deeper for value in part for deeper in keys_of(value)] if isinstance(part, list) else []


@settings(max_examples=40)
@given(st.data())
def test_one_stray_key_anywhere_is_refused(data: st.DataObject) -> None:
    document = copy.deepcopy(DOCUMENT)
    part = data.draw(st.sampled_from(keys_of(document)))
    key = data.draw(st.text(alphabet="abcdefghij_", min_size=1, max_size=8).filter(lambda word: word not in "ab"))
    part[key] = data.draw(st.sampled_from([1, "x", None, []]))
    with pytest.raises(BadInput, match="unknown key"):
        parse(yaml.safe_dump(document))


@given(low=st.floats(0, 1), high=st.floats(0, 1), probability=st.floats(0, 1), more=st.floats(0, 1))
def test_a_likelier_match_is_never_judged_milder(low: float, high: float, probability: float, more: float) -> None:
    order = [Outcome.ALLOW, Outcome.REVIEW, Outcome.BLOCK]
    band = Band(min(low, high), max(low, high))
    less, more = sorted((probability, more))
    assert order.index(band.outcome(less)) <= order.index(band.outcome(more))


def test_the_limits_belong_to_the_graver_side() -> None:
    band = Band(0.2, 0.8)
    asked = (0.1999, 0.2, 0.7999, 0.8)
    assert [band.outcome(p) for p in asked] == [Outcome.ALLOW, Outcome.REVIEW, Outcome.REVIEW, Outcome.BLOCK]
    assert Band(0.2).outcome(1.0) is Outcome.REVIEW


@settings(max_examples=40)
@given(low=st.floats(0, 1), high=st.floats(0, 1))
def test_a_band_is_taken_exactly_if_it_leaves_something_to_review(low: float, high: float) -> None:
    text = changed("concepts", 0, "band", to={"t_low": low, "t_high": high})
    if low < high:
        assert parse(text).concepts[0].band == Band(low, high)
    else:
        with pytest.raises(BadInput, match="t_low"):
            parse(text)


def test_a_missing_file_and_a_binary_one_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="No such file"):
        load(tmp_path / "none.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="UTF-8"):
        load(tmp_path / "b.yaml")


def test_hash_is_of_the_document_alone() -> None:
    policy: Policy = parse(DEMO.read_text())
    assert len(policy.hash) == 64
    assert policy == parse(DEMO.read_text())


FULL: dict[str, Any] = {
    "hash_lists": [
        {"name": "known", "outcome": "block", "illegal": True, "code": "known", "words": "It may not be shown."}
    ],
    "siblings": "hold",
    "spike": {"share": 0.5, "of_last": 50, "at_least": 10},
}


def with_more(**more: Any) -> str:
    return yaml.safe_dump(copy.deepcopy(DOCUMENT) | FULL | more)


def test_a_policy_says_what_lists_it_matches_and_what_follows_a_block() -> None:
    document = yaml.safe_load(with_more())
    document["concepts"][0] |= {"pixels": {"quarantine_days": 30}, "siblings": "leave"}
    policy = parse(yaml.safe_dump(document))
    (entry,) = policy.lists_of(Stage.PREVIEW)
    assert (entry.name, entry.outcome, entry.illegal) == ("known", Outcome.BLOCK, True)
    assert policy.concepts[0].pixels == Quarantine(30)
    assert policy.concepts[1].pixels is Pixels.DISCARD
    said = [policy.siblings_of(name) for name in ("red-triangle", "red-ring", "known")]
    assert said == [Siblings.LEAVE, Siblings.HOLD, Siblings.HOLD]
    assert policy.spike == Spike(0.5, 50, 10)
    assert load().siblings_of("red-ring") is Siblings.LEAVE
    assert parse(policy.document).hash == policy.hash


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"hash_lists": [FULL["hash_lists"][0] | {"outcome": "review"}]}, "shown to no reviewer"),
        ({"hash_lists": [FULL["hash_lists"][0] | {"outcome": "allow"}]}, "hash_lists.0.outcome"),
        ({"hash_lists": [copy.deepcopy(FULL["hash_lists"][0]) for _ in range(2)]}, "'known' is named twice"),
        ({"hash_lists": [FULL["hash_lists"][0] | {"name": "red-ring"}]}, "'red-ring' is named twice"),
        ({"hash_lists": [FULL["hash_lists"][0] | {"days": 3}]}, "hash_lists.0.days: unknown key"),
        ({"siblings": "block"}, "siblings"),
        ({"spike": {"share": 0, "of_last": 5, "at_least": 5}}, "spike.share"),
        ({"spike": {"share": 0.5, "of_last": 5, "at_least": 6}}, "would never come to that"),
        ({"spike": {"share": 0.5, "last": 5, "at_least": 5}}, "'of_last'"),
    ],
)
def test_what_follows_a_block_is_checked_too(more: dict[str, Any], told: str) -> None:
    with pytest.raises(BadInput, match=told):
        parse(with_more(**more))


@pytest.mark.parametrize(
    ("pixels", "told"),
    [
        ({"quarantine_day": 3}, "concepts.0.pixels.quarantine_day: unknown key .*'quarantine_days'"),
        ({"quarantine_days": 0}, "pixels"),
        ({"quarantine_days": 3.5}, "pixels"),
    ],
)
def test_pixels_are_kept_for_whole_days_or_not_at_all(pixels: Any, told: str) -> None:
    with pytest.raises(BadInput, match=told):
        parse(changed("concepts", 0, "pixels", to=pixels))


def test_a_file_that_a_policy_names_stands_in_it_by_its_hash(tmp_path: Path) -> None:
    (tmp_path / "head.safetensors").write_bytes(b"one")
    (tmp_path / "p.yaml").write_text(changed("concepts", 0, "head", to={"file": "head.safetensors"}))
    first = load(tmp_path / "p.yaml")
    head = first.concepts[0].head
    assert head is not None
    assert head.file == str(tmp_path / "head.safetensors")
    assert head.sha256 == hashlib.sha256(b"one").hexdigest()
    assert parse(first.document).hash == first.hash
    (tmp_path / "head.safetensors").write_bytes(b"two")
    assert load(tmp_path / "p.yaml").hash != first.hash
    (tmp_path / "old.yaml").write_text(first.document)
    with pytest.raises(BadInput, match="not the one with this sha256"):
        load(tmp_path / "old.yaml")
    (tmp_path / "head.safetensors").unlink()
    with pytest.raises(BadInput, match=r"cannot read .*head.safetensors"):
        load(tmp_path / "p.yaml")
    with pytest.raises(BadInput, match="sha256"):
        parse((tmp_path / "p.yaml").read_text())


def test_a_classifier_speaks_only_for_concepts_that_are_there(tmp_path: Path) -> None:
    def written(**more: Any) -> Path:
        speaks = [{"concept": "red-ring", "labels": ["ring"]} | more]
        (tmp_path / "p.yaml").write_text(changed("classifier", to={"folder": "vit", "speaks": speaks}))
        return tmp_path / "p.yaml"

    with pytest.raises(BadInput, match="no such folder"):
        load(written())
    (tmp_path / "vit").mkdir()
    (tmp_path / "vit" / "config.json").write_text("{}")
    classifier = load(written()).classifier
    assert classifier is not None
    assert classifier.folder == str(tmp_path / "vit")
    with pytest.raises(BadInput, match=r"no concept 'red-rin' .*'red-ring'"):
        load(written(concept="red-rin"))
    with pytest.raises(BadInput, match=r"classifier.speaks.0.label: unknown key .*'labels'"):
        load(written(label="x"))
