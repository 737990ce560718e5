"""What hash lists make of a verdict."""

import hashlib
from dataclasses import replace
from typing import Any

import pytest
import yaml

from farm.ports import Frame, HashList, Outcome, Rules, Stage, Verdict
from safety.gate import ClipGate
from safety.hashes import pdq
from safety.lists import NEUTRAL_WORDS, listed
from safety.policy import DEMO, Policy, parse
from tests.safety.conftest import flat, some
from tests.safety.textures import brightened, textured

RULE = {"name": "known", "outcome": "block", "code": "known.picture", "words": "It is known."}


def policy_of(*rules: dict[str, Any]) -> Policy:
    return parse(yaml.safe_dump(yaml.safe_load(DEMO.read_text()) | {"hash_lists": [RULE | one for one in rules]}))


def judge(gate: ClipGate, policy: Policy, frame: Frame, *lists: HashList, stage: Stage = Stage.FRAME) -> Verdict:
    told = ClipGate(policy, gate.encoder)
    told.use(Rules(policy.document, lists=lists))
    (found,) = told.judge_frames([frame], stage)
    assert isinstance(found, Verdict)
    return found


def exact(*digests: str, name: str = "known") -> HashList:
    return HashList(name, "sha256", b"".join(sorted(map(bytes.fromhex, digests))))


def alike(*frames: Frame, name: str = "known") -> HashList:
    return HashList(name, "pdq", b"".join(sorted(pdq(one)[:32] for one in frames)))


def test_a_frame_is_found_by_its_pixels_and_an_input_by_its_file_too(gate: ClipGate) -> None:
    star, file = some("green", "star"), hashlib.sha256(b"the file").hexdigest()
    sent = replace(star, file_sha256=file)
    for frame, known in ((star, star.sha256), (sent, file), (sent, star.sha256)):
        found = judge(gate, policy_of({}), frame, exact("ab" * 32, known), stage=Stage.INPUT)
        assert (found.outcome, found.concept, found.margin) == (Outcome.BLOCK, "known", 0.0)
        assert (found.reason, found.illegal, found.subject) == ("It is known.", False, star.sha256)
    assert judge(gate, policy_of({}), sent, exact("ab" * 32)).outcome is Outcome.ALLOW


def test_a_copy_of_a_known_picture_is_found_with_its_distance(gate: ClipGate) -> None:
    known = textured(1)
    found = judge(gate, policy_of({"outcome": "review"}), brightened(known, 1.05), alike(textured(2), known))
    assert (found.concept, found.reason) == ("known", "It is known.")
    assert found.margin is not None
    assert 0 <= found.margin <= 31
    assert found.pdq == pdq(brightened(known, 1.05))
    assert judge(gate, policy_of({}), textured(3), alike(known)).concept != "known"


def test_a_list_counts_where_it_applies_and_a_preview_is_a_frame(gate: ClipGate) -> None:
    star = some("green", "star")
    policy, known = policy_of({"applies": ["frame"]}), exact(star.sha256)
    said = [
        judge(gate, policy, star, known, stage=stage).outcome for stage in (Stage.FRAME, Stage.PREVIEW, Stage.INPUT)
    ]
    assert said == [Outcome.BLOCK, Outcome.BLOCK, Outcome.ALLOW]


def test_a_list_that_was_never_imported_lets_nothing_through(gate: ClipGate) -> None:
    star, triangle = some("green", "star"), some("red", "triangle")
    for illegal in (False, True):
        policy = policy_of({"illegal": illegal})
        found = judge(gate, policy, star)
        assert (found.outcome, found.concept, found.illegal) == (Outcome.REVIEW, "known", False)
        assert "'known' has not been imported" in found.reason
        blocked = judge(gate, policy, triangle)
        assert (blocked.outcome, blocked.concept) == (Outcome.BLOCK, "red-triangle")
    assert judge(gate, policy_of({"applies": ["input"]}), star).outcome is Outcome.ALLOW


def test_an_import_changes_what_a_verdict_says_it_rests_on(gate: ClipGate) -> None:
    star, policy = some("green", "star"), policy_of({})
    said = [judge(gate, policy, star, *lists).lists for lists in ((), (exact("ab" * 32),), (exact("cd" * 32),))]
    assert len(set(said)) == 3
    assert "" not in said


def test_what_is_illegal_wins_and_its_submitter_reads_what_an_ordinary_list_says(gate: ClipGate) -> None:
    triangle = some("red", "triangle")
    policy = policy_of({"name": "first"}, {"name": "worst", "illegal": True, "words": "Told."}, {"name": "third"})
    lists = [exact(triangle.sha256, name=name) for name in ("first", "worst", "third")]
    found = judge(gate, policy, triangle, *lists)
    assert (found.outcome, found.concept, found.illegal) == (Outcome.BLOCK, "worst", True)
    assert found.reason == judge(gate, policy, triangle, *lists[:1]).reason == "It is known."
    assert (found.probability, found.view) == (None, None)
    alone = policy_of({"name": "worst", "illegal": True, "words": "Told."}, {"name": "first", "outcome": "review"})
    assert judge(gate, alone, triangle, *lists).reason == NEUTRAL_WORDS


def test_a_flat_picture_on_a_list_is_blocked_all_the_same(gate: ClipGate) -> None:
    grey = flat((9, 9, 9))
    assert judge(gate, policy_of({}), grey, exact(grey.sha256)).outcome is Outcome.BLOCK
    assert judge(gate, policy_of({}), grey, alike(grey)).outcome is Outcome.REVIEW


@pytest.mark.parametrize("outcome", list(Outcome))
def test_a_list_that_says_less_leaves_the_verdict_alone(outcome: Outcome) -> None:
    frame = textured(1)
    before = Verdict(Stage.FRAME, frame.sha256, outcome, "p", "e", concept="shape", probability=0.5, pdq=pdq(frame))
    after = listed(policy_of({"outcome": "review"}), [alike(frame)], before)
    assert (after == before) is (outcome is Outcome.BLOCK)
    assert after.outcome is (Outcome.BLOCK if outcome is Outcome.BLOCK else Outcome.REVIEW)
