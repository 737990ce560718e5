"""Judges a prompt by the policy's rules, in plain letters and under the usual disguises. Pure."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from farm.ports import Outcome, Stage, Verdict
from safety.clauses import Rule
from safety.policy import Policy

# Letters of other scripts that are drawn like Latin ones, after case folding and NFKD.
DRAWN_ALIKE = {
    "абвгԁеһіјкӏмнорԛгѕтуѵԝх": "abbrdehijklmhopqrstyvwx",
    "αβγεζηικνορτυχω": "abyeznikvoptuxw",
    "ᴀʙᴄᴅᴇɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢ": "abcdeghijklmnoprstuvwyz",
    "ɑɡıſøłđħ": "agisoldh",
}
# Hangul's fillers are letters that leave a gap, or none: like a hyphen they may stand within a word or between two.
FILLERS = {0x115F: "-", 0x1160: "-"}
LOOKALIKES = str.maketrans("".join(DRAWN_ALIKE), "".join(DRAWN_ALIKE.values())) | FILLERS
LEET = str.maketrans("013457@$!", "oieastasi")
SEVERITY = {Outcome.ALLOW: 0, Outcome.REVIEW: 1, Outcome.BLOCK: 2}
UNSEEN = {"Mn", "Me", "Cf", "Cc", "Co"}  # marks on letters, and what leaves no trace on the page
GAP = "\n"  # no pattern matches across it


def judge_prompt(policy: Policy, prompt: str) -> Verdict:
    """The gravest outcome any rule gives to any reading of the prompt."""
    subject = hashlib.sha256(prompt.encode()).hexdigest()
    hit = gravest([rule for reading in readings(prompt) for rule in matches(policy.prompt_rules, reading)])
    if hit is None:
        return Verdict(Stage.PROMPT, subject, Outcome.ALLOW, policy.hash, "")
    return Verdict(Stage.PROMPT, subject, hit.outcome, policy.hash, "", concept=hit.name, reason=hit.words)


def gravest(hits: Sequence[Rule]) -> Rule | None:
    return max(hits, key=lambda rule: SEVERITY[rule.outcome], default=None)


def matches(rules: Sequence[Rule], reading: str) -> list[Rule]:
    """Allowing rules first take out what they match: 'water pistol' can stay where 'pistol' may not."""
    for rule in rules:
        if rule.outcome is Outcome.ALLOW:
            for pattern in rule.patterns:
                reading = compiled(pattern).sub(GAP, reading)
    others = [rule for rule in rules if rule.outcome is not Outcome.ALLOW]
    return [rule for rule in others if any(compiled(pattern).search(reading) for pattern in rule.patterns)]


@lru_cache(maxsize=4096)
def compiled(pattern: str) -> re.Pattern[str]:
    """Whole words only; `*` stands for any letters within a word, a space for any space."""
    bodies = [r"\S*".join(re.escape(part) for part in word.split("*")) for word in words(plain(pattern), "*")]
    return re.compile(rf"(?<!\S){' '.join(bodies)}(?!\S)")


def readings(prompt: str) -> list[str]:
    """The prompt as words, and as it reads with digits for letters, dots within words, or letters set apart."""
    text = plain(prompt)
    joined = re.sub(r"(?<=\w)[^\w\s]+(?=\w)|_", "", text)
    found = [text, joined, text.translate(LEET), joined.translate(LEET)]
    found = [" ".join(words(one)) for one in found]
    found += [spelled(one) for one in found for spelled in (spelled_out, spelled_out_after_an_article)]
    return list(dict.fromkeys(found))


def plain(text: str) -> str:
    """One spelling for what looks the same: compatibility forms, case, accents, invisible letters, other scripts."""
    text = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold())
    kept = (letter for letter in text if letter.isspace() or unicodedata.category(letter) not in UNSEEN)
    return "".join(kept).translate(LOOKALIKES)


def words(text: str, also: str = "") -> list[str]:
    return re.findall(rf"(?:[^\W_]|[{re.escape(also)}])+" if also else r"[^\W_]+", text)


def spelled_out(reading: str) -> str:
    """'w e a p o n' as one word; fewer than three letters in a row stay as they are."""
    return re.sub(r"(?<!\S)\w(?: \w){2,}(?!\S)", lambda run: run[0].replace(" ", ""), reading)


def spelled_out_after_an_article(reading: str) -> str:
    """'a w e a p o n' as 'a weapon', not as 'aweapon'."""
    return re.sub(r"(?<!\S)a (\w(?: \w){2,})(?!\S)", lambda run: f"a {run[1].replace(' ', '')}", reading)
