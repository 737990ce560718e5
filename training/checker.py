"""What a picture shows, told from its pixels alone, and whether that is what a scene asked for."""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from training.edits import Edit
from training.shapes import COLOURS, PLACES, SHAPES, SIZES, Item, Pixels, Scene, stencil

Mask = NDArray[np.bool_]
NAMES = tuple(COLOURS)
PALETTE = np.array(list(COLOURS.values()), np.float32)
FAR = 70.0  # from the nearest colour of the palette, as a distance in RGB: no colour at all
OFF = 45.0  # from the ground's colour: an item. Half the distance between the two nearest colours of the palette
LEAST_AREA = 0.006  # of the picture: smaller specks are not items
LEAST_OVERLAP = 0.78  # with the best template: less is no shape that we know
LIKENESS = 24  # rows and columns of a template
EDGES = 0.43, 0.57  # left and top end at the first, right and bottom begin at the second; drawn ones at 0.417 and 0.583
KEPT = 8.0  # of 255: the mean absolute difference up to which a part counts as kept


@dataclass(frozen=True)
class SeenItem:
    shape: str  # "" when no template fits
    colour: str
    size: str
    place: str
    mask: Mask


@dataclass(frozen=True)
class Seen:
    split: str
    ground: tuple[str, ...]
    items: tuple[SeenItem, ...]


def colour_index(picture: Pixels) -> NDArray[np.intp]:
    """The nearest colour of the palette for each pixel, -1 where none is near."""
    distance = np.sqrt(((picture[:, :, None].astype(np.float32) - PALETTE) ** 2).sum(-1))
    return np.where(distance.min(-1) < FAR, distance.argmin(-1), -1)


def commonest(index: NDArray[np.intp], least: float = 0.7) -> str:
    """The colour of most of these pixels, "" when there is none."""
    counts = np.bincount(index[index >= 0].ravel(), minlength=len(NAMES))
    return NAMES[int(counts.argmax())] if index.size and counts.max() >= least * index.size else ""


def see_ground(index: NDArray[np.intp]) -> tuple[str, tuple[str, ...]]:
    """The colours along the frame of the picture, which no item reaches."""
    frame = np.ones(index.shape, bool)
    frame[2:-2, 2:-2] = False
    whole = commonest(index[frame], 0.85)
    if whole:
        return "plain", (whole,)
    middle_row, middle_column = index.shape[0] // 2, index.shape[1] // 2
    rows, columns = np.indices(index.shape)
    for split, where, middle in (("sides", columns, middle_column), ("halves", rows, middle_row)):
        pair = tuple(commonest(index[frame & side], 0.8) for side in (where < middle - 2, where >= middle + 2))
        if all(pair) and pair[0] != pair[1]:
            return split, pair
    return "plain", ("",)


