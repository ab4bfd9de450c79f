"""Locks on GPUs: jobs on one machine take different GPUs, whichever user or folder started them.

A process locks a GPU by binding its name in the kernel's table of abstract sockets (unix(7)). Such a lock holds for
the whole machine, and has no file whose owner, permissions or deletion could matter. The kernel releases it when the
process ends, for whatever reason.
"""

import errno
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

_held: dict[str, socket.socket] = {}  # locks of this process by UUID, until it ends


def count() -> int:
    """Return the number of GPUs for jobs started from here, from device files and CUDA_VISIBLE_DEVICES alone."""
    there = len(list(Path("/dev").glob("nvidia[0-9]*")))
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return there if allowed is None or not there else len(list(filter(None, allowed.split(","))))


def listed() -> list[str]:
    """Return the UUIDs of the machine's GPUs in the driver's order, with MIG slices in place of their GPU.

    Asks `nvidia-smi` and not CUDA, which reads CUDA_VISIBLE_DEVICES only once, at its start.
    """
    if shutil.which("nvidia-smi") is None:
        return []
    said = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    found = re.findall(r"UUID: ((?:GPU|MIG)-[^)\s]+)\)", said)
    sliced = re.findall(r"UUID: (GPU-[^)\s]+)\)\s+MIG", said)
    return [uuid for uuid in found if uuid not in sliced]


def choices(uuids: list[str], allowed: str | None) -> dict[str, str]:
    """Return the entries of CUDA_VISIBLE_DEVICES (numbers, UUIDs or prefixes of UUIDs) by the UUIDs that they mean.

    As in CUDA, the first entry that is not a GPU (`-1`, `NoDevFiles`) and all entries after it are ignored.
    """
    if allowed is None:
        return {uuid: uuid for uuid in uuids}
    meant = {}
    for entry in map(str.strip, allowed.split(",")):
        found = uuids[int(entry) :][:1] if entry.isdigit() else [u for u in uuids if entry and u.startswith(entry)]
        if len(found) != 1:
            break
        meant[found[0]] = entry
    return meant


def lock(uuid: str) -> bool:
    """Lock the GPU until this process ends; return False if another process has it."""
    taken = socket.socket(socket.AF_UNIX)
    try:
        taken.bind(f"\0nullbooth/{uuid}")
    except OSError as error:
        taken.close()
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    _held[uuid] = taken
    return True


def lock_together(uuids: Iterable[str], count: int) -> list[str]:
    """Lock `count` GPUs, or none: two jobs that each hold one GPU and need two would wait for each other forever."""
    taken = list(islice(filter(lock, uuids), count))
    if len(taken) < count:
        for uuid in taken:
            _held.pop(uuid).close()
        return []
    return taken


def take(pause: float = 5.0, say: Callable[[str], None] = print, count: int = 1) -> str | None:
    """Lock free GPUs among those that CUDA_VISIBLE_DEVICES allows, and hide all others from CUDA. Returns the UUID of
    the first, or None if there is no GPU.

    Waits, with a message to `say`, while too few are free, and looks again every `pause` seconds. Raises RuntimeError
    if the machine has GPUs, but fewer than `count`.
    """
    if _held:
        return next(iter(_held))
    found = choices(listed(), os.environ.get("CUDA_VISIBLE_DEVICES"))
    if 0 < len(found) < count:
        raise RuntimeError(f"train.gpus: {count}: this machine has {len(found)}; use fewer")
    waiting = False
    while found:
        if taken := lock_together(found, count):
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(found[uuid] for uuid in taken)
            say(f"GPU: {', '.join(taken)}")
            return taken[0]
        if not waiting:
            say(f"waiting for a GPU: other jobs of NullBooth on this machine have {', '.join(found)}")
            waiting = True
        time.sleep(pause)
    return None


def side_by_side(work: Callable[..., None], arguments: tuple, processes: int, device: str) -> None:
    """Run `work(*arguments)` in several processes joined by accelerate, each on a GPU, or on the CPU if there is none.

    device: `auto` locks free GPUs, `cuda` uses the first ones, `cpu` none. Call this before CUDA is used.
    """
    from accelerate import debug_launcher, notebook_launcher

    if device == "cpu" or (device == "auto" and take(count=processes) is None):
        debug_launcher(work, arguments, processes)
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    notebook_launcher(work, arguments, processes, use_port=str(port))
