"""The real signer process: what it signs, and what it refuses."""

from __future__ import annotations

import hashlib
import io
import json
import os
import socket
import stat
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from c2pa import Builder, Context, Reader
from PIL import Image
from sqlmodel import Session, select

from farm import audit
from farm.db import transact
from farm.errors import Conflict, Fault, NotFound
from farm.job import Cause, State
from farm.ports import Frame, Outcome, Stage
from farm.tables import AuditHead, Decision, Job, Policy, Verdict
from provenance import client, heads, keys, manifest
from provenance.client import SignerClient
from provenance.signer import listen
from provenance.signing import Signing
from provenance.verify import LocalVerifier, context, verify_bytes
from tests.provenance.conftest import NOW, OWNER, Farm, Refusal, lease, open_farm, picture, start_signer
from tests.provenance.test_verify import MANIFEST

FORMATS = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


def read_officially(data: bytes, mime: str, root: str) -> dict[str, Any]:
    """c2pa's own Reader with the farm's root as anchor, settings written out again here."""
    purposes = "1.3.6.1.4.1.62558.2.1\n1.3.6.1.5.5.7.3.4\n"
    context = Context.from_dict({"version": 1, "trust": {"trust_config": purposes, "trust_anchors": root}})
    with Reader(mime, io.BytesIO(data), context=context) as reader:
        assert reader.get_validation_state() == "Trusted"
        found: dict[str, Any] = json.loads(reader.json())
    return found


def assertions(data: bytes, mime: str, root: str) -> dict[str, Any]:
    store = read_officially(data, mime, root)
    return {one["label"]: one["data"] for one in store["manifests"][store["active_manifest"]]["assertions"]}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("which", ["farm", "farm_ed25519"])
def test_signs_every_format_with_either_algorithm(which: str, kind: str, request: pytest.FixtureRequest) -> None:
    farm: Farm = request.getfixturevalue(which)
    frame = picture(1)
    _, _, signed = farm.make(frame, format=kind)
    assert signed.mime == FORMATS[kind]
    said = LocalVerifier(farm.trust).verify(signed.data, signed.mime)
    assert (said.verdict, said.codes) == ("Trusted", ())
    assert said.manifest_sha256 == signed.manifest_sha256
    store = read_officially(signed.data, signed.mime, farm.trust)
    assert store["active_manifest"] == signed.label
    expected = {"farm": "Es256", "farm_ed25519": "Ed25519"}[which]
    assert store["manifests"][signed.label]["signature_info"]["alg"] == expected
    with Image.open(io.BytesIO(signed.data)) as image:
        assert image.size == (48, 32)
        assert image.getexif()[0x0131].startswith("Farm ")
        if kind == "png":
            assert image.convert("RGB").tobytes() == frame.pixels
    assert b"trainedAlgorithmicMedia</Iptc4xmpExt:DigitalSourceType>" in signed.data


def test_the_claim_comes_from_the_records_and_hides_the_prompt(farm: Farm) -> None:
    job, _, signed = farm.make(picture(2), prompt="a very secret green cat", seed=2**63 - 1, index=3, guidance=0.0)
    own = assertions(signed.data, signed.mime, farm.trust)
    told = own["org.renderfarm.generation"]
    assert (told["seed"], told["steps"], told["guidance"], told["output_index"]) == (2**63 - 1, 4, 0.0, 3)
    assert (told["job_id"], told["weights_sha256"], told["width"], told["height"]) == (job.id, "cc" * 32, 48, 32)
    assert own["org.renderfarm.verdict"] == {"outcome": "allow", "policy": "aa" * 32, "encoder": "bb" * 32}
    assert own["cawg.training-mining"]["entries"]["cawg.ai_generative_training"] == {"use": "notAllowed"}
    assert b"secret" not in signed.data
    salt = bytes.fromhex(farm.signer.prompt_salt(job.id or 0, "p"))
    assert told["prompt_commitment"]["value"] == manifest.commitment(salt, "a very secret green cat")
    assert told["prompt_commitment"]["value"] != manifest.commitment(salt, "a very secret green dog")


SMALL = picture(21, 6, 4)


