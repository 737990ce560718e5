"""From what the C2PA library found in a file to one word, one sentence and the tree of ancestors. Pure.

    Trusted          signed by someone on the trust list, unchanged since, and so is every ancestor
    Valid            unchanged, but the signer is not on the trust list
    Invalid          changed since it was signed, or its signature does not hold
    SuspectAncestor  unchanged itself, but made from a file that was Invalid
    NoManifest       carries no content credentials
    Unreadable       not a file that can be opened

The library calls the child of a tampered parent Trusted, because the parent's failure is only noted inside the child.
So every ancestor that the active manifest leads to is looked at here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from provenance.chain import Certificate
from provenance.codes import meaning

TRUSTED, VALID, INVALID = "Trusted", "Valid", "Invalid"
SUSPECT, NONE, UNREADABLE = "SuspectAncestor", "NoManifest", "Unreadable"
WORDS = (TRUSTED, VALID, INVALID, SUSPECT, NONE, UNREADABLE)
FIT_PARENT = frozenset({TRUSTED, VALID, NONE})  # of a stranger's picture: its maker may be unknown, or say nothing
BROKEN = frozenset({INVALID, SUSPECT})  # of which its credentials are left out, where the operator allows it
MAX_ANCESTORS = 1000
GENERATION = "org.renderfarm.generation"
UNTRUSTED, REVOKED = "signingCredential.untrusted", "signingCredential.revoked"
EXPIRED = "signingCredential.expired"
# Found in an ancestor, these say that its signer, clock or manifest is not known here; not that it was changed.
HARMLESS = {
    UNTRUSTED,
    "manifest.inaccessible",
    "timeStamp.mismatch",
    "timeStamp.untrusted",
    "timeStamp.outsideValidity",
}
NO_PROOF = "that does not mean that it was not made by AI"


@dataclass(frozen=True, slots=True)
class Ancestor:
    """One ingredient, in the order of a walk from the file to its origins; `depth` makes it a tree."""

    depth: int
    title: str
    relationship: str
    verdict: str
    label: str | None = None
    signer: str | None = None
    codes: tuple[str, ...] = ()
    serial: str | None = None
    stamped_at: str | None = None
    serials: tuple[str, ...] = ()
    stampers: tuple[str, ...] = ()
    ends: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    verdict: str
    sentence: str
    codes: tuple[str, ...] = ()
    mime: str | None = None
    signer: str | None = None
    source: str | None = None  # the digital source type it declares; None if it declares none
    label: str | None = None
    manifest_sha256: str | None = None
    ancestors: tuple[Ancestor, ...] = ()
    serial: str | None = None  # of the signer's certificate
    stamped_at: str | None = None  # when it was signed, by a time stamp of someone we trust
    chain: tuple[Certificate, ...] = ()  # the signer's first
    commitment: str | None = None  # to the prompt, of a picture that a farm has drawn
    anchor: str | None = None  # SHA-256 of the certificate on the trust list at which the chain ends
    serials: tuple[str, ...] = ()  # of all certificates that vouch for the signer
    stampers: tuple[str, ...] = ()  # and for its time stamp
    ends: str | None = None  # when the signer's certificate does

    @property
    def declared(self) -> str:
        """Made by AI or not, in the words of whoever signed it."""
        match (self.source or "").rpartition("/")[2]:
            case "":
                return "not declared"
            case "trainedAlgorithmicMedia":
                return "made by AI"
            case "compositeWithTrainedAlgorithmicMedia" | "compositeSynthetic":
                return "partly made by AI"
            case _:
                return "not made by AI"


def failed(verdict: str, code: str, mime: str | None = None) -> Report:
    """The report of a file that gave the library nothing to judge."""
    opening = {NONE: f"No content credentials ({NO_PROOF})", INVALID: "Not to be trusted"}.get(verdict, "Not readable")
    return Report(verdict, f"{opening}: {meaning(code)}.", (code,), mime)


def no_manifest(mime: str) -> Report:
    return Report(NONE, f"No content credentials; {NO_PROOF}.", (), mime)


def judge(store: dict[str, Any], mime: str) -> Report:
    """`store` is the library's own account of the file, with no word on revoked certificates: see `revoking`."""
    label = store.get("active_manifest")
    active = store["manifests"].get(label)  # None where its damage keeps the library from listing it
    ancestors = tuple(_walk(store))
    own = _codes((store.get("validation_results") or {}).get("activeManifest"))
    inherited = [code for one in ancestors if one.verdict == INVALID for code in one.codes if code not in HARMLESS]
    suspect = bool(inherited) or _deltas_fail(store) or len(ancestors) >= MAX_ANCESTORS
    verdict = _word(store.get("validation_state") if active else None, own, suspect=suspect)
    signer = _signer(active or {})
    codes = tuple(dict.fromkeys([*own, *inherited]))
    words = sentence(verdict, signer, codes, ancestors)
    serial, stamped = _serial(active or {}), _stamped(active or {}, store.get("validation_results"))
    about = (signer, _source(store), label, None, ancestors, serial, stamped)
    return Report(verdict, words, codes, mime, *about, commitment=_commitment(store))


