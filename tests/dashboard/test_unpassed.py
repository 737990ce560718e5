"""A prompt, a picture that was sent and one that was drawn, each blocked by the farm's own gate: its submitter reads
why, on the job's page and in the API, and sees nothing of it."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from farm.pipeline import Group, Ports
from farm.ports import Frame, Rendered, RenderRequest
from safety.gate import ClipGate, load_gate
from tests.api.conftest import World
from tests.dashboard.test_pages import visit
from tests.fakes import FlatRenderer, StampSigner, StampVerifier
from tests.safety.conftest import shape_at

SIZE = {"width": 64, "height": 64, "model": "tiny"}
SHAPES = {
    "a red triangle": shape_at("red", "triangle", 48, 48, 48, (96, 96)),
    "a green star": shape_at("green", "star", 48, 48, 48, (96, 96)),
}


class Shapes(FlatRenderer):
    def _draw(self, request: RenderRequest) -> Rendered:
        return Rendered(SHAPES[request.spec.prompt], "gang-1", "w" * 64)


@pytest.fixture(scope="module")
def gate() -> ClipGate:
    return load_gate()


def file_of(frame: Frame) -> bytes:
    out = io.BytesIO()
    Image.frombytes("RGB", (frame.width, frame.height), frame.pixels).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize(
    ("prompt", "sent", "stage", "words"),
    [
        ("a forbidden star", None, "prompt", "The prompt names something this demo does not allow."),
        ("a green star", "a red triangle", "input", "The picture shows a red triangle"),
        ("a red triangle", None, "frame", "The picture shows a red triangle"),
        ("a green star", "a green star", "", ""),
    ],
)
def test_what_is_blocked_says_why(
    pages: World, gate: ClipGate, prompt: str, sent: str | None, stage: str, words: str
) -> None:
    line: dict[str, object] = {"prompt": prompt, **SIZE}
    if sent:
        headers = {"content-type": "image/png"}
        made = pages.post("/api/uploads?name=a.png", content=file_of(SHAPES[sent]), headers=headers)
        line["image"] = made.json()["id"]
    answer = pages.submit(line)
    assert answer.status_code == 201, answer.text
    queue = pages.farm.queue
    leases = queue.claim(queue.lanes()[0].id, "worker", 1, 60.0)
    renderer = Shapes()
    Group(Ports(queue, renderer, gate, StampSigner(), StampVerifier(), pages.farm.store)).run(leases)
    job = leases[0].job_id
    told = pages.get(f"/api/jobs/{job}").json()
    text = visit(pages, "ours/submitter").client.get(f"/jobs/{job}").text
    assert (told["state"], told["reason"].startswith(words)) == ("blocked" if stage else "published", True)
    assert words in text
    assert (f"block ({stage})" in text) is bool(stage)
    assert (f'src="/images/{job}"' in text) is not bool(stage)
    assert pages.get(f"/api/jobs/{job}/image").status_code == (409 if stage else 200)
    assert renderer.calls == (0 if stage in ("prompt", "input") else 1), "nothing is drawn of what may not be"
