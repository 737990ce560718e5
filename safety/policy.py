"""A policy: an immutable YAML document that says what is judged, against what, and what follows. Pure but for `load`.

Its name is its hash: SHA-256 over the canonical JSON of the parsed document, so comments and key order do not count.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from farm.errors import BadInput, nearest
from farm.ports import Outcome, Stage

DEMO = Path(__file__).parent / "policies" / "demo.yaml"
MAX_BYTES = 1 << 20
UNKNOWN = "unexpected_keyword_argument"
STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

Text = Annotated[str, Field(min_length=1, max_length=500, pattern=r"\S")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Texts = Annotated[tuple[Text, ...], Field(min_length=1)]
Pattern = Annotated[str, Field(min_length=1, max_length=500, pattern=r"[^\W_]")]
Limit = Annotated[float, Field(ge=0, le=1)]


class Pixels(StrEnum):
    """What becomes of a blocked frame's pixels."""

    DISCARD = "discard"


@dataclass(frozen=True, slots=True)
class Calibration:
    """probability = sigmoid(a * margin + b), for margins of the encoder with this fingerprint and no other."""

    __pydantic_config__ = STRICT
    encoder: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
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
    applies: tuple[Literal[Stage.INPUT, Stage.FRAME], ...] = (Stage.INPUT, Stage.FRAME)
    pixels: Pixels = Pixels.DISCARD


@dataclass(frozen=True, slots=True)
class Rule:
    """Words or phrases of a prompt; `*` stands for any letters. What an allowing rule matches, no other rule sees."""

    __pydantic_config__ = STRICT
    name: Name
    patterns: Annotated[tuple[Pattern, ...], Field(min_length=1)]
    outcome: Outcome
    words: Annotated[str, Field(max_length=500)] = ""


@dataclass(frozen=True)
class Policy:
    __pydantic_config__ = STRICT
    name: Name
    about: Text
    concepts: Annotated[tuple[Concept, ...], Field(min_length=1)]
    templates: Texts = ("{}",)
    prompt_rules: tuple[Rule, ...] = ()
    document: str = field(default="", init=False, repr=False)

    @cached_property
    def hash(self) -> str:
        return hashlib.sha256(self.document.encode()).hexdigest()

    def concepts_of(self, stage: Stage) -> tuple[Concept, ...]:
        """A preview shows what the frame will."""
        judged = Stage.FRAME if stage is Stage.PREVIEW else stage
        return tuple(concept for concept in self.concepts if judged in concept.applies)


POLICY = TypeAdapter(Policy)
PARTS: dict[str, type[Any]] = {"concepts": Concept, "prompt_rules": Rule, "band": Band, "calibration": Calibration}


def load(path: str | Path | None = None) -> Policy:
    """The policy in a file; without one, the bundled demo policy."""
    file = Path(path or DEMO)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise BadInput(f"cannot read the policy {file}: {error.strerror}", field="policy", fix="name a file") from error
    if len(data) > MAX_BYTES:
        raise BadInput(f"{file} is larger than {MAX_BYTES} bytes", field="policy")
    try:
        return parse(data.decode())
    except UnicodeDecodeError as error:
        raise BadInput(f"{file} is not UTF-8: {error.reason}", field="policy") from error


def parse(text: str) -> Policy:
    try:
        document = json.dumps(_plain(text), sort_keys=True, ensure_ascii=False, allow_nan=False)
        document.encode()
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise BadInput(f"the policy is not plain YAML: {' '.join(str(error).split())}", field="policy") from error
    try:
        policy = POLICY.validate_json(document)
    except ValidationError as error:
        raise _told(error) from error
    object.__setattr__(policy, "document", document)
    _refuse_contradictions(policy)
    return policy


def _plain(text: str) -> Any:
    """YAML lets a later key silently win and an alias stand for anything: a reader would not see what counts."""
    root = yaml.compose(text, yaml.SafeLoader)
    if root is None:
        return None
    _refuse_tricks(root, set())
    return yaml.constructor.SafeConstructor().construct_document(root)


def _refuse_tricks(node: yaml.Node, seen: set[int]) -> None:
    if id(node) in seen:
        raise ValueError(f"an alias stands for {node.tag}; write it out")
    seen.add(id(node))
    children = node.value if isinstance(node, yaml.SequenceNode) else []
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value]
        if doubled := next((key for key in keys if keys.count(key) > 1), None):
            raise ValueError(f"{doubled!r} is given twice")
        if "<<" in keys:
            raise ValueError("it merges mappings; write them out")
        children = [part for pair in node.value for part in pair]
    for child in children:
        _refuse_tricks(child, seen)


def _told(error: ValidationError) -> BadInput:
    """One of pydantic's complaints, in our words; an unknown key first, since it explains a missing one."""
    all_of_them = error.errors(include_url=False, include_input=False)
    first = next((one for one in all_of_them if one["type"] == UNKNOWN), all_of_them[0])
    where = ".".join(str(part) for part in first["loc"]) or "policy"
    if first["type"] != UNKNOWN:
        return BadInput(first["msg"], field=where, fix="see safety/policies/demo.yaml")
    *above, key = first["loc"]
    part = next((PARTS[name] for name in reversed(above) if isinstance(name, str)), Policy)
    known = [one.name for one in fields(part) if one.init]
    return BadInput(f"unknown key {str(key)!r}", field=where, fix=nearest(str(key), known))


def _refuse_contradictions(policy: Policy) -> None:
    for concept in policy.concepts:
        band, where = concept.band, f"concepts.{concept.name}.band"
        if band.t_high is not None and band.t_low >= band.t_high:
            raise BadInput(f"t_low {band.t_low:g} is not below t_high {band.t_high:g}", field=where, fix="leave a gap")
    _refuse_doubled("concepts", [concept.name for concept in policy.concepts])
    _refuse_doubled("prompt_rules", [rule.name for rule in policy.prompt_rules])
    for rule in policy.prompt_rules:
        if rule.outcome is not Outcome.ALLOW and not rule.words.strip():
            raise BadInput("says nothing to the submitter", field=f"prompt_rules.{rule.name}.words", fix="say why")
    if any(template.count("{}") != 1 for template in policy.templates):
        raise BadInput("a template holds {} once, where the phrase goes", field="templates")
    for stage in (Stage.INPUT, Stage.FRAME):
        if not policy.concepts_of(stage):
            raise BadInput(f"no concept applies to {stage}: everything would pass", field="concepts", fix="apply one")


def _refuse_doubled(field: str, names: list[str]) -> None:
    if doubled := next((name for name in names if names.count(name) > 1), None):
        raise BadInput(f"{doubled!r} is named twice", field=field, fix="a verdict must name one")
