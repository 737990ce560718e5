"""Who pays, told from the exception alone."""

from __future__ import annotations

import errno
import pickle
from pathlib import Path
from typing import cast

import pytest
import ray
import torch
from ray.core.generated.common_pb2 import ActorDiedErrorContext, NodeDeathInfo

from actors.faults import LONGEST_DETAIL, ends_gang, fault_of
from actors.flux.headers import NotRendered, WeightsError
from actors.flux.render import NotFinite
from actors.gang import Gang
from actors.pool import Pool
from farm.config import Settings
from farm.errors import Fault
from farm.job import CAUSES, Cause, Payer
from farm.ports import GangState
from tests.actors.conftest import CARDS, request_of


def died(why: str, *, preempted: bool = False) -> ActorDiedErrorContext:
    """What Ray says of an actor that died with its process or its node."""
    said = NodeDeathInfo(reason=NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED) if preempted else NodeDeathInfo()
    return ActorDiedErrorContext(actor_id=bytes(16), error_message=why, node_death_info=said)


KNOWN = [
    (NotFinite("latent", [0]), Cause.NOT_FINITE),
    (torch.OutOfMemoryError("CUDA out of memory"), Cause.OUT_OF_MEMORY),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"), Cause.OUT_OF_MEMORY),
    (MemoryError(), Cause.OUT_OF_MEMORY),
    (ray.exceptions.OutOfMemoryError("killed"), Cause.OUT_OF_MEMORY),
    (WeightsError("a file is cut short"), Cause.WEIGHTS_MISSING),
    (NotRendered(Path("a.safetensors"), "FLUX.9"), Cause.WEIGHTS_MISSING),
    (ray.exceptions.RayActorError(), Cause.GANG_DIED),
    (ray.exceptions.ActorDiedError(), Cause.GANG_DIED),
    (ray.exceptions.NodeDiedError("gone"), Cause.NODE_FAILED),
    (ray.exceptions.ActorDiedError(died("The actor died because its node has died. Node Id: ab")), Cause.NODE_FAILED),
    (ray.exceptions.ActorDiedError(died("its node is drained", preempted=True)), Cause.NODE_FAILED),
    (ray.exceptions.ActorDiedError(died("Worker exit type: SYSTEM_ERROR")), Cause.GANG_DIED),
    (ray.exceptions.GetTimeoutError("late"), Cause.GANG_HUNG),
    (ray.exceptions.RaySystemError("no head"), Cause.RAY_GONE),
    (ray.exceptions.LocalRayletDiedError(), Cause.RAY_GONE),
    (ConnectionRefusedError("no head"), Cause.RAY_GONE),
    (SystemExit(0), Cause.RAY_GONE),
    (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(...)`"), Cause.GANG_DIED),
    (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"), Cause.GANG_DIED),
    (RuntimeError("CUDA driver error: unknown error"), Cause.GANG_DIED),
    (RuntimeError("No CUDA GPUs are available"), Cause.GANG_DIED),
    (RuntimeError("NCCL error in: ProcessGroupNCCL.cpp:94, unhandled cuda error"), Cause.GANG_DIED),
    (RuntimeError("CUDA error: out of memory"), Cause.OUT_OF_MEMORY),
    (OSError(errno.ESTALE, "Stale file handle"), Cause.GANG_DIED),
    (OSError(errno.ENOSPC, "No space left on device"), Cause.GANG_DIED),
    (OSError(errno.EIO, "Input/output error"), Cause.GANG_DIED),
    (FileNotFoundError(errno.ENOENT, "No such file"), Cause.RENDER_ERROR),
    (ValueError("a prompt that speaks of a CUDA error"), Cause.RENDER_ERROR),
    (ValueError("what nobody foresaw"), Cause.RENDER_ERROR),
]


@pytest.mark.parametrize(("error", "cause"), KNOWN, ids=[type(error).__name__ for error, _ in KNOWN])
def test_every_known_exception_has_its_cause(error: BaseException, cause: Cause) -> None:
    fault = fault_of(error, "g1")
    assert fault.cause is cause
    assert fault.gang == "g1"
    assert pickle.loads(pickle.dumps(fault)).cause is cause


def test_what_an_actor_raised_is_found_inside_ray_s_wrapping() -> None:
    inner = Fault(Cause.WEIGHTS_MISSING, "no files", gang="inner")
    wrapped = ray.exceptions.RayTaskError("load", "traceback", inner)
    assert (fault_of(wrapped, "outer").cause, fault_of(wrapped, "outer").gang) == (Cause.WEIGHTS_MISSING, "inner")
    dual = ray.exceptions.RayTaskError("draw", "traceback", NotFinite("latent", [0])).as_instanceof_cause()
    assert fault_of(dual).cause is Cause.NOT_FINITE


def test_the_stranger_s_cause_is_the_caller_s_to_name() -> None:
    assert fault_of(ValueError("x"), otherwise=Cause.GATE_DOWN).cause is Cause.GATE_DOWN


def test_details_stay_short() -> None:
    assert len(fault_of(ValueError("x" * 10_000)).detail) == LONGEST_DETAIL


@pytest.mark.parametrize("cause", list(Cause))
def test_a_gang_ends_by_what_it_pays_for(cause: Cause) -> None:
    assert ends_gang(Fault(cause, "")) == (CAUSES[cause] is Payer.GANG or cause in (Cause.NODE_FAILED, Cause.RAY_GONE))


class Leaves:
    """A gang that draws while another thread leaves Ray: what Ray raises then would end the thread unseen."""

    id = "g1"

    def render(self, *_: object) -> None:
        raise SystemExit(0)

    def remove(self) -> None:
        raise SystemExit(0)


def test_a_thread_that_ray_would_end_goes_on_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool(Settings(home=tmp_path, device="cpu"), CARDS)
    (place,) = pool.places["flat"]
    place.gang, place.state = cast("Gang", Leaves()), GangState.READY
    monkeypatch.setattr(pool, "_join", lambda _: None)
    with pytest.raises(Fault) as caught:
        pool.render([request_of("a")], lambda: False)
    assert caught.value.cause is Cause.RAY_GONE
    assert pool.places["flat"][0].gang is None
    assert not place.lock.locked()
