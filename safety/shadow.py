"""A policy that judges beside the one in force and decides nothing: whatever is wrong with it, the verdicts stand."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from farm.errors import Fault
from farm.ports import Frame, Rules, Verdict
from safety.policy import Policy, parse
from safety.prompt import judge_prompt
from safety.scoring import Measure, Stored, Texts, fingerprint_of, measure_of, rescored

log = logging.getLogger("farm.gate")
Answers = list[Verdict | Fault]


class Shadow:
    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self._policy: Policy | None = None
        self._measure: Measure | None = None
        self._told: set[str] = set()

    def prompts(self, judged: Answers, prompts: Sequence[str]) -> Answers:
        return self._tried(judged, lambda: [judge_prompt(self.policy, prompt) for prompt in prompts])

    def pictures(
        self,
        judged: Answers,
        encoder: Texts,
        stored: Sequence[Stored],
        frames: Sequence[Frame],
        known: Callable[[Policy, Frame, Verdict], Verdict],
    ) -> Answers:
        """By the embeddings that were judged; `known` says what lists and flatness make of it."""

        def judge() -> Answers:
            if self._measure is None or self._measure.fingerprint != fingerprint_of(self.policy, encoder.fingerprint):
                self._measure = measure_of(self.policy, encoder)
            pairs = zip(frames, rescored(self._measure, stored), strict=True)
            return [said if isinstance(said, Fault) else known(self.policy, frame, said) for frame, said in pairs]

        return self._tried(judged, judge)

    @property
    def policy(self) -> Policy:
        if self._policy is None:
            self._policy = parse(self.rules.shadow)
        return self._policy

    def _tried(self, judged: Answers, judge: Callable[[], Sequence[Verdict | Fault]]) -> Answers:
        if not self.rules.shadow:
            return judged
        try:
            said = judge()
            beside = [_beside(*pair) for pair in zip(judged, said, strict=True)]
        except Exception as error:
            self._tell(len(judged), f"{type(error).__name__}: {error}")
            return judged
        faults = [one for one in said if isinstance(one, Fault)]
        if faults:
            self._tell(len(faults), faults[0].detail)
        return beside

    def _tell(self, count: int, why: str) -> None:
        """Each reason once; how many it has left out, `farm policy shadow --report` counts."""
        if why not in self._told:
            self._told.add(why)
            log.warning("the policy in shadow cannot judge, %d here and more as they come: %s", count, why)


def _beside(verdict: Verdict | Fault, shadow: Verdict | Fault) -> Verdict | Fault:
    if isinstance(verdict, Fault) or isinstance(shadow, Fault):
        return verdict
    return replace(verdict, shadow=replace(shadow, embedding=None, pdq=None))
