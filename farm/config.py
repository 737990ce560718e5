"""Settings: `farm.toml` in the working folder (or FARM_CONFIG), then FARM_* in the environment, which wins."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from farm.errors import BadInput, nearest

_LABEL = r"[A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?"
LabelName = Annotated[str, StringConstraints(pattern=rf"^([A-Za-z0-9][\w.-]*/)?{_LABEL}$")]
LabelValue = Annotated[str, StringConstraints(pattern=rf"^!?({_LABEL}|in\({_LABEL}(, ?{_LABEL})*\))$")]  # as Ray asks
DATABASES = ("sqlite", "sqlite+pysqlite", "postgresql", "postgresql+psycopg", "postgres")


def _device(value: str) -> str:
    if re.fullmatch(r"cuda:\d+", value):
        raise ValueError(f"{value!r} names a GPU, and Ray gives each rank its own: say cuda, with gpus and labels")
    if value not in ("", "auto", "cpu", "cuda"):
        raise ValueError(f"{value!r} is no device: auto, cpu or cuda")
    return value


def _database(value: str) -> str:
    if value and urlsplit(value).scheme not in DATABASES:
        raise ValueError("sqlite or postgresql only, such as postgresql://user@host/farm")
    return value


def _address(value: str) -> str:
    if value and not re.match(r"https?://[^/]", value):
        raise ValueError(f"{value!r} needs http:// or https:// before the host")
    return value


def _stamps(value: str) -> str:
    if value not in ("own", "off"):
        _address(value)
    return value


Device = Annotated[str, AfterValidator(_device)]


class GangSpec(BaseModel):
    """How many gangs there may be, and what a rank of theirs takes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: Device = Field("", description="auto, cpu or cuda; empty: the device setting")
    precision: Literal["auto", "fp8", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="auto: bfloat16 on GPUs, where fp8 weights stay fp8, float32 on CPUs; fp8: as auto, all in fp8",
    )
    min: int = Field(0, ge=0, le=1024, description="gangs that are kept warm, asked for or not")
    max: int = Field(1, ge=1, le=1024, description="gangs at most")
    idle_s: float = Field(600.0, gt=0, description="seconds without a job after which a gang above min goes")
    cpus: float = Field(1.0, gt=0, description="CPUs of one rank: so many threads compute there, and no more")
    gpus: float | None = Field(None, ge=0, description="GPUs of one rank; unset: 1 where the device is a GPU")
    labels: dict[LabelName, LabelValue] = Field({}, description="labels of Ray that its nodes must have")

    @model_validator(mode="after")
    def _at_most_max(self) -> GangSpec:
        if self.min > self.max:
            raise ValueError(f"it keeps min = {self.min} gangs and has max = {self.max}")
        return self

    @model_validator(mode="after")
    def _whole_gpus(self) -> GangSpec:
        if self.gpus and self.gpus > 1 and self.gpus % 1:
            raise ValueError(f"a rank asks for {self.gpus:g} GPUs: above 1 Ray gives whole ones only")
        return self


class PoolSpec(GangSpec):
    """The gangs of one model on one kind of node: a `[[pools]]` table of farm.toml."""

    model: str = Field(description="the model its gangs draw with")
    name: str = Field(
        "", pattern=r"^([A-Za-z0-9][\w.-]*)?$", description="what it is called in listings; empty: as its model"
    )
    weights: str = Field("", description="folder of its weights; empty: the models setting")
    tensor: int = Field(1, ge=1, le=64, description="ranks that share the matrices, on one node")
    sequence: int = Field(1, ge=1, le=64, description="ranks, times tensor, that share an image's tokens")
    encoders: GangSpec | None = Field(
        None, description="a table: words are encoded in gangs of one rank apart; empty: in its own"
    )
    decoders: GangSpec | None = Field(None, description="a table: the same for decoding pictures")

    @model_validator(mode="after")
    def _no_gpu_twice(self) -> PoolSpec:
        if self.gpus and self.gpus < 1 < self.ranks:
            raise ValueError(f"{self.ranks} ranks of one gang ask for {self.gpus:g} GPUs each, and must not share one")
        return self

    @property
    def called(self) -> str:
        return self.name or self.model

    @property
    def ranks(self) -> int:
        return self.tensor * self.sequence


