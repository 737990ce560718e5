"""What a signer that runs signs with: the keys as they lie there now, and where time stamps come from."""

from __future__ import annotations

import datetime as dt
import threading
from functools import partial

from farm.config import Settings
from farm.errors import Fault
from farm.job import Cause
from provenance import keyfiles, keys, timestamps
from provenance.keys import Keys
from provenance.signing import Signing, Stamps
from provenance.stamping import Outside, Responder


class Keyring:
    """Its methods may run in several threads, and several signers may share the keys."""

    def __init__(self, settings: Settings) -> None:
        self.home, self._passphrase = settings.home, keyfiles.passphrase_of(settings)
        self._lock = threading.Lock()
        self._outside = None if settings.timestamps in ("own", "off") else Outside(settings.timestamps)
        self._responder = None if settings.timestamps == "off" else Responder()
        self._required = settings.timestamps_are == "required"
        self._load()

    @property
    def signing(self) -> Signing:
        """With a leaf that is not near its end, and with what lies there now: keys may be rotated, certificates
        revoked and others trusted while a batch is signed."""
        with self._lock:
            if self._is_due() or keys.stamp_of(self.home) != self._seen:
                self._load()
            if self._keys.leaf.not_valid_after_utc <= dt.datetime.now(dt.UTC):
                raise Fault(Cause.SIGNER_FAILED, "the certificate that signs has ended: see `farm keys ls`")
            return self._signing

    def health(self) -> dict[str, str]:
        """Fails while work would: for want of time stamps, of a certificate that still holds, of a key that signs."""
        signing = self.signing
        signing.check()
        held, told = signing.keys, "off" if self._responder is None else "ready"
        if self._outside is not None:
            try:
                self._outside.check()
            except Fault as fault:
                if self._required:
                    raise
                told = f"missing: {fault.detail}"
        renewed = {"renew_at": held.renew_at.isoformat(), "timestamps": told}
        return {"state": "ready", "algorithm": held.algorithm} | renewed

    def close(self) -> None:
        if self._responder is not None:
            self._responder.close()
        if self._outside is not None:
            self._outside.close()

    def _load(self) -> None:
        self._seen = keys.stamp_of(self.home)  # before the keys are read: a change in between is seen the next time
        self._take(keys.init(self.home, passphrase=self._passphrase))

    def _take(self, held: Keys) -> None:
        self._keys, self._signing = held, Signing(held, self._stamps(held))

    def _stamps(self, held: Keys) -> Stamps | None:
        """Of the keys that sign with them, so that one trust list speaks for both."""
        if self._responder is None:
            return None
        answer = partial(_stamp, held) if self._outside is None else self._outside.answer
        return Stamps(self._responder.serve(answer), self._required)

    def _is_due(self) -> bool:
        return not self._keys.foreign and self._keys.renew_at <= dt.datetime.now(dt.UTC)


def _stamp(held: Keys, query: bytes) -> bytes:
    return timestamps.answer(query, held.stamp_key, list(held.stamp_chain), dt.datetime.now(dt.UTC))
