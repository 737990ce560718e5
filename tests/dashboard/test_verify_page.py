"""The page Verify: a file's word, its ancestors in a tree, its codes in plain words, and who may ask."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dashboard.contexts import DEEPEST, steps
from farm.ports import Outcome
from provenance import keys
from provenance.signing import Parent, Signing
from tests.api.conftest import World
from tests.dashboard.test_pages import visit
from tests.provenance.test_verify import EDIT, MANIFEST, encoded, sign_unread


@dataclass
class Files:
    whole: bytes
    suspect: bytes
    chain: bytes


@pytest.fixture
def files(pages: World, tmp_path: Path) -> Files:
    """A picture; an edit of a damaged copy of it; and the seventh edit of it."""
    signing = Signing(keys.init(tmp_path))
    whole = signing.sign(MANIFEST, encoded("png"), "image/png").data
    damaged = Parent(whole[:-30] + bytes([whole[-30] ^ 1]) + whole[-29:], "image/png", "the <first>")
    data = whole
    for turn in range(7):
        data = signing.sign(EDIT, encoded("png", turn), "image/png", Parent(data, "image/png", f"turn {turn}")).data
    return Files(whole, sign_unread(signing, encoded("png", 2), "image/png", damaged), data)


def send(pages: World, data: bytes, name: str = "mine.png", **options: Any) -> Any:
    return pages.client.post("/verify", files={"file": (name, data)}, **options)


def words(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", html))


def test_a_file_gets_its_word_its_sentence_and_whom_to_thank(pages: World, files: Files) -> None:
    visit(pages, "ours/submitter")
    assert "Drop a picture" in pages.client.get("/verify").text
    page = words(send(pages, files.whole).text)
    for said in ("mine.png", "Trusted", "unchanged since", "made by AI", "that of this farm", "Farm development root"):
        assert said in page
    bare = words(send(pages, encoded("png")).text)
    assert "NoManifest" in bare
    assert "does not mean that it was not made by AI" in bare
    assert "Unreadable" in words(send(pages, b"a text").text)


def test_the_tree_of_ancestors_and_the_codes_are_in_plain_words(pages: World, files: Files) -> None:
    visit(pages, "ours/submitter")
    html = send(pages, files.suspect, name="<b>mine</b>.png").text
    page = words(html)
    for said in ("SuspectAncestor", "assertion.dataHash.mismatch", "the file was changed after it was signed"):
        assert said in page
    assert "the &lt;first&gt;" in html
    assert "&lt;b&gt;mine" in html
    long = send(pages, files.chain).text
    assert long.count("<li class=") == 7
    assert "7 steps back" in words(long)


def test_what_was_not_to_be_shown_is_said_to_be_so(pages: World, files: Files) -> None:
    pages.submit({"prompt": "a red circle"})
    pages.finish(Outcome.REVIEW, data=files.whole)
    page = words(send(visit(pages, "theirs/submitter"), files.whole).text)
    assert "On this farm the file is held , so it was not to be shown" in page
    assert "ours" not in page.replace("theirs", "").replace("yours", "")


def test_a_stranger_may_verify_only_where_anyone_may(pages: World, files: Files) -> None:
    for answer in (pages.client.get("/verify"), send(pages, files.whole)):
        assert (answer.status_code, answer.headers["location"]) == (303, "/signin?after=/verify")
    pages.farm.checker.public = True
    page = pages.client.get("/verify")
    assert page.status_code == 200
    assert "Sign out" not in page.text
    assert 'href="/verify"' in pages.client.get("/signin").text
    assert "Trusted" in words(send(pages, files.whole).text)
    elsewhere = send(pages, files.whole, headers={"origin": "https://elsewhere.example"})
    assert elsewhere.status_code == 403


def test_no_file_no_length_and_too_much_are_said_so(pages: World, files: Files) -> None:
    visit(pages, "ours/submitter")
    assert "no file was chosen" in send(pages, b"").text
    assert pages.client.post("/verify", data={"file": "a text"}).status_code == 422
    assert send(pages, bytes(2 << 20)).status_code == 413
    unsized = pages.client.post("/verify", content=iter([b"a"]), headers={"content-type": "multipart/form-data"})
    assert unsized.status_code == 422
    huge = pages.client.post("/verify", headers={"content-length": str(1 << 30)}, content=b"")
    assert huge.status_code == 413
    assert "Trusted" in send(pages, files.whole).text, "each gave its place back"


def test_deep_trees_stay_on_the_screen() -> None:
    ancestors = [{"depth": depth} for depth in (1, 2, 20)]
    assert [one["indent"] for one in steps(ancestors)] == [1, 2, DEEPEST]