class Settings(BaseSettings):
    """Every setting, with its default. Paths that are not set lie under `home`."""

    model_config = SettingsConfigDict(env_prefix="FARM_", extra="forbid", frozen=True)

    home: Path = Field(Path(".farm"), description="where the embedded farm keeps its files")
    database: Annotated[str, AfterValidator(_database)] = Field(
        "", description="SQLAlchemy URL, sqlite or postgresql; empty: SQLite under home"
    )
    store: str = Field("", description="fsspec URL of the store; empty: a folder under home")
    host: str = Field("127.0.0.1", description="address the API listens on")
    port: int = Field(8765, ge=1, le=65535, description="port the API listens on")
    url: Annotated[str, AfterValidator(_address)] = Field(
        "", description="the farm the CLI talks to; empty: http://host:port"
    )
    key: str = Field("", description="the CLI's API key; empty: the one under home")
    project: str = Field("default", description="project of the first key")
    quarantine_key: str = Field(
        "",
        description="public key (X25519, PEM) for which blocked pixels that a policy keeps are encrypted;"
        " empty: the one that `farm up` makes under home",
    )
    signer: str = Field("", description="the signer's Unix socket; empty: under home")
    passphrase_file: str = Field(
        "", description="file whose one line encrypts the signer's keys where they rest; empty: they are not encrypted"
    )
    passphrase: str = Field("", repr=False, description="the same, straight from the environment")
    timestamps: Annotated[str, AfterValidator(_stamps)] = Field(
        "own", description="time stamps of signatures: own, off, or the http(s) address of an RFC 3161 authority"
    )
    timestamps_are: Literal["required", "optional"] = Field(
        "required",
        description="while an outside authority is down, work waits (required) or is signed without (optional)",
    )
    models: str = Field("", description="folder of real weights (ComfyUI layout); empty: the tiny model alone")
    default_model: str = Field(
        "",
        description="what a line means that names no model; empty: the one real model that is ready, or the tiny one",
    )
    device: Device = Field("auto", min_length=1, description="auto, cpu or cuda")
    offload: Literal["auto", "always", "never"] = Field(
        "auto", description="blocks wait in host memory: auto where the GPU is too small, always or never"
    )
    embeddings_mb: int = Field(256, ge=0, description="encoded prompts kept by each process that encodes, in MiB")
    pools: tuple[PoolSpec, ...] = Field((), description="`[[pools]]` of gangs; a model without one has one rank")
    policy: str = Field(
        "", description="policy document, in force from the first start until `farm policy activate`; empty: the demo's"
    )
    encoder: str = Field("", description="open_clip folder or name of the gate; empty: the bundled tiny one")
    gates: int = Field(
        1,
        ge=1,
        le=64,
        description="gate actors of a dispatcher, each with the encoder: what it judges is spread over them",
    )
    gate_device: Device = Field(
        "auto",
        min_length=1,
        description="auto, cpu or cuda; auto: a GPU that no gang can ask for, else the CPU, on one thread",
    )
    gate_gpus: float = Field(
        0.1,
        gt=0,
        le=1,
        description="of a GPU that a gate on one asks for; a gang on the same one asks for less than all of it",
    )
    ray_address: str = Field("", description="an existing Ray cluster; empty: one of our own (or RAY_ADDRESS)")
    group: int = Field(4, ge=1, le=256, description="jobs of one shape key leased together")
    workers: int = Field(
        0, ge=0, le=256, description="groups in flight in one dispatcher; 0: two for each gang that there may be"
    )
    lease_s: float = Field(30.0, gt=0, description="shortest lease; longer work gets a longer one")
    save_every: int = Field(
        5,
        ge=0,
        description="steps after which a running job's latents are kept, to go on from if its gang is lost; 0: never",
    )
    retry_s: float = Field(5.0, ge=0, description="pause before work is tried again after an outage")
    max_upload_mb: int = Field(64, ge=1, description="largest upload, in MiB")
    broken_inputs: Literal["refuse", "record"] = Field(
        "refuse",
        description="uploads whose content credentials do not hold: refuse, or record that and leave these out",
    )
    tell_prompts: str = Field(
        "", description="projects, with commas between, whose images carry their prompts in clear; empty: none"
    )
    verify_public: bool = Field(False, description="anyone may verify files here, without a key or a login")
    max_pixels_in: int = Field(50_000_000, ge=1, description="largest input picture, in pixels")
    max_lines: int = Field(1_000_000, ge=1, description="largest batch, in lines")

    @field_validator("pools")
    @classmethod
    def _names_differ(cls, pools: tuple[PoolSpec, ...]) -> tuple[PoolSpec, ...]:
        names = [pool.called for pool in pools]
        if double := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two pools are called {double!r}: give one of them a name")
        return pools

    @field_validator("pools")
    @classmethod
    def _divided_alike(cls, pools: tuple[PoolSpec, ...]) -> tuple[PoolSpec, ...]:
        """A job is encoded before it is known which of its model's gangs will draw it."""
        for pool in pools:
            first = next(each for each in pools if each.model == pool.model)
            for name in ("encoders", "decoders"):
                if (getattr(first, name) is None) != (getattr(pool, name) is None):
                    both = f"pools {first.called!r} and {pool.called!r} both draw with {pool.model}"
                    raise ValueError(f"{both}: set {name} in both, or in none")
        return pools

    @field_validator("pools")
    @classmethod
    def _cuda_asks_for_gpus(cls, pools: tuple[PoolSpec, ...], info: ValidationInfo) -> tuple[PoolSpec, ...]:
        for pool in pools:
            device = pool.device or info.data.get("device")
            for spec in (pool, pool.encoders, pool.decoders):
                if spec is not None and spec.gpus == 0 and (spec.device or device) == "cuda":
                    raise ValueError(
                        f"pool {pool.called!r}: device is cuda and gpus is 0, but a rank sees the GPUs that it asks for"
                    )
        return pools

    @property
    def database_url(self) -> str:
        return self.database or f"sqlite:///{(self.home / 'farm.db').absolute()}"

    @property
    def store_url(self) -> str:
        return self.store or f"file://{(self.home / 'store').absolute()}"

    @property
    def api_url(self) -> str:
        return self.url or self.own_url

    @property
    def own_url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def signer_socket(self) -> Path:
        return Path(self.signer) if self.signer else (self.home / "signer.sock").absolute()


