"""Files whose headers are well formed and whose tensors make no sense."""

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.flux.check import check
from actors.flux.headers import BITS
from actors.flux.names import flux_modules, vae_modules
from actors.flux.shapes import expected
from actors.flux.weights import WeightsError, load_flux, load_vae
from tests.flux import containers_kit as kit

DIFFUSERS_NAMES = [
    f"{module}.weight"
    for modules in (
        flux_modules(["transformer_blocks.0.x", "single_transformer_blocks.0.x"]),
        vae_modules(["encoder.down_blocks.1.resnets.0.x", "decoder.up_blocks.1.resnets.0.x"]),
    )
    for sources in modules.values()
    for module in sources
]
NAMES = [
    *expected(kit.FLUX), *expected(kit.VAE), *expected(kit.T5), *expected(kit.CLIP), *DIFFUSERS_NAMES,
    "double_blocks.999.x", "double_blocks.99999999999999999999.x", "double_blocks.-1.x", "double_blocks..x",
    "encoder.block.7.x", "text_model.embeddings.token_embedding.weight", "model.diffusion_model.img_in.weight",
    "vae.decoder.conv_in.weight",
]  # fmt: skip
CHANGED = [
    "img_in.weight", "img_in.weight_scale", "img_in.scale_weight", "img_in.comfy_quant", "img_in.bias", "scaled_fp8",
    "double_blocks.0.img_attn.norm.query_norm.scale", "encoder.embed_tokens.weight",
]  # fmt: skip
described = st.tuples(
    st.sampled_from(["F32", "BF16", "F8_E4M3", "U8", "I64", "F4"]),
    st.sampled_from([[], [0], [1], [32], [64], [32, 1], [32, 64], [2**20, 64], [1, 32, 64], [0, 64]]),
)
tensors = st.dictionaries(st.sampled_from(NAMES), described, min_size=1, max_size=12)
quantisation = st.none() | st.sampled_from(
    ["", "[", "[]", "{}", '{"layers": 3}', '{"layers": {"a": "x"}}', '{"layers": {"a": {"format": "float8_e4m3fn"}}}']
)


def write_header(path: Path, table: dict[str, tuple[str, list[int]]], metadata: str | None) -> None:
    at = 0
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": {"_quantization_metadata": metadata}}
    for name, (dtype, shape) in table.items():
        shape = shape if math.prod(shape) * BITS[dtype] % 8 == 0 else [0]  # noqa: PLW2901
        nbytes = math.prod(shape) * BITS[dtype] // 8
        if at + nbytes > 2**42:
            continue
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + nbytes]}
        at += nbytes
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)


@settings(max_examples=250)
@given(table=tensors, metadata=quantisation)
def test_every_table_of_tensors_gets_a_report_and_nothing_loads(
    tmp_path_factory: pytest.TempPathFactory, table: dict[str, tuple[str, list[int]]], metadata: str | None
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    write_header(path, table, metadata)
    report = check(path)
    assert not report.loads, "twelve tensors are no model"
    assert report.problems or report.known
    for load in (load_flux, load_vae):
        with pytest.raises(WeightsError):
            load(path, None, "cpu", torch.float32)


@settings(max_examples=250)
@given(
    changes=st.dictionaries(st.sampled_from(CHANGED), st.none() | described, min_size=1, max_size=4),
    metadata=quantisation,
)
def test_a_good_model_with_some_tensors_changed_loads_or_says_why_not(
    tmp_path_factory: pytest.TempPathFactory,
    changes: dict[str, tuple[str, list[int]] | None],
    metadata: str | None,
) -> None:
    folder = tmp_path_factory.getbasetemp() / "changed"
    kit.write_config(folder)
    table = {name: ("F8_E4M3", list(shape)) for name, shape in expected(kit.FLUX).items()}
    for name, change in changes.items():
        if change is None:
            table.pop(name, None)
        else:
            table[name] = change
    write_header(folder / "fuzz.safetensors", table, metadata)
    report = check(folder / "fuzz.safetensors")
    try:
        load_flux(folder / "fuzz.safetensors", None, "cpu", torch.float32)
    except WeightsError:
        # Only the documents among the data are left to the loader: headers tell everything else.
        assert not report.loads or "img_in.comfy_quant" in changes
    else:
        assert report.loads