def _word(state: str | None, own: list[str], *, suspect: bool) -> str:
    if state not in {TRUSTED, VALID} or set(own) - {UNTRUSTED}:
        return INVALID
    if suspect:
        return SUSPECT
    return VALID if own else state


def sentence(verdict: str, signer: str | None, codes: tuple[str, ...], ancestors: tuple[Ancestor, ...]) -> str:
    who = signer or "an unnamed signer"
    if verdict == TRUSTED:
        return f"Signed by {who}, who is on the trust list, and unchanged since."
    if verdict == VALID:
        return f"Unchanged since {who} signed it; but that signer is not on the trust list."
    why = next((meaning(code) for code in codes if code != UNTRUSTED), "what it carries cannot be followed to its end")
    if verdict == SUSPECT:
        bad = next((one.title for one in ancestors if one.verdict == INVALID), "another file")
        return f"Unchanged itself, but made from {bad!r}, which is not to be trusted: {why}."
    return f"Not to be trusted: {why}."


def _walk(store: dict[str, Any]) -> Iterator[Ancestor]:
    """Depth first; a manifest reached twice is opened once, so no knot of ingredients can blow the walk up."""
    manifests, root = store["manifests"], str(store.get("active_manifest"))
    todo, seen = [(1, root, one) for one in reversed(_ingredients(manifests, root))], {root}
    for _ in range(MAX_ANCESTORS):
        if not todo:
            return
        depth, child, ingredient = todo.pop()
        label = ingredient.get("active_manifest")
        yield _ancestor(store, depth, child, ingredient)
        if label in manifests and label not in seen:
            seen.add(label)
            todo += [(depth + 1, label, one) for one in reversed(_ingredients(manifests, label))]


def _ingredients(manifests: dict[str, Any], label: str) -> list[dict[str, Any]]:
    return (manifests.get(label) or {}).get("ingredients") or []


def _ancestor(store: dict[str, Any], depth: int, child: str, ingredient: dict[str, Any]) -> Ancestor:
    label = ingredient.get("active_manifest")
    recorded = ingredient.get("validation_results") or {}
    delta = _delta(store, child, ingredient)
    codes = [
        *_codes(recorded.get("activeManifest")),
        *_codes(delta),
        *_codes_of_list(ingredient.get("validation_status")),
    ]
    for inner in recorded.get("ingredientDeltas") or []:
        codes += _codes(inner.get("validationDeltas"))
    if label and label not in store["manifests"]:
        codes.append("ingredient.manifest.missing")
    return Ancestor(
        depth,
        ingredient.get("title") or "an untitled file",
        ingredient.get("relationship") or "",
        _ancestor_word(label, codes, recorded, delta),
        label,
        _signer(store["manifests"].get(label) or {}),
        tuple(dict.fromkeys(codes)),
        _serial(store["manifests"].get(label) or {}),
        _stamped(store["manifests"].get(label) or {}, recorded, {"activeManifest": delta}),
    )


