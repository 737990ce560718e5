"""Settings: file and environment, the environment wins, the unknown is refused."""

from pathlib import Path

import pytest

from farm.config import Settings, load
from farm.errors import BadInput


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(f"FARM_{name.upper()}", raising=False)


def test_the_environment_wins_over_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("farm.toml").write_text('port = 9000\nhost = "127.0.0.2"\n')
    monkeypatch.setenv("FARM_PORT", "9001")
    settings = load()
    assert (settings.port, settings.host) == (9001, "127.0.0.2")
    assert settings.api_url == "http://127.0.0.2:9001"


def test_an_unknown_setting_is_refused_naming_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("farm.toml").write_text("prot = 9000\n")
    with pytest.raises(BadInput, match="did you mean 'port'"):
        load()
    Path("farm.toml").unlink()
    monkeypatch.setenv("FARM_DATABSE", "sqlite:///x")
    with pytest.raises(BadInput, match="did you mean 'database'"):
        load()


def test_a_wrong_value_names_the_setting_and_where_to_set_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_PORT", "many")
    with pytest.raises(BadInput, match="FARM_PORT"):
        load()


def test_a_file_that_is_not_toml_says_so() -> None:
    Path("farm.toml").write_text("port = = 3")
    with pytest.raises(BadInput, match="not TOML"):
        load()


def test_everything_lies_under_home_by_default(tmp_path: Path) -> None:
    settings = load(home=tmp_path / "home")
    assert str(tmp_path) in settings.database_url
    assert str(tmp_path) in settings.store_url
    assert settings.signer_socket.parent == tmp_path / "home"


def test_a_settings_file_that_is_named_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_CONFIG", "framm.toml")
    with pytest.raises(BadInput, match=r"no file framm\.toml"):
        load()
    Path("framm.toml").write_text("port = 9000\n")
    assert load().port == 9000


def test_an_ipv6_host_stands_in_brackets() -> None:
    assert load(host="::").api_url == "http://[::]:8765"


def test_pools_are_declared_as_tables() -> None:
    Path("farm.toml").write_text("""
[[pools]]
model = "flux1-dev"
tensor = 2
max = 4
labels = { kind = "h100" }
[[pools]]
model = "flux1-dev"
name = "slow"
""")
    one, two = load().pools
    assert (one.called, one.ranks, one.max, one.labels) == ("flux1-dev", 2, 4, {"kind": "h100"})
    assert (two.called, two.ranks, two.min, two.max) == ("slow", 1, 0, 1)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[[pools]]\nmodel = "tiny"\ntensr = 2', r"unknown setting 'tensr' of a pool.*did you mean 'tensor'"),
        ("[[pools]]\ntensor = 2", r"pools\.0\.model: Field required"),
        ('[[pools]]\nmodel = "tiny"\nlabels = { kind = "to be" }', r"pools\.0\.labels\.kind: String should match"),
        ('[[pools]]\nmodel = "tiny"\ntensor = 0', r"pools\.0\.tensor: .*greater than or equal to 1"),
        ('[[pools]]\nmodel = "tiny"\nmin = 3', r"pools.0: it keeps min = 3 gangs and has max = 1"),
        ('[[pools]]\nmodel = "tiny"\n[[pools]]\nmodel = "tiny"', r"two pools are called 'tiny'"),
        ('[[pools]]\nmodel = "tiny"\nencoders = { gpu = 1 }', r"unknown setting 'gpu' of a pool.*did you mean 'gpus'"),
        ('[[pools]]\nmodel = "tiny"\nencoders = { tensor = 2 }', r"unknown setting 'tensor' of a pool"),
        ('[[pools]]\nmodel = "tiny"\ndecoders = { min = 2 }', r"pools.0.decoders: it keeps min = 2 gangs"),
        (
            '[[pools]]\nmodel = "tiny"\nencoders = {}\n[[pools]]\nmodel = "tiny"\nname = "b"',
            r"pools 'tiny' and 'b' both draw with tiny: set encoders in both, or in none",
        ),
        ("pools = 3", r"pools: Input should be a valid tuple"),
    ],
)
def test_a_wrong_pool_is_refused_with_its_place(text: str, says: str) -> None:
    Path("farm.toml").write_text(text)
    with pytest.raises(BadInput, match=says):
        load()


def test_pools_come_from_the_environment_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_POOLS", '[{"model": "tiny", "sequence": 2}]')
    assert [pool.ranks for pool in load().pools] == [2]
    monkeypatch.setenv("FARM_POOLS", "tiny")
    with pytest.raises(BadInput, match="FARM_POOLS"):
        load()


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("DEVICE", "gpu", "'gpu' is no device: auto, cpu or cuda"),
        ("DEVICE", "cuda:1", "'cuda:1' names a GPU, and Ray gives each rank its own: say cuda"),
        ("DEVICE", "", "at least 1 character"),
        ("POOLS", '[{"model": "tiny", "device": "gpu"}]', "pools.0.device: 'gpu' is no device"),
        ("POOLS", '[{"model": "tiny", "device": "cuda:0"}]', "pools.0.device: 'cuda:0' names a GPU"),
        ("POOLS", '[{"model": "tiny", "gpus": 1.5}]', "a rank asks for 1.5 GPUs: above 1 Ray gives whole ones only"),
        ("POOLS", '[{"model": "tiny", "device": "cuda", "gpus": 0}]', "device is cuda and gpus is 0"),
        ("POOLS", '[{"model": "tiny", "device": "cuda", "encoders": {"gpus": 0}}]', "device is cuda and gpus is 0"),
        ("POOLS", '[{"model": "tiny", "tensor": 2, "gpus": 0.5}]', "2 ranks of one gang ask for 0.5 GPUs each"),
        ("DATABASE", "mysql://x/y", "sqlite or postgresql only"),
        ("DATABASE", "farm.db", "sqlite or postgresql only"),
        ("URL", "127.0.0.1:8765", "'127.0.0.1:8765' needs http://"),
    ],
)
def test_a_value_that_nothing_understands_is_refused_in_words(
    name: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"FARM_{name}", value)
    with pytest.raises(BadInput) as refused:
        load()
    assert says in str(refused.value)
    assert f"FARM_{name}" in str(refused.value)
    assert "Value error" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DEVICE", "cuda"),
        ("POOLS", '[{"model": "tiny", "gpus": 0.5, "encoders": {"gpus": 0}}]'),
        ("POOLS", '[{"model": "tiny", "sequence": 2, "gpus": 2}]'),
        ("POOLS", '[{"model": "tiny", "device": ""}, {"model": "tiny", "name": "b", "device": "cuda"}]'),
        ("DATABASE", "postgresql+psycopg://user@/farm?host=/tmp/x"),
        ("DATABASE", "sqlite:////tmp/farm.db"),
        ("URL", "https://farm.example"),
    ],
)
def test_a_value_that_is_understood_is_taken(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"FARM_{name}", value)
    load()


def test_a_pool_whose_device_is_the_farm_s_asks_for_gpus_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_POOLS", '[{"model": "tiny", "gpus": 0}]')
    assert load().pools[0].gpus == 0
    monkeypatch.setenv("FARM_DEVICE", "cuda")
    with pytest.raises(BadInput, match="pool 'tiny': device is cuda and gpus is 0"):
        load()
