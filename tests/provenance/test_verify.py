"""The verifier against damage: one honest word for every file, and Trusted only for what was signed."""

from __future__ import annotations

import io
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from c2pa import Builder, Reader
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from farm.errors import BadInput, Fault
from farm.job import Cause
from provenance import certificates, keys, labels, manifest, report
from provenance.container import MAGIC, manifest_store, sniff
from provenance.keys import Keys
from provenance.limited import LimitedVerifier
from provenance.report import WORDS
from provenance.signing import Parent, Signing, as_parent
from provenance.verify import context, verify_bytes, verify_files
from tests.provenance.conftest import picture

FORMATS = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
MADE = {"action": "c2pa.created", "digitalSourceType": manifest.GENERATED}
OPENED = {"action": "c2pa.opened", "parameters": {"ingredientIds": [manifest.PARENT]}}


def with_actions(*actions: dict[str, Any]) -> manifest.Manifest:
    data = {"allActionsIncluded": True, "actions": list(actions)}
    return {"title": "a test", "assertions": [{"label": "c2pa.actions.v2", "created": True, "data": data}]}


MANIFEST = with_actions(MADE)
EDIT = with_actions(OPENED, {"action": "c2pa.edited", "digitalSourceType": manifest.GENERATED})


def encoded(kind: str, seed: int = 1) -> bytes:
    return labels.encode(picture(seed, 16, 16), kind, manifest.GENERATED)


def sign_unread(signing: Signing, data: bytes, mime: str, parent: Parent) -> bytes:
    """What a careless signer would do: sign whatever the parent is, and look at nothing afterwards."""
    out = io.BytesIO()
    with Builder(EDIT, context=context(signing.keys.root)) as builder:
        ingredient = {"title": parent.title, "relationship": "parentOf", "label": manifest.PARENT}
        builder.add_ingredient(ingredient, parent.mime, io.BytesIO(parent.data))
        builder.sign(signing._signer, mime, io.BytesIO(data), out)
    return out.getvalue()


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return keys.init(tmp_path_factory.mktemp("ours"))


@pytest.fixture(scope="module")
def signing(ours: Keys) -> Signing:
    return Signing(ours)


@pytest.fixture(scope="module")
def signed(signing: Signing) -> dict[str, bytes]:
    return {kind: signing.sign(MANIFEST, encoded(kind), mime).data for kind, mime in FORMATS.items()}


def pixels(data: bytes) -> bytes:
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB").tobytes()


def claims(data: bytes, root: str) -> Any:
    with Reader(sniff(data), io.BytesIO(data), context=context(root)) as reader:
        return json.loads(reader.json())["manifests"]


def container(data: bytes) -> range:
    """Where the manifest and the chunk around it lie: what a signature cannot cover, since it is written there."""
    store = manifest_store(data)
    assert store is not None
    start = data.index(store[:64])
    before, after = {"image/png": (8, 4), "image/jpeg": (12, 0), "image/webp": (8, 1)}[str(sniff(data))]
    return range(start - before, start + len(store) + after)


@pytest.mark.parametrize("kind", FORMATS)
def test_trusted_valid_and_bare(kind: str, ours: Keys, signed: dict[str, bytes], tmp_path: Path) -> None:
    found = verify_bytes(signed[kind], FORMATS[kind], ours.root)
    assert (found.verdict, found.codes, found.ancestors) == ("Trusted", (), ())
    assert found.signer == f"Farm development signer, {certificates.ORGANISATION}"
    assert found.declared == "made by AI"
    for other in ("", keys.init(tmp_path).root):
        stranger = verify_bytes(signed[kind], None, other)
        assert (stranger.verdict, stranger.codes) == ("Valid", ("signingCredential.untrusted",))
    bare = verify_bytes(encoded(kind), None, ours.root)
    assert (bare.verdict, bare.declared) == ("NoManifest", "not declared")
    assert "does not mean" in bare.sentence


@pytest.mark.parametrize("kind", FORMATS)
def test_cut_short_at_any_place(kind: str, ours: Keys, signed: dict[str, bytes]) -> None:
    data = signed[kind]
    for end in {*range(0, 64, 7), *range(64, len(data), 401), len(data) - 1}:
        found = verify_bytes(data[:end], None, ours.root)
        assert found.verdict in {"Invalid", "Unreadable", "NoManifest"}, end
        assert found.verdict != "NoManifest" or end < container(data).stop


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("tail", [b"\0", b"\xff\xd9", b"garbage" * 1000, b"PK\x03\x04"])
def test_anything_appended(kind: str, tail: bytes, ours: Keys, signed: dict[str, bytes]) -> None:
    assert verify_bytes(signed[kind] + tail, None, ours.root).verdict in {"Invalid", "Unreadable"}


