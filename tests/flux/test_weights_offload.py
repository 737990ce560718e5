"""Blocks that stream in give the output of blocks that stay, out of two slots of memory."""

import pytest
import torch
from torch import Tensor, nn

from actors.flux.model import Flux
from actors.flux.offload import fits, pin, stream_blocks, streams, unpin
from tests.flux.samples import reference, velocity

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"))]


def streamed(device: str) -> Flux:
    model = reference().requires_grad_(False)
    stream_blocks(model, (model.double_blocks, model.single_blocks), device)
    return model


@pytest.mark.parametrize("device", DEVICES)
def test_streamed_blocks_draw_the_same(device: str) -> None:
    model = streamed(device)
    resident = velocity(reference().to(device), device)
    for _ in range(3):  # an odd number of blocks: each pass finds them in other slots
        assert torch.equal(velocity(model, device), resident)


class Probe(nn.Module):
    """A block that notes where its weight lies while it runs."""

    def __init__(self, value: float, rows: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((rows, 2), value), requires_grad=False)
        self.narrow = nn.Parameter(torch.full((3,), value, dtype=torch.bfloat16), requires_grad=False)
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(self.weight.data_ptr())
        out: Tensor = x + self.weight.mean() + self.narrow.float().mean()
        return out


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_two_slots_serve_any_number_of_blocks(count: int) -> None:
    blocks = nn.ModuleList(Probe(float(index + 1), rows=3 + index) for index in range(count))
    model = nn.Sequential(*blocks)
    stream = stream_blocks(model, [blocks], "cpu")
    homes = [block.host.data_ptr() for block in stream.blocks]
    want = 2.0 * sum(range(1, count + 1))
    for _ in range(3):
        assert model(torch.zeros(1)).item() == want
    slots = {slot.data_ptr() for slot in stream.slots}
    for block, home in zip(blocks, homes, strict=True):
        assert isinstance(block, Probe)
        assert set(block.seen) <= slots
        assert block.weight.data_ptr() == home
    largest = max(packed.host.numel() for packed in stream.blocks)
    assert [slot.numel() for slot in stream.slots] == [largest, largest]


def test_the_next_block_is_on_its_way_while_one_runs() -> None:
    blocks = nn.ModuleList(Probe(1.0, rows=4) for _ in range(3))
    stream = stream_blocks(nn.Sequential(*blocks), [blocks], "cpu")
    during: list[set[int | None]] = []
    for block in blocks:
        block.register_forward_pre_hook(lambda *_: during.append(set(stream.holds)))
    nn.Sequential(*blocks)(torch.zeros(1))
    assert during == [{0, 1}, {1, 2}, {2, 0}]
    assert stream.fetched == 4


def test_only_blocks_wait_in_the_packed_host_memory() -> None:
    model = streamed("cpu")
    hosts = {
        name for name, parameter in model.named_parameters() if parameter.untyped_storage().nbytes() > parameter.nbytes
    }
    assert hosts
    assert all(name.startswith(("double_blocks.", "single_blocks.")) for name in hosts)


def test_weights_too_large_for_the_device_stream() -> None:
    assert fits(90, 100)
    assert not fits(95, 100), "a reserve stays free"
    assert not fits(1, 0)
    assert streams("auto", 95, 100)
    assert not streams("auto", 90, 100)
    assert streams("always", 1, 100)
    assert not streams("never", 1000, 100)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_memory_that_cannot_be_locked_is_no_error_of_the_next_launch() -> None:
    host = torch.empty(4096, dtype=torch.uint8)
    pinned = pin([host, host])  # what is locked already is refused
    assert len(pinned) == 1
    assert torch.ones(2, device="cuda").sum().item() == 2
    unpin(pinned)
