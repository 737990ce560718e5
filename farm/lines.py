"""One line of a batch: from its JSON text to what it asks for, or to everything that is wrong with it. Pure."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from farm.errors import nearest
from farm.job import FORMATS, Spec
from farm.ports import ModelCard
from farm.sizes import nearest_side, nearest_size, of_ratio

SIZE_FIELDS = {"width", "height", "aspect_ratio"}
PICTURE_FIELDS = {"prompt", "model", "seed", "steps", "guidance", "image", "format"} | SIZE_FIELDS
FIELDS = frozenset(PICTURE_FIELDS | {"n", "id", "priority"})
MAX_N = 64
MAX_UNKNOWN = 20  # unknown fields told one by one
MAX_PRIORITY = 100
MAX_SEED = 2**53 - 1  # what every JSON reader keeps exactly
RATIO = re.compile(r"([1-9]\d{0,3}):([1-9]\d{0,3})")
NAME = re.compile(r"[\w.-]{1,100}")
IMAGE = re.compile(r"(?P<upload>up_[0-9a-f]{32})|job:(?P<job>[1-9]\d{0,17})|line:(?P<line>[\w.-]{1,100})")


@dataclass(frozen=True, slots=True)
class BadLine:
    line: int
    field: str
    reason: str


@dataclass(frozen=True, slots=True)
class Line:
    """A good line. It makes n jobs, with the seeds spec.seed, spec.seed + 1, ..."""

    number: int
    spec: Spec
    n: int = 1
    id: str | None = None
    priority: int = 0
    upload: str | None = None
    picture: str | None = None  # the store key of its upload, once it is looked up
    job: int | None = None  # the job it edits
    line: str | None = None  # the id of the line it edits
    sized: bool = True  # False: it says no size, and has that of the picture it edits once it is looked up


def parse_line(
    number: int,
    text: bytes,
    catalogue: Mapping[str, ModelCard],
    default_model: str | None = None,
    refused: Mapping[str, str] = MappingProxyType({}),
) -> Line | list[BadLine]:
    """`refused`: models of which no job is taken now, and why.

    A missing seed is derived from the line's number and prompt, so that the same file asks for the same images.
    """
    try:
        values = decode(text)
    except ValueError as error:
        return [BadLine(number, "line", str(error))]
    fields = _Fields(number, values)
    fields.refuse_unknown()
    card = _model(fields, catalogue, default_model)
    if card is not None and card.name in refused:
        fields.note("model", refused[card.name])
    line = _line(fields, card, catalogue) if card else None
    return fields.bad or ([] if line is None else line)


def derived_seed(number: int, prompt: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{number}\n{prompt}".encode()).digest()[:4])


class _Fields:
    """The fields of one line, read one by one: whatever is wrong is noted, and the reading goes on with the default."""

    def __init__(self, number: int, values: dict[str, Any]) -> None:
        self.number, self.values = number, values
        self.bad: list[BadLine] = []

    def note(self, field: str, reason: str) -> None:
        self.bad.append(BadLine(self.number, field, reason))

    def refuse_unknown(self) -> None:
        unknown = sorted(self.values.keys() - FIELDS)
        for name in unknown[:MAX_UNKNOWN]:
            self.note(_show(name)[1:-1], f"unknown field: {nearest(name, FIELDS)}")
        if more := len(unknown[MAX_UNKNOWN:]):
            self.note("line", f"has {more:,} more unknown fields")

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        value = self.values.get(name)
        if value is None:
            return default
        if type(value) is not int:
            self.note(name, f"must be a whole number, not {_show(value)}")
        elif not low <= value <= high:
            self.note(name, f"must be between {low} and {high}, not {_show(value)}")
        else:
            return value
        return default

    def real(self, name: str, default: float, high: float) -> float:
        value = self.values.get(name)
        if value is None:
            return default
        if type(value) not in (int, float):
            self.note(name, f"must be a number, not {_show(value)}")
        elif not 0 <= value <= high:
            self.note(name, f"must be between 0 and {high:g}, not {_show(value)}")
        else:
            return float(value)
        return default

    def text(self, name: str) -> str | None:
        value = self.values.get(name)
        if value is None or isinstance(value, str):
            return value
        self.note(name, f"must be text, not {_show(value)}")
        return None


def decode(text: bytes) -> dict[str, Any]:
    """The fields of a line, or a ValueError that says what keeps it from being one."""
    try:
        values = json.loads(text.decode(), parse_constant=_no_constant, object_pairs_hook=_no_duplicates)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start + 1}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(values, dict):
        raise ValueError(  # noqa: TRY004
            f'must be one JSON object, such as {{"prompt": "a red circle"}}, not {_show(values)}'
        )
    return values


def _no_constant(word: str) -> Any:
    raise ValueError(f"not JSON: {word} is not a number")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name in counts if counts[name] > 1)
        raise ValueError(f"the field {_show(twice)} stands there twice")
    return values


def _model(fields: _Fields, catalogue: Mapping[str, ModelCard], default: str | None) -> ModelCard | None:
    asked = fields.text("model")
    rendered = {name: card for name, card in catalogue.items() if card.rendered}
    if fields.values.get("model") is not None and asked is None:
        return None
    name = asked if asked is not None else default
    if name is None:
        fields.note("model", f"which one? known: {', '.join(sorted(rendered))}")
    elif name not in catalogue:
        fields.note("model", f"unknown model {_show(name)}: {nearest(name, rendered)}")
    elif name not in rendered:
        fields.note("model", f"{name} is known but not rendered yet: {nearest(name, rendered)}")
    return rendered.get(name or "")


def _line(fields: _Fields, card: ModelCard, catalogue: Mapping[str, ModelCard]) -> Line:
    prompt = _prompt(fields, card)
    n = fields.integer("n", 1, 1, MAX_N)
    seed = fields.integer("seed", derived_seed(fields.number, prompt), 0, MAX_SEED - n + 1)
    image = _image(fields, card, catalogue)
    width, height = _size(fields, card)
    spec = Spec(
        card.name,
        prompt,
        seed,
        width,
        height,
        steps=fields.integer("steps", card.steps, 1, card.max_steps),
        guidance=fields.real("guidance", card.guidance, card.max_guidance),
        format=_format(fields),
        edit=bool(image),
    )
    at = fields.integer("priority", 0, -MAX_PRIORITY, MAX_PRIORITY)
    job = int(image["job"]) if image.get("job") else None
    sized = not image or any(fields.values.get(name) is not None for name in SIZE_FIELDS)
    upload, parent = image.get("upload"), image.get("line")
    return Line(fields.number, spec, n, _id(fields), at, upload, job=job, line=parent, sized=sized)


def _prompt(fields: _Fields, card: ModelCard) -> str:
    prompt = fields.text("prompt")
    if prompt is None:
        if fields.values.get("prompt") is None:
            fields.note("prompt", "is missing")
        return ""
    if not prompt.strip():
        fields.note("prompt", "is empty")
    elif len(prompt) > card.max_prompt:
        fields.note("prompt", f"has {len(prompt)} characters; {card.name} takes at most {card.max_prompt}")
    elif not prompt.isprintable() and (strange := _strange(prompt)):
        fields.note("prompt", f"holds the control character U+{ord(strange):04X}: remove it")
    else:
        return prompt
    return ""


def _strange(prompt: str) -> str | None:
    """Control characters and lone surrogates: no tokenizer knows them, and PostgreSQL cannot keep them all."""
    return next((c for c in prompt if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\r\t"), None)


def _id(fields: _Fields) -> str | None:
    name = fields.text("id")
    if name is not None and not NAME.fullmatch(name):
        fields.note("id", f"must be 1 to 100 letters, digits, '.', '_' or '-', not {_show(name)}")
    return name


def _format(fields: _Fields) -> str:
    name = fields.text("format")
    if name is None or name in FORMATS:
        return name or "png"
    fields.note("format", f"unknown format {_show(name)}: {nearest(name, FORMATS)}")
    return "png"


def _image(fields: _Fields, card: ModelCard, catalogue: Mapping[str, ModelCard]) -> dict[str, str]:
    value = fields.text("image")
    if value is None:
        return {}
    match = IMAGE.fullmatch(value)
    if match is None:
        fields.note("image", f"must be an upload's id, job:ID or line:ID, not {_show(value)}: upload the file first")
        return {}
    if not card.edits:
        able = sorted(name for name, other in catalogue.items() if other.edits and other.rendered)
        fields.note("image", f"{card.name} does not edit images; these do: {', '.join(able) or 'none'}")
    return {key: found for key, found in match.groupdict().items() if found}


def _size(fields: _Fields, card: ModelCard) -> tuple[int, int]:
    given = {name for name in ("width", "height") if fields.values.get(name) is not None}
    if fields.values.get("aspect_ratio") is not None:
        if given:
            fields.note("aspect_ratio", "give an aspect ratio or a width and height, not both")
        return _from_ratio(fields, card)
    sides = {name: fields.integer(name, card.side, 1, 10**6) for name in ("width", "height")}
    off = {name: right for name, side in sides.items() if (right := nearest_side(side, card)) != side}
    for name, right in off.items():
        draws = f"{card.name} draws multiples of {card.grid} from {card.min_side} to {card.max_side}"
        fields.note(name, f"{draws}; the nearest to {sides[name]} is {right}")
    width, height = sides["width"], sides["height"]
    across, down = nearest_size(width, height, card)
    if not off and (width, height) != (across, down):
        draws = f"{card.name} draws {card.min_pixels} to {card.max_pixels} pixels"
        fields.note("width", f"{draws}, and {width}x{height} is {width * height}; the nearest is {across}x{down}")
    return width, height


def _from_ratio(fields: _Fields, card: ModelCard) -> tuple[int, int]:
    value = fields.text("aspect_ratio")
    match = RATIO.fullmatch(value) if value else None
    if match is None:
        fields.note("aspect_ratio", f'must be such as "16:9", not {_show(fields.values["aspect_ratio"])}')
        return card.side, card.side
    width, height, fits = of_ratio(int(match[1]) / int(match[2]), card)
    if not fits:
        fields.note("aspect_ratio", f"{value} does not fit {card.name}; the nearest it draws is {width}x{height}")
    return width, height


def _show(value: Any) -> str:
    """A stranger's value, short and printable."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