@pytest.mark.parametrize("kind", FORMATS)
def test_a_manifest_moved_to_another_picture(kind: str, ours: Keys, signing: Signing, signed: dict[str, bytes]) -> None:
    other = signing.sign(MANIFEST, encoded(kind, seed=2), FORMATS[kind]).data
    at, there = container(signed[kind]), container(other)
    moved = other[: there.start] + signed[kind][at.start : at.stop] + other[there.stop :]
    found = verify_bytes(moved, None, ours.root)
    assert (found.verdict, found.codes) == ("Invalid", ("assertion.dataHash.mismatch",))
    assert "changed after it was signed" in found.sentence


def test_what_is_no_trust_list_is_said_so_at_once(signed: dict[str, bytes]) -> None:
    for wrong in ("certificates", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        with pytest.raises(BadInput, match="trust list"):
            verify_bytes(signed["png"], None, wrong)
        with pytest.raises(BadInput, match="trust list"):
            next(verify_files([Path("any")], wrong))


def test_a_claimed_type_is_not_believed(ours: Keys, signed: dict[str, bytes]) -> None:
    found = verify_bytes(signed["png"], "image/jpeg", ours.root)
    assert (found.verdict, found.codes, found.mime) == ("Invalid", ("farm.type.mismatch",), "image/png")


@settings(max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(sorted(FORMATS)), where=st.floats(0, 1, exclude_max=True), bits=st.integers(1, 255))
def test_no_flipped_byte_changes_what_a_trusted_file_says(
    kind: str, where: float, bits: int, ours: Keys, signed: dict[str, bytes]
) -> None:
    """About ten kilobytes of padding and a few names of boxes are not covered. Whatever is flipped there, a file that
    still is Trusted makes the same claims about the same pixels, or can no longer be opened as a picture."""
    data = bytearray(signed[kind])
    data[int(where * len(data))] ^= bits
    found = verify_bytes(bytes(data), None, ours.root)
    assert found.verdict in WORDS
    if found.verdict == "Trusted":
        assert int(where * len(data)) in container(signed[kind])
        assert claims(bytes(data), ours.root) == claims(signed[kind], ours.root)
        try:
            shown = pixels(bytes(data))
        except OSError:
            return
        assert shown == pixels(signed[kind])


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(sorted(FORMATS)), at=st.integers(0, 10**6), bits=st.integers(1, 255))
def test_no_flip_outside_the_manifest_is_trusted(
    kind: str, at: int, bits: int, ours: Keys, signed: dict[str, bytes]
) -> None:
    data, inside = bytearray(signed[kind]), container(signed[kind])
    covered = [*range(inside.start), *range(inside.stop, len(data))]
    data[covered[at % len(covered)]] ^= bits
    assert verify_bytes(bytes(data), None, ours.root).verdict in {"Invalid", "Unreadable", "NoManifest"}


@settings(max_examples=150)
@given(
    start=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\x20\0\0\0WEBP"]),
    rest=st.binary(max_size=300),
)
def test_noise_is_never_a_crash(start: bytes, rest: bytes) -> None:
    assert verify_bytes(start + rest, None, "").verdict in {"Unreadable", "NoManifest"}
    manifest_store(start + rest)


def test_the_child_of_a_tampered_parent_is_suspect_and_so_are_its_children(ours: Keys, signing: Signing) -> None:
    """The library itself says Trusted."""
    parent = bytearray(signing.sign(MANIFEST, encoded("png"), "image/png").data)
    parent[-30] ^= 1
    child = sign_unread(signing, encoded("png", 2), "image/png", Parent(bytes(parent), "image/png", "the first"))
    grandchild = sign_unread(signing, encoded("jpeg", 3), "image/jpeg", Parent(child, "image/png", "the second"))
    for data, depth in ((child, 1), (grandchild, 2)):
        with Reader(sniff(data), io.BytesIO(data), context=context(ours.root)) as reader:
            assert reader.get_validation_state() == "Trusted"
        found = verify_bytes(data, None, ours.root)
        assert (found.verdict, found.codes) == ("SuspectAncestor", ("assertion.dataHash.mismatch",))
        assert "'the first'" in found.sentence
        assert [one.verdict for one in found.ancestors] == ["Trusted"] * (depth - 1) + ["Invalid"]