def ground_index(seen: tuple[str, tuple[str, ...]], shape: tuple[int, int]) -> NDArray[np.intp]:
    split, ground = seen
    index = np.full(shape, NAMES.index(ground[0]) if ground[0] else -1)
    if split == "sides":
        index[:, shape[1] // 2 :] = NAMES.index(ground[1])
    elif split == "halves":
        index[shape[0] // 2 :] = NAMES.index(ground[1])
    return index


def components(mask: Mask) -> list[Mask]:
    """Parts that hang together, diagonals included: each pixel takes the highest label around it until none changes."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        padded = np.pad(labels, 1)
        spread = labels.copy()
        for down in range(3):
            for across in range(3):
                np.maximum(spread, padded[down : down + mask.shape[0], across : across + mask.shape[1]], out=spread)
        spread[~mask] = 0
        if np.array_equal(spread, labels):
            return [labels == label for label in np.unique(labels[labels > 0])]
        labels = spread


def box_of(mask: Mask) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def likeness(mask: Mask) -> Mask:
    """The mask's box stretched to a standard size."""
    top, bottom, left, right = box_of(mask)
    rows = (top + (np.arange(LIKENESS) + 0.5) * (bottom - top) / LIKENESS).astype(int)
    columns = (left + (np.arange(LIKENESS) + 0.5) * (right - left) / LIKENESS).astype(int)
    stretched: Mask = mask[np.ix_(rows, columns)]
    return stretched


@cache
def templates() -> dict[str, Mask]:
    return {shape: likeness(stencil(shape, 100, 64, 64, (128, 128)) > 127) for shape in SHAPES}


def see_shape(mask: Mask) -> str:
    top, bottom, left, right = box_of(mask)
    if not 0.7 < (bottom - top) / (right - left) < 1.4:
        return ""
    small = likeness(mask)
    overlap = {name: (small & t).sum() / (small | t).sum() for name, t in templates().items()}
    best = max(overlap, key=lambda name: overlap[name])
    return best if overlap[best] >= LEAST_OVERLAP else ""


@cache
def extent(shape: str) -> float:
    """The longer side of a shape's box, of the width it is drawn with."""
    top, bottom, left, right = box_of(stencil(shape, 100, 64, 64, (128, 128)) > 127)
    return max(bottom - top, right - left) / 100


def see_size(mask: Mask, shape: str) -> str:
    """The word whose width is nearest; of a shape that we do not know, as if it filled its box."""
    top, bottom, left, right = box_of(mask)
    width = max(bottom - top, right - left) / (extent(shape) if shape else 1.0)
    return min(SIZES, key=lambda word: abs(SIZES[word] * min(mask.shape) - width))


def see_place(mask: Mask) -> str:
    """By the middle of the box; its area's centre of a triangle lies lower."""
    top, bottom, left, right = box_of(mask)
    where = []
    for low, high, side in ((left, right, mask.shape[1]), (top, bottom, mask.shape[0])):
        middle = (low + high) / 2 / side
        where.append(-1 if middle < EDGES[0] else 1 if middle > EDGES[1] else 0)
    return next(name for name, direction in PLACES.items() if direction == tuple(where))


def inner(mask: Mask) -> Mask:
    padded = np.pad(mask, 1)
    rows, columns = mask.shape
    shrunk = mask.copy()
    for down, across in ((0, 1), (2, 1), (1, 0), (1, 2)):
        shrunk &= padded[down : down + rows, across : across + columns]
    return shrunk if shrunk.any() else mask


def see(picture: Pixels) -> Seen:
    index = colour_index(picture)
    split, ground = see_ground(index)
    if not all(ground):
        return Seen(split, ground, ())  # nothing stands out from a ground that is no colour
    base = ground_index((split, ground), index.shape)
    colours = np.append(PALETTE, [[-999.0] * 3], axis=0)[base]
    differs = np.sqrt(((picture.astype(np.float32) - colours) ** 2).sum(-1)) > OFF
    bridge(differs, split)
    items = []
    for mask in components(differs):
        if mask.sum() >= LEAST_AREA * mask.size:
            shape, colour = see_shape(mask), commonest(index[inner(mask)])
            items.append(SeenItem(shape, colour, see_size(mask, shape), see_place(mask), mask))
    return Seen(split, ground, tuple(items))


def bridge(differs: Mask, split: str) -> None:
    """The two lines of pixels where two ground colours meet are of an item only where an item lies on both sides."""
    if split == "plain":
        return
    lines = differs.T if split == "sides" else differs
    middle = len(lines) // 2
    lines[middle - 1 : middle + 1] = lines[middle - 2] & lines[middle + 1]


def pairs(scene: Scene, seen: Seen) -> list[tuple[Item, SeenItem | None]]:
    """Each item asked for beside the seen one that fits it best: by colour and place, then by shape."""
    left = list(seen.items)
    matched: list[tuple[Item, SeenItem | None]] = []
    for item in scene.items:

        def fit(other: SeenItem, item: Item = item) -> int:
            return 2 * (other.colour == item.colour) + 2 * (other.place == item.place) + (other.shape == item.shape)

        best = max(left, key=fit, default=None)
        if best is not None:
            left.remove(best)
        matched.append((item, best))
    return matched


def judge(scene: Scene, picture: Pixels) -> dict[str, bool]:
    """What is right, of all items of the scene together; `count` says that nothing else is there."""
    seen = see(picture)
    matched = pairs(scene, seen)
    ground = (seen.split, seen.ground) == (scene.split, scene.ground)
    colours = all(other is not None and other.colour == item.colour for item, other in matched)
    return {
        "ground": ground,
        "colours": ground and colours,
        "shape": all(other is not None and other.shape == item.shape for item, other in matched),
        "size": all(other is not None and other.size == item.size for item, other in matched),
        "place": all(other is not None and other.place == item.place for item, other in matched),
        "count": len(seen.items) == len(scene.items),
    }


def grown(mask: Mask, by: int) -> Mask:
    padded = np.pad(mask, by)
    rows, columns = mask.shape
    around = [padded[d : d + rows, a : a + columns] for d in range(2 * by + 1) for a in range(2 * by + 1)]
    reached: Mask = np.logical_or.reduce(around)
    return reached


def untouched(edit: Edit, reference: Pixels, picture: Pixels) -> Mask:
    """Where the edit leaves the reference alone: away from the item that changes, or inside the items."""
    before, after = see(reference), see(picture)
    if edit.target is None:
        items = np.logical_or.reduce([np.zeros(picture.shape[:2], bool), *(item.mask for item in before.items)])
        return ~grown(~items, 2)
    changed = np.zeros(picture.shape[:2], bool)
    for scene, seen in ((edit.before, before), (edit.after, after)):
        matched = pairs(scene, seen)
        if edit.target < len(matched) and (edit.kind != "remove" or scene is edit.before):
            changed |= getattr(matched[edit.target][1], "mask", changed)
    return ~grown(changed, 3)


def judge_edit(edit: Edit, reference: Pixels, picture: Pixels) -> dict[str, bool]:
    """`made`: the picture shows the scene after the edit. `kept`: what the edit does not name has stayed as it was."""
    right = judge(edit.after, picture)
    rest = untouched(edit, reference, picture)
    difference = np.abs(picture.astype(np.float32) - reference.astype(np.float32)).mean(-1)
    return {"made": all(right.values()), "kept": bool(rest.any()) and float(difference[rest].mean()) <= KEPT}
