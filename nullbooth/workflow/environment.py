"""Removal of environment variables and encodings that a run cannot work with."""

import os
import re
import sys

from nullbooth.inputs.shipped import HOME

# Variables that mpirun, srun and torchrun set for their processes, which would make accelerate wait for others. A
# training on several GPUs starts its own processes.
_OF_PROCESSES = re.compile(
    r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|(PMI|PMIX|OMPI_COMM_WORLD|MV2_COMM_WORLD|TORCHELASTIC|"
    r"ACCELERATE_USE)_.*"
)


def restart_needed(environ: dict[str, str], filesystem: str) -> dict[str, str] | None:
    """Return the environment to restart Python in, or None if `filesystem`, its encoding of file names, is UTF-8."""
    if filesystem == "utf-8" or environ.get("PYTHONUTF8") == "1":  # the latter: a restart would not help
        return None
    return {**environ, "PYTHONUTF8": "1"}


def prepare_environment() -> None:
    """Make file names and texts UTF-8 whatever the locale, keep the docstrings that transformers needs, and remove
    variables that would make a training wait for other processes.

    Restarts Python with the same arguments if its encoding must change. Call this before anything is locked or written.
    """
    for name in filter(_OF_PROCESSES.fullmatch, list(os.environ)):
        del os.environ[name]
    os.environ["NULLBOOTH_HOME"] = str(HOME)  # for envs/nullbooth.post-deploy.sh
    os.environ.pop("PYTHONOPTIMIZE", None)  # -OO removes docstrings, which transformers parses when it is imported
    if (environ := restart_needed(dict(os.environ), sys.getfilesystemencoding())) is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os.execve(sys.executable, sys.orig_argv, environ)
