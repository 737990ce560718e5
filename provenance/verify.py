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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from c2pa import C2paError, Context, Reader

from farm.ports import Provenance
from provenance import report
from provenance.certificates import check_list
from provenance.container import manifest_store, sniff
from provenance.limited import LimitedVerifier
from provenance.report import Report

# The purposes a signing certificate may have. Left out, the library would take e-mail protection alone.
PURPOSES = "1.3.6.1.4.1.62558.2.1\n1.3.6.1.5.5.7.3.4\n1.3.6.1.5.5.7.3.36\n"
MAX_FILE = 256 << 20


@dataclass(frozen=True, slots=True)
class FileReport:
    path: Path
    report: Report


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


def verify_bytes(data: bytes, mime: str | None, trust: str) -> Report:
    """`mime` is what the file is said to be; None if nothing was said. What counts is what its bytes say."""
    kind = sniff(data)
    if kind is None:
        return report.failed(report.UNREADABLE, "farm.type.unknown", mime)
    if mime is not None and mime != kind:
        return report.failed(report.INVALID, "farm.type.mismatch", kind)
    settings = context(trust)
    try:
        return _read(data, kind, settings)
    except (C2paError, ValueError) as error:
        if str(error).startswith("Remote"):  # the library has no type for it
            return report.failed(report.NONE, "farm.manifest.remote", kind)
        return report.failed(report.UNREADABLE, "farm.manifest.unreadable", kind)


def verify_files(paths: Iterable[Path], trust: str, *, seconds: float = 20.0) -> Iterator[FileReport]:
    """One report a path, in order, as they come; memory stays flat however many there are."""
    with LimitedVerifier(trust, seconds=seconds) as verifier:
        for path in paths:
            yield FileReport(path, _verify_file(path, verifier))


def _verify_file(path: Path, verifier: LimitedVerifier) -> Report:
    try:
        if not path.is_file() or path.stat().st_size > MAX_FILE:
            return report.failed(report.UNREADABLE, "farm.limits" if path.is_file() else "farm.file")
        data = path.read_bytes()
    except OSError:
        return report.failed(report.UNREADABLE, "farm.file")
    return verifier.verify(data)


def _read(data: bytes, kind: str, settings: Any) -> Report:
    reader = Reader.try_create(kind, io.BytesIO(data), None, settings)
    if reader is None:
        return report.no_manifest(kind)
    with reader:
        found = report.judge(json.loads(reader.json()), kind)
    embedded = manifest_store(data)
    return replace(found, manifest_sha256=hashlib.sha256(embedded).hexdigest() if embedded else None)
