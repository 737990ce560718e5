"""Tensors of one part, read by our names: parts of a file are mapped, converted and copied into place, rows by rows."""

import mmap
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from actors.flux.choice import one
from actors.flux.containers import TensorSet, find
from actors.flux.headers import TensorInfo, WeightsError, refuse
from actors.flux.names import Named, Part
from actors.flux.quant import FP8, scale_of
from actors.flux.shapes import Sizes, Slice, expected
from actors.flux.sizes import deduce, differences

WINDOW = 2**20  # bytes mapped at once; a few windows are what reading costs beyond what it keeps
DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
EIGHT = DTYPES[FP8]
LARGEST = torch.finfo(EIGHT).max
FEW = 2**15  # numbers rounded to fp8 at once
SMALLEST = torch.finfo(torch.float32).tiny  # scale: a row of zeros has one too


class Run(NamedTuple):
    """Rows of a stored tensor and where they go."""

    source: str
    start: int
    rows: int
    to: int


class Checkpoint:
    def __init__(self, stored: TensorSet) -> None:
        self.stored = stored
        self.shapes = {name: tensor.shape for name, tensor in stored.named.items()}

    @cached_property
    def sizes(self) -> Sizes:
        return deduce(self.stored.part, self.shapes, self.stored.hints)

    def require(self, sizes: Sizes) -> None:
        """Raise unless the tensors are exactly those of a network of these sizes."""
        apart = differences(self.shapes, expected(sizes))
        if not apart.none:
            raise WeightsError(f"{self.stored.files[0]}: {apart}")

    def read(self, name: str, dtype: torch.dtype, slices: "Slice | Sequence[Slice] | None" = None) -> Tensor:
        """A tensor under our name, or the given parts of it end to end."""
        cuts = whole(self.tensor(name).shape) if slices is None else as_cuts(slices)
        out = torch.empty(sliced_shape(self.tensor(name).shape, cuts), dtype=dtype)
        self.read_into(out, name, cuts)
        return out

    def read_into(self, out: Tensor, name: str, slices: "Slice | Sequence[Slice] | None" = None) -> None:
        """Fill a tensor of the final type, on its final device; beyond it, at most a few windows are held."""
        tensor = self.tensor(name)
        cuts = whole(tensor.shape) if slices is None else as_cuts(slices)
        if tuple(out.shape) != sliced_shape(tensor.shape, cuts):
            raise WeightsError(f"{self.stored.files[0]}: {name} is {list(tensor.shape)}, not {list(out.shape)}")
        place = out.view(1) if out.ndim == 0 else out
        for at, rows in self.windows(tensor, cuts, out.device, scaled=out.dtype != EIGHT):
            place[at : at + len(rows)].copy_(columns(rows, cuts))

    def read_fp8(
        self, name: str, device: torch.device | str, slices: "Slice | Sequence[Slice] | None" = None
    ) -> tuple[Tensor, Tensor]:
        """A weight in fp8, and what each of its rows is to be multiplied by. One that is stored so comes as it is; of
        another each row is rounded by a scale of its own, which the whole row tells: the same on every rank."""
        tensor = self.tensor(name)
        cuts = whole(tensor.shape) if slices is None else as_cuts(slices)
        out = torch.empty(sliced_shape(tensor.shape, cuts), dtype=EIGHT, device=device)
        scale = torch.ones(len(out), 1, device=device)
        if name in self.stored.fp8:
            self.read_into(out, name, cuts)
            for run in runs(tensor, by_rows(cuts, tensor.shape)):
                if (factors := self.scale(run.source)) is not None:
                    scale[run.to : run.to + run.rows] = of_rows(factors, run.start, run.rows).to(device)
            return out, scale
        for first, window in self.windows(tensor, cuts, out.device):
            # Few rows at a time: what is made and freed between tensors that stay would leave holes in memory.
            few = max(1, FEW // tensor.shape[1])
            for at, rows in enumerate(window.split(few)):
                place = slice(first + at * few, first + at * few + len(rows))
                wide = rows.float()
                lowest, highest = wide.aminmax(dim=1, keepdim=True)
                scale[place] = (torch.maximum(-lowest, highest) / LARGEST).clamp_(min=SMALLEST)
                out[place] = columns(wide.div_(scale[place]), cuts).to(EIGHT)
        return out, scale

    def windows(
        self, tensor: Named, cuts: Sequence[Slice], device: torch.device, *, scaled: bool = True
    ) -> Iterator[tuple[int, Tensor]]:
        """The rows in which the cuts lie, whole, a window at a time, each with the row of the result it goes to."""
        for run in runs(tensor, by_rows(cuts, tensor.shape)):
            for at, rows in self.rows(run, device, scaled=scaled):
                # A stored tensor may have fewer dimensions than ours (1x1 convolutions kept as linears).
                yield at, rows.view(len(rows), *tensor.shape[1:])

    def tensor(self, name: str) -> Named:
        if name not in self.stored.named:
            raise WeightsError(f"{self.stored.files[0]}: {name} is not in it")
        return self.stored.named[name]

    def rows(self, run: Run, device: torch.device, *, scaled: bool) -> Iterator[tuple[int, Tensor]]:
        """The run in steps of a window, each on the device, multiplied by its scale or not, with the row it goes to."""
        info = self.stored.tensors[run.source]
        scale = self.scale(run.source) if scaled else None
        step = max(1, WINDOW // max(1, info.nbytes // max(1, rows_of(info))))
        for start in range(run.start, run.start + run.rows, step):
            count = min(step, run.start + run.rows - start)
            rows = mapped(info, start, count).to(device)
            if scale is not None:
                rows = rows.float().mul_(of_rows(scale, start, count).to(device))
            yield run.to + start - run.start, rows

    def scale(self, source: str) -> Tensor | None:
        info = scale_of(source, self.stored.tensors)
        if info is None:
            return None
        dims = len(self.stored.tensors[source].shape) - 1
        return mapped(info, 0, rows_of(info)).float().view(-1, *[1] * dims)


def open_checkpoint(source: Path | TensorSet, part: Part = "transformer") -> Checkpoint:
    return Checkpoint(stored_part(source, part))


def stored_part(source: Path | TensorSet, part: Part) -> TensorSet:
    return source if isinstance(source, TensorSet) else one(find(source), part)


def whole(shape: tuple[int, ...]) -> tuple[Slice, ...]:
    return (Slice(0, 0, shape[0] if shape else 1),)


def by_rows(cuts: Sequence[Slice], shape: tuple[int, ...]) -> Sequence[Slice]:
    """The rows in which the cuts lie."""
    return cuts if cuts[0].dim == 0 else whole(shape)


def of_rows(scale: Tensor, start: int, rows: int) -> Tensor:
    return scale if len(scale) == 1 else scale[start : start + rows]


def as_cuts(slices: Slice | Sequence[Slice]) -> tuple[Slice, ...]:
    cuts = (slices,) if isinstance(slices, Slice) else tuple(slices)
    if not cuts or len({cut.dim for cut in cuts}) != 1:
        raise ValueError("slices of one tensor lie along one dimension")
    return cuts


def sliced_shape(shape: tuple[int, ...], cuts: Sequence[Slice]) -> tuple[int, ...]:
    if not shape:
        return shape
    dim = cuts[0].dim
    if not 0 <= dim < len(shape) or not all(0 <= cut.start <= cut.start + cut.length <= shape[dim] for cut in cuts):
        raise ValueError(f"{cuts} do not lie in a tensor of {list(shape)}")
    return (*shape[:dim], sum(cut.length for cut in cuts), *shape[dim + 1 :])


def runs(tensor: Named, cuts: Sequence[Slice]) -> Iterator[Run]:
    """Which rows of which stored tensors make up the given ranges of rows."""
    to = 0
    for cut in cuts:
        first = 0  # our row at which the piece begins
        for piece in tensor.pieces:
            low, high = max(cut.start, first), min(cut.start + cut.length, first + piece.rows)
            if low < high:
                yield Run(piece.source, piece.start + low - first, high - low, to + low - cut.start)
            first += piece.rows
        to += cut.length


def columns(rows: Tensor, cuts: Sequence[Slice]) -> Tensor:
    """What the cuts leave of whole rows; cuts along the rows have been made already."""
    if cuts[0].dim == 0:
        return rows
    return torch.cat([rows.narrow(cut.dim, cut.start, cut.length) for cut in cuts], dim=cuts[0].dim)


def rows_of(info: TensorInfo) -> int:
    return info.shape[0] if info.shape else 1


def mapped(info: TensorInfo, start: int, count: int) -> Tensor:
    """Some rows of a stored tensor as they lie in the file. The mapping lives as long as the result."""
    if info.dtype not in DTYPES:
        refuse(info.path, f"a tensor of type {info.dtype} cannot be read as numbers")
    tail = info.shape[1:]
    nbytes = info.nbytes // max(1, rows_of(info)) * count
    if nbytes == 0:
        return torch.empty((count, *tail), dtype=DTYPES[info.dtype])
    at = info.start + info.nbytes // rows_of(info) * start
    page = at - at % mmap.ALLOCATIONGRANULARITY
    try:
        with info.path.open("rb") as file:
            # A private, writable mapping: torch warns of read-only memory; the file is never written.
            window = mmap.mmap(file.fileno(), at - page + nbytes, access=mmap.ACCESS_COPY, offset=page)
    except (OSError, ValueError) as error:
        raise WeightsError(f"{info.path}: changed while it was read: {error}") from error
    dtype = DTYPES[info.dtype]
    return torch.frombuffer(window, dtype=dtype, offset=at - page, count=nbytes // dtype.itemsize).view(count, *tail)
