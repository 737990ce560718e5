"""What work waits for beyond itself, in words for people: processes that are away, outages, files that are not there.
Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from farm.job import CAUSES, FINAL, MAX_OWN_FAULTS, Cause, Payer, State
from farm.ports import GangState

STALE_S = 15.0  # a process that has not been heard of for so long is away
NEEDED = ("dispatcher",)  # without one the farm takes batches, but makes no image
NONE = "none is running"
UNJUDGED = "There is no verdict, so nothing is shown."
SAYS_WHICH = "(`farm models ls` says which)"
# What a job says: where files lie, and which, is for those alone who run the farm.
NO_WEIGHTS = f"{Cause.WEIGHTS_MISSING}: its model's files are not on this farm, or cannot be used {SAYS_WHICH}"
WAITS = {
    Cause.SIGNER_DOWN: "the signer",
    Cause.SIGNER_FAILED: "a signer that does not fail",
    Cause.RAY_GONE: "Ray",
    Cause.GATE_DOWN: "the gate",
    Cause.DATABASE_DOWN: "the database",
    Cause.STORE_DOWN: "the store",
    Cause.STORE_FULL: "room in the store",
    Cause.NO_ROOM: "room for a gang",
    Cause.WEIGHTS_MISSING: "weights",
    Cause.LICENCE_NOT_ACCEPTED: "an operator to accept its model's licence",
    Cause.OVERLOADED: "memory, processes or processor time",
    Cause.TIMESTAMP_DOWN: "the time stamp authority",
    Cause.NODE_FAILED: "its next turn: the node that drew it failed",
    Cause.LEASE_LOST: "its next turn: whoever had it was not heard of in time",
}


def public(cause: Cause, detail: str) -> str:
    """What whoever sent the job hears of what it met. Of an outage the kind alone: where things lie and who was silent
    is for those who run the farm, and would part the jobs that wait for one thing."""
    return f"waits for {WAITS[cause]}" if CAUSES[cause] is Payer.ENVIRONMENT else detail


def advice(job: Mapping[str, Any]) -> str:
    """What follows from what a job has met, and what its submitter can do about it."""
    word = str(job["reason"]).partition(":")[0]
    if word not in set(Cause) or job["state"] not in (State.QUEUED, State.FAILED):
        return ""
    cause = Cause(word)
    if job["state"] == State.QUEUED:
        again = "It goes on by itself, and this attempt does not count."
        own = f"It is tried again by itself; {MAX_OWN_FAULTS} such attempts, and it has failed."
        then = {Payer.ENVIRONMENT: again, Payer.GANG: "It is tried again by itself."}.get(CAUSES[cause], own)
    elif cause in FINAL:
        then = "The same again would fail again: change its line, and submit that."
    else:
        then = f"`farm retry job:{job['id']}` tries it again."
    return f"{UNJUDGED} {then}" if cause is Cause.GATE_ERROR else then


def missing(components: Iterable[Mapping[str, Any]]) -> list[str]:
    """What keeps the whole farm from making images, as /readyz says it: of what a process says of itself the causes
    alone, not the details."""
    known, found = list(components), []
    for kind in NEEDED:
        some = sorted((one for one in known if one["kind"] == kind), key=lambda one: float(one["age_s"]))
        fresh = [one for one in some if one["age_s"] < STALE_S]
        if any(one["state"] == "ready" for one in fresh):
            continue
        if fresh:
            found.append(f"{kind}: {fresh[0]['detail'].split(':')[0]}")
        else:
            found.append(f"{kind}: {_silent(some[0]['age_s']) if some else NONE}")
    return found


def held_up(components: Iterable[Mapping[str, Any]]) -> list[str]:
    """What the dispatchers say keeps them waiting, with its details: for those who run the farm."""
    fresh = (one for one in components if one["age_s"] < STALE_S and one["state"] == "waiting")
    return list(dict.fromkeys(one["detail"] for one in fresh))


def _silent(age_s: float) -> str:
    return f"{NONE}, or it cannot say so: last heard of {age_s:.0f} s ago"


def in_words(missing: Iterable[str]) -> str:
    """What is missing, for a sentence; what has no word here is told as it came."""
    words: list[str] = []
    for one in missing:
        process, _, detail = one.partition(": ")
        codes = detail.split(", ")
        if process == "database" or detail == NONE:
            words.append(f"the {process}")
        elif detail.startswith(NONE):
            words.append(f"the {process} ({detail.rpartition(': ')[2]})")
        elif all(code in WAITS for code in codes):
            words += [WAITS[Cause(code)] for code in codes]
        else:
            words.append(one.replace("_", " "))
    return ", ".join(words)


def lacking(gangs: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Models of which nobody who is heard of has found the files, and what is missing of each."""
    found: dict[str, str] = {}
    there = set()
    for place in gangs:
        if place["state"] == GangState.LACKING:
            found[place["model"]] = place["waits_for"]
        elif place["age_s"] < STALE_S:
            there.add(place["model"])
    return {model: why for model, why in found.items() if model not in there}


def coming(gangs: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Models none of whose gangs may be given a job now though one is there or on its way, and what it waits for. What
    a place says of its start is about no job."""
    found: dict[tuple[str, str], str] = {}
    usable = set()
    for place in gangs:
        state, model = place["state"], place["model"]
        part = model, place["pool"].partition("/")[2]  # a stage apart is a pool of its own
        if state in (GangState.READY, GangState.BUSY):
            usable.add(part)
        elif state == GangState.STARTING:
            found[part] = f"a gang of {model} is starting and waits for {place['waits_for']}"
        elif state in (GangState.DRAINING, GangState.SICK):
            found.setdefault(part, f"the gang of {model} is {state}")
    return {part[0]: words for part, words in found.items() if part not in usable}


def warnings(missing: Collection[str], gangs: Collection[Mapping[str, Any]], models: Iterable[str]) -> list[str]:
    """What jobs of these models wait for now, were they ever so well formed."""
    found = [f"no image is made now: the farm waits for {in_words(missing)}"] if missing else []
    absent, on_its_way = lacking(gangs), coming(gangs)
    for model in sorted(set(models)):
        if model in absent:
            found.append(f"{model}: its files are not on this farm: its jobs wait until they are {SAYS_WHICH}")
        elif model in on_its_way:
            found.append(on_its_way[model])
    return found
