"""Whole pictures: the pipelines of diffusers, the seed contract, steps watched, cancelled and resumed, bad numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxKontextPipeline, FluxPipeline
from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS
from PIL import Image

from actors.flux import latents
from actors.flux.encode import Embeddings
from actors.flux.model import Flux
from actors.flux.render import KONTEXT_SIZES, NotFinite, Pixels, Preview, Renderer, RenderJob, renderer_of
from actors.flux.sampler import Cancelled, SavedLatent
from actors.flux.text import TextEncoders
from tests.flux import small
from tests.flux.small import stages

MAX_TEXT = 16


def job(prompt: str = "a red circle", seed: int = 5, **changes: Any) -> RenderJob:
    return RenderJob(**{"width": 48, "height": 32, "steps": 3, "guidance": 3.5, **changes}, prompt=prompt, seed=seed)


def picture(width: int = 40, height: int = 24) -> Image.Image:
    rows, columns = np.mgrid[0:height, 0:width]
    return Image.fromarray(
        np.stack((rows * 8 % 256, columns * 5 % 256, rows * columns % 256), axis=-1).astype(np.uint8)
    )


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return make_renderer()


def make_renderer(guidance: bool = True, **options: Any) -> Renderer:
    models = (sharp_flux(guidance), calm_vae(), small.small_text())
    return renderer_of(*models, "cpu", torch.float32, **{"max_text": MAX_TEXT, **options})


def sharp_flux(guidance: bool) -> Flux:
    """Attention that looks at few tokens, so that a reference's tokens are not averaged away."""
    flux = small.small_flux(guidance)
    with torch.no_grad():
        for name, tensor in flux.named_parameters():
            tensor.mul_(4 if "query_norm" in name else 2 if "attn.proj" in name or "linear2" in name else 1)
    return flux


def calm_vae() -> Any:
    """Pixels mostly inside the range of bytes, as clipped ones would agree with anything; references that stand out."""
    vae = small.small_vae()
    with torch.no_grad():
        vae.decoder.conv_out.weight.mul_(0.3)
        vae.encoder.conv_out.weight.mul_(10)
    return vae


