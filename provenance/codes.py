"""What the codes of the C2PA library, and our own, mean in plain words."""

MEANINGS = {
    "assertion.dataHash.mismatch": "the file was changed after it was signed",
    "assertion.dataHash.malformed": "the record of what was signed is damaged",
    "assertion.hashedURI.mismatch": "a statement in the manifest was changed after it was signed",
    "assertion.missing": "a statement that was signed is gone",
    "assertion.action.malformed": "the list of actions breaks the rules",
    "assertion.action.ingredientMismatch": "an action names an ingredient that is not there",
    "assertion.cbor.invalid": "a statement in the manifest is damaged",
    "assertion.json.invalid": "a statement in the manifest is damaged",
    "claim.missing": "the manifest has no claim",
    "claim.multiple": "the manifest has more than one claim",
    "claim.malformed": "the claim is damaged",
    "claim.cbor.invalid": "the claim is damaged",
    "claim.hardBindings.missing": "nothing ties the manifest to this file",
    "claimSignature.mismatch": "the signature does not fit the claim",
    "claimSignature.missing": "the signature is gone",
    "claimSignature.outsideValidity": "it was signed outside the life of the certificate",
    "signingCredential.untrusted": "the signer is not on the trust list",
    "signingCredential.invalid": "the certificate may not be used to sign content",
    "signingCredential.expired": "the certificate has expired",
    "signingCredential.revoked": "the certificate was revoked",
    "ingredient.manifest.mismatch": "the manifest of an ancestor was changed",
    "ingredient.manifest.missing": "the manifest of an ancestor is gone",
    "ingredient.claimSignature.mismatch": "the signature of an ancestor was changed",
    "ingredient.claimSignature.missing": "the signature of an ancestor is gone",
    "manifest.inaccessible": "it points to a manifest elsewhere, which is not fetched",
    "general.error": "the manifest is damaged",
    "farm.type.mismatch": "the file is not of the type it was said to be",
    "farm.type.unknown": "this is not a picture of a known format",
    "farm.manifest.remote": "it points to a manifest elsewhere, which is not fetched",
    "farm.manifest.unreadable": "the file or its manifest is damaged",
    "farm.manifest.heavy": "its content credentials are larger than those of a picture to edit may be",
    "farm.limits": "it could not be opened within the limits on memory and time",
    "farm.overloaded": "this machine had no room or time to open it: try again",
    "farm.file": "the file could not be read",
    "farm.file.corrupt": "the file in the store is not the one that was put there",
}


def meaning(code: str) -> str:
    return MEANINGS.get(code, "a check of the C2PA library failed")
