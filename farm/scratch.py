"""Where running jobs stood, by job: what their next attempt may go on from. Files in a folder of the dispatcher's own,
outside the store, and gone with their jobs: these are pictures that nobody has judged.

Nothing depends on them: one that cannot be written or read is one that is not there.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

SCRATCH = "scratch"  # its folder under home
log = logging.getLogger("farm.scratch")


@dataclass(frozen=True, slots=True)
class Scratch:
    folder: Path

    def read(self, job_id: int) -> bytes | None:
        try:
            return self._whole(job_id).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("what was kept of job %d cannot be read: %s", job_id, error)
            return None

    def write(self, job_id: int, data: bytes) -> None:
        """The whole file or none: a reader, or whoever comes after a crash, finds no half of it."""
        part = self._part(job_id)
        try:
            self.folder.mkdir(0o700, parents=True, exist_ok=True)
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(self._whole(job_id))
        except OSError as error:
            log.warning("job %d would start anew, what it is at cannot be kept: %s", job_id, error)

    def drop(self, job_id: int) -> None:
        for path in (self._whole(job_id), self._part(job_id)):
            path.unlink(missing_ok=True)

    def jobs(self) -> set[int]:
        found = self.folder.iterdir() if self.folder.is_dir() else ()
        return {int(path.stem) for path in found if path.stem.isdecimal()}

    def _whole(self, job_id: int) -> Path:
        return self.folder / f"{job_id}.safetensors"

    def _part(self, job_id: int) -> Path:
        return self.folder / f"{job_id}.part"
