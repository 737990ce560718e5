"""Verify files: one word, one sentence, what each code means, who signed, AI or not as declared, and every
ancestor.

`verify_bytes` opens a file in this process: for files we have just made. `LimitedVerifier` and `verify_files` open
files of strangers in a child with limits on memory and time (law 12), and go on when it dies. Nothing is ever fetched
from elsewhere.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from c2pa import C2paError, Context, Reader

from farm.ports import Provenance
from provenance import certificates, chain, cose, report
from provenance.certificates import check_list
from provenance.codes import meaning
from provenance.container import manifest_store, sniff
from provenance.limited import LimitedVerifier
from provenance.report import Ancestor, Report
from provenance.revoking import NONE_REVOKED, revoke

# The purposes a signing certificate may have. Left out, the library would take e-mail protection alone.
PURPOSES = "1.3.6.1.4.1.62558.2.1\n1.3.6.1.5.5.7.3.4\n1.3.6.1.5.5.7.3.36\n"
MAX_FILE = 256 << 20


@dataclass(frozen=True, slots=True)
class FileReport:
    path: Path
    report: Report
    sha256: str | None = None  # of the file, where it could be read


@dataclass(frozen=True, slots=True)
class LocalVerifier:
    """The port's verifier, for artifacts of our own. `trust` is a trust list in PEM."""

    trust: str

    def verify(self, data: bytes, mime: str) -> Provenance:
        found = verify_bytes(data, mime, self.trust)
        return Provenance(found.verdict, found.sentence, found.codes, found.manifest_sha256)


@lru_cache(maxsize=8)
def context(trust: str) -> Any:
    """The library's settings, the same for signing and verifying: nothing fetched, no thumbnails, our trust list."""
    return Context.from_dict(
        {
            "version": 1,
            "builder": {"thumbnail": {"enabled": False}},
            "verify": {"verify_after_sign": True, "remote_manifest_fetch": False, "ocsp_fetch": False},
            "trust": {"trust_config": PURPOSES} | ({"trust_anchors": check_list(trust)} if trust else {}),
        }
    )


def verify_bytes(data: bytes, mime: str | None, trust: str, revoked: Mapping[str, float] = NONE_REVOKED) -> Report:
    """`mime` is what the file is said to be; None if nothing was said. What counts is what its bytes say. `revoked` are
    serial numbers of certificates, each with the moment since which it no longer counts."""
    kind = sniff(data)
    if kind is None:
        return report.failed(report.UNREADABLE, "farm.type.unknown", mime)
    if mime is not None and mime != kind:
        return report.failed(report.INVALID, "farm.type.mismatch", kind)
    settings = context(trust)
    try:
        return revoke(_read(data, kind, settings, trust), revoked)
    except (C2paError, ValueError) as error:
        if str(error).startswith("Remote"):  # the library has no type for it
            return report.failed(report.NONE, "farm.manifest.remote", kind)
        return report.failed(report.UNREADABLE, "farm.manifest.unreadable", kind)


def verify_files(
    paths: Iterable[Path], trust: str, revoked: Mapping[str, float] = NONE_REVOKED, *, seconds: float = 20.0
) -> Iterator[FileReport]:
    """One report a path, in order, as they come; memory stays flat however many there are."""
    with LimitedVerifier(trust, seconds=seconds) as verifier:
        for path in paths:
            found, sha256 = _verify_file(path, verifier)
            yield FileReport(path, revoke(found, revoked), sha256)


def told(found: Report, lists: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """The report for programs: with what each code means, and the one of the trust lists (name, PEM) that matched."""
    said = asdict(found) | {"declared": found.declared, "trusted_by": chain.list_of(found.anchor, lists)}
    codes = dict.fromkeys([*found.codes, *(code for one in found.ancestors for code in one.codes)])
    return said | {"meanings": {code: meaning(code) for code in codes}}


def _verify_file(path: Path, verifier: LimitedVerifier) -> tuple[Report, str | None]:
    try:
        if not path.is_file() or path.stat().st_size > MAX_FILE:
            return report.failed(report.UNREADABLE, "farm.limits" if path.is_file() else "farm.file"), None
        data = path.read_bytes()
    except OSError:
        return report.failed(report.UNREADABLE, "farm.file"), None
    return verifier.verify(data), hashlib.sha256(data).hexdigest()


def _read(data: bytes, kind: str, settings: Any, trust: str) -> Report:
    reader = Reader.try_create(kind, io.BytesIO(data), None, settings)
    if reader is None:
        return report.no_manifest(kind)
    with reader:
        found = report.judge(json.loads(reader.json()), kind)
    embedded = manifest_store(data)
    if not embedded:
        return found
    backed = _backed(found, embedded, trust)
    known = backed.anchor if found.verdict in (report.TRUSTED, report.SUSPECT) else None
    return replace(
        backed,
        manifest_sha256=hashlib.sha256(embedded).hexdigest(),
        anchor=None if report.UNTRUSTED in found.codes else known,
    )


def _backed(found: Report, store: bytes, trust: str) -> Report:
    """With who vouches for each of its signers."""
    signed, known = cose.signatures(store), certificates.found_in(store)

    def vouched(one: Report | Ancestor) -> dict[str, Any]:
        held = chain.backing(one.label, one.serial, signed, known, trust)
        ends = held.chain[0].not_after if held.chain else None
        links = {"chain": held.chain, "anchor": held.anchor} if isinstance(one, Report) else {}
        return links | {"serials": held.serials, "stampers": held.stampers, "ends": ends}

    ancestors = tuple(replace(one, **vouched(one)) if one.serial else one for one in found.ancestors)
    return replace(found, ancestors=ancestors, **vouched(found))