def test_a_preview_is_signed_as_what_it_is(farm: Farm) -> None:
    job = farm.job(format="webp")
    farm.judge(job, SMALL, stage=Stage.PREVIEW)
    signed = farm.signer.sign_preview(lease(job), SMALL)
    assert LocalVerifier(farm.trust).verify(signed.data, signed.mime).verdict == "Trusted"
    told = assertions(signed.data, signed.mime, farm.trust)["org.renderfarm.generation"]
    assert (told["preview"], told["frame_sha256"], told["job_id"]) == (True, SMALL.sha256, job.id)
    with Image.open(io.BytesIO(signed.data)) as image:
        assert image.size == (6, 4)
    assert f"{job.id}-preview.webp" in json.dumps(read_officially(signed.data, signed.mime, farm.trust))


def test_a_preview_of_an_edit_names_its_parent(farm: Farm) -> None:
    parent, _, _ = farm.make(picture(22))
    job = farm.job(parent_job_id=parent.id, edit=True)
    farm.judge(job, SMALL, stage=Stage.PREVIEW)
    signed = farm.signer.sign_preview(lease(job), SMALL)
    store = read_officially(signed.data, signed.mime, farm.trust)
    assert [one["title"] for one in store["manifests"][signed.label]["ingredients"]] == [f"{parent.id}.png"]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ([(SMALL, Outcome.ALLOW, Stage.FRAME)], "no verdict as a preview"),
        ([(SMALL, Outcome.REVIEW, Stage.PREVIEW)], "did not allow this preview"),
        ([(SMALL, Outcome.BLOCK, Stage.PREVIEW)], "did not allow this preview"),
        ([(SMALL, Outcome.ALLOW, Stage.PREVIEW), (picture(1), Outcome.REVIEW, Stage.PROMPT)], "doubts the job"),
        ([(SMALL, Outcome.ALLOW, Stage.PREVIEW), (picture(1), Outcome.REVIEW, Stage.INPUT)], "doubts the job"),
    ],
)
def test_refuses_a_preview_that_nobody_may_see(
    farm: Farm, refused: Refusal, said: list[tuple[Frame, Outcome, Stage]], words: str
) -> None:
    job = farm.job()
    for frame, outcome, stage in said:
        farm.judge(job, frame, outcome, stage=stage)
    assert words in refused(farm.signer.sign_preview, lease(job), SMALL).detail


def test_refuses_a_preview_of_a_job_that_was_doubted_in_an_attempt_before(farm: Farm, refused: Refusal) -> None:
    job = farm.job(attempt=2)
    farm.judge(job, picture(26), Outcome.REVIEW)
    farm.judge(job, SMALL, attempt=2, stage=Stage.PREVIEW)
    assert "doubts the job" in refused(farm.signer.sign_preview, lease(job, attempt=2), SMALL).detail


def test_refuses_as_a_preview_who_lost_the_lease_other_pixels_and_the_whole_picture(
    farm: Farm, refused: Refusal
) -> None:
    job = farm.job()
    for frame in (SMALL, picture(24)):
        farm.judge(job, frame, stage=Stage.PREVIEW)
    sign = farm.signer.sign_preview
    assert "not leased" in refused(sign, lease(job, attempt=2), SMALL).detail
    assert "no verdict as a preview" in refused(sign, lease(job), picture(23, 6, 4)).detail
    assert "larger than half" in refused(sign, lease(job), picture(24)).detail
    assert sign(lease(job), SMALL).data


def test_what_the_gate_said_of_a_preview_decides_nothing_about_the_frame(farm: Farm, refused: Refusal) -> None:
    job, frame = farm.job(), picture(25)
    farm.judge(job, frame, stage=Stage.PREVIEW)
    assert "no verdict" in refused(farm.sign, job, frame).detail, "the same pixels, but only as a preview"
    farm.judge(job, SMALL, Outcome.BLOCK, stage=Stage.PREVIEW)
    farm.judge(job, frame)
    assert farm.sign(job, frame).data


