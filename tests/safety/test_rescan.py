"""What the gate stored is judged again as the gate would: by concepts, prompt rules, lists and flatness."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import pytest
import yaml

from farm.errors import Fault
from farm.ports import Frame, HashList, Kept, Outcome, Rules, Stage, Verdict
from safety.gate import ClipGate
from safety.policy import DEMO, Policy, load, parse
from safety.rescan import judge_of
from tests.safety.conftest import flat, some
from tests.safety.textures import textured

SHAPES = [("red", "triangle"), ("red", "ring"), ("red", "circle"), ("blue", "triangle"), ("green", "star")]


def edited(**changes: object) -> Policy:
    return parse(yaml.safe_dump(yaml.safe_load(DEMO.read_text()) | changes))


def kept(frame: Frame, verdict: Verdict | Fault) -> Kept:
    assert isinstance(verdict, Verdict)
    said = {name: getattr(verdict, name) for name in ("stage", "subject", "outcome", "reason", "encoder", "pdq")}
    return Kept(**said, embedding=verdict.embedding, width=frame.width, height=frame.height)


def judged(gate: ClipGate, frames: Sequence[Frame], stage: Stage = Stage.FRAME) -> list[Kept]:
    return [kept(*pair) for pair in zip(frames, gate.judge_frames(frames, stage), strict=True)]


def again(gate: ClipGate, policy: Policy, some: Sequence[Kept], *lists: HashList) -> list[Verdict]:
    found = judge_of(policy, Rules(policy.document, "", lists), gate.encoder())(some)
    assert all(isinstance(one, Verdict) for one in found), found
    return [one for one in found if isinstance(one, Verdict)]


def test_the_same_policy_says_the_same_and_a_flat_picture_stays_for_a_person(gate: ClipGate) -> None:
    frames = [*(some(*shape, seed) for shape in SHAPES for seed in range(2)), flat((200, 0, 0))]
    before = judged(gate, frames)
    found = again(gate, load(), before)
    assert [(one.outcome, one.reason, one.pdq) for one in found] == [
        (one.outcome, one.reason, one.pdq) for one in before
    ]
    assert found[-1].outcome is Outcome.REVIEW


def test_an_edit_of_the_policy_flips_exactly_what_the_gate_would_judge_otherwise(gate: ClipGate) -> None:
    frames = [some(*shape, seed) for shape in SHAPES for seed in range(3)]
    concepts = yaml.safe_load(DEMO.read_text())["concepts"]
    concepts[0]["band"] = {"t_low": 0.2}  # nothing is blocked any more, a person looks
    policy = edited(concepts=concepts)
    strict = ClipGate(policy, gate.encoder)
    found = again(gate, policy, judged(gate, frames))
    assert [one.outcome for one in found] == [one.outcome for one in judged(strict, frames)]
    flips = [old.outcome != new.outcome for old, new in zip(judged(gate, frames), found, strict=True)]
    blocked = [one.outcome is Outcome.BLOCK for one in judged(gate, frames)]
    assert flips == blocked
    assert 0 < sum(flips) < len(frames)


def test_prompts_are_judged_by_the_rules_of_the_policy(gate: ClipGate) -> None:
    rules = [{"name": "no-circles", "patterns": ["circle*"], "outcome": "block", "words": "No circles."}]
    prompts = ["a red circle", "a red star", "a red circle"]
    asked = [Kept(Stage.PROMPT, "s", Outcome.ALLOW, "", "", prompt=prompt) for prompt in prompts]
    found = again(gate, edited(prompt_rules=rules), asked)
    assert [one.outcome for one in found] == [Outcome.BLOCK, Outcome.ALLOW, Outcome.BLOCK]


def test_a_list_imported_since_finds_what_was_stored(gate: ClipGate) -> None:
    listed = {"name": "known", "outcome": "block", "code": "c", "words": "Known.", "applies": ["input", "frame"]}
    policy = edited(hash_lists=[listed])
    frame, file = textured(1), hashlib.sha256(b"a file").hexdigest()
    (one,) = judged(gate, [frame], Stage.INPUT)
    assert one.pdq is not None
    by_looks = HashList("known", "pdq", one.pdq[:32])
    by_file = HashList("known", "sha256", bytes.fromhex(file))
    (missing,) = again(gate, policy, [one])
    assert (missing.outcome, missing.lists) == (Outcome.REVIEW, Rules(policy.document).held(["known"]))
    for known in (by_looks, by_file):
        (found,) = again(gate, policy, [replace(one, file_sha256=file)], known)
        assert (found.outcome, found.concept) == (Outcome.BLOCK, "known")
        assert found.lists not in ("", missing.lists)
    (found,) = again(gate, policy, [one], by_file)
    assert found.concept != "known"


@pytest.mark.parametrize(
    ("lacks", "words"),
    [({"embedding": None}, "no embedding"), ({"encoder": "f" * 64}, "another encoder"), ({"width": 0}, "size")],
)
def test_what_cannot_be_judged_is_a_fault_and_its_neighbours_are_judged(
    gate: ClipGate, lacks: dict[str, object], words: str
) -> None:
    one, other = judged(gate, [some("red", "star"), some("red", "triangle")])
    found = judge_of(load(), Rules(load().document), gate.encoder())([replace(one, **lacks), other])  # type: ignore[arg-type]
    assert isinstance(found[0], Fault)
    assert words in found[0].detail
    assert isinstance(found[1], Verdict)
    assert found[1].outcome is other.outcome


@pytest.mark.parametrize("lacks", [{"embedding": None}, {"encoder": "f" * 64}, {"width": 0}])
@pytest.mark.parametrize("kind", ["pdq", "sha256"])
def test_a_list_knows_what_no_concept_can_judge_any_more(gate: ClipGate, lacks: dict[str, object], kind: str) -> None:
    worst = {"name": "worst", "outcome": "block", "code": "c", "words": "w", "illegal": True}
    policy = edited(hash_lists=[worst])
    first, other = (replace(one, **lacks) for one in judged(gate, [textured(1), textured(2)]))  # type: ignore[arg-type]
    known = first.pdq[:32] if first.pdq and kind == "pdq" else bytes.fromhex(first.subject)
    rules = Rules(policy.document, "", (HashList("worst", kind, known),))
    hit, unknown = judge_of(policy, rules, gate.encoder())([first, other])
    assert isinstance(hit, Verdict)
    assert (hit.outcome, hit.illegal, hit.policy) == (Outcome.BLOCK, True, policy.hash)
    assert hit.lists == rules.held(["worst"])
    assert isinstance(unknown, Fault)


def test_without_a_pdq_hash_a_person_looks_where_such_a_list_applies(gate: ClipGate) -> None:
    listed = {"name": "known", "outcome": "block", "code": "c", "words": "w", "applies": ["frame"]}
    policy, by_looks = edited(hash_lists=[listed]), HashList("known", "pdq", b"\1" * 32)
    frame, sent = (replace(judged(gate, [textured(1)], stage)[0], pdq=None) for stage in (Stage.FRAME, Stage.INPUT))
    found, elsewhere = again(gate, policy, [frame, sent], by_looks)
    assert (found.outcome, found.concept, found.illegal) == (Outcome.REVIEW, "known", False)
    assert "No PDQ hash" in found.reason
    assert elsewhere.concept != "known"
    (by_file,) = again(gate, policy, [frame], HashList("known", "sha256", b"\1" * 32))
    assert by_file.concept != "known"
