"""A policy: an immutable document of what is looked for, at which limits, and what follows. Pure but for `load`.

Its name is its hash: SHA-256 over the canonical JSON of the parsed document, so comments and key order do not count.
Files that it names stand in it by their hashes, which `load` fills in.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from farm.errors import BadInput, nearest
from farm.ports import Outcome, Stage
from safety import clauses
from safety.clauses import BOTH, STRICT, Classifier, Concept, ListRule, Name, Rule, Siblings, Spike, Text, Texts
from safety.files import file_hash, folder_hash
from safety.plain_yaml import plain

DEMO = Path(__file__).parent / "policies" / "demo.yaml"
FULL = Path(__file__).parent / "policies" / "full.yaml"  # an example for real models
MAX_BYTES = 1 << 20
UNKNOWN = "unexpected_keyword_argument"


@dataclass(frozen=True)
class Policy:
    __pydantic_config__ = STRICT
    name: Name
    about: Text
    concepts: Annotated[tuple[Concept, ...], Field(min_length=1)]
    templates: Texts = ("{}",)
    prompt_rules: tuple[Rule, ...] = ()
    hash_lists: tuple[ListRule, ...] = ()
    classifier: Classifier | None = None
    siblings: Siblings = Siblings.LEAVE
    spike: Spike | None = None
    document: str = field(default="", init=False, repr=False)

    @cached_property
    def hash(self) -> str:
        return hashlib.sha256(self.document.encode()).hexdigest()

    def concepts_of(self, stage: Stage) -> tuple[Concept, ...]:
        return tuple(concept for concept in self.concepts if shown(stage) in concept.applies)

    def lists_of(self, stage: Stage) -> tuple[ListRule, ...]:
        return tuple(rule for rule in self.hash_lists if shown(stage) in rule.applies)

    def concept(self, name: str | None) -> Concept | None:
        """The one that a verdict names; none where a prompt rule or a hash list decided."""
        return next((concept for concept in self.concepts if concept.name == name), None)

    def siblings_of(self, name: str | None) -> Siblings:
        """What a block by this concept, rule or list does to the jobs beside it."""
        concept = self.concept(name)
        return concept.siblings if concept and concept.siblings else self.siblings


def shown(stage: Stage) -> Stage:
    """A preview shows what the frame will."""
    return Stage.FRAME if stage is Stage.PREVIEW else stage


POLICY = TypeAdapter(Policy)
PARTS: dict[str, type[Any]] = {
    "concepts": Concept,
    "prompt_rules": Rule,
    "hash_lists": ListRule,
    "band": clauses.Band,
    "calibration": clauses.Calibration,
    "pixels": clauses.Quarantine,
    "head": clauses.Head,
    "classifier": Classifier,
    "speaks": clauses.Label,
    "spike": Spike,
}
KINDS = {"Quarantine"}  # in the place of an error pydantic also names which of several types it tried


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
        return parse(data.decode(), file.absolute().parent)
    except UnicodeDecodeError as error:
        raise BadInput(f"{file} is not UTF-8: {error.reason}", field="policy") from error


def parse(text: str, folder: Path | None = None) -> Policy:
    """`folder`: from where the files are named that it names; without one they are named wholly, with their hashes."""
    try:
        parsed = plain(text)
        document = canonical(completed(parsed, folder) if folder else parsed)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise BadInput(f"the policy is not plain YAML: {' '.join(str(error).split())}", field="policy") from error
    try:
        policy = POLICY.validate_json(document)
    except ValidationError as error:
        raise _told(error) from error
    object.__setattr__(policy, "document", document)
    _refuse_contradictions(policy)
    return policy


def canonical(document: Any) -> str:
    text = json.dumps(document, sort_keys=True, ensure_ascii=False, allow_nan=False)
    text.encode()
    return text


def in_order(part: Any, kind: type[Any] | None = Policy) -> Any:
    """A document with its keys as the clauses have them, for a reader."""
    if isinstance(part, list):
        return [in_order(one, kind) for one in part]
    if kind is None or not isinstance(part, dict):
        return part
    return {one.name: in_order(part[one.name], PARTS.get(one.name)) for one in fields(kind) if one.name in part}


def completed(document: Any, folder: Path) -> Any:
    """The document with each file that it names by its whole path and its hash."""
    if not isinstance(document, dict):
        return document
    concepts = document.get("concepts")
    heads = [part.get("head") for part in concepts if isinstance(part, dict)] if isinstance(concepts, list) else []
    for part in heads:
        _complete(part, "file", folder)
    _complete(document.get("classifier"), "folder", folder)
    return document


def _complete(part: Any, key: str, folder: Path) -> None:
    if not isinstance(part, dict) or not isinstance(part.get(key), str):
        return
    path = folder / part[key]
    try:
        found = file_hash(path) if key == "file" else folder_hash(path)
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}", field=f"policy.{key}", fix="put it there") from error
    if part.setdefault("sha256", found) != found:
        fix = "leave sha256 out to take the file as it is"
        raise BadInput(f"{path} is not the one with this sha256; its own is {found}", field=f"policy.{key}", fix=fix)
    part[key] = str(path)


def _told(error: ValidationError) -> BadInput:
    """One of pydantic's complaints, in our words; an unknown key first, since it explains a missing one."""
    all_of_them = error.errors(include_url=False, include_input=False)
    first = next((one for one in all_of_them if one["type"] == UNKNOWN), all_of_them[0])
    place = [part for part in first["loc"] if part not in KINDS]
    where = ".".join(str(part) for part in place) or "policy"
    if first["type"] != UNKNOWN:
        return BadInput(first["msg"], field=where, fix="see safety/policies/demo.yaml")
    *above, key = place
    part = next((PARTS[name] for name in reversed(above) if isinstance(name, str)), Policy)
    known = [one.name for one in fields(part) if one.init]
    return BadInput(f"unknown key {str(key)!r}", field=where, fix=nearest(str(key), known))


