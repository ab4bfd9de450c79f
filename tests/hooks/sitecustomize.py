"""Ends jobs at chosen moments, like accidents. Python runs this at its start if the folder is on PYTHONPATH.

FAULTS is JSON: `{"marks": folder, "moments": [[event, pattern, [what happens, ...]], ...]}`. At an audit event whose
path matches the pattern, in a script of the workflow, the next accident of the list happens; after the last, none does.
Each accident leaves a file in the folder of marks, with the memory in MB that the job had.
"""

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

SECONDS = {"snakemake": 20, "ctrl-c": 3, "interrupt": 3}  # that a job pauses, so that it is still there in the next run


def end(what: str) -> None:
    if what == "nothing":
        return
    snakemake = os.getpgid(0)  # tests start Snakemake as the head of a process group
    if what == "job":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "machine":
        os.killpg(snakemake, signal.SIGKILL)
    if what == "snakemake":
        os.kill(snakemake, signal.SIGKILL)
    if what == "ctrl-c":
        os.killpg(snakemake, signal.SIGINT)
    if what == "interrupt":
        os.kill(snakemake, signal.SIGINT)
    time.sleep(SECONDS[what])


def watch(marks: Path, moments: list) -> None:
    def hook(event: str, arguments: tuple) -> None:
        for i, (name, pattern, things) in enumerate(moments):
            if event != name or not isinstance(arguments[0], str | os.PathLike):
                continue
            if not re.search(pattern, os.fspath(arguments[0])) or "snakemake/scripts" not in sys.argv[0]:
                continue
            for n, what in enumerate(things):
                try:
                    mark = os.open(marks / f"{i}-{n}-{what}", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
                except FileExistsError:
                    continue
                os.write(mark, str(sys.modules["__main__"].snakemake.resources.mem_mb).encode())
                end(what)
                return

    sys.addaudithook(hook)


if "FAULTS" in os.environ:
    given = json.loads(os.environ["FAULTS"])
    watch(Path(given["marks"]), given["moments"])
