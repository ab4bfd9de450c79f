"""Python processes that start immediately: forks of one process that has the large libraries loaded.

Most of the time of a small run is spent on starting Python and importing PyTorch and diffusers for every job. Here
Snakemake and its jobs are still separate processes, with separate arguments, environment, folder and output,
which can be killed, but third-party libraries are already loaded. NullBooth is never loaded in advance.

    program = start(folder)     # ends with this process
    subprocess.run([program, "-m", "snakemake", ...])
"""

import atexit
import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

LIBRARIES = """
import accelerate, diffusers, jinja2, jsonschema, matplotlib.pyplot, safetensors.torch, snakemake.cli, torch, zarr
import snakemake.executors.local, torch.utils.tensorboard, torchmetrics.image.fid
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from transformers import AutoModel, AutoTokenizer, CLIPModel, CLIPTextModel, Dinov2Model
"""
NUMBER = struct.Struct("<Q")


def start(folder: Path) -> Path:
    """Load the libraries in a new process; return a program to use as Python, which forks that process."""
    program, address = folder / "python", folder / "socket"
    here = Path(__file__).parent
    program.write_text(
        f"#!{sys.executable} -IS\nimport sys\nsys.path.insert(0, {str(here)!r})\nimport warm\n"
        f"warm.ask({str(address)!r})\n"
    )
    program.chmod(0o755)
    # One thread, as in jobs of one core; numbers in results depend on it.
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": ""}
    with open(folder / "server.log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, __file__, str(program), str(address)],
            env=environ, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    atexit.register(os.killpg, server.pid, signal.SIGKILL)
    while not address.exists():
        assert server.poll() is None, (folder / "server.log").read_text()
        time.sleep(0.05)
    return program


# --- in place of Python ---------------------------------------------------------------------------------


def ask(address: str) -> None:
    """Run this command in a fork of the server, with this process's streams and environment, and end like the fork."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C also reaches the fork
    given = {"arguments": sys.argv[1:], "folder": str(Path.cwd()), "environ": dict(os.environ), "group": os.getpgid(0)}
    status = Fork(address, given, [0, 1, 2]).wait()
    if status < 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


class Fork:
    """A process of the server with the interface of `subprocess.Popen`."""

    def __init__(self, address: str, given: dict, descriptors: list[int]):
        content = json.dumps(given).encode("utf-8", "surrogateescape")
        self.returncode = None
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.connect(address)
        socket.send_fds(self.connection, [NUMBER.pack(len(content))], descriptors)
        self.connection.sendall(content)
        self.pid = self._told()

    def _told(self) -> int:
        return NUMBER.unpack(self.connection.recv(NUMBER.size, socket.MSG_WAITALL))[0]

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status, or minus the number of the signal that ended the process."""
        if self.returncode is None:
            self.connection.settimeout(timeout)
            self.returncode = os.waitstatus_to_exitcode(self._told())
            self.connection.close()
        return self.returncode

    def poll(self) -> int | None:
        with contextlib.suppress(BlockingIOError):
            self.wait(timeout=0)
        return self.returncode


def leader(program: Path, arguments: list[str], folder: Path, environ: dict, output: int) -> Fork:
    """Start Python with `arguments` as the head of a new process group, with all processes that it starts."""
    given = {"arguments": arguments, "folder": str(folder), "environ": environ, "group": 0}
    with open(os.devnull) as nothing:
        return Fork(str(program.with_name("socket")), given, [nothing.fileno(), output, output])


# --- the server -----------------------------------------------------------------------------------------


def serve(program: str, address: str) -> dict:
    """Fork for every connection. Returns only in the forks, with their work."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address + ".new")
    listener.listen(64)
    Path(address + ".new").rename(address)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the forks are not waited for
    parent = os.getppid()
    listener.settimeout(5)
    while True:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            if os.getppid() != parent:  # the tests were killed
                os._exit(0)
            continue
        if os.fork():
            connection.close()
            continue
        listener.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        size, descriptors, _, _ = socket.recv_fds(connection, NUMBER.size, 3)
        with connection.makefile("rb") as file:
            given = json.loads(file.read(NUMBER.unpack(size)[0]).decode("utf-8", "surrogateescape"))
        if not (child := os.fork()):
            connection.close()
            with contextlib.suppress(PermissionError):  # the group may belong to another session
                os.setpgid(0, given.pop("group"))
            for number, descriptor in enumerate(descriptors):
                os.dup2(descriptor, number)
                os.close(descriptor)
            return {**given, "program": program}
        for descriptor in descriptors:
            os.close(descriptor)
        with contextlib.suppress(BrokenPipeError):  # the client may have been killed
            connection.sendall(NUMBER.pack(child))
        _, status = os.waitpid(child, 0)
        with contextlib.suppress(BrokenPipeError):
            connection.sendall(NUMBER.pack(status))
        os._exit(0)


def become(folder: str, environ: dict, arguments: list[str], program: str) -> None:
    """Do what `python ARGUMENTS` does, for a script or `-m MODULE`; jobs of Snakemake start as fast."""
    import runpy

    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environ)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    above = [path for path in environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[0:1] = above  # the first was this file's folder
    for path in above:
        if (hook := Path(path, "sitecustomize.py")).is_file():
            runpy.run_path(str(hook))
    if arguments[0] == "-m":
        sys.executable = program
        sys.path.insert(0, folder)
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, os.path.dirname(arguments[0]))  # noqa: PTH120
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    import gc

    exec(LIBRARIES)
    gc.collect()
    gc.freeze()  # keeps existing objects shared between forks
    become(**serve(*sys.argv[1:]))