def _ancestor_word(label: str | None, codes: list[str], *results: dict[str, Any]) -> str:
    if set(codes) - HARMLESS:
        return INVALID
    if label is None:
        return NONE
    passed = {
        one["code"] for result in results for one in (result.get("activeManifest") or result).get("success") or []
    }
    return TRUSTED if "signingCredential.trusted" in passed and UNTRUSTED not in codes else VALID


def _delta(store: dict[str, Any], child: str, ingredient: dict[str, Any]) -> dict[str, Any]:
    """What checking this ingredient again, now and with our trust list, found beyond what its signer noted."""
    end = f"/{child}/c2pa.assertions/{ingredient.get('label')}"
    deltas = (store.get("validation_results") or {}).get("ingredientDeltas") or []
    found = (one.get("validationDeltas") for one in deltas if one.get("ingredientAssertionURI", "").endswith(end))
    return next(found, None) or {}


def _deltas_fail(store: dict[str, Any]) -> bool:
    deltas = (store.get("validation_results") or {}).get("ingredientDeltas") or []
    return any(set(_codes(one.get("validationDeltas"))) - HARMLESS for one in deltas)


def _codes(result: dict[str, Any] | None) -> list[str]:
    return _codes_of_list((result or {}).get("failure"))


def _codes_of_list(statuses: list[dict[str, Any]] | None) -> list[str]:
    return [one["code"] for one in statuses or []]


def _signer(manifest: dict[str, Any]) -> str | None:
    info = manifest.get("signature_info") or {}
    names = [name for name in (info.get("common_name"), info.get("issuer")) if name]
    return ", ".join(names) or None


def _serial(manifest: dict[str, Any]) -> str | None:
    return (manifest.get("signature_info") or {}).get("cert_serial_number")


def _stamped(manifest: dict[str, Any], *results: dict[str, Any] | None) -> str | None:
    """The time of its time stamp. A stamp by anybody would let whoever stole a key choose the time."""
    passed = {
        one["code"] for result in results for one in ((result or {}).get("activeManifest") or {}).get("success") or []
    }
    at = (manifest.get("signature_info") or {}).get("time")
    return str(at) if at and "timeStamp.trusted" in passed else None


def _source(store: dict[str, Any]) -> str | None:
    """The digital source type of the last action that names one; a manifest that names none speaks for its parent."""
    for manifest in _speaking(store):
        types = [action["digitalSourceType"] for action in _actions(manifest) if "digitalSourceType" in action]
        if types:
            return str(types[-1])
    return None


def _commitment(store: dict[str, Any]) -> str | None:
    """That of the last step that drew: an approval speaks of the picture it approves."""
    for manifest in _speaking(store):
        for one in manifest.get("assertions") or []:
            data = one.get("data")
            if one["label"] == GENERATION and isinstance(data, dict):
                made = data.get("prompt_commitment")
                return str(made.get("value")) if isinstance(made, dict) else None
    return None


def _speaking(store: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The active manifest, and while it says nothing, that of its parent and so on."""
    manifests, label, seen = store["manifests"], str(store.get("active_manifest")), set()
    while label in manifests and label not in seen:
        seen.add(label)
        yield manifests[label]
        parents = [one for one in _ingredients(manifests, label) if one.get("relationship") == "parentOf"]
        label = str(parents[0].get("active_manifest")) if parents else ""


def _actions(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    lists = [one.get("data") for one in manifest.get("assertions") or [] if one["label"].startswith("c2pa.actions")]
    return [action for data in lists if isinstance(data, dict) for action in data.get("actions") or []]
