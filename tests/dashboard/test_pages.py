"""The pages: who sees what, forms, and what must never leak."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dashboard.auth import COOKIE, local_path
from dashboard.contexts import parts
from farm import rescan, rules
from farm.db import transact
from farm.errors import Fault
from farm.job import MAX_OWN_FAULTS, Cause, State
from farm.ports import Kept, Outcome, Verdict
from tests.api.conftest import World

LINE = {"prompt": "a red <circle> & more", "width": 64, "height": 64}


def visit(world: World, who: str) -> World:
    world.client.cookies.set(COOKIE, world.keys[who])
    return world


def test_a_stranger_is_sent_to_the_sign_in_page_and_back(pages: World) -> None:
    answer = pages.client.get("/batches")
    assert answer.status_code == 303
    assert answer.headers["location"] == "/signin?after=/batches"
    form = {"key": pages.keys["ours/submitter"], "after": "/batches"}
    answer = pages.client.post("/signin", data=form)
    assert (answer.status_code, answer.headers["location"]) == (303, "/batches")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert pages.client.get("/batches").status_code == 200


def test_a_program_without_a_key_is_told_where_to_go(pages: World) -> None:
    answer = pages.client.get("/", headers={"accept": "*/*"})
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"
    assert "/api, with Authorization: Bearer KEY" in answer.json()["fix"]


def test_a_wrong_key_says_so_and_sets_no_cookie(pages: World) -> None:
    answer = pages.client.post("/signin", data={"key": "farm_wrong"})
    assert answer.status_code == 401
    assert "unknown or revoked" in answer.text
    assert "set-cookie" not in answer.headers


@given(st.text())
def test_signing_in_never_leads_to_another_site(path: str) -> None:
    after = local_path(path)
    assert after.startswith("/")
    assert not after.startswith(("//", "/\\"))


def test_a_form_from_another_site_is_refused(pages: World) -> None:
    batch = pages.submit(LINE).json()["id"]
    visit(pages, "ours/operator")
    form = {"action": "cancel"}
    answer = pages.client.post(f"/batches/{batch}", data=form, headers={"origin": "https://elsewhere.example"})
    assert answer.status_code == 403
    assert pages.farm.insights.counts()["queued"] == 1


def test_gallery_batch_and_job_show_what_was_made(pages: World) -> None:
    batch = pages.submit(LINE).json()["id"]
    job = pages.finish(Outcome.ALLOW)
    visit(pages, "ours/submitter")
    for path in ("/", "/batches", f"/batches/{batch}", f"/jobs/{job}"):
        answer = pages.client.get(path)
        assert answer.status_code == 200, path
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert "<circle>" not in answer.text
    assert "&lt;circle&gt;" in pages.client.get("/").text
    image = pages.client.get(f"/images/{job}")
    assert image.content == b"signed"
    assert pages.client.get(f"/images/{job}", headers={"if-none-match": image.headers["etag"]}).status_code == 304


def test_empty_pages_say_what_to_do(pages: World) -> None:
    visit(pages, "ours/submitter")
    for path in ("/", "/batches"):
        text = pages.client.get(path).text
        assert "farm submit" in text
        assert "prompt&#34;" in text or '"prompt"' in text


@pytest.mark.parametrize("outcome", [Outcome.REVIEW, Outcome.BLOCK])
def test_what_is_not_published_is_not_shown_to_its_submitter(pages: World, outcome: Outcome) -> None:
    pages.submit(LINE)
    job = pages.finish(outcome)
    visit(pages, "ours/submitter")
    assert pages.client.get(f"/images/{job}").status_code == 404
    assert f"/images/{job}" not in pages.client.get(f"/jobs/{job}").text
    visit(pages, "ours/reviewer")
    assert pages.client.get(f"/images/{job}").status_code == (200 if outcome is Outcome.REVIEW else 404)


def test_a_harmless_picture_is_not_shown_as_one_in_which_something_was_found(pages: World) -> None:
    pages.submit(LINE, LINE | {"seed": 2})
    told: dict[str, Any] = {"concept": "red-triangle", "probability": 0.004, "view": "tile 1"}
    allowed, held = (pages.finish(outcome, **told) for outcome in (Outcome.ALLOW, Outcome.REVIEW))
    visit(pages, "ours/operator")
    assert "<dd>allow; nearest concept red-triangle, 0.00</dd>" in pages.client.get(f"/jobs/{allowed}").text
    assert "<dd>review (frame): red-triangle, probability 0.00, tile 1</dd>" in pages.client.get(f"/jobs/{held}").text
    visit(pages, "ours/submitter")
    assert "<dd>allow</dd>" in pages.client.get(f"/jobs/{allowed}").text


def test_a_batch_of_which_nothing_is_to_come_is_settled_on_pages_and_in_the_api(pages: World) -> None:
    batch = pages.submit(LINE).json()["id"]
    visit(pages, "ours/submitter")
    assert '<td class="state-cell">open</td>' in pages.client.get("/batches").text
    pages.finish(Outcome.ALLOW)
    assert '<td class="state-cell">settled</td>' in pages.client.get("/batches").text
    assert pages.get(f"/api/batches/{batch}").json()["state"] == "settled"


def test_another_projects_pages_do_not_exist(pages: World) -> None:
    batch = pages.submit(LINE).json()["id"]
    job = pages.finish(Outcome.ALLOW)
    visit(pages, "theirs/operator")
    for path in (f"/batches/{batch}", f"/jobs/{job}", f"/images/{job}"):
        assert pages.client.get(path).status_code == 404, path
    assert pages.client.post(f"/batches/{batch}", data={"action": "cancel"}).status_code == 404
    assert "circle" not in pages.client.get("/").text + pages.client.get("/batches").text


def test_pause_resume_and_cancel_by_form(pages: World) -> None:
    batch = pages.submit(LINE).json()["id"]
    visit(pages, "ours/submitter")
    for action, state in (("pause", "paused"), ("resume", "open"), ("cancel", "cancelled")):
        assert pages.client.post(f"/batches/{batch}", data={"action": action}).status_code == 303
        assert pages.farm.insights.batch("ours", batch)["state"] == state  # type: ignore[index]
    assert "did you mean" in pages.client.post(f"/batches/{batch}", data={"action": "cancle"}).text


def test_a_reviewer_gets_no_buttons_for_batches_and_may_not_press_them(pages: World) -> None:
    batch = pages.submit(LINE).json()["id"]
    buttons = 'action="/batches/'
    visit(pages, "ours/operator")
    assert buttons in pages.client.get(f"/batches/{batch}").text
    visit(pages, "ours/reviewer")
    assert buttons not in pages.client.get(f"/batches/{batch}").text
    assert pages.client.post(f"/batches/{batch}", data={"action": "cancel"}).status_code == 403
    assert pages.farm.insights.counts()["queued"] == 1


def test_errors_are_pages_for_browsers_and_documents_for_programs(pages: World) -> None:
    visit(pages, "ours/submitter")
    assert "no batch 99" in pages.client.get("/batches/99").text
    assert "text/html" in pages.client.get("/nowhere").headers["content-type"]
    answer = pages.client.get("/nowhere", headers={"accept": "application/json"})
    assert answer.headers["content-type"] == "application/problem+json"


def test_an_outage_asks_browsers_too_to_come_again(pages: World, monkeypatch: pytest.MonkeyPatch) -> None:
    visit(pages, "ours/submitter")

    def away(*_: object, **__: object) -> None:
        raise Fault(Cause.STORE_DOWN, "the store is away")

    monkeypatch.setattr("farm.insights.Insights.batch", away)
    answer = pages.client.get("/batches/1")
    assert (answer.status_code, "store_down" in answer.text, "the store is away" in answer.text) == (503, True, False)
    assert answer.headers["retry-after"]


@given(st.dictionaries(st.sampled_from([str(state) for state in State]), st.integers(0, 10**7)))
def test_a_bar_is_full_and_its_parts_do_not_overlap(counts: dict[str, int]) -> None:
    made = parts(counts)
    assert sum(part.count for part in made) == sum(counts.values())
    end = 0.0
    for part in made:
        assert part.start == pytest.approx(end)
        end = part.start + part.width
    assert not made or end == pytest.approx(100)


def test_where_an_outage_lies_is_shown_to_operators_alone(pages: World) -> None:
    pages.submit(LINE)
    queue = pages.farm.queue
    (lease,) = queue.claim(queue.lanes()[0].id, "test", 1, 30.0)
    queue.fault(lease, Fault(Cause.SIGNER_FAILED, "/secret/socket"))
    for who, seen in (("ours/submitter", False), ("ours/operator", True)):
        text = visit(pages, who).client.get(f"/jobs/{lease.job_id}").text
        assert ("signer_failed: waits for a signer" in text, "/secret/socket" in text) == (True, seen)


def test_what_became_of_a_job_without_a_verdict_is_told_with_what_to_do(pages: World) -> None:
    pages.submit(LINE, LINE)
    queue = pages.farm.queue
    queue.beat("one", "dispatcher", "waiting", "gate_down: no file /secret/clip")
    (waits,) = queue.claim(queue.lanes()[0].id, "test", 1, 30.0)
    queue.fault(waits, Fault(Cause.GATE_DOWN, "no file /secret/clip"), retry_s=60.0)
    for _ in range(MAX_OWN_FAULTS):
        (odd,) = queue.claim(queue.lanes()[0].id, "test", 1, 30.0)
        queue.fault(odd, Fault(Cause.GATE_ERROR, "the gate gave no verdict: no answer within 120 s"), retry_s=0.0)
    for who, seen in (("ours/submitter", False), ("ours/operator", True)):
        client = visit(pages, who).client
        text = client.get(f"/jobs/{waits.job_id}").text
        assert "gate_down: waits for the gate" in text
        assert "this attempt does not count" in text
        assert ("The dispatcher waits: gate_down: no file /secret/clip" in text) is seen
        text = client.get(f"/jobs/{odd.job_id}").text
        assert "no answer within 120 s" in text
        assert f"There is no verdict, so nothing is shown. <code>farm retry job:{odd.job_id}</code>" in text
        assert "/secret/clip" not in text


def test_what_is_to_be_typed_stands_as_code_and_nothing_else_gets_through(pages: World) -> None:
    batch = visit(pages, "ours/operator").submit(LINE).json()["id"]
    queue = pages.farm.queue
    (lease,) = queue.claim(queue.lanes()[0].id, "test", 1, 30.0)
    queue.fault(lease, Fault(Cause.RENDER_ERROR, "run `df <i>` & <b>look</b>"))
    text = pages.client.get(f"/batches/{batch}").text
    assert "render_error: run <code>df &lt;i&gt;</code> &amp; &lt;b&gt;look&lt;/b&gt;" in text
    assert "no image is made now: the farm waits for the dispatcher" in text
    assert "no image is made now" in pages.client.get("/").text


LATER = '{"name": "later"}'


def withdraw(world: World, *, illegal: bool = False) -> None:
    """As an activation of a policy does that blocks everything."""
    engine, stands = world.farm.queue.engine, (rules.hash_of(LATER), "")

    def judge(kept: Sequence[Kept]) -> list[Verdict | Fault]:
        said: dict[str, Any] = {"concept": "swords", "margin": 0.123, "probability": 0.987, "illegal": illegal}
        said |= {"reason": "Swords are not shown."}
        return [Verdict(one.stage, one.subject, Outcome.BLOCK, stands[0], "e", **said) for one in kept]

    transact(engine, lambda one: rules.put(one, rules.ACTIVE, LATER, "ann", "ours", 0.0))
    (found,) = rescan.pages(engine, judge, stands)
    rescan.settle(engine, found, stands, "ann", time.time)


def test_a_picture_that_a_later_policy_withdrew_says_so_in_words_and_without_scores(pages: World) -> None:
    pages.submit(LINE)
    job = pages.finish(Outcome.ALLOW)
    withdraw(pages)
    seen = {who: visit(pages, f"ours/{who}").client.get(f"/jobs/{job}").text for who in ("reviewer", "submitter")}
    for text in seen.values():
        for words in ("Judged again", "Swords are not shown.", "later", rules.hash_of(LATER)[:16]):
            assert words in text
    assert ("Withdrawn" in seen["submitter"], "Not made yet" in seen["submitter"]) == (True, False)
    assert ("0.99" in seen["submitter"], "0.99" in seen["reviewer"]) == (False, True)
    assert pages.client.get(f"/images/{job}").status_code == 404
    told = pages.get(f"/api/jobs/{job}").json()
    assert [(one["policy_name"], one["outcome"]) for one in told["verdicts"]] == [(None, "allow"), ("later", "block")]
    assert "margin" not in told["verdicts"][1]


@pytest.mark.parametrize("outcome", [Outcome.ALLOW, Outcome.REVIEW])
def test_what_nobody_may_see_is_shown_to_no_reviewer_in_any_state(pages: World, outcome: Outcome) -> None:
    pages.submit(LINE)
    job = pages.finish(outcome)
    reviewer = visit(pages, "ours/reviewer")
    assert reviewer.client.get(f"/images/{job}").status_code == 200
    withdraw(pages, illegal=True)
    assert reviewer.client.get(f"/images/{job}").status_code == 404
    assert f"/images/{job}" not in reviewer.client.get(f"/jobs/{job}").text
    assert pages.get(f"/api/jobs/{job}/image", "ours/reviewer").status_code == 409
