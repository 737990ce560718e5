"""From what was raised to the fault it means. Pure, and by name: neither torch nor Ray need be here for it."""

from __future__ import annotations

import errno
import re

from farm.errors import Fault
from farm.job import CAUSES, Cause, Payer

CAUSE_OF: dict[str, Cause] = {
    # in a rank
    "NotFinite": Cause.NOT_FINITE,
    "MemoryError": Cause.OUT_OF_MEMORY,
    "WeightsError": Cause.WEIGHTS_MISSING,
    "Cancelled": Cause.LEASE_LOST,
    "AcceleratorError": Cause.GANG_DIED,
    # in both: torch's and Ray's have one name
    "OutOfMemoryError": Cause.OUT_OF_MEMORY,
    # from Ray
    "GetTimeoutError": Cause.GANG_HUNG,
    "RayActorError": Cause.GANG_DIED,
    "WorkerCrashedError": Cause.GANG_DIED,
    "NodeDiedError": Cause.NODE_FAILED,
    "ObjectLostError": Cause.GANG_DIED,
    "ActorPlacementGroupRemoved": Cause.GANG_DIED,
    "ActorUnschedulableError": Cause.GANG_DIED,
    "LocalRayletDiedError": Cause.RAY_GONE,
    "RaySystemError": Cause.RAY_GONE,
    "RpcError": Cause.RAY_GONE,
    "AuthenticationError": Cause.RAY_GONE,
    "ConnectionError": Cause.RAY_GONE,
    "SystemExit": Cause.RAY_GONE,
}
# What a thread may meet that waits for Ray: where another one has left it meanwhile, Ray ends the thread by SystemExit.
RAISED = (Exception, SystemExit)
MEMORY_WORDS = ("can't allocate memory", "not enough memory", "out of memory", "running low on memory")
# Of a device, which torch raises as plain RuntimeErrors. One that failed once fails every call after it.
DEVICE_WORDS = (
    "cuda error",
    "cuda driver error",
    "cudnn error",
    "cusolver error",
    "hip error",
    "nccl error",
    "no cuda gpus are available",
    "triton error",
)
DISC = frozenset({errno.EIO, errno.ENOSPC, errno.ESTALE})  # the node's, whatever job meets it
LONGEST_DETAIL = 500
NODE_DIED = "the actor died because its node has died"
EXIT = re.compile(r"Worker exit detail: ([^.]+)")


def fault_of(error: BaseException, gang: str | None = None, otherwise: Cause = Cause.RENDER_ERROR) -> Fault:
    """The fault an exception stands for; `otherwise` names what the tables do not know."""
    inner = _inner(error)
    if isinstance(inner, Fault):
        return Fault(inner.cause, inner.detail, gang=inner.gang or gang)
    cause = _cause(inner) or otherwise
    return Fault(cause, _words(inner), gang=gang)


def ends_gang(fault: Fault) -> bool:
    """A gang that met this is not trusted with another job."""
    return CAUSES[fault.cause] is Payer.GANG or fault.cause in (Cause.NODE_FAILED, Cause.RAY_GONE)


def lost_before_it_began(error: BaseException) -> bool:
    """A rank did not get what it was given: whatever it raises itself comes later."""
    inner = _inner(error)
    return inner is not error and any(kind.__name__ == "ObjectLostError" for kind in type(inner).__mro__)


def _inner(error: BaseException) -> BaseException:
    """Ray wraps what an actor raised, and keeps it as `cause`."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else error


def _cause(error: BaseException) -> Cause | None:
    text = str(error).lower()
    if any(words in text for words in MEMORY_WORDS):
        return Cause.OUT_OF_MEMORY
    if isinstance(error, RuntimeError) and any(words in text for words in DEVICE_WORDS):
        return Cause.GANG_DIED
    if isinstance(error, OSError) and error.errno in DISC:
        return Cause.GANG_DIED
    if getattr(error, "preempted", False) or NODE_DIED in text:
        return Cause.NODE_FAILED
    known = (CAUSE_OF.get(kind.__name__) for kind in type(error).__mro__)
    return next((cause for cause in known if cause is not None), None)


def _words(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if found := EXIT.search(text):  # all that matters of Ray's page on an actor's death
        text = found.group(1)
    return f"{type(error).__name__}: {text}"[:LONGEST_DETAIL]
