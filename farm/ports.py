"""What the farm needs of a renderer, a gate, a signer, a verifier and a store, and the values that cross between them.

A port reports trouble by raising (or returning, for one of a group) a `Fault` whose cause says who pays.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from farm.errors import Fault
from farm.job import Spec
from farm.lack import Lack


class Outcome(StrEnum):
    ALLOW = "allow"
    REVIEW = "review"
    BLOCK = "block"


class Stage(StrEnum):
    PROMPT = "prompt"
    INPUT = "input"
    FRAME = "frame"
    PREVIEW = "preview"  # of a job that is still drawn: it decides on nothing but whether that preview is shown


@dataclass(frozen=True, slots=True)
class Frame:
    """RGB pixels, eight bits, rows from the top."""

    width: int
    height: int
    pixels: bytes = field(repr=False)
    file_sha256: str = ""  # of the file it was decoded from, where a stranger sent it

    @property
    def sha256(self) -> str:
        """Hash of size and pixels: two frames are the same only if both agree."""
        digest = hashlib.sha256(f"RGB {self.width}x{self.height}\n".encode())
        digest.update(self.pixels)
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate said of one prompt or one frame, named by its hash."""

    stage: Stage
    subject: str  # SHA-256: of the prompt's UTF-8, or Frame.sha256
    outcome: Outcome
    policy: str  # the policy's content hash
    encoder: str  # the encoder's fingerprint; "" where none was asked
    concept: str | None = None
    margin: float | None = None
    probability: float | None = None
    view: str | None = None  # which part of the frame scored highest
    reason: str = ""  # words for the submitter
    embedding: bytes | None = field(default=None, repr=False)  # float16, one row a view
    pdq: bytes | None = field(default=None, repr=False)  # of a frame: 32 bytes of PDQ hash, one of its quality
    lists: str = ""  # what the policy's hash lists held, as Rules.held says it
    illegal: bool = False  # on a list of what nobody may see: blocked for good, and not even a person judges it
    shadow: Verdict | None = None  # what the policy in shadow would have said


@dataclass(frozen=True, slots=True)
class Kept:
    """What is stored of one thing that was judged, from which it can be judged again."""

    stage: Stage
    subject: str
    outcome: Outcome
    reason: str
    encoder: str
    embedding: bytes | None = field(default=None, repr=False)
    pdq: bytes | None = field(default=None, repr=False)
    prompt: str = field(default="", repr=False)
    width: int = 0
    height: int = 0
    file_sha256: str = ""


@dataclass(frozen=True, slots=True, weakref_slot=True)
class HashList:
    """One imported list of hashes of known pictures."""

    name: str
    kind: str  # sha256 or pdq
    digests: bytes = field(repr=False)  # 32 bytes each, sorted, no doubles
    sha256: str = field(init=False)  # of the digests

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha256", hashlib.sha256(self.digests).hexdigest())


@dataclass(frozen=True, slots=True)
class Rules:
    """What the gate judges by."""

    policy: str  # the document in force, as canonical JSON (which is YAML, too)
    shadow: str = ""  # one that judges beside it and decides nothing
    lists: tuple[HashList, ...] = ()  # those that either of them names, as far as they were imported

    def held(self, names: Iterable[str]) -> str:
        return held(names, {one.name: one.sha256 for one in self.lists})


def held(names: Iterable[str], known: Mapping[str, str]) -> str:
    """One hash of what the lists of these names hold; none of it where there are no names. A list that was never
    imported counts as such, so that its import makes another hash."""
    said = {name: known.get(name, "") for name in names}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest() if said else ""


@dataclass(frozen=True, slots=True)
class Lease:
    """One attempt of one job. Every change it makes is guarded by job, attempt and owner."""

    job_id: int
    attempt: int
    owner: str
    project_id: str
    batch_id: int
    spec: Spec
    parent_job_id: int | None = None
    upload_id: str | None = None
    reference_key: str | None = None  # store key of the picture it edits: the parent's artifact, or the upload
    reference_mime: str | None = None


@dataclass(frozen=True, slots=True)
class RenderRequest:
    job_id: int
    attempt: int
    spec: Spec
    reference: Frame | None = None
    resume: bytes | None = field(
        default=None, repr=False
    )  # where an earlier attempt stood; the renderer's own business


@dataclass(frozen=True, slots=True)
class Rendered:
    frame: Frame
    gang: str
    weights: str  # SHA-256 over the weights that drew it
    seconds: float = 0.0
    drawn_with: str = ""  # JSON: device, precision, parallel plan and software, for the manifest


@dataclass(frozen=True, slots=True)
class Signed:
    data: bytes = field(repr=False)
    mime: str
    manifest_sha256: str
    label: str  # the manifest's own label


@dataclass(frozen=True, slots=True)
class Provenance:
    """The verifier's one word and why: Trusted, Valid, Invalid, SuspectAncestor, NoManifest, Unreadable."""

    verdict: str
    sentence: str
    codes: tuple[str, ...] = ()
    manifest_sha256: str | None = None


class GangState(StrEnum):
    STARTING = "starting"  # waits for room or for its weights
    READY = "ready"
    BUSY = "busy"
    DRAINING = "draining"  # at its last pictures; it takes no further ones
    SICK = "sick"  # it does not answer
    GONE = "gone"  # there is none; it is built when a job asks for it
    BENCHED = "benched"  # there is none, and none is built until it has rested
    LACKING = "lacking"  # there is none, and the model's files are not where they should be


