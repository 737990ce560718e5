"""Which models there are, and where their files lie."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from actors.cards import CARDS, COMFYUIS_NAMES, TINY
from actors.flux.beside import small_files
from actors.flux.check import NO_TOKENIZER, Report, check, title, tokenizer_objection
from actors.flux.choice import called_as_usual, fitting, objection, preference, report_part
from actors.flux.containers import Found, TensorSet, places
from actors.flux.headers import WeightsError
from actors.flux.names import PARTS, Part
from farm.errors import Fault, NotFound, nearest
from farm.job import Cause
from farm.ports import ModelCard

TINY_FOLDER = Path(__file__).parent / "tiny" / "models"


@dataclass(frozen=True)
class ModelFiles:
    """The stored parts of one model."""

    transformer: TensorSet
    vae: TensorSet
    t5: TensorSet
    clip: TensorSet

    @property
    def sets(self) -> tuple[TensorSet, ...]:
        return self.transformer, self.vae, self.t5, self.clip

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every file that the picture depends on, for their fingerprint."""
        read = ((*each.files, *small_files(each.files, each.part)) for each in self.sets)
        return tuple(dict.fromkeys(path for paths in read for path in paths))


def catalogue() -> dict[str, ModelCard]:
    return {card.name: card for card in CARDS}


def card_of(name: str) -> ModelCard:
    cards = catalogue()
    if name not in cards:
        raise NotFound(f"no model is called {name!r}", field="model", fix=nearest(name, cards))
    return cards[name]


def folder_of(card: ModelCard, folder: Path | None) -> Path | None:
    """The tiny model comes with the farm; the others lie in the operator's folder, where there is one."""
    return TINY_FOLDER if card.name == TINY.name else folder


def usual_names(card: ModelCard) -> list[str]:
    """How the file of its transformer begins: its maker's name for it, or ComfyUI's."""
    return [Path(card.files[0]).stem, *([COMFYUIS_NAMES[card.name]] if card.name in COMFYUIS_NAMES else [])]


def transformers_of(card: ModelCard, found: Found) -> list[TensorSet]:
    """Those of this model that load, the preferred one first."""
    sets = [each for each in of_model(card, found) if report_part(each).loads]
    return sorted(sets, key=lambda each: preference(each, usual_names(card)))


def transformer_of(card: ModelCard, found: Found) -> TensorSet | None:
    """None of several that only their names tell apart, where no name says which is meant."""
    sets = transformers_of(card, found)
    unclear = len(sets) > 1 and not called_as_usual(sets[0], usual_names(card))
    return sets[0] if sets and not unclear else None


def of_model(card: ModelCard, found: Found) -> list[TensorSet]:
    """Told by their shapes, and Kontext by its name."""
    sets = [each for each in found.sets if each.part == "transformer"]
    return sets if card.name == TINY.name else [each for each in sets if title(report_part(each)) == card.title]


def parts_there(card: ModelCard, folder: Path | None) -> dict[Part, TensorSet]:
    """The stored parts of a model, out of the one place that holds most of them."""
    best: dict[Part, TensorSet] = {}
    root = folder_of(card, folder)
    for found in places(root) if root and card.rendered else ():
        parts = fitting(found.sets, transformer_of(card, found))
        if ("transformer" in parts, len(parts)) > ("transformer" in best, len(best)):
            best = parts
    return best


def unfit(card: ModelCard, folder: Path | None) -> list[str]:
    """The stored parts that were passed over, each with the reason."""
    parts, root = parts_there(card, folder), folder_of(card, folder)
    transformer = report_part(parts["transformer"]) if "transformer" in parts else None
    reasons = []
    for found in places(root) if root else ():
        if "transformer" not in parts and len(several := transformers_of(card, found)) > 1:
            names = ", ".join(each.files[0].name for each in several)
            reasons.append(f"{found.path}: any of {names}; call the one that is meant {Path(card.files[0]).name}")
        for each in (*of_model(card, found), *(each for each in found.sets if each.part != "transformer")):
            if each.part not in parts and (why := objection(report_part(each), transformer)):
                reasons.append(f"{each.files[0]}: {why}")
    return reasons + [why for each in parts.values() if (why := tokenizer_objection(each)) and why != NO_TOKENIZER]


def files_present(card: ModelCard, folder: Path | None) -> dict[str, bool]:
    """Whether each part and each tokenizer is there."""
    parts = parts_there(card, folder)
    there: dict[str, bool] = {part: part in parts for part in PARTS}
    for part in ("t5", "clip"):
        there[f"tokenizers/{part}"] = part in parts and not tokenizer_objection(parts[part])
    return there


def locate(card: ModelCard, folder: Path | None) -> ModelFiles:
    """The files of a model, or a Fault that says what is not there."""
    if not card.rendered:
        raise Fault(Cause.WEIGHTS_MISSING, f"{card.title} is known, but not rendered yet")
    missing = [what for what, there in files_present(card, folder).items() if not there]
    if missing:
        where = f"not in {root}" if (root := folder_of(card, folder)) else "no models folder is set (FARM_MODELS)"
        needs = f"it needs {', '.join(card.files)}, or a diffusers folder"
        says = "; ".join((where, *unfit(card, folder), needs))
        raise Fault(Cause.WEIGHTS_MISSING, f"{card.name} lacks {', '.join(missing)}: {says}")
    parts = parts_there(card, folder)
    return ModelFiles(parts["transformer"], parts["vae"], parts["t5"], parts["clip"])


def lacking(card: ModelCard, folder: Path | None) -> str:
    """What of the model's files is not there, in words; "" where it is all there."""
    try:
        locate(card, folder)
    except Fault as fault:
        return fault.detail
    except (WeightsError, OSError) as error:
        return str(error)
    return ""


def models_table(folder: Path | None) -> list[dict[str, Any]]:
    """One row a model for `farm models ls`."""
    return [row(card, folder) for card in CARDS]


def row(card: ModelCard, folder: Path | None) -> dict[str, Any]:
    present = files_present(card, folder)
    ready = card.rendered and all(present.values())
    return {
        "name": card.name,
        "title": card.title,
        "licence": card.licence.name,
        "licence_url": card.licence.url,
        "asks_filter_or_review": card.licence.asks_filter_or_review,
        "commercial_use": card.licence.commercial_use,
        "asks_acceptance": card.licence.asks_acceptance,
        "edits": card.edits,
        "rendered": card.rendered,
        "needs": list(card.files),
        "ready": ready,
        "taken": {part: list(map(str, each.files)) for part, each in parts_there(card, folder).items()},
        "missing": [what for what, there in present.items() if not there] if card.rendered else [],
        "lacks": lacking(card, folder) if card.rendered and not ready else "",
    }


def check_report(path: Path) -> dict[str, Any]:
    """The report of `farm models check`, as JSON takes it."""
    report: Report = check(path)
    document = asdict(report)
    for asked, needs in report.memory_per_gpu.items():
        document["memory_per_gpu"][asked] = {str(count): nbytes for count, nbytes in needs.items()}
    for part, entry in zip(report.parts, document["parts"], strict=True):
        entry |= {"loads": part.loads, "fp8": len(part.fp8)}
    return document | {"complete": report.complete}
