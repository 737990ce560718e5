"""What `make` builds by itself, with a python3 that only notes what it is asked."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.reference import ROOT

PYTHON = """#!/bin/sh
echo "$0 $*" >> asked
case "$*" in *venv*) mkdir -p .venv/bin && cp "$0" .venv/bin/python;; esac
"""


@pytest.mark.parametrize("half_made", [True, False])
def test_an_environment_without_pip_is_made_again(tmp_path: Path, half_made: bool) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    here = tmp_path / ".venv" / "bin" / "python"
    here.parent.mkdir(parents=True)
    for path, text in ((tmp_path / "python3", PYTHON), (here, "#!/bin/sh\nexit 1\n" if half_made else PYTHON)):
        path.write_text(text)
        path.chmod(0o755)
    command = ["make", "--silent", "PYTHON=./python3", ".venv/ready"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    asked = (tmp_path / "asked").read_text()
    assert ("./python3 -m venv --clear .venv" in asked) is half_made
    assert ".venv/bin/python -m pip install" in asked
    assert (tmp_path / ".venv" / "ready").exists()