def _refuse_contradictions(policy: Policy) -> None:
    for concept in policy.concepts:
        band, where = concept.band, f"concepts.{concept.name}.band"
        if band.t_high is not None and band.t_low >= band.t_high:
            raise BadInput(f"t_low {band.t_low:g} is not below t_high {band.t_high:g}", field=where, fix="leave a gap")
    names = [concept.name for concept in policy.concepts] + [entry.name for entry in policy.hash_lists]
    _refuse_doubled("concepts and hash_lists", names)
    _refuse_doubled("prompt_rules", [rule.name for rule in policy.prompt_rules])
    for rule in policy.prompt_rules:
        if rule.outcome is not Outcome.ALLOW and not rule.words.strip():
            raise BadInput("says nothing to the submitter", field=f"prompt_rules.{rule.name}.words", fix="say why")
    for entry in policy.hash_lists:
        if entry.illegal and entry.outcome is not Outcome.BLOCK:
            where = f"hash_lists.{entry.name}.outcome"
            raise BadInput("what is illegal is shown to no reviewer", field=where, fix="outcome: block")
    if any(template.count("{}") != 1 for template in policy.templates):
        raise BadInput("a template holds {} once, where the phrase goes", field="templates")
    for stage in BOTH:
        if not policy.concepts_of(stage):
            raise BadInput(f"no concept applies to {stage}: everything would pass", field="concepts", fix="apply one")
    if policy.spike and policy.spike.at_least > policy.spike.of_last:
        raise BadInput("at_least is more than of_last: it would never come to that", field="spike")
    _refuse_a_stray_label(policy)


def _refuse_a_stray_label(policy: Policy) -> None:
    names = [concept.name for concept in policy.concepts]
    speaks = policy.classifier.speaks if policy.classifier else ()
    for one in speaks:
        if one.concept not in names:
            fix = nearest(one.concept, names)
            raise BadInput(f"no concept {one.concept!r} in this policy", field="classifier.speaks", fix=fix)
    _refuse_doubled("classifier.speaks", [one.concept for one in speaks])


def _refuse_doubled(field: str, names: list[str]) -> None:
    if doubled := next((name for name in names if names.count(name) > 1), None):
        raise BadInput(f"{doubled!r} is named twice", field=field, fix="a verdict must name one")
