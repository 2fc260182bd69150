"""Checkpoints within a stage: what a run that was cut off goes on from."""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from compressor.files import checkpoint_file, checkpoint_files, explained, sync_folder

# Every time the next one may take is at least so many times what the last one took.
_SHARE = 20


@dataclass
class Checkpoints:
    """Files `step-00000120.pt` in a folder, each whole or not there.

    Attributes:
        folder: of one stage and one fingerprint.
        seconds: between two of them; 0 saves after every step.
        keep: how many stay.
    """

    folder: Path
    seconds: float
    keep: int
    _last: float = field(default_factory=time.monotonic)
    _took: float = 0.0

    def due(self) -> bool:
        """Whether it is time for the next one; a slow disk never takes more than a twentieth of the time."""
        waited = time.monotonic() - self._last
        return self.seconds == 0 or waited >= max(self.seconds, _SHARE * self._took)

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write a checkpoint under a temporary name, rename it, and let go of those before the last few.

        Raises:
            CompressorError: the disk is full or cannot be written; the checkpoints before this one stay.
        """
        start = time.monotonic()
        final = checkpoint_file(self.folder, step)
        temporary = self.folder / f".{final.name}.part"
        try:
            with explained(f"the checkpoint of step {step}", self.folder):
                with temporary.open("wb") as file:
                    torch.save(state, file)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(final)
                sync_folder(self.folder)
        finally:
            temporary.unlink(missing_ok=True)
        for old in checkpoint_files(self.folder)[: -self.keep]:
            old.unlink()
        self._last = time.monotonic()
        self._took = self._last - start

    def newest(self) -> dict[str, Any] | None:
        """The last state that can be read; None if there is none."""
        for file in reversed(checkpoint_files(self.folder)):
            try:
                return torch.load(file, map_location="cpu", weights_only=True)
            except Exception:  # torch, zipfile and pickle each raise their own for a broken file
                # Renamed files are whole; one that is not was broken by the disk, and the one before it is tried.
                continue
        return None