def test_an_ancestor_changed_inside_the_store_is_noticed(ours: Keys, signing: Signing) -> None:
    parent = signing.sign(MANIFEST, encoded("png"), "image/png")
    child = signing.sign(EDIT, encoded("png", 2), "image/png", Parent(parent.data, "image/png", "first")).data
    assert child.count(b"trainedAlgorithmicMedia") > 2
    at = child.index(b"trainedAlgorithmicMedia")
    changed = child[:at] + b"unTrainedAlgorithmicMedi"[:23] + child[at + 23 :]
    assert verify_bytes(changed, None, ours.root).verdict in {"SuspectAncestor", "Invalid"}


def test_a_long_chain_is_followed_to_its_first_picture(ours: Keys, signing: Signing) -> None:
    """Twenty turns: a store of 300 KB, cut into several segments in a JPEG."""
    data = signing.sign(MANIFEST, encoded("jpeg"), "image/jpeg").data
    for turn in range(20):
        data = signing.sign(EDIT, encoded("jpeg", turn), "image/jpeg", Parent(data, "image/jpeg", str(turn))).data
    found = verify_bytes(data, "image/jpeg", ours.root)
    assert found.verdict == "Trusted"
    assert [one.depth for one in found.ancestors] == list(range(1, 21))
    assert [one.title for one in found.ancestors] == [str(turn) for turn in reversed(range(20))]


def test_a_knot_of_ingredients_is_walked_once() -> None:
    """Sixty layers of two that all name the next two: 2^60 paths, 120 manifests."""
    names = [[f"{layer}a", f"{layer}b"] for layer in range(60)]
    manifests: dict[str, Any] = {"root": {"ingredients": [{"active_manifest": name} for name in names[0]]}}
    for here, below in itertools.pairwise([*names, []]):
        manifests |= {name: {"ingredients": [{"active_manifest": one} for one in below]} for name in here}
    store = {"active_manifest": "root", "manifests": manifests, "validation_state": "Trusted"}
    found = report.judge(store, "image/png")
    assert found.verdict == "Trusted"
    assert len(found.ancestors) == 2 + 2 * 2 * 59


def test_more_ancestors_than_can_be_followed_are_suspect() -> None:
    many = [{"title": str(number)} for number in range(report.MAX_ANCESTORS + 5)]
    store = {"active_manifest": "root", "manifests": {"root": {"ingredients": many}}, "validation_state": "Trusted"}
    assert report.judge(store, "image/png").verdict == "SuspectAncestor"


def test_a_remote_manifest_is_never_fetched(signing: Signing) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        out = io.BytesIO()
        with Builder(MANIFEST, context=context("")) as builder:
            builder.set_no_embed()
            builder.set_remote_url(f"http://127.0.0.1:{server.getsockname()[1]}/manifest.c2pa")
            builder.sign(signing._signer, "image/jpeg", io.BytesIO(encoded("jpeg")), out)
        assert b"/manifest.c2pa" in out.getvalue()
        found = verify_bytes(out.getvalue(), None, signing.keys.root)
        assert (found.verdict, found.codes) == ("NoManifest", ("farm.manifest.remote",))
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.accept()


def test_signs_from_many_threads_at_once(ours: Keys, signing: Signing) -> None:
    def one(seed: int) -> str:
        kind = sorted(FORMATS)[seed % 3]
        done = signing.sign(MANIFEST, encoded(kind, seed), FORMATS[kind])
        assert verify_bytes(done.data, done.mime, ours.root).verdict == "Trusted"
        return done.label

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(one, range(60)))) == 60


@pytest.fixture(scope="module")
def limited(ours: Keys) -> Iterator[LimitedVerifier]:
    with LimitedVerifier(ours.root, seconds=10) as verifier:
        yield verifier


