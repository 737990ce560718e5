"""Pictures with something to see at every scale, drawn from a seed alone; and copies of them as people make them."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from farm.ports import Frame
from safety.clip import as_image

GRIDS = (4, 8, 16, 32, 64, 128)


def textured(seed: int, width: int = 512, height: int = 512) -> Frame:
    """Each channel is a sum of noise at several scales, the fine ones fainter than the coarse ones."""
    random = np.random.default_rng(seed)
    noise = [random.normal(size=(3, grid, grid)) / grid**0.8 for grid in GRIDS]
    laid = sum(_spread(height, len(one[0])) @ one @ _spread(width, len(one[0])).T for one in noise)
    shade = np.clip(0.5 + laid / np.std(laid) / 5, 0.05, 0.9)
    return Frame(width, height, np.moveaxis(shade * 255, 0, -1).round().astype(np.uint8).tobytes())


def _spread(length: int, grid: int) -> NDArray[np.float64]:
    """How much each point of a grid counts for each pixel of a side: it fades towards its neighbours."""
    places = np.linspace(0, grid - 1, length)[:, None]
    near: NDArray[np.float64] = np.clip(1 - np.abs(places - np.arange(grid)), 0, 1)
    return near


def reencoded(frame: Frame, kind: str, quality: int) -> Frame:
    data = io.BytesIO()
    as_image(frame).save(data, kind, quality=quality)
    with Image.open(data) as image:
        return of(image)


def scaled(frame: Frame, by: float) -> Frame:
    size = round(frame.width * by), round(frame.height * by)
    return of(as_image(frame).resize(size, Image.Resampling.LANCZOS))


def brightened(frame: Frame, by: float) -> Frame:
    return of(ImageEnhance.Brightness(as_image(frame)).enhance(by))


def of(image: Image.Image) -> Frame:
    return Frame(image.width, image.height, image.convert("RGB").tobytes())
