"""Files that are whole or not there: written under a temporary name, renamed when complete."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from compressor.errors import CompressorError, one_line

# In the folder that a run has to itself.
LOCK_FILE = ".lock"


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step: a reader sees the old one or the new one."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON in one step."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        CompressorError: the file is missing, cannot be read or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CompressorError(f"{path} cannot be read: {error}") from error


@contextmanager
def temporary_folder(final: Path) -> Iterator[Path]:
    """An empty folder beside `final`, gone after the block unless it was renamed."""
    final.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    try:
        folder.chmod(0o755)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def replace_folder(new: Path, final: Path) -> None:
    """Rename a complete folder to its final name; what stood there before goes only then."""
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    new.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def make_readable(folder: Path) -> None:
    """Let everybody read the files of a folder: safetensors writes for the owner alone, and what ships is served by
    somebody else."""
    for path in folder.iterdir():
        if path.is_file():
            path.chmod(0o644)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def explained(what: str, folder: Path) -> Iterator[None]:
    """Errors of writing within the block as one line that says what could not be written, where and why.

    Libraries tell of a full disk in their own ways: torch by a RuntimeError, safetensors by an exception of its own.

    Raises:
        CompressorError: in place of an error of the disk; others pass.
    """
    try:
        yield
    except Exception as error:
        if not _of_the_disk(error):
            raise
        free = shutil.disk_usage(folder).free if folder.exists() else 0
        raise CompressorError(
            f"{what} cannot be written in {folder}: {one_line(error)} ({free / 2**20:.0f} MiB are free); "
            "what was finished before stays, and the same command goes on from there"
        ) from error


_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
# `inline_container` is where torch writes its files: all that it says of a full disk is a wrong position.
_DISK_WORDS = (
    "no space left",
    "file too large",
    "quota exceeded",
    "read-only file",
    "permission denied",
    "inline_container",
)


def _of_the_disk(error: BaseException) -> bool:
    if isinstance(error, CompressorError):
        # Explained already, by a block within.
        return False
    if isinstance(error, OSError):
        return error.errno in _DISK_ERRORS
    return any(word in str(error).lower() for word in _DISK_WORDS)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder last through a power cut, where the system can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Have a folder to oneself; the system lets go of it when the process ends, however it ends.

    Raises:
        CompressorError: another process has it.
    """
    lock = FileLock(folder / LOCK_FILE, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise CompressorError(
            f"--output: another run is writing to {folder}; wait until it is done, or give another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


def checkpoint_file(folder: Path, step: int) -> Path:
    """Where the checkpoint of a training step lies; names sort by step."""
    return folder / f"step-{step:08d}.pt"


def checkpoint_files(folder: Path) -> list[Path]:
    """Checkpoints in a folder, the oldest first."""
    return sorted(folder.glob("step-*.pt"))


def newest_checkpoint(folder: Path) -> int:
    """The step of the newest checkpoint in a folder; 0 if there is none."""
    files = checkpoint_files(folder)
    return int(files[-1].stem.removeprefix("step-")) if files else 0


def fitting(pattern: str) -> list[Path]:
    """Files that a path or a pattern (`texts/*.txt`, `texts/**/*.txt`) fits."""
    path = Path(pattern).expanduser()
    found = Path(path.anchor).glob(str(path.relative_to(path.anchor)))
    return sorted(file for file in found if file.is_file())
