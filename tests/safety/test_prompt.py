import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.errors import Fault
from farm.ports import Outcome, Stage, Verdict
from safety.gate import ClipGate
from safety.policy import Policy, load, parse
from safety.prompt import judge_prompt

BLOCK, REVIEW, ALLOW = Outcome.BLOCK, Outcome.REVIEW, Outcome.ALLOW


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load()


@pytest.mark.parametrize(
    "prompt",
    [
        "a weapon on a table",
        "WEAPONS!",
        "a forbidden, red circle",
        "ｗｅａｐｏｎ",  # full width
        "𝔴𝔢𝔞𝔭𝔬𝔫",  # mathematical letters
        "wеароn",  # Cyrillic е, а, р, о
        "ᴡᴇᴀᴘᴏɴ",  # small capitals
        "wéápöñ",
        "we\u0301apon",
        "wea\u200bpon",  # zero width space
        "wea\u00adpon",  # soft hyphen
        "\u202eweapon",  # right-to-left override
        "wea\ufe0fpon",
        *(f"wea{filler}pon" for filler in "\u3164\u115f\u1160\uffa0"),  # of Hangul: letters, and nothing to see
        "a\u3164weapon",
        "w e a p o n",
        "a w e a p o n",
        "a w-e-a-p-o-n here",
        "w.e.a.p.o.n",
        "weap0n",
        "w3@p0n",
        "we_apon",
        "the_weapon",
        "weapon\nred circle",
        "(weapon)",
        "“weapon”",
        "forbidden fruit and a weapon",
        "a forbidden forbidden fruit",
    ],
)
def test_disguises_are_seen_through(policy: Policy, prompt: str) -> None:
    verdict = judge_prompt(policy, prompt)
    assert (verdict.outcome, verdict.concept) == (BLOCK, "toy-words")
    assert "does not allow" in verdict.reason


@pytest.mark.parametrize(
    "prompt",
    ["", "a red circle", "unforbidden", "a bioweaponless sky", "forbiddenly", "we a pony", "weap on", "forbidden fruit",
     "the Forbidden City at dawn", "🙂", "красный круг", "赤い円", "a b c d e f g", "10 3 5 $"],
)  # fmt: skip
def test_harmless_prompts_pass(policy: Policy, prompt: str) -> None:
    verdict = judge_prompt(policy, prompt)
    assert (verdict.outcome, verdict.concept, verdict.reason) == (ALLOW, None, "")


def test_doubt_goes_to_review_and_the_gravest_rule_wins(policy: Policy) -> None:
    assert judge_prompt(policy, "a secret door").outcome is REVIEW
    assert judge_prompt(policy, "a secret weapon").outcome is BLOCK


def test_a_verdict_names_the_prompt_the_policy_and_no_encoder(policy: Policy) -> None:
    verdict = judge_prompt(policy, "ein Weapon-Käfer")
    assert verdict.subject == hashlib.sha256("ein Weapon-Käfer".encode()).hexdigest()
    assert (verdict.stage, verdict.policy, verdict.encoder) == (Stage.PROMPT, policy.hash, "")
    assert verdict.outcome is BLOCK


def test_patterns_of_several_words_and_other_scripts() -> None:
    text = """
name: p
about: a test
prompt_rules: [{name: r, patterns: ["Big  BAD wolf", "*武器*", "wölf*"], outcome: block, words: why}]
concepts: [{name: c, phrases: [a], contrast: [b], code: c, words: w, band: {t_low: 0.5}}]
"""
    policy = parse(text)
    bad = ["a big bad wolf", "big\tbad\nwolf", "big-bad-wolf", "彼の武器は", "wolfish", "WÖLFE"]
    assert [judge_prompt(policy, prompt).outcome for prompt in bad] == [BLOCK] * len(bad)
    good = ["a bad big dog", "big bad dog", "the bigbad lamb", "a dwölf"]
    assert [judge_prompt(policy, prompt).outcome for prompt in good] == [ALLOW] * len(good)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=80))
def test_any_text_gets_a_verdict_and_a_hidden_word_is_found_in_it(text: str) -> None:
    policy = load()
    assert isinstance(judge_prompt(policy, text), Verdict)
    assert judge_prompt(policy, f"{text} weapon {text}").outcome is BLOCK


def test_a_prompt_that_is_no_text_faults_alone(gate: ClipGate) -> None:
    good, bad, blocked = gate.judge_prompts(["a red circle", "\ud800", "a weapon"])
    assert isinstance(good, Verdict)
    assert good.outcome is ALLOW
    assert isinstance(bad, Fault)
    assert isinstance(blocked, Verdict)
    assert blocked.outcome is BLOCK
