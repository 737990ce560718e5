"""The denoising benchmark: what it prints, what it counts, and that it needs no more than it says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import denoise

QUICK = ["--device", "cpu", "--width", "32", "--height", "48", "--steps", "2", "--seconds", "0"]
FIGURES = ("seconds_per_step", "seconds_per_image", "tflops", "matmul_tflops", "share_of_matmul")
BARE = """
import sys
sys.modules |= dict.fromkeys(("PIL", "ray", "diffusers", "farm", "hypothesis", "training", "tokenizers"))
from benchmarks.denoise import main
sys.exit(main(sys.argv[1:]))
"""


def test_it_runs_from_a_bare_checkout_and_its_last_line_is_the_result() -> None:
    root = Path(denoise.__file__).parents[1]
    command = [sys.executable, "-c", BARE, "--json", *QUICK]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert all(result[figure] > 0 for figure in FIGURES)
    assert (result["model"], result["dtype"], result["steps"]) == ("tiny", "float32", 2)
    assert {"device", "date", "torch"} <= result.keys()
    assert "warming up" in done.stderr


@pytest.mark.parametrize(
    ("device", "says"),
    [
        ("gpu", "no device is called gpu; say cpu, cuda, cuda:1 or mps"),
        ("cuda:", "no device is called cuda:"),
        ("cuda:999", "this machine has no cuda:999"),
        ("cpu:1", "this machine has no cpu:1"),
    ],
)
def test_a_device_that_is_not_there_is_wrong_usage(device: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        denoise.main(["--device", device])
    assert ended.value.code == 2
    assert says in capsys.readouterr().err.splitlines()[-1]


def test_the_peer_runs_in_the_same_run_and_the_result_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--dtype", "bfloat16", "--peer", "diffusers", "--save", str(tmp_path)]
    assert denoise.main([*QUICK, *options]) == 0
    (kept,) = tmp_path.iterdir()
    result = json.loads(kept.read_text())
    assert kept.name.startswith("denoise-tiny-32x48-bfloat16-eager-")
    assert result["peer"] == "diffusers"
    assert min(result["peer_seconds_per_step"], result["peer_seconds_per_image"]) > 0
    assert "seconds_per_step" in capsys.readouterr().out


@pytest.mark.slow
def test_blocks_in_fp8_take_half_of_bfloat16(capsys: pytest.CaptureFixture[str]) -> None:
    kept = []
    for more in ([], ["--fp8"]):
        assert denoise.main([*QUICK, "--dtype", "bfloat16", "--json", *more]) == 0
        result = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert result["fp8"] == bool(more)
        assert result["seconds_per_image"] > 0
        kept.append(result["transformer_bytes"])
    assert 0.5 < kept[1] / kept[0] < 0.56


def test_the_work_of_a_step_is_what_the_formula_says() -> None:
    """Twice each weight for every token that meets it, and the attention's two products."""
    plan = denoise.planned(denoise.parser().parse_args([*QUICK, "--width", "128", "--height", "96"]))
    c, text, image = plan.model.flux, plan.model.text_tokens, 8 * 6
    h, both = c.hidden_size, text + image
    block = 4 * h * h + 2 * h * c.mlp_size
    linears = image * 2 * c.in_channels * h + text * c.context_in_dim * h
    linears += (c.depth + c.depth_single_blocks) * both * block
    vector = 2 * (256 * h + h * h) + c.vec_in_dim * h + h * h
    vector += c.depth * 12 * h * h + c.depth_single_blocks * 3 * h * h + 2 * h * h
    attention = (c.depth + c.depth_single_blocks) * 2 * both * both * h
    assert denoise.step_flops(plan) == 2 * (linears + vector + attention)


def test_the_tiny_model_timed_is_the_one_that_is_trained() -> None:
    from training import flux, tokens, vae

    tiny = denoise.MODELS["tiny"]
    assert (tiny.flux, tiny.vae, tiny.text_tokens) == (flux.CONFIG, vae.CONFIG, tokens.T5_LENGTH)


@pytest.mark.parametrize("wrong", [["--model", "flux3"], ["--steps", "0"], ["--dtype", "int8"]])
def test_wrong_options_are_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        denoise.main(wrong)
    assert caught.value.code == 2
    assert wrong[0] in capsys.readouterr().err
