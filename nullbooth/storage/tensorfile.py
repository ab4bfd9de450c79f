"""Safetensors files, written atomically, with a checksum of their content that every reader verifies."""

import json
import os
import re
import zlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nullbooth.errors import InputError
from nullbooth.storage.atomic import whole


def checksum(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """CRC-32 of the names, dtypes, shapes and values of CPU tensors and of their metadata, 8 hex digits."""
    crc = zlib.crc32(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        crc = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"


def save_tensors(path: Path | str, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors and metadata with their checksum. Raises OSError that names the file if it cannot be written."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with whole(path) as partial:
        try:
            save_file(tensors, partial, {**metadata, "checksum": checksum(tensors, metadata)})
        except SafetensorError as error:
            if number := re.search(r"os error (\d+)", str(error)):  # safetensors raises no OSError
                raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
            raise
        partial.chmod(0o666 & ~_umask())  # safetensors makes files readable for the owner only


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def load_tensors(path: Path | str, form: str, what: str, hint: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and metadata of a file that `save_tensors` wrote with `format: form` in its metadata.

    Raises InputError that names the file if it is missing, is not `what`, or is broken; `hint` then says what to do.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != form:
                raise InputError(f"{path}: not {what} (format {metadata.get('format')!r}, expected {form!r})")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise InputError(f"{path}: broken, or not a safetensors file ({error}); {hint}") from error
    expected = metadata.pop("checksum", None)
    if checksum(tensors, metadata) != expected:
        raise InputError(f"{path}: broken, its content does not match its checksum {expected}; {hint}")
    return tensors, metadata