def test_the_child_says_what_this_process_says(limited: LimitedVerifier, ours: Keys, signed: dict[str, bytes]) -> None:
    damaged = bytearray(signed["png"])
    damaged[-30] ^= 1
    for data, mime in ((signed["jpeg"], "image/jpeg"), (bytes(damaged), None), (b"", None), (encoded("webp"), None)):
        assert limited.verify(data, mime) == verify_bytes(data, mime, ours.root)


def test_a_finished_ingredient_is_signed_without_the_file(
    limited: LimitedVerifier, ours: Keys, signed: dict[str, bytes]
) -> None:
    for data, verdict in ((signed["jpeg"], "Trusted"), (encoded("jpeg"), "NoManifest")):
        found, ingredient = limited.as_parent(data, "image/jpeg", "upload")
        assert found.verdict == verdict
        parent = Parent(b"never opened", "image/jpeg", "upload", ingredient)
        made = Signing(ours).sign(MANIFEST, encoded("png"), "image/png", parent)
        (ancestor,) = verify_bytes(made.data, "image/png", ours.root).ancestors
        assert (ancestor.title, ancestor.relationship, ancestor.verdict) == ("upload", "parentOf", verdict)
    damaged = bytearray(signed["jpeg"])
    damaged[-30] ^= 1
    assert limited.as_parent(bytes(damaged), "image/jpeg", "upload")[1] == b""


def test_a_strangers_heavy_manifests_do_not_reach_the_signer(limited: LimitedVerifier, signing: Signing) -> None:
    def saying(count: int, size: int, of: bytes = b"") -> bytes:
        more = [{"label": f"org.stranger.{number}", "data": {"x": "y" * size}} for number in range(count)]
        wordy = (EDIT if of else MANIFEST)["assertions"] + more
        parent = Parent(of, "image/png", "before") if of else None
        return signing.sign(MANIFEST | {"assertions": wordy}, encoded("png"), "image/png", parent).data

    plain, long = saying(100, 10), saying(1, 600_000)
    assert limited.as_parent(plain, "image/png", "upload")[1]
    limited.examine(plain, "image/png")
    for heavy in (saying(600, 1), saying(1, 600_000, long), plain.replace(b"jumb", b"brob", 1)):
        found, ingredient = limited.as_parent(heavy, "image/png", "upload")
        assert (found.verdict, found.codes, ingredient) == ("Unreadable", ("farm.manifest.heavy",), b"")
        with pytest.raises(BadInput, match="content credentials are larger"):
            limited.examine(heavy, "image/png")
    assert limited.verify(saying(600, 1)).verdict == "Trusted", "that of a file that nobody edits may be as it likes"