def test_the_salt_is_the_owners_and_the_jobs_alone(farm: Farm) -> None:
    first, second = farm.job(), farm.job()
    assert farm.signer.prompt_salt(first.id or 0, "p") == farm.signer.prompt_salt(first.id or 0, "p")
    assert farm.signer.prompt_salt(first.id or 0, "p") != farm.signer.prompt_salt(second.id or 0, "p")
    with pytest.raises(NotFound):
        farm.signer.prompt_salt(first.id or 0, "another project")


@pytest.mark.parametrize("changed", [{"owner": "someone"}, {"attempt": 2}, {"attempt": 0}, {"job_id": 987654}])
def test_refuses_who_does_not_hold_the_lease(farm: Farm, refused: Refusal, changed: dict[str, Any]) -> None:
    job, frame = farm.job(), picture(3)
    farm.judge(job, frame)
    fault = refused(farm.sign, job, frame, **changed)
    assert fault.cause is Cause.SIGN_REFUSED
    assert "not leased" in fault.detail
    assert farm.sign(job, frame).data, "the very same request by the holder passes"


@pytest.mark.parametrize("state", [State.CANCELLED, State.QUEUED, State.PUBLISHED, State.BLOCKED])
def test_refuses_a_job_that_is_no_longer_leased(farm: Farm, refused: Refusal, state: State) -> None:
    frame = picture(4)
    job = farm.make(frame)[0] if state is State.PUBLISHED else farm.job(state=state)
    if state is not State.PUBLISHED:
        farm.judge(job, frame)
    assert "not leased" in refused(farm.sign, job, frame).detail


def test_refuses_pixels_without_a_verdict(farm: Farm, refused: Refusal) -> None:
    job, frame = farm.job(), picture(6)
    farm.judge(job, frame)
    touched = Frame(48, 32, frame.pixels[:-1] + bytes([frame.pixels[-1] ^ 1]))
    assert "no verdict" in refused(farm.sign, job, touched).detail


def test_refuses_a_verdict_of_another_job_attempt_or_stage(farm: Farm, refused: Refusal) -> None:
    frame = picture(7)
    farm.judge(farm.job(), frame)
    job = farm.job(attempt=2)
    farm.judge(job, frame, attempt=1)
    farm.judge(job, picture(8), attempt=2)
    farm.judge(job, frame, attempt=2, stage=Stage.INPUT)
    assert "no verdict" in refused(farm.sign, job, frame).detail
    farm.judge(job, frame, attempt=2)
    assert farm.sign(job, frame).data


def test_refuses_what_the_gate_blocked_and_signs_what_it_held(farm: Farm, refused: Refusal) -> None:
    blocked, prompt, held, frame = farm.job(), farm.job(), farm.job(), picture(9)
    farm.judge(blocked, frame, Outcome.BLOCK)
    assert "blocked" in refused(farm.sign, blocked, frame).detail
    farm.judge(prompt, picture(8), Outcome.BLOCK, stage=Stage.PROMPT)
    farm.judge(prompt, frame)
    assert "blocked" in refused(farm.sign, prompt, frame).detail
    farm.judge(held, frame, Outcome.REVIEW)
    assert farm.sign(held, frame).data


def blocked_case(farm: Farm, concept: str = "kept", **said: Any) -> tuple[Job, Frame]:
    """A job that was blocked for this frame, by a policy that keeps what `kept` blocks."""
    document = json.dumps({"name": "p", "concepts": [{"name": "kept", "pixels": {"quarantine_days": 7}}]})
    hash_, job, frame = hashlib.sha256(document.encode()).hexdigest(), farm.job(), picture(31)
    with Session(farm.engine) as session:
        known = session.get(Policy, hash_) is not None
    if not known:
        farm.add(Policy(hash=hash_, name="p", document=document, person="Kim", created_at=NOW))
    row: dict[str, Any] = {"stage": Stage.FRAME, "subject": frame.sha256, "outcome": Outcome.BLOCK, "policy": hash_}
    row |= {"encoder": "bb" * 32, "weights": "cc" * 32, "gang": "gang-1", "concept": concept, "created_at": NOW}
    verdict = farm.add(Verdict(project_id=job.project_id, job_id=job.id or 0, attempt=1, **(row | said)))
    farm.change(job, state=State.BLOCKED, verdict_id=verdict.id, owner=None, lease_expires_at=None)
    return job, frame


