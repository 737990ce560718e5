"""The catalogue as data: each model's limits, its licence, and the usual names of its files in a ComfyUI folder."""

from dataclasses import replace

from farm.ports import Licence, ModelCard

APACHE = Licence(
    "Apache-2.0",
    "https://www.apache.org/licenses/LICENSE-2.0",
    asks_filter_or_review=False,
    commercial_use=True,
    asks_acceptance=False,
)
# Clause 2(e): filter what is made or review it before anyone else sees it, and disclose AI where the law asks for it.
FLUX_1_DEV = Licence(
    "FLUX.1 [dev] Non-Commercial License v1.1.1",
    "https://huggingface.co/black-forest-labs/FLUX.1-dev/blob/main/LICENSE.md",
    asks_filter_or_review=True,
    commercial_use=False,
    asks_acceptance=True,
)
FLUX_DEV_2 = Licence(
    "FLUX [dev] Non-Commercial License v2.0",
    "https://huggingface.co/black-forest-labs/FLUX.2-dev/blob/main/LICENSE.md",
    asks_filter_or_review=True,
    commercial_use=False,
    asks_acceptance=True,
)

TEXT_FILES = (
    "text_encoders/t5xxl_fp16.safetensors",
    "text_encoders/clip_l.safetensors",
    "tokenizers/t5",
    "tokenizers/clip",
)
DEV = ModelCard(
    name="flux1-dev",
    title="FLUX.1 dev",
    licence=FLUX_1_DEV,
    edits=False,
    steps=28,
    max_steps=100,
    guidance=3.5,
    max_guidance=10.0,
    min_side=128,
    max_side=4096,
    min_pixels=100_000,
    max_pixels=2**21,
    side=1024,
    max_prompt=2000,  # 512 tokens of T5
    files=("diffusion_models/flux1-dev.safetensors", "vae/ae.safetensors", *TEXT_FILES),
)
KONTEXT = replace(
    DEV,
    name="flux1-kontext-dev",
    title="FLUX.1 Kontext dev",
    edits=True,
    steps=30,
    guidance=2.5,
    files=("diffusion_models/flux1-kontext-dev.safetensors", *DEV.files[1:]),
)
SCHNELL = replace(
    DEV,
    name="flux1-schnell",
    title="FLUX.1 schnell",
    licence=APACHE,
    steps=4,
    max_steps=16,
    guidance=0.0,  # it has no guidance embedding
    max_guidance=0.0,
    max_prompt=1000,  # 256 tokens of T5
    files=("diffusion_models/flux1-schnell.safetensors", *DEV.files[1:]),
)
ACROSS = ((128, 96), (144, 96), (176, 96), (192, 96))  # the tiny one has learnt these, and their uprights
TINY = replace(
    DEV,
    name="tiny",
    title="Tiny FLUX.1 of drawn shapes",
    licence=APACHE,
    edits=True,
    steps=8,
    max_steps=50,
    max_guidance=5.0,
    min_side=96,
    max_side=192,
    min_pixels=96 * 96,
    max_pixels=192 * 192,
    side=128,
    sizes=((128, 128), *ACROSS, *((down, across) for across, down in ACROSS)),
    max_prompt=200,
    files=(
        "diffusion_models/tiny-flux.safetensors",
        "vae/ae.safetensors",
        "text_encoders/t5xxl.safetensors",
        *TEXT_FILES[1:],
    ),
)
FLUX_2 = replace(
    DEV,
    name="flux2-dev",
    title="FLUX.2 dev",
    licence=FLUX_DEV_2,
    edits=True,
    steps=50,
    guidance=4.0,
    rendered=False,
    files=("diffusion_models/flux2-dev.safetensors",),
)
KLEIN_9B = replace(
    FLUX_2,
    name="flux2-klein-9b",
    title="FLUX.2 klein 9B",
    steps=4,
    guidance=0.0,
    max_guidance=0.0,
    files=("diffusion_models/flux-2-klein-9b.safetensors",),
)
KLEIN_4B = replace(
    KLEIN_9B,
    name="flux2-klein-4b",
    title="FLUX.2 klein 4B",
    licence=APACHE,
    files=("diffusion_models/flux-2-klein-4b.safetensors",),
)
CARDS = (TINY, SCHNELL, DEV, KONTEXT, FLUX_2, KLEIN_9B, KLEIN_4B)
TEXT_TOKENS = {"tiny": 40, "flux1-schnell": 256}  # of T5; 512 for the others
COMFYUIS_NAMES = {KONTEXT.name: "flux1-dev-kontext"}  # beside the makers' own, which the cards have
