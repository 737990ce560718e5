"""The clauses of a policy: concepts, their bands and calibrations, prompt rules, hash lists, what follows a block."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from farm.ports import Outcome, Stage

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

Text = Annotated[str, Field(min_length=1, max_length=500, pattern=r"\S")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Texts = Annotated[tuple[Text, ...], Field(min_length=1)]
Pattern = Annotated[str, Field(min_length=1, max_length=500, pattern=r"[^\W_]")]
Limit = Annotated[float, Field(ge=0, le=1)]
Pictures = tuple[Literal[Stage.INPUT, Stage.FRAME], ...]
BOTH: Pictures = (Stage.INPUT, Stage.FRAME)


class Pixels(StrEnum):
    """What becomes of a blocked frame's pixels, unless they are kept for a time."""

    DISCARD = "discard"


class Siblings(StrEnum):
    """What a confirmed block does to the jobs beside it."""

    LEAVE = "leave"
    HOLD = "hold"


@dataclass(frozen=True, slots=True)
class Quarantine:
    """A blocked frame's pixels are kept, encrypted, for appeals."""

    __pydantic_config__ = STRICT
    quarantine_days: Annotated[int, Field(ge=1, le=365)]


@dataclass(frozen=True, slots=True)
class Calibration:
    """probability = sigmoid(a * margin + b), for margins by what has this fingerprint and by nothing else."""

    __pydantic_config__ = STRICT
    encoder: Digest
    a: Annotated[float, Field(gt=0)]
    b: float


@dataclass(frozen=True, slots=True)
class Band:
    """allow < t_low <= review < t_high <= block; without t_high nothing is blocked, a person looks."""

    __pydantic_config__ = STRICT
    t_low: Limit
    t_high: Limit | None = None

    def outcome(self, probability: float) -> Outcome:
        if self.t_high is not None and probability >= self.t_high:
            return Outcome.BLOCK
        return Outcome.REVIEW if probability >= self.t_low else Outcome.ALLOW


@dataclass(frozen=True, slots=True)
class Head:
    """A linear probe over the encoder's embedding: a safetensors file with `weight` (one number for each of the
    embedding's) and `bias`. Its margin is their sum."""

    __pydantic_config__ = STRICT
    file: Text
    sha256: Digest
    calibration: Calibration | None = None


@dataclass(frozen=True, slots=True)
class Concept:
    """Something a picture may show. Without a calibration its score means nothing yet: everything goes to review."""

    __pydantic_config__ = STRICT
    name: Name
    phrases: Texts
    contrast: Texts
    code: Name
    words: Text
    band: Band
    calibration: Calibration | None = None
    applies: Pictures = BOTH
    pixels: Pixels | Quarantine = Pixels.DISCARD
    siblings: Siblings | None = None  # None: as the policy says
    head: Head | None = None


@dataclass(frozen=True, slots=True)
class Label:
    """Classes of a classifier whose probabilities together speak for a concept: the margin is their log odds."""

    __pydantic_config__ = STRICT
    concept: Name
    labels: Texts
    calibration: Calibration | None = None


@dataclass(frozen=True, slots=True)
class Classifier:
    """An image classifier in a folder that transformers reads. Its calibrations name its own hash as the encoder."""

    __pydantic_config__ = STRICT
    folder: Text
    sha256: Digest
    speaks: Annotated[tuple[Label, ...], Field(min_length=1)]


@dataclass(frozen=True, slots=True)
class Rule:
    """Words or phrases of a prompt; `*` stands for any letters. What an allowing rule matches, no other rule sees."""

    __pydantic_config__ = STRICT
    name: Name
    patterns: Annotated[tuple[Pattern, ...], Field(min_length=1)]
    outcome: Outcome
    words: Annotated[str, Field(max_length=500)] = ""


@dataclass(frozen=True, slots=True)
class ListRule:
    """What follows a match on an imported hash list. What an illegal list matches is shown to nobody, reviewers too."""

    __pydantic_config__ = STRICT
    name: Name
    outcome: Literal[Outcome.REVIEW, Outcome.BLOCK]
    code: Name
    words: Text
    illegal: bool = False
    applies: Pictures = BOTH


@dataclass(frozen=True, slots=True)
class Spike:
    """A batch is paused once at least `share` of its `of_last` last judged frames were blocked, of `at_least`."""

    __pydantic_config__ = STRICT
    share: Annotated[float, Field(gt=0, le=1)]
    of_last: Annotated[int, Field(ge=1, le=10_000)]
    at_least: Annotated[int, Field(ge=1, le=10_000)]
