"""Which GPU a job takes: jobs side by side on one machine take different ones, whoever started them from which folder.

To take a GPU is to bind its name in the kernel's table of abstract sockets (unix(7)). That lock is one per machine, has
no file with an owner, permissions or a folder that others could clean up, and the kernel drops it with the process that
holds it, however that ended.
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

_held: dict[str, socket.socket] = {}  # what this process has taken, until it ends


def count() -> int:
    """How many GPUs jobs started from here can have, from the device files alone: the driver is not asked."""
    there = len(list(Path("/dev").glob("nvidia[0-9]*")))
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return there if allowed is None or not there else len(list(filter(None, allowed.split(","))))


def listed() -> list[str]:
    """UUIDs of the GPUs that the driver shows to this process, in its order, a MIG slice in place of its GPU.

    `nvidia-smi` says so without CUDA, which reads CUDA_VISIBLE_DEVICES once, when it starts.
    """
    if shutil.which("nvidia-smi") is None:
        return []
    said = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    found = re.findall(r"UUID: ((?:GPU|MIG)-[^)\s]+)\)", said)
    sliced = re.findall(r"UUID: (GPU-[^)\s]+)\)\s+MIG", said)
    return [uuid for uuid in found if uuid not in sliced]


def choices(uuids: list[str], allowed: str | None) -> dict[str, str]:
    """What CUDA_VISIBLE_DEVICES says (numbers, UUIDs or their beginnings) as its entries by the UUIDs that they mean.

    Like CUDA, nothing counts from the first entry on that is no GPU (`-1`, `NoDevFiles`).
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
    """Take the GPU until this process ends; False if another process has it."""
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
    """Take `count` of the GPUs, or none: two jobs that hold one each and want two would wait for ever."""
    taken = list(islice(filter(lock, uuids), count))
    if len(taken) < count:
        for uuid in taken:
            _held.pop(uuid).close()
        return []
    return taken


def take(pause: float = 5.0, say: Callable[[str], None] = print, count: int = 1) -> str | None:
    """Take free GPUs among those that CUDA_VISIBLE_DEVICES allows, and let CUDA see no others; the first of them, or
    None if there is no GPU.

    While too few are free, be it for another folder's run or another user's, it waits, and says so: they will be free.
    Raises RuntimeError if there are GPUs, but never so many.
    """
    if _held:
        return next(iter(_held))
    found = choices(listed(), os.environ.get("CUDA_VISIBLE_DEVICES"))
    if 0 < len(found) < count:
        raise RuntimeError(f"train.gpus: {count}: this machine has {len(found)}; take fewer")
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
    """Run `work(*arguments)` in processes that accelerate joins, on as many GPUs or, where there is none, on the CPU.

    device: `auto` takes free GPUs, `cuda` the first ones, `cpu` none. Call it before CUDA is used.
    """
    from accelerate import debug_launcher, notebook_launcher

    if device == "cpu" or (device == "auto" and take(count=processes) is None):
        debug_launcher(work, arguments, processes)
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    notebook_launcher(work, arguments, processes, use_port=str(port))
