"""What a run inherits from its shell and cannot work with."""

import os
import re
import sys

from nullbooth.inputs.shipped import HOME

# What mpirun, srun and torchrun tell the processes that they start: accelerate would wait for the others. A training on
# several GPUs starts its own.
_OF_PROCESSES = re.compile(
    r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|(PMI|PMIX|OMPI_COMM_WORLD|MV2_COMM_WORLD|TORCHELASTIC|"
    r"ACCELERATE_USE)_.*"
)


def restart_needed(environ: dict[str, str], filesystem: str) -> dict[str, str] | None:
    """The environment to start Python again in, where this one cannot name every file; None where it can."""
    if filesystem == "utf-8" or environ.get("PYTHONUTF8") == "1":  # the latter: it was asked for, to no avail
        return None
    return {**environ, "PYTHONUTF8": "1"}


def prepare_environment() -> None:
    """Make names of files and texts UTF-8 whatever the locale is, give jobs the docstrings that transformers reads, and
    let no training take itself for one of several processes.

    What Python was started with cannot be changed later, so it is started again with the same arguments. Call this
    before anything is locked or written.
    """
    for name in filter(_OF_PROCESSES.fullmatch, list(os.environ)):
        del os.environ[name]
    os.environ["NULLBOOTH_HOME"] = str(HOME)  # for envs/nullbooth.post-deploy.sh
    os.environ.pop("PYTHONOPTIMIZE", None)  # -OO takes docstrings away, which transformers parses as it is imported
    if (environ := restart_needed(dict(os.environ), sys.getfilesystemencoding())) is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os.execve(sys.executable, sys.orig_argv, environ)
