"""The documents say what the code does: commands, routes and settings are compared; what they link to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.reference import PAGES, ROOT, filled

LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
DOCUMENTS = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_lists_every_command_route_and_setting(page: Path) -> None:
    assert page.read_text() == filled(page), "run `python -m tests.reference` and read what changed"


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_links_to_is_there(page: Path) -> None:
    lost = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert lost == []


@pytest.mark.parametrize("page", [*DOCUMENTS, ROOT / "CHANGELOG.md"], ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_holds_a_merge_that_was_not_ended(page: Path) -> None:
    assert not re.search(r"^(<{7}|>{7}) ", page.read_text(), re.M)
