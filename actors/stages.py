"""What of a picture's making a process does, and what it hands to the process that does the next of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from actors.flux.names import PARTS, Part
from farm.errors import Fault
from farm.ports import Rendered, RenderRequest


class Stage(StrEnum):
    ENCODE = "encode"
    DENOISE = "denoise"
    DECODE = "decode"


WHOLE = tuple(Stage)
NEEDS: dict[Stage, tuple[Part, ...]] = {
    Stage.ENCODE: ("t5", "clip", "vae"),  # the autoencoder for the picture that is edited
    Stage.DENOISE: ("transformer",),
    Stage.DECODE: ("vae",),
}


def parts_of(stages: Collection[Stage]) -> tuple[Part, ...]:
    needed = {part for stage in stages for part in NEEDS[stage]}
    return tuple(part for part in PARTS if part in needed)


def asked(model: str, stages: Collection[Stage]) -> str:
    """What a job asks for, to have these stages done: its model, or a stage of it that runs apart."""
    return model if Stage.DENOISE in stages else f"{model}/{next(iter(stages))}"


@dataclass(frozen=True, slots=True)
class Made:
    """Of one job, from one rank to another; on the CPU."""

    value: Any  # an `Encoded`, or the latents of a picture
    gang: str
    weights: str
    by: str  # the kind of device, and the precision as set
    drawn_with: str = ""  # of what draws: as `Rendered` has it


@dataclass(frozen=True, slots=True)
class Passed:
    """That it was made, for the dispatcher, which never holds it."""

    made: Any  # Ray's reference to a `Made`
    seconds: float


class LostOnItsWay(Fault):
    """What a stage has made went with its node before the next stage had it."""


Answers = Sequence[Rendered | Passed | Fault]


def along(
    path: Sequence[str],
    requests: Sequence[RenderRequest],
    ask: Callable[[str, Sequence[RenderRequest], Sequence[Any]], Answers],
) -> list[Rendered | Fault]:
    """Each request goes from stage to stage until one answers it for good: with a picture, or with what went wrong."""
    final: dict[int, Rendered | Fault] = {}
    going, given = list(range(len(requests))), list[Any]()
    for asked_for in path if requests else ():
        got = dict(zip(going, ask(asked_for, [requests[number] for number in going], given), strict=True))
        final |= {number: answer for number, answer in got.items() if not isinstance(answer, Passed)}
        passed = {number: answer.made for number, answer in got.items() if isinstance(answer, Passed)}
        going, given = list(passed), list(passed.values())
        if not going:
            break
    return [final[number] for number in range(len(requests))]
