"""Accidents outside the program, for tests: full disks, broken files, killed writers."""

import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LEFTOVERS = "*.partial-*"


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    """Mount a small disk at `folder`; skip the test if that is not possible."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no disk can be mounted here, which needs root: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def full_disk(folder: Path, free: int) -> Iterator[None]:
    """Fill the small disk at `folder` until about `free` bytes are left."""
    filler = folder / "filler"
    left = os.statvfs(folder)
    filler.write_bytes(bytes(max(0, left.f_bavail * left.f_frsize - free)))
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def limited_files(_folder: Path, size: int) -> Iterator[None]:
    """Limit files of this process to `size` bytes, so that writes fail without root."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def flip_bit(path: Path, place: int = -1) -> None:
    """Flip one bit of the byte at `place` (by default in the middle)."""
    content = bytearray(path.read_bytes())
    content[place if place >= 0 else len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    """Cut a file in half, as after a power cut."""
    os.truncate(path, path.stat().st_size // 2)


def killed(work: Callable[[], None]) -> bool:
    """Do `work` in a separate process; return True if it ended by SIGKILL, which `work` must send itself."""
    if not (child := os.fork()):
        work()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def die(*_arguments, **_options) -> None:
    """Replacement for a function that ends this process like `kill -9`."""
    os.kill(os.getpid(), signal.SIGKILL)
