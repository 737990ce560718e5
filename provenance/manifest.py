"""What a manifest says, built purely from the job's records.

A generation is `c2pa.created`; an edit is `c2pa.opened` (its parent, as signed bytes) and `c2pa.edited`; a person's
approval is `c2pa.opened` and `c2pa.published`. Beside the actions stand our own assertions, under our own name
`org.renderfarm`:

    org.renderfarm.generation   what it takes to make the image again, and a commitment to the prompt
    org.renderfarm.verdict      what the gate said: policy, encoder, outcome
    org.renderfarm.input        that an upload's own content credentials did not hold, and so are left out
    org.renderfarm.review       that a person approved it, and under which policy; never who

The prompt itself is not told, unless its project asks for it. The commitment is HMAC-SHA256(salt, prompt) with a salt
of that job alone: whoever is given the salt can check a prompt against the manifest, and without it nobody can try
guesses.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import json
from functools import cache
from importlib.metadata import version
from typing import Any

from farm.job import FORMATS
from farm.ports import Outcome, Stage
from farm.tables import Decision, Job, Verdict

Manifest = dict[str, Any]
PARENT = "parent"  # the id under which actions and signer speak of the one ingredient
SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
GENERATED = SOURCE_TYPES + "trainedAlgorithmicMedia"
COMPOSITE = SOURCE_TYPES + "compositeWithTrainedAlgorithmicMedia"
MINING = ("cawg.data_mining", "cawg.ai_training", "cawg.ai_generative_training")


def source_type(parent: str | None, *, edits: bool) -> str:
    """An edit of a wholly AI-made picture is still wholly AI-made; an edit of anything else is a composite."""
    return COMPOSITE if edits and parent != GENERATED else GENERATED


def made(
    job: Job,
    verdict: Verdict,
    source: str,
    salt: bytes,
    when: dt.datetime,
    *,
    edits: bool,
    tells: bool = False,
    broken: dict[str, Any] | None = None,
) -> Manifest:
    """The manifest of a job's own frame: a generation, or one turn of an edit. `tells`: with the prompt in clear;
    `broken`: what is wrong with the content credentials of the upload it edits, which are left out."""
    agent = {"name": job.model, "version": verdict.weights[:16]}
    does = {"when": stamp(when), "digitalSourceType": source, "softwareAgent": agent}
    if edits:
        actions = [_opened(), {"action": "c2pa.edited", "description": "Edit by instruction"} | does]
    else:
        actions = [{"action": "c2pa.created", "description": "Text to image"} | does]
    about = generation(job, verdict, salt) | ({"prompt": job.prompt} if tells else {})
    own = [_created("org.renderfarm.generation", about), _verdict(verdict)]
    own += [_created("org.renderfarm.input", broken)] if broken else []
    made = _manifest(job, [_actions(actions), *own, _mining()])
    made |= {"ingredients": [_bare(broken)]} if broken else {}
    kind = "-preview" if verdict.stage == Stage.PREVIEW else "-blocked" if verdict.outcome == Outcome.BLOCK else ""
    return made | {"title": f"{job.id}{kind}.{job.format}"}


def approved(job: Job, verdict: Verdict, decision: Decision, when: dt.datetime) -> Manifest:
    """The step that an approval adds to a held artifact."""
    actions = [_opened(), {"action": "c2pa.published", "when": stamp(when)}]
    decided = stamp(dt.datetime.fromtimestamp(decision.created_at, dt.UTC))
    review = {"outcome": "approved", "policy": verdict.policy, "decided_at": decided, "job_id": job.id}
    return _manifest(job, [_actions(actions), _created("org.renderfarm.review", review)])


def generation(job: Job, verdict: Verdict, salt: bytes) -> dict[str, Any]:
    """Of a preview, what the picture it shows on its way is made with."""
    return {
        "model": job.model,
        "weights_sha256": verdict.weights,
        "seed": job.seed,
        "steps": job.steps,
        "guidance": job.guidance,
        "width": job.width,
        "height": job.height,
        "frame_sha256": verdict.subject,
        "preview": verdict.stage == Stage.PREVIEW,
        "software": software(),
        "drawn_with": json.loads(verdict.drawn_with or "{}"),
        "job_id": job.id,
        "batch_id": job.batch_id,
        "output_index": job.index,
        "prompt_commitment": {"alg": "HMAC-SHA256", "value": commitment(salt, job.prompt)},
    }


def commitment(salt: bytes, prompt: str) -> str:
    return hmac.new(salt, prompt.encode(), hashlib.sha256).hexdigest()


@cache
def software() -> dict[str, str]:
    """What turned the frame into this file."""
    return {name: version(name) for name in ("renderfarm", "pillow", "c2pa-python")}


@cache
def farm_version() -> str:
    return version("renderfarm")


def stamp(when: dt.datetime) -> str:
    return when.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _manifest(job: Job, assertions: list[Manifest]) -> Manifest:
    generator = {"name": "Farm", "version": farm_version()}
    return {
        "title": f"{job.id}.{job.format}",
        "format": FORMATS[job.format],
        "claim_generator_info": [generator],
        "assertions": assertions,
    }


def _actions(actions: list[dict[str, Any]]) -> Manifest:
    return _created("c2pa.actions.v2", {"allActionsIncluded": True, "actions": actions})


def _opened() -> dict[str, Any]:
    return {"action": "c2pa.opened", "parameters": {"ingredientIds": [PARENT]}}


def _bare(broken: dict[str, Any]) -> Manifest:
    """An ingredient without a manifest of its own."""
    title = f"upload, whose own content credentials were {broken['verdict']}"
    return {"title": title, "format": broken["format"], "relationship": "parentOf", "label": PARENT}


def _verdict(verdict: Verdict) -> Manifest:
    said = {"outcome": verdict.outcome, "policy": verdict.policy, "encoder": verdict.encoder}
    return _created("org.renderfarm.verdict", said)


def _mining() -> Manifest:
    return _created("cawg.training-mining", {"entries": {name: {"use": "notAllowed"} for name in MINING}})


def _created(label: str, data: dict[str, Any]) -> Manifest:
    return {"label": label, "created": True, "data": data}
