"""A small catalogue for tests: one model that edits, one that does not, one that is only known by name."""

from dataclasses import replace

from farm.ports import Licence, ModelCard

OPEN = Licence(
    "Apache-2.0", "https://example.org", asks_filter_or_review=False, commercial_use=True, asks_acceptance=False
)
TINY = ModelCard(
    name="tiny",
    title="Tiny",
    licence=OPEN,
    edits=True,
    steps=8,
    max_steps=50,
    guidance=3.5,
    max_guidance=10.0,
    min_side=64,
    max_side=192,
    min_pixels=64 * 64,
    max_pixels=160 * 160,
    side=128,
    max_prompt=100,
)
CATALOGUE = {
    "tiny": TINY,
    "flat": replace(TINY, name="flat", edits=False),
    "later": replace(TINY, name="later", rendered=False),
}
