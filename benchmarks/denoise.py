"""Time one denoising step and one picture of a FLUX.1 model, with random weights of the real sizes.

Needs torch, safetensors and transformers alone: `python -m benchmarks.denoise` runs from a bare checkout. Progress goes
to stderr; with `--json` the last line of stdout is one object.
"""

import argparse
import json
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from actors.flux.checkpoint import EIGHT
from actors.flux.config import FLUX1_DEV, FLUX1_SCHNELL, FLUX1_VAE, FluxConfig, VaeConfig
from actors.flux.fp8 import keep
from actors.flux.model import Flux, compile_blocks
from actors.flux.render import RenderJob, renderer_of
from actors.flux.sampler import velocity
from actors.flux.shapes import is_block
from actors.flux.vae import AutoEncoder

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Model:
    flux: FluxConfig
    vae: VaeConfig
    text_tokens: int
    size: int
    steps: int
    shift: bool = True


TINY_FLUX = FluxConfig(
    vec_in_dim=128,
    context_in_dim=128,
    hidden_size=192,
    num_heads=3,
    depth=2,
    depth_single_blocks=4,
    axes_dim=(16, 24, 24),
)
TINY_VAE = VaeConfig(ch=16, num_res_blocks=1, norm_groups=8, scale_factor=1.0, shift_factor=0.0)
MODELS = {
    "tiny": Model(TINY_FLUX, TINY_VAE, text_tokens=40, size=128, steps=8),
    "flux1-dev": Model(FLUX1_DEV, FLUX1_VAE, text_tokens=512, size=1024, steps=28),
    "flux1-schnell": Model(FLUX1_SCHNELL, FLUX1_VAE, text_tokens=256, size=1024, steps=4, shift=False),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Plan:
    """One benchmark: a model, where and how it runs, and the picture it makes."""

    name: str
    model: Model
    device: torch.device
    dtype: torch.dtype
    job: RenderJob
    compiled: bool
    fp8: bool
    budget: float


@dataclass(frozen=True)
class Timing:
    step: float
    image: float


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    plan = planned(options)
    result = measure(plan, peer=options.peer)
    if options.save:
        options.save.mkdir(parents=True, exist_ok=True)
        (options.save / file_name(result)).write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result) if options.json else table(result))
    return 0


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="farm bench denoise", description=__doc__)
    found.add_argument("--model", choices=MODELS, default="tiny")
    found.add_argument("--device", type=at_hand, help="cpu, cuda, cuda:1, mps (default: the fastest at hand)")
    found.add_argument("--dtype", choices=DTYPES, help="default: float32 on the CPU, bfloat16 elsewhere")
    found.add_argument("--width", type=positive, help="pixels (default: the model's own size)")
    found.add_argument("--height", type=positive)
    found.add_argument("--steps", type=positive)
    found.add_argument("--compile", action="store_true", help="compile the blocks with torch.compile")
    found.add_argument("--fp8", action="store_true", help="the matrices of the blocks in fp8, widened for each product")
    found.add_argument("--peer", choices=["diffusers"], help="time this library's pipeline beside ours")
    found.add_argument("--save", type=Path, metavar="DIR", help="keep the result here, named by model, device and date")
    found.add_argument("--seconds", type=float, default=3.0, help="how long to repeat each measurement")
    found.add_argument("--json", action="store_true")
    return found


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def at_hand(text: str) -> torch.device:
    """A device that this machine has."""
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    named = re.fullmatch(r"(cpu|cuda|mps)(?::(\d{1,3}))?", text)
    if named is None:
        raise argparse.ArgumentTypeError(f"no device is called {text}; say cpu, cuda, cuda:1 or mps")
    if int(named[2] or 0) >= counts[named[1]]:
        raise argparse.ArgumentTypeError(f"this machine has no {text}")
    return torch.device(text)


def planned(options: argparse.Namespace) -> Plan:
    model = MODELS[options.model]
    device = options.device or torch.device(fastest_device())
    dtype = DTYPES[options.dtype or ("float32" if device.type == "cpu" else "bfloat16")]
    width, height = options.width or model.size, options.height or model.size
    job = RenderJob("", 0, width, height, options.steps or model.steps, guidance=3.5)
    return Plan(options.model, model, device, dtype, job, options.compile, options.fp8, options.seconds)


