"""Settings: `farm.toml` in the working folder (or FARM_CONFIG), then FARM_* in the environment, which wins."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from farm.errors import BadInput, nearest


class Settings(BaseSettings):
    """Every setting, with its default. Paths that are not set lie under `home`."""

    model_config = SettingsConfigDict(env_prefix="FARM_", extra="forbid", frozen=True)

    home: Path = Field(Path(".farm"), description="where the embedded farm keeps its files")
    database: str = Field("", description="SQLAlchemy URL; empty: SQLite under home")
    store: str = Field("", description="fsspec URL of the store; empty: a folder under home")
    host: str = Field("127.0.0.1", description="address the API listens on")
    port: int = Field(8765, ge=1, le=65535, description="port the API listens on")
    url: str = Field("", description="the farm the CLI talks to; empty: http://host:port")
    key: str = Field("", description="the CLI's API key; empty: the one under home")
    project: str = Field("default", description="project of the first key")
    signer: str = Field("", description="the signer's Unix socket; empty: under home")
    models: str = Field("", description="folder of real weights (ComfyUI layout); empty: the tiny model alone")
    device: str = Field("auto", description="auto, cpu or cuda")
    offload: Literal["auto", "always", "never"] = Field(
        "auto", description="blocks wait in host memory: auto where the GPU is too small, always or never"
    )
    policy: str = Field("", description="policy document; empty: the bundled demo policy")
    encoder: str = Field("", description="open_clip folder or name of the gate; empty: the bundled tiny one")
    ray_address: str = Field("", description="an existing Ray cluster; empty: one of our own (or RAY_ADDRESS)")
    group: int = Field(4, ge=1, le=256, description="jobs of one shape key leased together")
    workers: int = Field(2, ge=1, le=64, description="groups in flight in one dispatcher")
    lease_s: float = Field(30.0, gt=0, description="shortest lease; longer work gets a longer one")
    retry_s: float = Field(5.0, ge=0, description="pause before work is tried again after an outage")
    max_upload_mb: int = Field(64, ge=1, description="largest upload, in MiB")
    max_pixels_in: int = Field(50_000_000, ge=1, description="largest input picture, in pixels")
    max_lines: int = Field(1_000_000, ge=1, description="largest batch, in lines")

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
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        raise BadInput(first["msg"], field=name, fix=f"set FARM_{name.upper()} or {name} in {path}") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is not TOML: {error}", field=str(path)) from error


def _refuse_unknown(values: dict[str, Any], known: set[str], where: str) -> None:
    for name in values:
        if name not in known:
            raise BadInput(f"unknown setting {name!r} in {where}", field=name, fix=nearest(name, known))
