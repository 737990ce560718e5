"""Where the gate's encoder lies, by its name, and whether its files are there: told without torch."""

from __future__ import annotations

from pathlib import Path

from farm.errors import BadInput, Fault
from farm.job import Cause

TINY = Path(__file__).parent / "tiny_clip"
CONFIG = "open_clip_config.json"
HUB, FOLDER, FILE = "hf-hub:", "local-dir:", "@"
PICKLES = (".bin", ".pt", ".pth")


def parts(name: str) -> tuple[str, str]:
    """What stands before the place, and the place: OWNER/REPO behind HUB, a file behind ARCHITECTURE@, else a folder;
    the bundled one without a name."""
    for mark in (HUB, FOLDER):
        if name.startswith(mark):
            return mark, name.removeprefix(mark)
    architecture, at, file = name.partition(FILE)
    return (architecture + at, file) if file else ("", name or str(TINY))


def whole(name: str) -> str:
    """The same for who works in another folder."""
    before, place = parts(name)
    return name if not name or before == HUB else before + str(Path(place).absolute())


def check(name: str) -> None:
    """Raises Fault(GATE_DOWN) where its files are not there. What a hub has is known only when it is fetched."""
    before, place = parts(name)
    if before.endswith(FILE):
        check_file(Path(place))
    elif before != HUB:
        check_folder(Path(place))


def check_file(weights: Path) -> None:
    if weights.suffix != ".safetensors":
        raise BadInput(f"{weights} is not safetensors", field="encoder", fix="convert it; nothing is unpickled here")
    if not weights.is_file():
        raise Fault(Cause.GATE_DOWN, f"the gate's encoder is missing: no file {weights}")


def check_folder(folder: Path) -> None:
    """Left with a choice, open_clip would also take a pickle; it gets none."""
    if not (folder / CONFIG).is_file() or not any(folder.glob("*.safetensors")):
        what = f"{folder} needs {CONFIG} and a safetensors file"
        raise Fault(Cause.GATE_DOWN, f"the gate's encoder is missing: {what}")
    for path in folder.iterdir():
        if path.suffix in PICKLES:
            raise BadInput(f"{path} may be a pickle", field="encoder", fix="take it out; only safetensors are read")
