"""Which network a set of tensor names belongs to: the parts of FLUX.1, and the neighbours users mix up with them."""

from collections.abc import Mapping
from typing import NamedTuple

from actors.flux.headers import Header, NotRendered, TensorInfo, WeightsError
from actors.flux.names import Part


class Sign(NamedTuple):
    """Every one of these texts occurs in some tensor's name."""

    texts: tuple[str, ...]
    title: str


class Start(NamedTuple):
    """How a part is told: under one of these prefixes lies one of these tensors."""

    part: Part
    prefixes: tuple[str, ...]
    anchors: tuple[str, ...]


LORA = (  # and its kin
    *("lora_A", "lora_up", "lora_down", "lora_unet_", "lora.up", "lora.down", "_lora1.", "_lora2."),
    *("lokr_w", "hada_w", "oft_unet_", ".oft_"),
)
NOT_RENDERED = (  # in order: the first that fits names the file
    *(Sign((word,), "a LoRA") for word in LORA),
    Sign(("double_stream_modulation_img",), "a FLUX.2 transformer"),
    Sign(("single_stream_modulation",), "a FLUX.2 transformer"),
    Sign(("bn.running_mean", "decoder.conv_in"), "a FLUX.2 autoencoder"),
    Sign(("layers.0.self_attn.q_proj", "layers.0.mlp.gate_proj"), "a language model, as FLUX.2 uses"),
    Sign(("controlnet_",), "a FLUX.1 ControlNet"),
    Sign(("redux_",), "FLUX.1 Redux"),
)
FOREIGN = (
    Sign(("input_blocks.0", "output_blocks.0"), "Stable Diffusion 1, 2 or XL"),
    Sign(("joint_blocks.0",), "Stable Diffusion 3"),
    Sign(("double_blocks.0", "individual_token_refiner"), "HunyuanVideo"),
    Sign(("distilled_guidance_layer",), "Chroma"),
    Sign(("txt_norm.",), "Qwen-Image"),
    Sign(("cap_embedder.",), "Z-Image or Lumina"),
)
STARTS = (
    Start(
        "transformer",
        ("model.diffusion_model.", "diffusion_model.", "transformer.", ""),
        # An image input alone is no sign: Qwen-Image has an `img_in` and Z-Image an `x_embedder` too.
        (
            "double_blocks.0.img_attn.qkv.weight",
            "single_blocks.0.linear1.weight",
            "context_embedder.weight",
            "single_transformer_blocks.0.attn.to_q.weight",
        ),
    ),
    Start("vae", ("vae.", "first_stage_model.", ""), ("decoder.conv_in.weight", "encoder.conv_in.weight")),
    Start(
        "t5",
        ("text_encoders.t5xxl.transformer.", ""),
        ("encoder.block.0.layer.0.SelfAttention.q.weight", "shared.weight"),
    ),
    Start(
        "clip",
        ("text_encoders.clip_l.transformer.", ""),
        ("text_model.embeddings.token_embedding.weight", "embeddings.token_embedding.weight"),
    ),
)
PREFIXES = tuple(prefix for start in STARTS for prefix in start.prefixes if prefix)
# Tensors that files carry and rendering does not need: ties, indices, vocabularies, heads for other uses.
IGNORED = {
    "encoder.embed_tokens.weight",
    "spiece_model",
    "logit_scale",
    "text_projection",
    "text_projection.weight",
    "embeddings.position_ids",
}
HALVES: dict[Part, tuple[str, ...]] = {  # of whole models, of which the text encoder alone is needed
    "t5": ("decoder.", "lm_head."),
    "clip": ("vision_model.", "visual_projection."),
}
INPUTS = {384: "FLUX.1 Fill", 128: "FLUX.1 Canny or Depth"}  # in_channels of the released variants


def split(header: Header) -> dict[Part, dict[str, TensorInfo]]:
    """The parts that a file holds, their prefixes removed; raises for a file of another kind, naming the kind."""
    refuse_others(header)
    found: dict[Part, dict[str, TensorInfo]] = {}
    for start in STARTS:
        for prefix in start.prefixes:
            if start.part not in found and any(prefix + anchor in header.tensors for anchor in start.anchors):
                tensors = under(header.tensors, prefix)
                other = HALVES.get(start.part, ())
                found[start.part] = {name: info for name, info in tensors.items() if not name.startswith(other)}
    if not found:
        raise WeightsError(f"{header.path}: its tensors are of no model known here (first: {first_name(header)})")
    return found


def under(tensors: Mapping[str, TensorInfo], prefix: str) -> dict[str, TensorInfo]:
    """What lies under the prefix; without one, what lies under none of the others."""
    if not prefix:
        return {name: info for name, info in tensors.items() if not name.startswith(PREFIXES)}
    return {name[len(prefix) :]: info for name, info in tensors.items() if name.startswith(prefix)}


def first_name(header: Header) -> str:
    return next(iter(header.tensors), "none")


def refuse_others(header: Header) -> None:
    text = "\n".join(header.tensors)
    for sign in NOT_RENDERED:
        if all(word in text for word in sign.texts):
            raise NotRendered(header.path, sign.title)
    for sign in FOREIGN:
        if all(word in text for word in sign.texts):
            raise WeightsError(f"{header.path}: this is {sign.title}, not FLUX.1")
    for name, info in header.tensors.items():
        if name.endswith(("img_in.weight", "x_embedder.weight")) and info.shape[1:2] and info.shape[1] in INPUTS:
            raise NotRendered(header.path, INPUTS[info.shape[1]])
