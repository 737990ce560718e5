"""A small catalogue for tests: one model that edits, one that does not, one that is only known by name."""

from dataclasses import replace

from actors import cards

TINY = replace(
    cards.TINY, min_side=64, min_pixels=64 * 64, max_pixels=160 * 160, sizes=(), max_guidance=10.0, max_prompt=100
)
CATALOGUE = {
    "tiny": TINY,
    "flat": replace(TINY, name="flat", edits=False),
    "later": replace(TINY, name="later", rendered=False),
}
