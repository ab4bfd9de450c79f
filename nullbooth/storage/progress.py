"""Progress lines of long jobs, with the time left, and logs of whole processes."""

import io
import os
import resource
import sys
import time
from collections.abc import Callable

_BEGAN = time.monotonic()


def spent() -> dict[str, float]:
    """Return `seconds` since this process imported the library and `peak_mib`, its peak memory in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": round(time.monotonic() - _BEGAN, 2), "peak_mib": round(peak, 1)}


def reporter(what: str, log: Callable[[str], None] = print, every: float = 5.0) -> Callable[[int, int], None]:
    """Return a function of (done, total) that logs at most once in `every` seconds, and at the end."""
    began = last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= every or done == total:
            last = now
            left = (now - began) / done * (total - done)
            log(f"{what}: {done}/{total}  {now - began:.0f} s, {left:.0f} s left")

    return report


def log_to(path: str) -> None:
    """Redirect stdout and stderr of this process, tracebacks and warnings included, to a log file."""
    file = open(path, "w", buffering=1, encoding="utf-8")  # noqa: SIM115 (open for as long as the process lives)
    sys.stdout.flush()
    os.dup2(file.fileno(), sys.stdout.fileno())
    os.dup2(file.fileno(), sys.stderr.fileno())
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout.reconfigure(line_buffering=True, encoding="utf-8", errors="backslashreplace")
