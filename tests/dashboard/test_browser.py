"""A real browser walks the pages; the screenshots are kept under screenshots/ for a person to look at."""

from __future__ import annotations

import io
import os
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn
from PIL import Image, ImageDraw
from playwright.sync_api import Browser, FilePayload, Page, expect, sync_playwright

from dashboard.app import mount
from farm import events
from farm.api import create_app
from farm.errors import Fault
from farm.job import Cause
from farm.ports import Outcome
from provenance import keys
from provenance.signing import Parent, Signing
from tests.api.conftest import World, world
from tests.provenance.test_verify import MANIFEST, encoded, sign_unread

__all__ = ["world"]
pytestmark = pytest.mark.browser
SHOTS = Path("screenshots")
CHROMIUM = shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail("CI needs chromium: .ci/run installs it")
        pytest.skip("no chromium on the PATH")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@dataclass
class Site:
    url: str
    world: World
    batch: int
    held: int


@pytest.fixture
def site(world: World) -> Iterator[Site]:
    """The farm's pages on a free port of the loopback, with a batch in many states."""
    farm = world.farm
    app = create_app(farm)
    mount(app, access=farm.access, insights=farm.insights, queue=farm.queue, store=farm.store, checker=farm.checker)
    batch, held = fill(world)
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield Site(f"http://127.0.0.1:{port}", world, batch, held)
    app.state.stopping.set()  # open pages listen until then
    server.should_exit = True
    thread.join(timeout=10)


def fill(world: World) -> tuple[int, int]:
    prompts = ["a red circle on a blue background", "a green star", "a yellow ring on a purple background"]
    prompts += [
        "a very long sentence about a small orange square in the top left corner, and no other",
        "a white cross",
    ]
    lines = [{"prompt": prompt, "width": 128, "height": 96 + 32 * (n % 2)} for n, prompt in enumerate(prompts * 6)]
    answer = world.submit(*lines, name="shapes for the spring sheet")
    assert answer.status_code == 201, answer.text
    batch: int = answer.json()["id"]
    for number in range(8):
        world.finish(Outcome.ALLOW, picture(number))
    held = world.finish(Outcome.REVIEW, picture(20))
    world.finish(Outcome.BLOCK)
    for _ in range(3):
        queue, lane = world.farm.queue, world.farm.queue.lanes()[0]
        (lease,) = queue.claim(lane.id, "worker", 1, 60.0)
        queue.fault(lease, Fault(Cause.BAD_INPUT, "the picture to edit has a broken manifest"))
    return batch, held


def picture(number: int) -> bytes:
    image = Image.new("RGB", (128, 96 + 32 * (number % 2)), f"hsl({number * 47 % 360}, 60%, 40%)")
    ImageDraw.Draw(image).ellipse((36, 24, 92, 80), fill=f"hsl({number * 83 % 360}, 80%, 65%)")
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def sign_in(page: Page, site: Site, who: str = "ours/submitter") -> None:
    page.goto(site.url)
    page.get_by_label("API key").fill(site.world.keys[who])
    page.keyboard.press("Enter")
    page.wait_for_url(f"{site.url}/")


def watched(browser: Browser, **options: object) -> tuple[Page, list[str]]:
    """A page, and whatever the browser complains of: a refused script, a missing file, an error."""
    page = browser.new_page(**options)  # type: ignore[arg-type]
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    return page, complaints


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("device", "width"), [("desktop", 1280), ("phone", 390)])
def test_every_page_is_drawn_without_complaint(
    browser: Browser, site: Site, scheme: str, device: str, width: int
) -> None:
    page, complaints = watched(browser, color_scheme=scheme, viewport={"width": width, "height": 900})
    sign_in(page, site)
    SHOTS.mkdir(exist_ok=True)
    pages = {"gallery": "/", "batches": "/batches", "batch": f"/batches/{site.batch}", "job": "/jobs/1"}
    pages |= {"held": f"/jobs/{site.held}", "missing": "/batches/999", "signin": "/signin"}
    for name, path in pages.items():
        page.goto(site.url + path)
        page.evaluate("document.querySelectorAll('img').forEach((image) => image.loading = 'eager')")
        page.evaluate("Promise.all([...document.images].map((image) => image.decode()))")
        page.screenshot(path=SHOTS / f"{name}-{device}-{scheme}.png", full_page=True)
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, f"{name} is {wide} wide on a {device}"
        cut = page.evaluate("[...document.querySelectorAll('.table')].some((one) => one.scrollWidth > one.clientWidth)")
        assert not cut, f"{name} hides part of a table on a {device}"
    page.close()
    assert [text for text in complaints if "404" not in text] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("device", "width"), [("desktop", 1280), ("phone", 390)])
def test_a_chosen_picture_is_verified_at_once(
    browser: Browser, site: Site, scheme: str, device: str, width: int
) -> None:
    """A child of the seventh edit of a damaged picture, for whoever comes by."""
    site.world.farm.checker.public = True
    signing = Signing(keys.init(site.world.farm.settings.home))
    data = signing.sign(MANIFEST, encoded("png"), "image/png").data
    data = data[:-30] + bytes([data[-30] ^ 1]) + data[-29:]
    for turn in range(7):
        data = sign_unread(signing, encoded("png", turn), "image/png", Parent(data, "image/png", f"picture {turn}"))
    page, complaints = watched(browser, color_scheme=scheme, viewport={"width": width, "height": 900})
    page.goto(f"{site.url}/verify")
    page.screenshot(path=SHOTS / f"verify-empty-{device}-{scheme}.png", full_page=True)
    chosen: FilePayload = {"name": "a child.png", "mimeType": "image/png", "buffer": data}
    page.get_by_label("Drop a picture").set_input_files(chosen)
    # The child that opens it takes long to start on a busy machine.
    expect(page.get_by_role("heading", name="SuspectAncestor")).to_be_visible(timeout=60_000)
    page.screenshot(path=SHOTS / f"verify-{device}-{scheme}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()
    assert complaints == []


def test_a_batch_page_follows_its_batch_without_being_loaded_again(browser: Browser, site: Site) -> None:
    page, complaints = watched(browser)
    sign_in(page, site)
    page.goto(f"{site.url}/batches/{site.batch}")
    page.evaluate("window.untouched = true")
    expect(page.locator("#progress")).to_contain_text("8")
    time.sleep(1.5)  # until the page listens for changes
    site.world.finish(Outcome.ALLOW, picture(30))
    events.seal(site.world.farm.queue.engine)
    expect(page.locator("#progress .legend li").first).to_contain_text("9", timeout=10_000)
    assert page.evaluate("window.untouched")
    page.close()
    assert complaints == []


def test_a_batch_is_paused_and_resumed_by_keyboard(browser: Browser, site: Site) -> None:
    page, complaints = watched(browser)
    sign_in(page, site)
    page.goto(f"{site.url}/batches/{site.batch}")
    for word in ("Pause", "Resume"):
        page.get_by_role("button", name=word).focus()
        page.keyboard.press("Enter")
        expect(page.get_by_role("button", name="Resume" if word == "Pause" else "Pause")).to_be_visible()
    page.close()
    assert complaints == []