def fastest_device() -> str:
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def measure(plan: Plan, peer: str | None) -> dict[str, Any]:
    flops = step_flops(plan)
    say(f"{flops / 1e12:.4g} TFLOP a step; measuring this device's matrix products")
    rate = matmul_rate(plan)
    say(f"{rate / 1e12:.4g} TFLOP/s")
    ours, kept = time_ours(plan)
    result = {
        "model": plan.name,
        "device": device_name(plan.device),
        "dtype": str(plan.dtype).removeprefix("torch."),
        "width": plan.job.width,
        "height": plan.job.height,
        "steps": plan.job.steps,
        "compiled": plan.compiled,
        "fp8": plan.fp8,
        "transformer_bytes": kept,
        "seconds_per_step": ours.step,
        "seconds_per_image": ours.image,
        "tflops": flops / ours.step / 1e12,
        "matmul_tflops": rate / 1e12,
        "share_of_matmul": flops / ours.step / rate,
        "threads": torch.get_num_threads() if plan.device.type == "cpu" else None,
        "torch": torch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }
    if peer is not None:
        theirs = time_diffusers(plan)
        result |= {"peer": peer, "peer_seconds_per_step": theirs.step, "peer_seconds_per_image": theirs.image}
    return result


def step_flops(plan: Plan) -> int:
    """Counted, not estimated: every matrix product of one call, run on shapes alone."""
    with torch.device("meta"):
        flux = Flux(plan.model.flux)
        rows, columns = (-(-side // 16) for side in (plan.job.height, plan.job.width))
        inputs = transformer_inputs(plan, rows * columns, torch.float32)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            flux(**inputs)
    return int(counter.get_total_flops())


def transformer_inputs(plan: Plan, tokens: int, dtype: torch.dtype) -> dict[str, Tensor | None]:
    config, text = plan.model.flux, plan.model.text_tokens
    return {
        "img_BLC": torch.empty(1, tokens, config.in_channels, dtype=dtype),
        "img_ids_BL3": torch.empty(1, tokens, 3),
        "txt_BTD": torch.empty(1, text, config.context_in_dim, dtype=dtype),
        "txt_ids_BT3": torch.empty(1, text, 3),
        "timesteps_B": torch.empty(1),
        "y_BV": torch.empty(1, config.vec_in_dim, dtype=dtype),
        "guidance_B": torch.empty(1) if config.guidance_embed else None,
    }


def matmul_rate(plan: Plan) -> float:
    """FLOP/s of the best of a few square products: what this device's library reaches, not its datasheet."""
    sides = (1024, 2048) if plan.device.type == "cpu" else (4096, 8192)
    return max(2 * side**3 / min(runs(product(side, plan), plan)) for side in sides)


def product(side: int, plan: Plan) -> Callable[[], object]:
    a, b = (torch.randn(side, side, device=plan.device, dtype=plan.dtype) for _ in range(2))
    return lambda: a @ b


def clocked(work: Callable[[], object], device: torch.device) -> float:
    wait(device)
    start = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - start


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def time_ours(plan: Plan) -> tuple[Timing, int]:
    """With the bytes of the transformer's weights."""
    say("filling the model with random weights")
    flux = random_weights(partial(Flux, plan.model.flux), plan)
    kept = sum(parameter.nbytes for parameter in flux.parameters())
    vae = random_weights(partial(AutoEncoder, plan.model.vae), plan)
    if plan.compiled:
        compile_blocks(flux)
    text = partial(random_text, plan)
    renderer = renderer_of(
        flux, vae, text, plan.device, plan.dtype, shift=plan.model.shift, max_text=plan.model.text_tokens
    )
    assert renderer.encoder
    assert renderer.denoiser
    condition = renderer.denoiser.condition([plan.job], [renderer.encoder.encode(plan.job)])
    latent = torch.randn(1, condition.img_ids_BL3.shape[1], plan.model.flux.in_channels, device=plan.device)
    step = partial(velocity, flux, condition, latent, 0.5)
    return timed("ours", plan, step, lambda: renderer.render([plan.job])), kept


def random_text(plan: Plan, prompts: list[str], max_length: int) -> tuple[Tensor, Tensor]:
    config = plan.model.flux
    txt_BTD = torch.randn(len(prompts), max_length, config.context_in_dim, device=plan.device, dtype=plan.dtype)
    return txt_BTD, torch.randn(len(prompts), config.vec_in_dim, device=plan.device, dtype=plan.dtype)


def random_weights(build: Callable[[], Network], plan: Plan) -> Network:
    """Built without memory, then filled in place: the peak is the weights themselves."""
    with torch.device("meta"):
        network = build().to(plan.dtype)
        if plan.fp8:
            keep_fp8(network, plan.dtype)
    network = network.to_empty(device=plan.device).eval().requires_grad_(False)
    for name, tensor in network.state_dict().items():
        if tensor.ndim == 1 or name.endswith(".scale"):
            tensor.fill_(0.0 if name.endswith("bias") else 1.0)
        elif tensor.dtype == EIGHT:
            tensor.copy_(torch.randn(tensor.shape, dtype=plan.dtype, device=plan.device) * len(tensor[0]) ** -0.5)
        else:
            tensor.normal_(std=tensor[0].numel() ** -0.5)
    return network


def keep_fp8(network: nn.Module, wide: torch.dtype) -> None:
    """The matrices of all blocks, where the network has any, as yet without memory."""
    for name, module in list(network.named_modules()):
        if is_block(name) and isinstance(module, nn.Linear):
            keep(network, name, torch.empty_like(module.weight, dtype=EIGHT), torch.empty(len(module.weight), 1), wide)


@torch.no_grad()
def timed(who: str, plan: Plan, step: Callable[[], object], image: Callable[[], object]) -> Timing:
    say(f"{who}: warming up" + (", compiling" if plan.compiled else ""))
    per_step = statistics.median(runs(step, plan))
    say(f"{who}: {per_step:.4g} s a step; now pictures of {plan.job.steps} steps")
    per_image = statistics.median(runs(image, plan))
    say(f"{who}: {per_image:.4g} s a picture")
    return Timing(per_step, per_image)


def runs(work: Callable[[], object], plan: Plan) -> list[float]:
    """After one to warm up, as many as the budget holds, one at least."""
    clocked(work, plan.device)
    times = [clocked(work, plan.device)]
    while sum(times) < plan.budget:
        times.append(clocked(work, plan.device))
    return times


def time_diffusers(plan: Plan) -> Timing:
    say("filling diffusers' model with random weights")
    import diffusers

    pipeline = diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=plan.model.shift),
        vae=random_weights(partial(diffusers.AutoencoderKL, **peer_vae_options(plan.model.vae)), plan),
        transformer=random_weights(partial(diffusers.FluxTransformer2DModel, **peer_options(plan.model.flux)), plan),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
    )
    pipeline.set_progress_bar_config(disable=True)
    if plan.compiled:
        pipeline.transformer.compile_repeated_blocks(fullgraph=True)
    txt_BTD, pooled_BV = random_text(plan, [""], plan.model.text_tokens)
    options = {"prompt_embeds": txt_BTD, "pooled_prompt_embeds": pooled_BV, "guidance_scale": plan.job.guidance}
    job = plan.job
    options |= {"width": job.width, "height": job.height, "num_inference_steps": job.steps}
    return timed("diffusers", plan, peer_step(plan, pipeline.transformer), lambda: pipeline(**options))