def test_what_is_kept_in_quarantine_is_signed_as_blocked(farm: Farm) -> None:
    job, frame = blocked_case(farm)
    signed = farm.signer.sign_blocked(lease(job), frame)
    assert LocalVerifier(farm.trust).verify(signed.data, signed.mime).verdict == "Trusted"
    assert assertions(signed.data, signed.mime, farm.trust)["org.renderfarm.verdict"]["outcome"] == "block"
    store = read_officially(signed.data, signed.mime, farm.trust)
    assert store["manifests"][store["active_manifest"]]["title"] == f"{job.id}-blocked.png"


def test_refuses_as_blocked_what_is_not_kept_or_not_what_was_blocked(farm: Farm, refused: Refusal) -> None:
    sign = farm.signer.sign_blocked
    job, frame = blocked_case(farm)
    assert "not blocked for these pixels" in refused(sign, lease(job), picture(32)).detail
    assert "not blocked in attempt 2" in refused(sign, lease(job, attempt=2), frame).detail
    for said in ({"concept": "other"}, {"illegal": True}, {"policy": "ab" * 32}):
        other, _ = blocked_case(farm, **said)
        assert "does not keep" in refused(sign, lease(other), frame).detail
    leased = farm.job()
    farm.judge(leased, frame)
    assert "was not blocked" in refused(sign, lease(leased), frame).detail


def test_refuses_another_size_than_the_job_asks_for(farm: Farm, refused: Refusal) -> None:
    job, frame = farm.job(), picture(10, 32, 48)
    farm.judge(job, frame)
    assert "32x48" in refused(farm.sign, job, frame).detail


def test_a_body_of_the_wrong_length_is_refused(farm: Farm, refused: Refusal) -> None:
    job = farm.job()
    for pixels in (b"", bytes(48 * 32 * 3 - 1), bytes(48 * 32 * 3 + 1)):
        assert "body" in refused(farm.sign, job, Frame(48, 32, pixels)).detail


def test_a_chain_of_edits_names_its_parents(farm: Farm) -> None:
    parent: Job | None = None
    labels: list[str] = []
    for turn, kind in enumerate(("png", "webp", "jpeg", "png")):
        edit: dict[str, Any] = {"edit": True, "parent_job_id": parent.id} if parent else {}
        parent, _, signed = farm.make(picture(20 + turn), format=kind, **edit)
        labels.insert(0, signed.label)
    found = verify_bytes(signed.data, signed.mime, farm.trust)
    assert found.verdict == "Trusted"
    assert [(one.depth, one.label) for one in found.ancestors] == list(enumerate(labels))[1:]
    assert {(one.relationship, one.verdict) for one in found.ancestors} == {("parentOf", "Trusted")}
    assert found.declared == "made by AI"
    actions = assertions(signed.data, signed.mime, farm.trust)["c2pa.actions.v2"]["actions"]
    assert [one["action"] for one in actions] == ["c2pa.opened", "c2pa.edited"]
    assert "digitalSourceType" not in actions[0]
    assert actions[1]["digitalSourceType"] == manifest.GENERATED


def test_twenty_turns_of_editing_are_trusted_by_every_reader(farm: Farm) -> None:
    """Each turn's parent is the file before it, in whatever format that is; c2pa's own reader follows them too."""
    kinds = ("png", "jpeg", "webp")
    job, _, signed = farm.make(picture(70), format="png")
    labels = [signed.label]
    for turn in range(1, 21):
        job, _, signed = farm.make(picture(70 + turn), format=kinds[turn % 3], parent_job_id=job.id, edit=True)
        labels.append(signed.label)
    store = read_officially(signed.data, signed.mime, farm.trust)
    assert set(store["manifests"]) == set(labels)
    found = verify_bytes(signed.data, signed.mime, farm.trust)
    assert (found.verdict, found.declared) == ("Trusted", "made by AI")
    assert [one.label for one in found.ancestors] == labels[-2::-1]
    assert {(one.verdict, one.relationship) for one in found.ancestors} == {("Trusted", "parentOf")}


