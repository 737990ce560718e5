"""What is left of a report where certificates were revoked. Pure.

Our own list, of serial numbers: nothing is asked of anybody elsewhere, so it works offline.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import replace

from provenance.report import INVALID, REVOKED, SUSPECT, Ancestor, Report, sentence


def revoke(found: Report, revoked: Mapping[str, float]) -> Report:
    """What is left of it where certificates were revoked: serial numbers, with the moment since which each no longer
    counts. What a trusted time stamp shows to have been signed before that still holds."""
    ancestors = tuple(_revoked_ancestor(one, revoked) for one in found.ancestors)
    own = any(_since(one, found.stamped_at, revoked) for one in (found.serial, *(one.serial for one in found.chain)))
    inherited = ancestors != found.ancestors
    if not own and not inherited:
        return found
    codes = tuple(dict.fromkeys([REVOKED, *found.codes]))
    verdict = INVALID if own or found.verdict == INVALID else SUSPECT
    words = found.sentence if verdict == found.verdict else sentence(verdict, None, codes, ancestors)
    return replace(found, verdict=verdict, sentence=words, codes=codes, ancestors=ancestors)


def _revoked_ancestor(one: Ancestor, revoked: Mapping[str, float]) -> Ancestor:
    if not _since(one.serial, one.stamped_at, revoked):
        return one
    return replace(one, verdict=INVALID, codes=tuple(dict.fromkeys([*one.codes, REVOKED])))


def _since(serial: str | None, stamped_at: str | None, revoked: Mapping[str, float]) -> bool:
    """Whether the certificate no longer counted when it signed, as far as that is known."""
    if serial is None or serial not in revoked:
        return False
    return stamped_at is None or dt.datetime.fromisoformat(stamped_at).timestamp() >= revoked[serial]