def peer(renderer: Renderer, kind: type[FluxPipeline] | type[FluxKontextPipeline]) -> Any:
    encoder, denoiser, _ = stages(renderer)
    text = encoder.text.encode
    assert isinstance(text, TextEncoders)
    pipeline = kind(
        scheduler=small.peer_scheduler(denoiser.shift),
        vae=small.peer_vae(encoder.vae),
        text_encoder=text.clip,
        tokenizer=text.clip_tokenizer,
        text_encoder_2=text.t5,
        tokenizer_2=text.t5_tokenizer,
        transformer=small.peer_flux(denoiser.flux),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def peer_options(work: RenderJob) -> dict[str, Any]:
    return {
        "prompt": work.prompt,
        "width": work.width,
        "height": work.height,
        "num_inference_steps": work.steps,
        "guidance_scale": work.guidance,
        "max_sequence_length": MAX_TEXT,
        "latents": latents.pack(latents.draw_noise(work.seed, work.height, work.width)),
        "output_type": "np",
    }


def difference(ours: Pixels, theirs: Any) -> int:
    assert ours.shape == theirs.shape
    assert 20 < ours.std() < 120, "a flat or clipped picture would prove nothing"
    return int(np.abs(ours.astype(int) - np.round(theirs * 255).astype(int)).max())


@pytest.mark.parametrize("distilled", [True, False], ids=["dev", "schnell"])
@pytest.mark.parametrize(("width", "height"), [(48, 32), (32, 80)])
def test_text_to_image_equals_the_peers_pipeline(distilled: bool, width: int, height: int) -> None:
    renderer = make_renderer(guidance=distilled, shift=distilled)
    work = job("a blue square on the red circle", width=width, height=height)
    theirs = peer(renderer, FluxPipeline)(**peer_options(work)).images[0]
    assert difference(renderer.render([work])[0], theirs) <= 2


@pytest.mark.parametrize("size", [(40, 24), (64, 64), (18, 40)])
def test_editing_equals_the_peers_pipeline(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """At the sizes Kontext knows, a hundredth of the area: neither side has more to say at full size."""
    sizes = ((32, 64), (48, 48), (64, 32))
    renderer = make_renderer(kontext_sizes=sizes)
    work = job("make the circle green", reference=picture(*size), width=48, height=48)
    module = "diffusers.pipelines.flux.pipeline_flux_kontext.PREFERRED_KONTEXT_RESOLUTIONS"
    monkeypatch.setattr(module, list(sizes))
    theirs = peer(renderer, FluxKontextPipeline)(**peer_options(work), image=work.reference, max_area=48 * 48).images[0]
    assert difference(renderer.render([work])[0], theirs) <= 2
    without = renderer.render([job(work.prompt, width=48, height=48)])[0]
    assert difference(without, theirs) > 10, "a reference that shows nothing would prove nothing"


def test_the_kontext_sizes_and_the_choice_among_them() -> None:
    assert sorted(KONTEXT_SIZES) == sorted(PREFERRED_KONTEXT_RESOLUTIONS)
    encoder, _, _ = stages(make_renderer(kontext_sizes=KONTEXT_SIZES))
    chosen = {ratio: encoder.reference_size(job(reference=picture(*ratio))) for ratio in ((1, 1), (3, 2), (1, 99))}
    assert chosen == {(1, 1): (1024, 1024), (3, 2): (1248, 832), (1, 99): (672, 1568)}


def test_a_seed_is_the_same_bytes_alone_and_one_level_apart_in_company(renderer: Renderer) -> None:
    alone = renderer.render([job()])[0]
    assert np.array_equal(alone, renderer.render([job()])[0])
    others = [job("make the green square", seed=9, guidance=1.0), job("a", seed=5), job("a red circle", seed=6)]
    crowd = renderer.render([*others[:2], job(), others[2]])
    assert np.abs(crowd[2].astype(int) - alone.astype(int)).max() <= 1
    for other in (crowd[0], crowd[1], crowd[3]):
        assert np.abs(other.astype(int) - alone.astype(int)).max() > 20


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reference", [None, picture()], ids=["text", "edit"])
def test_where_rounding_is_coarse_company_changes_nothing_at_all(
    dtype: torch.dtype, reference: Image.Image | None
) -> None:
    flux, vae, text = sharp_flux(guidance=True).to(dtype), calm_vae().to(dtype), small.small_text().to(dtype)
    renderer = renderer_of(flux, vae, text, "cpu", dtype, max_text=MAX_TEXT)
    jobs = [job("make the green square", seed=9, reference=reference, guidance=guidance) for guidance in (1.0, 2.5)]
    jobs += [job(reference=reference), job("a red circle", seed=6, reference=reference)]
    crowd = renderer.render(jobs)
    for one, among in zip(jobs, crowd, strict=True):
        assert np.array_equal(renderer.render([one])[0], among)
    assert difference(crowd[0], crowd[2] / 255) > 10


def test_edits_in_company_keep_their_own_reference(renderer: Renderer) -> None:
    first, second = job(reference=picture()), job(reference=picture().rotate(180))
    alone = renderer.render([second])[0].astype(int)
    crowd = renderer.render([first, second])
    assert np.abs(crowd[1].astype(int) - alone).max() <= 1
    assert np.abs(crowd[0].astype(int) - alone).max() > 10


def test_a_size_between_patches_is_cut_to_what_was_asked(renderer: Renderer) -> None:
    whole = renderer.render([job(width=48, height=32)])[0]
    assert np.array_equal(renderer.render([job(width=45, height=19)])[0], whole[:19, :45])


@pytest.mark.parametrize("changes", [{"width": 64}, {"height": 48}, {"steps": 4}, {"reference": picture()}])
def test_jobs_of_different_shapes_are_refused(renderer: Renderer, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must share"):
        renderer.render([job(), job(**changes)])


def test_no_jobs_are_refused(renderer: Renderer) -> None:
    with pytest.raises(ValueError, match="must share"):
        renderer.render([])


def test_references_of_different_sizes_are_refused_not_mixed() -> None:
    renderer = make_renderer(kontext_sizes=((32, 64), (64, 32)))
    with pytest.raises(ValueError, match="reference's size"):
        renderer.render([job(reference=picture(20, 40)), job(reference=picture(40, 20))])


def test_steps_are_watched_and_watching_changes_nothing(renderer: Renderer) -> None:
    seen: list[tuple[int, int, list[Pixels]]] = []

    def watch(step: int, total: int, preview: Preview) -> None:
        seen.append((step, total, preview.pictures()))

    watched = renderer.render([job(), job(seed=6)], watch)
    assert [(step, total) for step, total, _ in seen] == [(1, 3), (2, 3), (3, 3)]
    for _, _, pictures in seen:
        assert [(p.shape, str(p.dtype)) for p in pictures] == [((4, 6, 3), "uint8")] * 2
    assert all(np.array_equal(a, b) for a, b in zip(watched, renderer.render([job(), job(seed=6)]), strict=True))


def test_cancelled_between_steps_and_resumed_to_the_same_bytes(renderer: Renderer, tmp_path: Path) -> None:
    work = [job(steps=4), job(steps=4, seed=8)]
    taken: list[int] = []

    def watch(step: int, total: int, preview: Preview) -> None:
        taken.append(step)

    with pytest.raises(Cancelled) as caught:
        renderer.render(work, watch, cancelled=lambda: len(taken) == 2)
    saved = caught.value.saved
    assert (taken, saved.step, saved.total) == ([1, 2], 2, 4)
    resumed = renderer.render(work, watch, resume=saved)
    assert taken == [1, 2, 3, 4]
    assert all(np.array_equal(a, b) for a, b in zip(resumed, renderer.render(work), strict=True))


def test_a_latent_saved_while_watching_goes_on_to_the_same_bytes(renderer: Renderer) -> None:
    kept: list[SavedLatent] = []
    whole = renderer.render([job()], lambda step, total, preview: kept.append(preview.saved()))
    for saved in kept:
        assert np.array_equal(renderer.render([job()], resume=saved)[0], whole[0])


@pytest.mark.parametrize("changes", [{"steps": 4}, {"width": 64}, {"width": 32, "height": 48}])
def test_a_latent_of_other_jobs_is_refused(renderer: Renderer, changes: dict[str, Any]) -> None:
    kept: list[SavedLatent] = []
    renderer.render([job()], lambda step, total, preview: kept.append(preview.saved()))
    with pytest.raises(ValueError, match="the saved latent has 3 steps"):
        renderer.render([job(**changes)], resume=kept[0])


@pytest.mark.parametrize("part", ["latent", "picture"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_numbers_make_no_picture(part: str, value: float) -> None:
    renderer = make_renderer()
    _, denoiser, decoder = stages(renderer)
    broken = denoiser.flux.img_in if part == "latent" else decoder.vae.decoder.conv_in
    with torch.no_grad():
        broken.bias[0] = value  # type: ignore[index]
    with pytest.raises(NotFinite, match=part):
        renderer.render([job()])


def test_the_error_names_the_jobs_it_is_about(renderer: Renderer) -> None:
    latent = torch.zeros(3, 6, 64)
    latent[1, 0, 0] = float("nan")
    with pytest.raises(NotFinite, match="picture of job 1 of") as caught:
        stages(renderer)[2].decode(latent, 48, 32)
    assert caught.value.jobs == (1,)


def test_large_pictures_are_tiled_by_their_size_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = make_renderer(tile_above=48 * 32)
    tiled: list[tuple[int, ...]] = []
    vae = stages(renderer)[2].vae
    plain = vae.decode_tiled

    def seen(latent: torch.Tensor) -> torch.Tensor:
        tiled.append(tuple(latent.shape))
        return plain(latent)

    monkeypatch.setattr(vae, "decode_tiled", seen)
    renderer.render([job(), job(seed=6)])
    assert tiled == []
    renderer.render([job(width=64), job(width=64, seed=6)])
    assert tiled == [(1, 16, 4, 8)] * 2


def test_text_is_padded_without_a_mask_and_cut_at_its_length() -> None:
    text = small.small_text()
    short, pooled = text(["a red circle", ""], 8)
    assert (short.shape, pooled.shape) == ((2, 8, 32), (2, 24))
    longer, same_pooled = text(["a red circle", ""], 12)
    assert small.relative_error(longer[:, :8], short) > 1e-3, "padding must be seen by the words"
    torch.testing.assert_close(pooled, same_pooled)
    long = text(["a red circle on the blue square " * 40], 8)
    assert long[0].shape == (1, 8, 32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_words_found_again_are_the_bytes_of_words_encoded_alone(dtype: torch.dtype) -> None:
    text = small.small_text().to(dtype)
    kept = Embeddings(text, 2**20)
    prompts = ["a red circle", "make the green square", "a red circle", "a"]
    for words, prompt in zip([kept.of(prompt, MAX_TEXT) for prompt in prompts], prompts, strict=True):
        with torch.no_grad():
            anew = text([prompt], MAX_TEXT)
        assert all(torch.equal(one, other) for one, other in zip(words, anew, strict=True))
    assert (kept.made, kept.found) == (3, 1)
    assert len(kept.of("a", 8)[0][0]) == 8, "another length is another answer"


def test_the_words_met_last_are_kept_in_so_many_bytes() -> None:
    def encode(prompts: list[str], length: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.ones(1, length, 2), torch.ones(1, 2)

    kept = Embeddings(encode, 100)  # of 40 bytes each
    for prompt in "abacab":
        kept.of(prompt, 4)
    assert (kept.made, kept.found, kept.nbytes) == (4, 2, 80)
    assert [prompt for prompt, _ in kept.kept] == ["a", "b"]
    kept.of("too long to be kept", 40)
    assert [prompt for prompt, _ in kept.kept] == ["a", "b"]
    none = Embeddings(encode, 0)
    assert [len(none.of("a", 4)) for _ in "12"] == [2, 2]
    assert (none.made, none.nbytes) == (2, 0)


def test_a_picture_does_not_tell_whether_its_words_were_known() -> None:
    jobs = [job(seed=5), job(seed=6)]
    first, again = make_renderer(), make_renderer(embeddings=0)
    fresh = again.render([jobs[1]])
    first.render([jobs[0]])
    assert np.array_equal(first.render([jobs[1]])[0], fresh[0])
    text = stages(first)[0].text
    assert (text.made, text.found) == (1, 1)


@pytest.mark.parametrize(("dtype", "levels"), [(torch.bfloat16, 2.0), (torch.float16, 0.5)])
def test_half_precisions_draw_nearly_the_same_picture(dtype: torch.dtype, levels: float) -> None:
    def drawn(dtype: torch.dtype) -> Pixels:
        flux, vae = small.small_flux().to(dtype), calm_vae().to(dtype)
        (picture,) = renderer_of(flux, vae, small.small_text(), "cpu", dtype, max_text=MAX_TEXT).render([job()])
        return np.asarray(picture)

    exact, rough = drawn(torch.float32).astype(int), drawn(dtype).astype(int)
    assert 0 < np.abs(rough - exact).mean() < levels