def test_refuses_an_edit_whose_parent_was_tampered_with(farm: Farm, refused: Refusal) -> None:
    job, frame = farm.job(), picture(30)
    verdict, signed = farm.judge(job, frame), farm.sign(job, frame)
    damaged = bytearray(signed.data)
    damaged[-30] ^= 1
    farm.settle(job, verdict, replace(signed, data=bytes(damaged)))
    child, frame = farm.job(edit=True, parent_job_id=job.id), picture(31)
    farm.judge(child, frame)
    assert "Invalid" in refused(farm.sign, child, frame).detail


@pytest.mark.parametrize("state", [State.HELD, State.UNLISTED])
def test_refuses_an_edit_of_what_is_not_published_any_more(farm: Farm, refused: Refusal, state: State) -> None:
    parent, *_ = farm.make(picture(32))
    child, frame = farm.job(edit=True, parent_job_id=parent.id), picture(33)
    farm.judge(child, frame)
    farm.change(parent, state=state)
    assert f"is {state}" in refused(farm.sign, child, frame).detail


def test_refuses_an_edit_of_nothing_or_of_another_projects_job(farm: Farm, refused: Refusal) -> None:
    frame = picture(32)
    for values in ({}, {"parent_job_id": farm.job().id}, {"upload_id": "none"}):
        child = farm.job(edit=True, **values)
        farm.judge(child, frame)
        assert refused(farm.sign, child, frame).cause is Cause.SIGN_REFUSED


def plain_png(seed: int) -> bytes:
    frame, out = picture(seed), io.BytesIO()
    Image.frombytes("RGB", (48, 32), frame.pixels).save(out, "PNG")
    return out.getvalue()


def test_an_edit_of_an_upload_is_a_composite(farm: Farm) -> None:
    upload = farm.upload(plain_png(40))
    _, _, signed = farm.make(picture(41), edit=True, upload_id=upload.id)
    found = verify_bytes(signed.data, signed.mime, farm.trust)
    assert (found.verdict, found.declared) == ("Trusted", "partly made by AI")
    assert [one.verdict for one in found.ancestors] == ["NoManifest"]
    assert b"compositeWithTrainedAlgorithmicMedia</Iptc4xmpExt" in signed.data


def test_an_upload_keeps_its_own_manifest(farm: Farm, farm_ed25519: Farm) -> None:
    """Signed by another farm: unknown to us, wholly AI-made as it says, and still whole."""
    _, _, foreign = farm_ed25519.make(picture(42))
    upload = farm.upload(foreign.data)
    _, _, signed = farm.make(picture(43), edit=True, upload_id=upload.id)
    found = verify_bytes(signed.data, signed.mime, farm.trust)
    assert (found.verdict, found.declared) == ("Trusted", "made by AI")
    assert [(one.label, one.verdict) for one in found.ancestors] == [(foreign.label, "Valid")]


def test_an_upload_whose_manifest_lies_elsewhere_is_bare_here(farm: Farm) -> None:
    out = io.BytesIO()
    signing = Signing(keys.load(farm.settings.home))
    with Builder(MANIFEST, context=context("")) as builder:
        builder.set_no_embed()
        builder.set_remote_url("http://127.0.0.1:9/manifest.c2pa")
        builder.sign(signing._signer, "image/png", io.BytesIO(plain_png(46)), out)
    upload = farm.upload(out.getvalue())
    _, _, signed = farm.make(picture(47), edit=True, upload_id=upload.id)
    found = verify_bytes(signed.data, signed.mime, farm.trust)
    assert (found.verdict, found.declared) == ("Trusted", "partly made by AI")
    assert [(one.verdict, one.codes) for one in found.ancestors] == [("NoManifest", ("manifest.inaccessible",))]


