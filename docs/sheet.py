"""One picture of what `farm demo` or `farm download` wrote, image over prompt: python docs/sheet.py DIR OUT.png"""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

CELL, TEXT, GAP, ACROSS = 192, 62, 16, 5


def sheet(folder: Path) -> Image.Image:
    rows = [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]
    made = [row for row in rows if row["file"]]
    down = -(-len(made) // ACROSS)
    size = (GAP + ACROSS * (CELL + GAP), GAP + down * (CELL + TEXT + GAP))
    whole = Image.new("RGB", size, "#f6f6f3")
    draw, font = ImageDraw.Draw(whole), ImageFont.load_default(13)
    for number, row in enumerate(made):
        left = GAP + number % ACROSS * (CELL + GAP)
        top = GAP + number // ACROSS * (CELL + TEXT + GAP)
        with Image.open(folder / row["file"]) as image:
            whole.paste(image.convert("RGB"), (left + (CELL - image.width) // 2, top + (CELL - image.height) // 2))
        for line, text in enumerate(textwrap.wrap(row["prompt"], 32)[:3]):
            draw.text((left, top + CELL + 4 + 17 * line), text, fill="#1b1c1e", font=font)
    return whole


if __name__ == "__main__":
    sheet(Path(sys.argv[1])).save(sys.argv[2], optimize=True)