def load(**overrides: Any) -> Settings:
    """Read the file and the environment; refuse what is unknown, naming the nearest known setting."""
    named = os.environ.get("FARM_CONFIG")
    path = Path(named or "farm.toml")
    if named and not path.is_file():
        raise BadInput(f"there is no file {path}", field="FARM_CONFIG", fix="correct it, or unset it")
    values = _read(path) if path.is_file() else {}
    known = set(Settings.model_fields)
    _refuse_unknown(values, known, str(path))
    variables = {name[5:].lower(): name for name in os.environ if name.startswith("FARM_")}
    _refuse_unknown({key: name for key, name in variables.items() if key != "config"}, known, "environment")
    from_file = {key: value for key, value in values.items() if key not in variables}
    try:
        return Settings(**(from_file | overrides))
    except ValidationError as error:
        raise _words(error, path) from error
    except SettingsError as error:  # of the only setting that is not one value
        fix = """set it to a list, as '[{"model": "tiny"}]', or write [[pools]] tables in farm.toml"""
        raise BadInput("FARM_POOLS is not JSON", field="pools", fix=fix) from error


def _words(error: ValidationError, path: Path) -> BadInput:
    """What is wrong with the first setting that does not fit; `pools.0.tensor` is one of the first pool."""
    first = error.errors()[0]
    name, *inner = [str(part) for part in first["loc"]] or ["settings"]
    where = f"FARM_{name.upper()} or {name} in {path}"
    if first["type"] == "extra_forbidden":
        fix = nearest(inner[-1], (GangSpec if {"encoders", "decoders"} & set(inner[:-1]) else PoolSpec).model_fields)
        return BadInput(f"unknown setting {inner[-1]!r} of a pool, in {where}", field=f"{name}.{inner[0]}", fix=fix)
    says = first["msg"].removeprefix("Value error, ")
    return BadInput(says, field=".".join((name, *inner)), fix=f"set {where}")


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is not TOML: {error}", field=str(path)) from error


def _refuse_unknown(values: dict[str, Any], known: set[str], where: str) -> None:
    for name in values:
        if name not in known:
            raise BadInput(f"unknown setting {name!r} in {where}", field=name, fix=nearest(name, known))