def test_refuses_a_broken_upload(farm: Farm, refused: Refusal) -> None:
    _, _, signed = farm.make(picture(44))
    tampered = bytearray(signed.data)
    tampered[-30] ^= 1
    for data in (bytes(tampered), signed.data[: len(signed.data) // 2], b"no picture at all"):
        job, frame = farm.job(edit=True, upload_id=farm.upload(data).id), picture(45)
        farm.judge(job, frame)
        fault = refused(farm.sign, job, frame)
        assert "'upload' is" in fault.detail
        assert fault.cause is Cause.BAD_INPUT, "a file that stays broken is not drawn again"


def approved_case(farm: Farm, seed: int, kind: str = "png") -> tuple[Job, Decision, bytes]:
    job, artifact, signed = farm.make(picture(seed), State.HELD, format=kind)
    decision = farm.decide(job, artifact)
    farm.change(job, state=State.APPROVED)
    return job, decision, signed.data


@pytest.mark.parametrize("kind", FORMATS)
def test_an_approval_adds_a_signed_step_to_the_same_pixels(farm: Farm, kind: str) -> None:
    job, decision, held = approved_case(farm, 50, kind)
    step = farm.signer.approve(job.id or 0, decision.id or 0)
    found = verify_bytes(step.data, step.mime, farm.trust)
    assert (found.verdict, found.declared) == ("Trusted", "made by AI")
    assert [one.verdict for one in found.ancestors] == ["Trusted"]
    own = assertions(step.data, step.mime, farm.trust)
    assert [one["action"] for one in own["c2pa.actions.v2"]["actions"]] == ["c2pa.opened", "c2pa.published"]
    review = own["org.renderfarm.review"]
    assert (review["outcome"], review["policy"], review["job_id"]) == ("approved", "aa" * 32, job.id)
    assert b"Kim" not in step.data
    before, after = (Image.open(io.BytesIO(data)).convert("RGB").tobytes() for data in (held, step.data))
    assert before == after


def test_an_approval_names_the_policy_that_held_the_picture(farm: Farm) -> None:
    """It was published under one policy, and held by a rescan under another."""
    job, decision, _ = approved_case(farm, 57)
    held = farm.judge(job, picture(57), Outcome.REVIEW, policy="dd" * 32)
    farm.change(job, verdict_id=held.id)
    step = farm.signer.approve(job.id or 0, decision.id or 0)
    assert assertions(step.data, step.mime, farm.trust)["org.renderfarm.review"]["policy"] == "dd" * 32


def test_refuses_a_step_that_nobody_approved(farm: Farm, refused: Refusal) -> None:
    job, artifact, _ = farm.make(picture(51), State.HELD)
    decision = farm.decide(job, artifact)
    farm.change(job, state=State.APPROVED)
    ask = farm.signer.approve
    assert "not the last" in refused(ask, job.id, (decision.id or 0) + 1).detail
    farm.change(job, state=State.HELD)
    assert "not approved" in refused(ask, job.id, decision.id).detail
    farm.change(job, state=State.APPROVED)
    assert ask(job.id or 0, decision.id or 0).data
    for outcome in ("withdraw", "reject"):
        later = farm.decide(job, artifact, outcome)
        assert "not the last" in refused(ask, job.id, decision.id).detail
        assert "approves nothing" in refused(ask, job.id, later.id).detail
    other = farm.decide(job, farm.make(picture(52))[1])
    assert "another artifact" in refused(ask, job.id, other.id).detail


def test_signs_audit_heads_that_are_in_the_chain(farm: Farm, refused: Refusal) -> None:
    transact(farm.engine, lambda connection: audit.append(connection, "p", "Kim", "approve", "job 1", NOW))
    audit.seal(farm.engine)
    assert audit.sign_head(farm.engine, farm.signer) == 1
    with Session(farm.engine) as session:
        head = session.exec(select(AuditHead)).one()
    is_ours = heads.verifier(heads.trust(farm.settings.home))
    assert is_ours(1, head.sha256, head.signature)
    assert not is_ours(2, head.sha256, head.signature)
    assert not is_ours(1, "0" * 64, head.signature)
    for wrong in ("", "not base64!", head.signature[:-8] + "AAAAAAA="):
        assert not is_ours(1, head.sha256, wrong)
    assert "no row" in refused(farm.signer.sign_audit_head, 1, "0" * 64).detail


def test_no_answer_and_no_log_carries_a_key(farm: Farm, refused: Refusal) -> None:
    held = keys.load(farm.settings.home)
    job, frame = farm.job(), picture(60)
    refused(farm.sign, job, frame)
    signed = farm.make(picture(61))[2]
    answers = signed.data + json.dumps(farm.signer.health()).encode() + repr(held).encode()
    answers += (farm.settings.home / "signer.log").read_bytes()
    secrets = [held.salt_secret, held.salt_secret.hex().encode()]
    for name in ("root", "issuing", "leaf", "audit"):
        text = (farm.settings.home / "keys" / f"{name}.pem").read_bytes()
        secrets += text.split(b"-----END PRIVATE KEY-----")[0].splitlines()[1:]
    assert len(secrets) > 8
    assert not [secret for secret in secrets if secret in answers]
    assert b"no verdict" in answers, "refusals are logged"


def test_only_its_user_reaches_the_socket(farm: Farm) -> None:
    mode = farm.settings.signer_socket.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


def test_unknown_routes_and_wrong_parameters_are_faults(farm: Farm, refused: Refusal) -> None:
    assert refused(farm.signer._ask, "POST", "/sign", {"job_id": "x"}).cause is Cause.SIGN_REFUSED
    assert refused(farm.signer._ask, "GET", "/keys", {}).cause is Cause.SIGN_REFUSED


def test_a_signer_that_is_not_there_is_an_outage(tmp_path: Path, refused: Refusal) -> None:
    client = SignerClient(tmp_path / "none.sock")
    assert refused(client.sign_audit_head, 1, "0" * 64).cause is Cause.SIGNER_DOWN


def test_killed_and_started_again_it_goes_on_with_the_same_keys(tmp_path: Path, refused: Refusal) -> None:
    process, client = start_signer(tmp_path)
    frame, home = picture(62), tmp_path
    try:
        assert refused(client.prompt_salt, 1, "p").cause is Cause.DATABASE_DOWN, "nobody has made it yet"
        farm = open_farm(home, client)
        job = farm.job()
        farm.judge(job, frame)
        root = farm.trust
        process.kill()
        process.wait()
        assert refused(farm.sign, job, frame).cause is Cause.SIGNER_DOWN
        process, farm.signer = start_signer(home)
        assert verify_bytes(farm.sign(job, frame).data, "image/png", root).verdict == "Trusted"
        farm.engine.dispose()
    finally:
        process.kill()
        process.wait()


def test_a_second_signer_on_the_same_socket_says_so(farm: Farm) -> None:
    with pytest.raises(Conflict, match="another signer"), listen(farm.settings.signer_socket):
        pass
    assert farm.signer.health()["state"] == "ready"


def test_a_stale_socket_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    with listen(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.umask(0o022) == 0o022


def test_a_missing_parent_file_is_the_jobs_fault_not_a_crash(farm: Farm, refused: Refusal) -> None:
    upload = farm.upload(plain_png(63))
    farm.store.delete(upload.key)
    job, frame = farm.job(edit=True, upload_id=upload.id), picture(64)
    farm.judge(job, frame)
    fault: Fault = refused(farm.sign, job, frame)
    assert fault.cause is Cause.SIGN_REFUSED
    assert upload.key in fault.detail
    assert OWNER not in fault.detail


def test_a_signer_that_dies_of_what_it_was_asked_is_told_from_one_that_is_not_there(
    tmp_path: Path, refused: Refusal
) -> None:
    path = tmp_path / "s.sock"
    client = SignerClient(path)
    assert refused(client.sign_audit_head, 1, "0" * 64).cause is Cause.SIGNER_DOWN
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def die() -> None:
            listener.accept()[0].close()

        dying = threading.Thread(target=die)
        dying.start()
        assert refused(client.sign_audit_head, 1, "0" * 64).cause is Cause.SIGNER_FAILED
        dying.join()


@pytest.mark.parametrize(
    ("status", "cause"), [(500, Cause.SIGNER_FAILED), (503, Cause.SIGNER_FAILED), (403, Cause.SIGN_REFUSED)]
)
def test_a_signer_that_fails_is_an_outage_and_one_that_refuses_is_not(status: int, cause: Cause) -> None:
    trouble = client._trouble("/sign", client._Answer(status, {}, b""))
    assert isinstance(trouble, Fault)
    assert trouble.cause is cause
