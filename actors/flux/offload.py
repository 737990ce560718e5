"""Models larger than the device: blocks wait in host memory and are copied in while the block before them computes.

Two slots of device memory take turns. Before a block runs, the compute stream waits for that block's copy, and the copy
of the next one is queued on a side stream, behind the last use of the slot it goes to. Without CUDA the same steps run
in order.
"""

import logging
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

log = logging.getLogger("farm.offload")
Setting = Literal["auto", "always", "never"]
SLOTS = 2
ALIGNMENT = 256  # bytes between tensors in a slot, as CUDA's own allocator keeps them


@dataclass(frozen=True)
class Place:
    """Where a parameter lies in its block's stretch of memory."""

    parameter: nn.Parameter
    start: int
    shape: torch.Size
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize


@dataclass(frozen=True)
class Packed:
    """All weights of one block in one stretch of host memory."""

    host: Tensor
    places: tuple[Place, ...]

    def point_at(self, memory: Tensor) -> None:
        for place in self.places:
            raw = memory[place.start : place.start + place.nbytes]
            place.parameter.data = raw.view(place.dtype).view(place.shape)


class Stream:
    """Feeds the blocks of one model, in the order they run; the first follows the last."""

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.blocks = [pack(block) for block in blocks]
        room = max(block.host.numel() for block in self.blocks)
        self.slots = [torch.empty(room, dtype=torch.uint8, device=self.device) for _ in range(SLOTS)]
        self.holds: list[int | None] = [None] * SLOTS  # the block in each slot
        self.fetched = 0  # copies so far; each goes to the slot after the last one's
        self.queue = (
            CudaQueue(self.device, [block.host for block in self.blocks]) if self.device.type == "cuda" else None
        )
        for index, block in enumerate(blocks):
            block.register_forward_pre_hook(lambda *_, at=index: self.enter(at))
            block.register_forward_hook(lambda *_, at=index: self.leave(at))

    def enter(self, index: int) -> None:
        """Make the block's weights usable now, and set the next one's on their way."""
        self.fetch(index)
        slot = self.holds.index(index)
        if self.queue:
            self.queue.wait_for_copy(slot)
        self.blocks[index].point_at(self.slots[slot])
        self.fetch((index + 1) % len(self.blocks))

    def leave(self, index: int) -> None:
        """The block's home is the host again; its slot is free once what is queued so far has run."""
        if self.queue:
            self.queue.mark_used(self.holds.index(index))
        self.blocks[index].point_at(self.blocks[index].host)

    def fetch(self, index: int) -> None:
        if index in self.holds:
            return
        slot = self.fetched % SLOTS
        self.fetched += 1
        self.holds[slot] = index
        host = self.blocks[index].host
        with self.queue.copying(slot) if self.queue else nullcontext():
            self.slots[slot][: host.numel()].copy_(host, non_blocking=True)


class CudaQueue:
    """Orders the copies on a side stream against the compute that uses their slots."""

    def __init__(self, device: torch.device, hosts: Sequence[Tensor]) -> None:
        self.device = device
        self.side = torch.cuda.Stream(device)
        self.copied = [torch.cuda.Event() for _ in range(SLOTS)]
        self.used = [torch.cuda.Event() for _ in range(SLOTS)]
        pinned = pin(hosts)
        weakref.finalize(self, unpin, pinned).atexit = False  # a process that ends unlocks its memory anyway

    @contextmanager
    def copying(self, slot: int) -> Iterator[None]:
        with torch.cuda.stream(self.side):
            self.side.wait_event(self.used[slot])  # one that was never recorded counts as done
            yield
            self.copied[slot].record(self.side)

    def wait_for_copy(self, slot: int) -> None:
        torch.cuda.current_stream(self.device).wait_event(self.copied[slot])

    def mark_used(self, slot: int) -> None:
        self.used[slot].record(torch.cuda.current_stream(self.device))


def pin(hosts: Sequence[Tensor]) -> list[Tensor]:
    """Lock memory in place as it is: torch's own pinned allocator rounds each block up to a power of two. What the
    system will not lock is copied all the same, more slowly. The answer is what was locked."""
    runtime = torch.cuda.cudart()
    pinned: list[Tensor] = []
    for host in hosts:
        if int(runtime.cudaHostRegister(host.data_ptr(), host.nbytes, 0)) != 0:
            log.warning(
                "%d of %d blocks could not be locked in host memory (see `ulimit -l`): copies to the GPU are slower",
                len(hosts) - len(pinned),
                len(hosts),
            )
            forget_error()
            break
        pinned.append(host)
    return pinned


def forget_error() -> None:
    """A call that failed stays CUDA's last error, and the next launch would answer for it: this one does, and by
    reporting the error it clears it. One that is more than a refusal comes back with every launch."""
    with suppress(RuntimeError):
        torch.ones(1, device="cuda")


def unpin(hosts: Sequence[Tensor]) -> None:
    torch.cuda.synchronize()
    runtime = torch.cuda.cudart()
    for host in hosts:
        torch.cuda.check_error(int(runtime.cudaHostUnregister(host.data_ptr())))


def pack(block: nn.Module) -> Packed:
    """Move a block's weights into one stretch of host memory, giving up where they lay before."""
    places, end = [], 0
    for parameter in block.parameters():
        place = Place(parameter, end, parameter.shape, parameter.dtype)
        places.append(place)
        end += -(-place.nbytes // ALIGNMENT) * ALIGNMENT
    packed = Packed(torch.empty(end, dtype=torch.uint8), tuple(places))
    for place in places:
        raw = packed.host[place.start : place.start + place.nbytes]
        raw.view(place.dtype).view(place.shape).copy_(place.parameter.data)
    packed.point_at(packed.host)
    return packed


def stream_blocks(model: nn.Module, stacks: Iterable[nn.ModuleList], device: torch.device | str) -> Stream:
    """Put a model on a device except for its blocks, which come when they are needed. They must run in this order."""
    blocks = [block for stack in stacks for block in stack]
    inside = {id(parameter) for block in blocks for parameter in block.parameters()}
    move_others(model, inside, torch.device(device))
    return Stream(blocks, device)


def move_others(model: nn.Module, inside: set[int], device: torch.device) -> None:
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in inside:
                parameter.data = parameter.data.to(device)
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))


def fits(needed_bytes: int, free_bytes: int, reserve: float = 0.06) -> bool:
    """Whether a need leaves the reserve that allocators and libraries take of a device's free memory."""
    return needed_bytes <= free_bytes * (1 - reserve)


def streams(setting: Setting, needed_bytes: int, free_bytes: int) -> bool:
    """Whether blocks stream: by setting, or because the whole does not fit."""
    return setting == "always" or (setting == "auto" and not fits(needed_bytes, free_bytes))
