"""An image classifier beside the encoder: what it says of a view stands behind that view's embedding, and is stored
with it. So one verdict comes of both, and a rescan needs no picture.

Shapes: V views of a frame, D the encoder's embedding, K what the classifier speaks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from farm.errors import Fault, nearest
from farm.job import Cause
from farm.ports import Frame
from safety.clauses import Classifier
from safety.clip import Encoder, as_image, views
from safety.files import folder_hash
from safety.scoring import packed

UNSEEN = -60_000.0  # where it did not look: tiles, which would cost it many times the whole; float16 goes to 65,504
MOST = 30.0  # of its log odds
BATCH = 16


class ImageClassifier:
    """A loaded model, and which of its classes speak for what."""

    def __init__(self, model: Any, processor: Any, spoken: Sequence[Sequence[int]], device: str) -> None:
        self._model, self._processor = model.to(device).eval().requires_grad_(False), processor
        self._spoken, self._device = spoken, device
        self._many = model.config.problem_type == "multi_label_classification"

    def log_odds(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """One row an image: of any of a concept's classes against all others; of classes that exclude nothing, of the
        likeliest."""
        rows = [self._of(images[i : i + BATCH]) for i in range(0, len(images), BATCH)]
        return torch.cat(rows).clamp(-MOST, MOST).cpu().numpy()

    def _of(self, images: Sequence[Image.Image]) -> Tensor:
        pixels = self._processor(images=list(images), return_tensors="pt").to(self._device)
        with torch.inference_mode():
            logits_NC = self._model(**pixels).logits.float()
        if self._many:
            return torch.stack([logits_NC[:, one].amax(dim=1) for one in map(list, self._spoken)], dim=1)
        rest = [[c for c in range(logits_NC.shape[1]) if c not in one] for one in self._spoken]
        pairs = zip(map(list, self._spoken), rest, strict=True)
        return torch.stack([logits_NC[:, a].logsumexp(1) - logits_NC[:, b].logsumexp(1) for a, b in pairs], dim=1)


def open_classifier(clause: Classifier, device: str = "cpu") -> ImageClassifier:
    """Raises Fault(GATE_DOWN) where its folder is not the one that the policy means, or does not load."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    folder = Path(clause.folder)
    try:
        found = folder_hash(folder)
        if found != clause.sha256:
            says = f"{folder} is not the classifier that the policy means: its hash is {found}, not {clause.sha256}"
            raise Fault(Cause.GATE_DOWN, says)
        alone = {"local_files_only": True, "trust_remote_code": False}
        model = AutoModelForImageClassification.from_pretrained(folder, use_safetensors=True, **alone)
        processor = AutoImageProcessor.from_pretrained(folder, **alone)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise Fault(Cause.GATE_DOWN, f"the gate's classifier {folder} does not open: {error}") from error
    for name, value in model.state_dict().items():
        if not bool(torch.isfinite(value).all()):
            raise Fault(Cause.GATE_DOWN, f"the gate's classifier is broken: {name} of {folder} is not finite")
    return ImageClassifier(model, processor, _spoken(clause, model.config.label2id), device)


def _spoken(clause: Classifier, classes: dict[str, int]) -> list[list[int]]:
    spoken = []
    for one in clause.speaks:
        for label in one.labels:
            if label not in classes:
                fix = nearest(label, classes)
                raise Fault(Cause.GATE_DOWN, f"the classifier {clause.folder} has no class {label!r} ({fix})")
        spoken.append([classes[label] for label in one.labels])
        if len(set(spoken[-1])) == len(classes):
            raise Fault(
                Cause.GATE_DOWN, f"every class of {clause.folder} speaks for {one.concept}: none is left against"
            )
    return spoken


def embeddings(encoder: Encoder, classifier: ImageClassifier | None, frames: Sequence[Frame]) -> list[bytes]:
    """As they are stored: V rows of D, and of K more where there is a classifier."""
    rows = encoder.encode_frames(frames)
    if classifier is None:
        return [packed(rows_VD.numpy()) for rows_VD in rows]
    looked = [[i for i, view in enumerate(views(one.width, one.height)) if "tile" not in view.name] for one in frames]
    said = iter(classifier.log_odds([cut for one in zip(frames, looked, strict=True) for cut in _cuts(*one)]))
    found = []
    for rows_VD, seen in zip(rows, looked, strict=True):
        first = next(said)
        more_VK = np.full((len(rows_VD), len(first)), UNSEEN, np.float32)
        more_VK[seen] = [first, *(next(said) for _ in seen[1:])]
        found.append(packed(np.concatenate([rows_VD.numpy(), more_VK], axis=1)))
    return found


def _cuts(frame: Frame, looked: Sequence[int]) -> list[Image.Image]:
    image, all_of_them = as_image(frame), views(frame.width, frame.height)
    return [image.crop(tuple(round(side) for side in all_of_them[i].box)) for i in looked]  # type: ignore[arg-type]
