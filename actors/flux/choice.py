"""Which of several stored parts a model is drawn with. No torch, no tensor read."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

from actors.flux.config import FluxConfig, VaeConfig
from actors.flux.containers import Found, TensorSet
from actors.flux.headers import WeightsError
from actors.flux.memory import held_bytes
from actors.flux.names import PARTS, Part
from actors.flux.quant import Fp8, kept_in_fp8
from actors.flux.shapes import ClipSizes, Sizes, T5Sizes, expected
from actors.flux.sizes import Differences, deduce, differences

USUAL: dict[Part, tuple[str, ...]] = {  # how files begin that go with FLUX.1: Stable Diffusion 3 has its shapes
    "vae": ("ae", "flux"),
    "t5": ("t5xxl", "t5-v1_1-xxl"),
    "clip": ("clip_l",),
}


@dataclass(frozen=True)
class PartReport:
    part: Part
    files: tuple[str, ...]
    precision: str
    nbytes: int  # as stored
    parameters: int
    sizes: Sizes | None
    differences: Differences
    problem: str = ""  # why no sizes follow, if none do
    fp8: frozenset[str] = frozenset()  # the weights of linears that are stored so

    @property
    def loads(self) -> bool:
        return self.sizes is not None and self.differences.none

    def keeps(self, fp8: Fp8) -> frozenset[str]:
        """The weights that stay in fp8 on the device."""
        return kept_in_fp8(fp8, self.fp8, expected(self.sizes)) if self.sizes else frozenset()

    def held(self, ranks: int, precision: str, fp8: Fp8) -> dict[str, int]:
        """The bytes of each tensor that one of so many ranks keeps."""
        return held_bytes(self.sizes, ranks, precision, self.keeps(fp8)) if self.sizes else {}


def report_part(stored: TensorSet) -> PartReport:
    shapes = {name: tensor.shape for name, tensor in stored.named.items()}
    try:
        sizes: Sizes | None = deduce(stored.part, shapes, stored.hints)
        problem = ""
    except WeightsError as error:
        sizes, problem = None, str(error)
    return PartReport(
        part=stored.part,
        files=tuple(str(file) for file in stored.files),
        precision=stored.precision,
        nbytes=stored.nbytes,
        parameters=sum(prod(shape) for shape in shapes.values()),
        sizes=sizes,
        differences=differences(shapes, expected(sizes)) if sizes else Differences(),
        problem=problem,
        fp8=stored.fp8,
    )


def objection(part: PartReport, transformer: PartReport | None) -> str:
    """Why a part cannot serve this transformer; empty where it can."""
    if not part.loads:
        return part.problem or str(part.differences)
    if transformer is None or not isinstance(transformer.sizes, FluxConfig):
        return ""
    match part.sizes:
        case VaeConfig(z_channels=depth):
            gives, takes = 4 * depth, transformer.sizes.in_channels  # a token is 2x2 latent pixels
        case T5Sizes(d_model=gives):
            takes = transformer.sizes.context_in_dim
        case ClipSizes(hidden_size=gives):
            takes = transformer.sizes.vec_in_dim
        case _:
            return ""
    misfit = f"gives {gives} channels and the transformer takes {takes}; use the {part.part} that came with it"
    return "" if gives == takes else misfit


def called_as_usual(stored: TensorSet, usual: Sequence[str]) -> bool:
    return stored.files[0].stem.lower().startswith(tuple(usual))


def preference(stored: TensorSet, usual: Sequence[str]) -> tuple[bool, bool, bool, str]:
    """Sorts first what has a usual name, then what begins so, then what is more precise, then by the alphabet."""
    file = stored.files[0]
    unusual = not called_as_usual(stored, usual)
    return file.stem.lower() not in usual, unusual, "fp8" in stored.precision, file.name


def fitting(sets: Iterable[TensorSet], transformer: TensorSet | None) -> dict[Part, TensorSet]:
    """A transformer with the preferred set for every other part, of those that load and fit it."""
    taken: dict[Part, TensorSet] = {"transformer": transformer} if transformer else {}
    report = report_part(transformer) if transformer else None
    others = (each for each in sets if each.part != "transformer")
    for each in sorted(others, key=lambda each: preference(each, USUAL[each.part])):
        if each.part not in taken and not objection(report_part(each), report):
            taken[each.part] = each
    return {part: taken[part] for part in PARTS if part in taken}


def fullest(sets: Sequence[TensorSet]) -> dict[Part, TensorSet]:
    """Of the transformers that load the first for which most parts are there; without one, what there is."""
    transformers = [each for each in sets if each.part == "transformer" and report_part(each).loads]
    return max((fitting(sets, each) for each in transformers or (None,)), key=len)


def one(found: Found, part: Part) -> TensorSet:
    """The set that a part is read from: the one that what is there is drawn with; a transformer stands alone."""
    sets = [each for each in found.sets if each.part == part]
    if not sets:
        reasons = "; ".join((*found.refused, *found.known)) or "nothing of it is there"
        raise WeightsError(f"{found.path}: no {part} can be read: {reasons}")
    if part == "transformer" and len(sets) > 1:
        names = ", ".join(sorted(each.files[0].name for each in sets))
        raise WeightsError(f"{found.path}: several transformers; name one of them: {names}")
    return fullest(found.sets).get(part, sets[0])
