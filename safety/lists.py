"""What the hash lists of a policy say of a picture, beside what its concepts said of it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from farm.ports import HashList, Outcome, Verdict
from safety.clauses import ListRule
from safety.hashes import holds
from safety.nearest import nearest
from safety.policy import Policy
from safety.prompt import SEVERITY

MISSING_WORDS = "The hash list {!r} has not been imported yet, so a person looks at every picture."
UNHASHED_WORDS = "No PDQ hash of the picture is kept to hold against the list {!r}, so a person looks at it."
NEUTRAL_WORDS = "This picture cannot be made or used here."


@dataclass(frozen=True, slots=True)
class Hit:
    rule: ListRule
    outcome: Outcome
    words: str
    distance: int | None  # in bits; None where list or hash is not there

    @property
    def illegal(self) -> bool:
        return self.rule.illegal and self.distance is not None

    @property
    def weight(self) -> tuple[bool, int]:
        return self.illegal, SEVERITY[self.outcome]


def listed(policy: Policy, lists: Sequence[HashList], verdict: Verdict, file_sha256: str = "") -> Verdict:
    """The verdict that the policy's lists leave or make of one on a picture, by the hashes that stand in it and that of
    the file it came in. A list weighs more than a concept that says the same: it knows the picture."""
    known = {one.name: one for one in lists}
    hits = [hit for rule in policy.lists_of(verdict.stage) if (hit := match(rule, known, verdict, file_sha256))]
    worst = max(hits, key=lambda hit: hit.weight, default=None)
    if worst is None or worst.weight < (False, SEVERITY[verdict.outcome]):
        return verdict
    found = None if worst.distance is None else float(worst.distance)
    words = ordinary_words(policy) if worst.illegal else worst.words
    said = replace(verdict, outcome=worst.outcome, reason=words, concept=worst.rule.name, margin=found)
    return replace(said, probability=None, view=None, illegal=worst.illegal)


def ordinary_words(policy: Policy) -> str:
    """What a submitter reads of an illegal list: that of one which is not, so that nobody can tell them apart."""
    ordinary = (rule.words for rule in policy.hash_lists if not rule.illegal and rule.outcome is Outcome.BLOCK)
    return next(ordinary, NEUTRAL_WORDS)


def match(rule: ListRule, known: Mapping[str, HashList], verdict: Verdict, file_sha256: str) -> Hit | None:
    """A list that is not there would let everything through that is on it, and so would a picture without the hash that
    a list holds: a person looks instead."""
    if rule.name not in known:
        return Hit(rule, Outcome.REVIEW, MISSING_WORDS.format(rule.name), None)
    if known[rule.name].kind == "pdq" and verdict.pdq is None:
        return Hit(rule, Outcome.REVIEW, UNHASHED_WORDS.format(rule.name), None)
    bits = bits_from(known[rule.name], verdict, file_sha256)
    if bits is None:
        return None
    return Hit(rule, rule.outcome, rule.words, bits)


def bits_from(known: HashList, verdict: Verdict, file_sha256: str) -> int | None:
    """How far the picture is from the list's nearest, if that is near enough to be the same picture."""
    if known.kind == "pdq":
        return nearest(known, verdict.pdq) if verdict.pdq else None
    return 0 if any(holds(known.digests, one) for one in (verdict.subject, file_sha256) if one) else None
