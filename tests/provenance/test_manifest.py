"""What a manifest says of its picture: the prompt to whom its owner opens it, the software, an input that is broken."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import pytest

from farm.errors import BadInput, Fault
from farm.job import Cause
from provenance import keys, manifest, report
from provenance.desk import VerifyingDesk
from provenance.notary import Notary
from provenance.verify import verify_bytes
from tests.provenance.conftest import DRAWN_WITH, OWNER, Farm, picture
from tests.provenance.test_signer import FORMATS, approved_case, assertions


def test_who_has_the_salt_can_check_the_prompt_in_an_approved_picture_too(farm: Farm) -> None:
    job, decision, _ = approved_case(farm, 24, "png")
    step = farm.signer.approve(job.id or 0, decision.id or 0)
    salt = bytes.fromhex(farm.signer.prompt_salt(job.id or 0, "p"))
    found = verify_bytes(step.data, step.mime, farm.trust)
    assert found.commitment == manifest.commitment(salt, job.prompt) != manifest.commitment(salt, "another")


def test_the_plan_the_software_the_time_and_the_chain_are_told(farm: Farm) -> None:
    _, _, signed = farm.make(picture(25))
    told = assertions(signed.data, signed.mime, farm.trust)["org.renderfarm.generation"]
    assert told["drawn_with"] == DRAWN_WITH
    found = verify_bytes(signed.data, signed.mime, farm.trust)
    assert found.stamped_at is not None
    assert (len(found.chain), found.anchor) == (3, found.chain[-1].sha256)
    assert told["software"] == {name: version(name) for name in ("renderfarm", "pillow", "c2pa-python")}


@pytest.fixture
def notary(farm: Farm) -> Iterator[Callable[..., Notary]]:
    """A signer without a process around it, with other settings."""
    made: list[Notary] = []

    def make(**changed: Any) -> Notary:
        made.append(Notary(farm.settings.model_copy(update=changed), farm.engine, farm.store))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_a_project_that_asks_for_it_has_its_prompts_in_clear(farm: Farm, notary: Callable[..., Notary]) -> None:
    job, frame = farm.job(prompt="a plain green cat"), picture(26)
    farm.judge(job, frame)
    for projects, prompt in (("", None), ("another,pp", None), ("another, p", "a plain green cat")):
        signed = notary(tell_prompts=projects).sign(job.id or 0, 1, OWNER, frame)
        told = assertions(signed.data, signed.mime, farm.trust)["org.renderfarm.generation"]
        assert told.get("prompt") == prompt
        assert (b"plain green" in signed.data) == (prompt is not None)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_broken_upload_is_recorded_where_the_operator_wants_that(
    farm: Farm, farm_ed25519: Farm, notary: Callable[..., Notary], kind: str
) -> None:
    """What it is, and none of what its own credentials claim: it says of itself that it is wholly AI-made."""
    _, _, foreign = farm_ed25519.make(picture(27), format=kind)
    damaged = bytearray(foreign.data)
    damaged[-30] ^= 1
    upload = farm.upload(bytes(damaged), FORMATS[kind])
    job, frame = farm.job(edit=True, upload_id=upload.id, format=kind), picture(28)
    farm.judge(job, frame)
    with pytest.raises(Fault, match="Invalid"):
        notary().sign(job.id or 0, 1, OWNER, frame)
    signed = notary(broken_inputs="record").sign(job.id or 0, 1, OWNER, frame)
    found = verify_bytes(signed.data, signed.mime, farm.trust)
    assert (found.verdict, found.declared) == ("Trusted", "partly made by AI")
    assert [(one.title, one.verdict) for one in found.ancestors] == [
        ("upload, whose own content credentials were Invalid", "NoManifest")
    ]
    said = assertions(signed.data, signed.mime, farm.trust)["org.renderfarm.input"]
    assert said["verdict"] == "Invalid"
    assert tuple(said["codes"]) == verify_bytes(bytes(damaged), None, farm.trust).codes
    assert said["sha256"] == hashlib.sha256(damaged).hexdigest()


def test_an_upload_that_a_revoked_certificate_signed_is_broken(
    farm: Farm, farm_ed25519: Farm, notary: Callable[..., Notary], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger's, whom the farm trusts or not: refused at once or recorded, never signed and then not read back."""
    _, _, foreign = farm_ed25519.make(picture(29))
    job, frame = farm.job(edit=True, upload_id=farm.upload(foreign.data).id), picture(30)
    farm.judge(job, frame)
    number = verify_bytes(foreign.data, None, farm.trust).serial or ""
    monkeypatch.setattr(keys, "revocations", lambda _: [{"serial": number, "since": 0.0}])
    with pytest.raises(Fault, match="was revoked") as caught:
        notary().sign(job.id or 0, 1, OWNER, frame)
    assert caught.value.cause is Cause.BAD_INPUT
    signed = notary(broken_inputs="record").sign(job.id or 0, 1, OWNER, frame)
    found = verify_bytes(signed.data, signed.mime, farm.trust, keys.revoked(farm.settings.home))
    assert (found.verdict, found.declared) == ("Trusted", "partly made by AI")
    said = assertions(signed.data, signed.mime, farm.trust)["org.renderfarm.input"]
    assert said["codes"][0] == "signingCredential.revoked"
    desk = VerifyingDesk(farm.settings.home)
    with pytest.raises(BadInput, match="was revoked"):
        desk.examine(foreign.data, "image/png")
    desk.close()
    lenient = VerifyingDesk(farm.settings.home, report.FIT_PARENT | report.BROKEN)
    lenient.examine(foreign.data, "image/png")
    lenient.close()
