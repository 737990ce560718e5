"""What is left of a report where certificates were revoked. Pure but for the clock.

Our own list, of serial numbers: nothing is asked of anybody elsewhere, so it works offline.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import replace

from provenance.report import EXPIRED, INVALID, REVOKED, SUSPECT, Ancestor, Report, sentence

NONE_REVOKED: Mapping[str, float] = {}


def revoke(found: Report, revoked: Mapping[str, float]) -> Report:
    """What is left of it where certificates were revoked: serial numbers, with the moment since which each no longer
    counts. What a trusted time stamp shows to have been signed before that still holds. A stamp by a revoked
    certificate shows nothing, whatever its date: who has that key chooses the date."""
    ancestors = tuple(_left_of_ancestor(one, revoked) for one in found.ancestors)
    own = _against(found, revoked)
    inherited = [code for one, before in zip(ancestors, found.ancestors, strict=True) for code in _new(one, before)]
    left = replace(found, ancestors=ancestors, stamped_at=_stamp(found, revoked))
    if own is None and not inherited:
        return left
    codes = tuple(dict.fromkeys([*([own] if own else []), *inherited, *found.codes]))
    verdict = INVALID if own or found.verdict == INVALID else SUSPECT
    words = found.sentence if verdict == found.verdict else sentence(verdict, None, codes, ancestors)
    return replace(left, verdict=verdict, sentence=words, codes=codes)


def _left_of_ancestor(one: Ancestor, revoked: Mapping[str, float]) -> Ancestor:
    left, code = replace(one, stamped_at=_stamp(one, revoked)), _against(one, revoked)
    return left if code is None else replace(left, verdict=INVALID, codes=tuple(dict.fromkeys([*one.codes, code])))


def _new(one: Ancestor, before: Ancestor) -> list[str]:
    if one.verdict == before.verdict and one.codes == before.codes:
        return []
    return [code for code in one.codes if code in (REVOKED, EXPIRED)]


def _against(one: Report | Ancestor, revoked: Mapping[str, float]) -> str | None:
    """What the list says against this signature."""
    at = _stamp(one, revoked)
    if any(_since(serial, at, revoked) for serial in (one.serial, *one.serials)):
        return REVOKED
    lost = at is None and one.stamped_at is not None and one.ends is not None
    return EXPIRED if lost and dt.datetime.fromisoformat(str(one.ends)) <= dt.datetime.now(dt.UTC) else None


def _stamp(one: Report | Ancestor, revoked: Mapping[str, float]) -> str | None:
    return None if any(serial in revoked for serial in one.stampers) else one.stamped_at


def _since(serial: str | None, stamped_at: str | None, revoked: Mapping[str, float]) -> bool:
    """Whether the certificate no longer counted when it signed, as far as that is known."""
    if serial is None or serial not in revoked:
        return False
    return stamped_at is None or dt.datetime.fromisoformat(stamped_at).timestamp() >= revoked[serial]
