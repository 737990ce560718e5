"""What a config.json says of a model: believed where a network can be built with it, a problem elsewhere."""

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actors import loading, models
from actors.cards import TINY
from actors.flux.check import check
from actors.flux.render import RenderJob
from farm.errors import Fault
from farm.job import Cause
from tests.flux import containers_kit as kit
from tests.flux.samples import comfyui

CPU = loading.Load("cpu", torch.float32)
JOB = RenderJob(prompt="w5 w7", seed=3, width=32, height=32, steps=1, guidance=2.0)
LIES: list[tuple[str, str, Any]] = [
    ("flux", "depth", 10**12),
    ("flux", "depth", "x"),
    ("flux", "depth", 2.0),
    ("flux", "depth", True),
    ("flux", "depth", [2]),
    ("flux", "axes_dim", [1, 2, 3]),
    ("flux", "axes_dim", [16]),
    ("flux", "axes_dim", ["a", "b", "c"]),
    ("flux", "axes_dim", None),
    ("flux", "num_heads", 0),
    ("flux", "num_heads", 2.0),
    ("flux", "mlp_ratio", "4"),
    ("flux", "mlp_ratio", 1e308),
    ("flux", "mlp_ratio", math.nan),
    ("flux", "theta", "x"),
    ("flux", "theta", 0),
    ("flux", "guidance_embed", "no"),
    ("vae", "ch_mult", []),
    ("vae", "ch_mult", [1.5]),
    ("vae", "ch_mult", [1] * 200_000),
    ("vae", "num_res_blocks", -1),
    ("vae", "norm_groups", "4"),
    ("vae", "norm_groups", 0),
    ("vae", "scale_factor", 0),
    ("vae", "scale_factor", "0.3611"),
    ("vae", "shift_factor", math.inf),
    ("t5", "num_layers", 2.0),
    ("t5", "num_heads", 0),
    ("t5", "layer_norm_epsilon", "x"),
    ("t5", "relative_attention_max_distance", 0),
    ("clip", "num_hidden_layers", 1.0),
    ("clip", "num_attention_heads", 3),
    ("clip", "hidden_act", "nothing"),
    ("clip", "layer_norm_eps", -1),
]


def say(folder: Path, part: str, field: str, value: object) -> None:
    document = json.loads(json.dumps(kit.CONFIG))
    document[part][field] = value
    (folder / "config.json").write_text(json.dumps(document))


def judged(folder: Path) -> bool:
    """Whether it is said to be whole; the farm's own look at the folder says the same, and neither crashes."""
    complete = check(folder).complete
    assert all(models.files_present(TINY, folder).values()) == complete
    assert [row for row in models.models_table(folder) if row["name"] == "tiny"]
    return complete


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(models, "TINY_FOLDER", tmp_path)
    return comfyui(tmp_path)


@pytest.mark.parametrize(("part", "field", "value"), LIES, ids=lambda value: str(value)[:20])
def test_a_config_that_lies_is_a_problem_not_a_crash(folder: Path, part: str, field: str, value: object) -> None:
    say(folder, part, field, value)
    began = time.process_time()
    assert not judged(folder)
    assert any(field in problem and len(problem) < 1000 for problem in check(folder).problems)
    assert time.process_time() - began < 5
    with pytest.raises(Fault, match=field) as caught:
        loading.load_renderer(TINY, None, CPU)
    assert caught.value.cause is Cause.WEIGHTS_MISSING


def test_a_whole_number_is_taken_for_a_float(folder: Path) -> None:
    for part, field in (("flux", "mlp_ratio"), ("vae", "shift_factor"), ("t5", "layer_norm_epsilon")):
        say(folder, part, field, int(kit.CONFIG[part][field]) or 1)
        assert judged(folder)
        assert loading.load_renderer(TINY, None, CPU).render([JOB])


def test_what_no_network_asks_for_is_passed_over(folder: Path) -> None:
    for part in kit.CONFIG:
        say(folder, part, "architectures", {"nobody": ["asked"]})
        assert judged(folder)
        assert loading.load_renderer(TINY, None, CPU).render([JOB])


scalars = st.none() | st.booleans() | st.integers() | st.sampled_from([0, 1, 2, 3, 4, 8, 2.0, 1e-5]) | st.floats()
values: st.SearchStrategy[Any] = scalars | st.text(max_size=4) | st.lists(scalars, max_size=9) | st.just({})
FIELDS = [
    (part, field) for part, sizes in kit.CONFIG.items() for field in (*sizes, "feed_forward_proj", "eos_token_id")
]


@settings(max_examples=60)
@given(st.dictionaries(st.sampled_from(FIELDS), values, min_size=1, max_size=2))
def test_whatever_a_config_says_the_model_draws_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, said: dict[tuple[str, str], object]
) -> None:
    folder = tmp_path_factory.getbasetemp() / "said"
    if not folder.exists():
        comfyui(folder)
    document = json.loads(json.dumps(kit.CONFIG))
    for (part, field), value in said.items():
        document[part][field] = value
    (folder / "config.json").write_text(json.dumps(document))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "TINY_FOLDER", folder)
        if judged(folder):
            assert loading.load_renderer(TINY, None, CPU).render([JOB])[0].shape == (
                32,
                32,
                3,
            )
        else:
            with pytest.raises(Fault) as caught:
                loading.load_renderer(TINY, None, CPU)
            assert caught.value.cause is Cause.WEIGHTS_MISSING