def test_what_the_library_finds_and_we_do_not_is_weighed_too(
    signing: Signing, ours: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = [{"label": f"org.stranger.{number}", "data": {}} for number in range(600)]
    wordy = MANIFEST | {"assertions": [*MANIFEST["assertions"], *more]}
    data = signing.sign(wordy, encoded("png"), "image/png").data
    monkeypatch.setattr("provenance.signing.manifest_store", lambda _: None)
    found, ingredient = as_parent(data, "image/png", "upload", ours.root)
    assert (found.codes, ingredient) == (("farm.manifest.heavy",), b"")


def test_the_child_is_told_no_secret(signed: dict[str, bytes], ours: Keys) -> None:
    with pytest.MonkeyPatch.context() as patch, LimitedVerifier(ours.root) as verifier:
        for name in ("FARM_PASSPHRASE", "FARM_DATABASE", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD", "PLAIN"):
            patch.setenv(name, "told")
        assert verifier.verify(signed["png"]).verdict == "Trusted"
        assert verifier._child is not None
        found = psutil.Process(verifier._child[0].pid).environ()
    assert [name for name, said in found.items() if said == "told"] == ["PLAIN"]


def test_one_child_serves_many_and_is_replaced_when_it_dies(limited: LimitedVerifier, signed: dict[str, bytes]) -> None:
    assert limited.verify(signed["png"]).verdict == "Trusted"
    assert limited._child is not None
    first = limited._child[0]
    assert limited.verify(signed["jpeg"]).verdict == "Trusted"
    assert limited._child[0] is first
    first.kill()
    first.wait()
    assert limited.verify(signed["webp"]).verdict == "Trusted", "the next file does not pay for it"


def test_a_child_whose_life_is_nearly_spent_is_replaced_before_the_next_file(
    ours: Keys, signed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    short, start = "from provenance import limited; limited.LIFE_S = 30; limited.main()", subprocess.Popen
    born = []

    def born_old(command: list[str], **options: Any) -> Any:
        born.append(start([sys.executable, "-c", short, *command[3:]], **options))
        return born[-1]

    monkeypatch.setattr(subprocess, "Popen", born_old)
    with LimitedVerifier(ours.root, seconds=29.9) as verifier:
        assert [verifier.verify(signed[kind]).verdict for kind in ("png", "jpeg")] == ["Trusted"] * 2
    assert len(born) == 2


def test_a_child_that_hangs_is_killed(ours: Keys, signed: dict[str, bytes]) -> None:
    with LimitedVerifier(ours.root, seconds=5) as verifier:
        assert verifier.verify(signed["png"]).verdict == "Trusted"
        assert verifier._child is not None
        process, wire = verifier._child
        wire.settimeout(0.3)
        os.kill(process.pid, signal.SIGSTOP)
        found = verifier.verify(signed["png"])
        assert (found.verdict, found.codes) == ("Unreadable", ("farm.overloaded",))
        assert process.returncode == -signal.SIGKILL
        assert verifier.verify(signed["png"]).verdict == "Trusted"


def test_only_what_the_file_needs_is_its_fault(
    ours: Keys, signed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def limited_in(module: str, seconds: float = 20.0) -> tuple[str, ...]:
        """What is said of a file whose child runs this instead."""
        command = [sys.executable, "-c", f"import os, signal, time; from provenance import limited; {module}"]
        start = subprocess.Popen
        monkeypatch.setattr(subprocess, "Popen", lambda _, **options: start(command, **options))
        try:
            with LimitedVerifier(ours.root, seconds=seconds) as verifier:
                return verifier.verify(signed["png"]).codes
        finally:
            monkeypatch.setattr(subprocess, "Popen", start)

    assert limited_in("limited._allow(0.1)\nwhile True: pass") == ("farm.limits",)
    assert limited_in("os.abort()") == ("farm.limits",)
    assert limited_in("os.kill(os.getpid(), signal.SIGKILL)") == ("farm.overloaded",)
    assert limited_in("time.sleep(60)", 0.1) == ("farm.overloaded",)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with LimitedVerifier(ours.root) as verifier:
        assert verifier.verify(signed["png"]).codes == ("farm.overloaded",)
        with pytest.raises(Fault) as caught:
            verifier.examine(signed["png"], "image/png")
        assert caught.value.cause is Cause.OVERLOADED


def test_a_file_that_needs_too_much_memory_is_unreadable(ours: Keys, signed: dict[str, bytes]) -> None:
    with LimitedVerifier(ours.root, memory_mb=700) as verifier:
        assert verifier.verify(signed["png"] + bytes(700 << 20)).codes == ("farm.limits",)
        assert verifier.verify(signed["png"]).verdict == "Trusted"


def test_files_are_reported_as_they_come(tmp_path: Path, ours: Keys, signed: dict[str, bytes]) -> None:
    for kind, data in signed.items():
        (tmp_path / f"good.{kind}").write_bytes(data)
    (tmp_path / "renamed.txt").write_bytes(signed["jpeg"])
    (tmp_path / "cut.png").write_bytes(signed["png"][:3000])
    (tmp_path / "empty.png").touch()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    names = [
        "good.png",
        "good.jpeg",
        "good.webp",
        "renamed.txt",
        "cut.png",
        "empty.png",
        "pipe.png",
        "folder.png",
        "none",
    ]
    found = {one.path.name: one.report for one in verify_files((tmp_path / name for name in names), ours.root)}
    assert [found[name].verdict for name in names] == ["Trusted"] * 4 + ["Unreadable"] * 5
    assert [found[name].codes for name in names[5:]] == [("farm.type.unknown",), *[("farm.file",)] * 3]
    endless = verify_files(itertools.repeat(tmp_path / "good.png"), ours.root)
    assert [one.report.verdict for one in itertools.islice(endless, 3)] == ["Trusted"] * 3


def test_every_known_format_is_told_by_its_first_bytes() -> None:
    starts = [
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"RIFF0000WEBP",
        b"GIF89a",
        b"MM\0*",
        b"0000ftypavif",
        b"0000ftypheic",
    ]
    assert [sniff(start) for start in starts] == list(MAGIC)
    assert sniff(b"<svg") is None