def peer_step(plan: Plan, transformer: nn.Module) -> Callable[[], object]:
    rows, columns = (-(-side // 16) for side in (plan.job.height, plan.job.width))
    ours = transformer_inputs(plan, rows * columns, plan.dtype)
    given = {name: torch.rand_like(t, device=plan.device) for name, t in ours.items() if t is not None}
    return lambda: transformer(
        hidden_states=given["img_BLC"],
        img_ids=given["img_ids_BL3"][0],
        encoder_hidden_states=given["txt_BTD"],
        txt_ids=given["txt_ids_BT3"][0],
        timestep=given["timesteps_B"],
        pooled_projections=given["y_BV"],
        guidance=given.get("guidance_B"),
    )


def peer_options(config: FluxConfig) -> dict[str, Any]:
    return {
        "in_channels": config.in_channels,
        "num_layers": config.depth,
        "num_single_layers": config.depth_single_blocks,
        "attention_head_dim": config.head_dim,
        "num_attention_heads": config.num_heads,
        "joint_attention_dim": config.context_in_dim,
        "pooled_projection_dim": config.vec_in_dim,
        "guidance_embeds": config.guidance_embed,
        "axes_dims_rope": config.axes_dim,
    }


def peer_vae_options(config: VaeConfig) -> dict[str, Any]:
    levels = len(config.ch_mult)
    return {
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": config.widths,
        "layers_per_block": config.num_res_blocks,
        "latent_channels": config.z_channels,
        "norm_num_groups": config.norm_groups,
        "scaling_factor": config.scale_factor,
        "shift_factor": config.shift_factor,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {device.type}"


def file_name(result: dict[str, Any]) -> str:
    kind = ("compiled" if result["compiled"] else "eager") + ("-fp8" if result["fp8"] else "")
    device = "-".join(result["device"].lower().split())
    size = f"{result['width']}x{result['height']}"
    return f"denoise-{result['model']}-{size}-{result['dtype']}-{kind}-{device}-{result['date']}.json"


def table(result: dict[str, Any]) -> str:
    width = max(map(len, result))
    rows = ((key, f"{value:.4g}" if isinstance(value, float) else value) for key, value in result.items())
    return "\n".join(f"{key:<{width}}  {value}" for key, value in rows if value is not None)


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
