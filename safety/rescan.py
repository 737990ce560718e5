"""Judges what was judged before by another policy, from what is stored of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

from farm.errors import Fault
from farm.job import Cause
from farm.ports import Kept, Outcome, Rules, Stage, Verdict
from safety.gate import FLAT_WORDS
from safety.lists import listed
from safety.policy import Policy
from safety.prompt import judge_prompt
from safety.scoring import Stored, Texts, measure_of, rescored


def judge_of(policy: Policy, rules: Rules, encoder: Texts) -> Callable[[Sequence[Kept]], list[Verdict | Fault]]:
    measure = measure_of(policy, encoder)
    held = rules.held(entry.name for entry in policy.hash_lists)

    @lru_cache(maxsize=65536)  # batches repeat themselves
    def prompted(prompt: str) -> Verdict:
        return judge_prompt(policy, prompt)

    def judge(kept: Sequence[Kept]) -> list[Verdict | Fault]:
        pictures = [one for one in kept if one.stage is not Stage.PROMPT]
        sound = [one for one in pictures if not _lacks(one)]
        said = dict(zip(map(id, sound), rescored(measure, [_stored(one) for one in sound]), strict=True))
        return [prompted(one.prompt) if one.stage is Stage.PROMPT else again(one, said.get(id(one))) for one in kept]

    def again(one: Kept, found: Verdict | Fault | None) -> Verdict | Fault:
        if found is None:
            return by_lists(one, Fault(Cause.GATE_ERROR, _lacks(one)))
        if isinstance(found, Fault):
            return by_lists(one, found)
        if one.reason == FLAT_WORDS:  # the pixels said so, and are not looked at
            found = replace(found, outcome=Outcome.REVIEW, reason=FLAT_WORDS)
        return listed(policy, rules.lists, replace(found, pdq=one.pdq, lists=held), one.file_sha256)

    def by_lists(one: Kept, fault: Fault) -> Verdict | Fault:
        """A list needs no encoder: what it says stands, whatever the concepts would have said."""
        alone = Verdict(one.stage, one.subject, Outcome.ALLOW, policy.hash, "", pdq=one.pdq, lists=held)
        said = listed(policy, rules.lists, alone, one.file_sha256)
        return fault if said.outcome is Outcome.ALLOW else said

    return judge


def _lacks(one: Kept) -> str:
    if one.embedding is None:
        return "no embedding of the picture is stored"
    return "" if one.width and one.height else "the size of the picture is not known any more"


def _stored(one: Kept) -> Stored:
    return Stored(one.stage, one.subject, one.width, one.height, one.encoder, one.embedding or b"")