@dataclass(frozen=True, slots=True)
class GangStatus:
    """One place for a gang in a pool, and what it waits for there."""

    pool: str
    place: int  # of `max` that the pool has
    model: str
    gang: str  # "" while there is none
    state: GangState
    waits_for: str
    since: float  # when that began, as time.time() gives it
    asked: str = ""  # what of its model a job asks for here, where stages of it run apart
    cause: str = ""  # of the end of the last one there, while there is none
    nodes: tuple[str, ...] = ()
    ready_at: float = 0.0  # since when its weights are there
    drawn: int = 0  # groups, since then
    load_s: float = 5.0  # from having room to having its weights, as measured or guessed
    pace_s: float = 1.0  # of a megapixel and step
    lack: Lack | None = None  # the room it does not find
    kept: bool = False  # warm, asked for or not


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """One node that Ray has."""

    id: str  # Ray's own
    name: str
    cpus: float
    gpus: int


@dataclass(frozen=True, slots=True)
class Drained:
    """Where no gang is to lie, and which are to end, by id."""

    nodes: frozenset[str] = frozenset()
    gangs: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Demand:
    """What a model's gangs are needed for: the jobs that wait or run, and how much denoising they ask for."""

    jobs: int = 0
    work: float = 0.0  # megapixels times steps


@dataclass(frozen=True, slots=True)
class Step:
    """How far a running job is."""

    job_id: int
    attempt: int
    step: int
    total: int
    preview: Frame | None = None  # small; not to be shown before the gate has allowed it
    gang: str = ""  # who drew the preview, and from which weights
    weights: str = ""


def ignore(_: Sequence[Step]) -> None:
    """For whoever does not care how far a job is."""


class Renderer(Protocol):
    def render(
        self,
        requests: Sequence[RenderRequest],
        cancelled: Callable[[], bool],
        watch: Callable[[Sequence[Step]], None] = ignore,
    ) -> list[Rendered | Fault]:
        """All of one shape key; one answer for each, in order. Raises Fault if the group as a whole failed. While they
        are drawn, `watch` hears about once a second how far they are; it must not block."""
        ...

    def status(self) -> list[GangStatus]:
        """Every gang there is or may be; quick, and from memory alone."""
        ...

    def nodes(self) -> list[NodeStatus]:
        """Those last seen; from memory alone."""
        ...

    def need(self, demand: Mapping[str, Demand], pressed: Mapping[str, str], drained: Drained) -> None:
        """Told again and again: what waits for each model; which gangs go once they are free, and for which model; and
        what an operator has drained. Quick: what follows from it is done elsewhere."""
        ...


class Gate(Protocol):
    def judge_prompts(self, prompts: Sequence[str]) -> list[Verdict | Fault]: ...

    def judge_frames(self, frames: Sequence[Frame], stage: Stage) -> list[Verdict | Fault]:
        """Fails closed: whatever is not a verdict is a Fault, never an allowing answer."""
        ...

    def use(self, rules: Rules) -> None:
        """From the next call on. Quick: a gate elsewhere hears of it with that call."""
        ...


class Signer(Protocol):
    def sign(self, lease: Lease, frame: Frame) -> Signed:
        """Rebuilds the claim from the job's records; refuses pixels that have no committed verdict."""
        ...

    def sign_preview(self, lease: Lease, frame: Frame) -> Signed:
        """The same for a preview, of an attempt of which the gate has doubted nothing."""
        ...

    def sign_blocked(self, lease: Lease, frame: Frame) -> Signed:
        """The frame for which a job was blocked, where the policy keeps it in quarantine, and as what it is."""
        ...

    def sign_audit_head(self, seq: int, sha256: str) -> str:
        """A detached signature (base64) over the head of the audit chain."""
        ...


class Verifier(Protocol):
    def verify(self, data: bytes, mime: str) -> Provenance: ...


class Examiner(Protocol):
    def examine(self, data: bytes, mime: str) -> None:
        """In a limited child: BadInput if no edit could be signed that starts from this stranger's picture."""
        ...


class Store(Protocol):
    """Content-addressed: the key is the SHA-256 of the bytes. Writing twice is writing once."""

    def put(self, data: bytes) -> str: ...

    def get(self, key: str) -> bytes: ...

    def has(self, key: str) -> bool: ...

    def delete(self, key: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Licence:
    name: str
    url: str
    asks_filter_or_review: bool
    commercial_use: bool
    asks_acceptance: bool  # by an operator, on the record, before anything is drawn


@dataclass(frozen=True, slots=True)
class ModelCard:
    """One model of the catalogue: what it may be asked for, and under which licence."""

    name: str
    title: str
    licence: Licence
    edits: bool
    steps: int
    max_steps: int
    guidance: float
    max_guidance: float
    min_side: int
    max_side: int
    min_pixels: int
    max_pixels: int
    side: int  # the default width and height
    max_prompt: int  # characters
    grid: int = 16
    sizes: tuple[tuple[int, int], ...] = ()  # which an aspect ratio chooses from; without any, from all
    rendered: bool = True  # False: known by name, not rendered yet
    files: tuple[str, ...] = ()
