"""A small world on disk like that of users, and rows that each spoil it in one way (tests/support/hostile_rows.py)."""

import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
TOKEN = "hf_" + "Qx7" * 12  # looks like an access token of the Hub
PICTURE = 64  # pixels


def overlay(base: dict, changes: dict) -> dict:
    """Merge `changes` into `base` key by key, like Snakemake."""
    merged = dict(base)
    for key, value in changes.items():
        inner = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = overlay(base[key], value) if inner else value
    return merged


def photograph(seed: int = 0, size: int = PICTURE, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    if mode == "I;16":
        return Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    return Image.fromarray(pixels).convert(mode)


def png(width: int, height: int, rows: bytes, bits: int = 8, kind: int = 2) -> bytes:
    """Return a PNG file of raw rows, each after its filter byte; kind 0 is grey, 2 is RGB."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@dataclass
class World:
    """A folder with a model, photographs and prompts, and the config that names them, all valid."""

    folder: Path
    model: Path

    def __post_init__(self):
        self.photos, self.prompts = self.folder / "photos", self.folder / "prompts"
        self.photos.mkdir()
        self.prompts.mkdir()
        for i in range(3):
            photograph(i).save(self.photos / f"{i}.png")
        for name, text in {
            "protected": "a red star\na blue ring\n",
            "subject": "a red {subject}\n",
            "class": "a red {class}\n",
            "unrelated": "a green heart\n",
        }.items():
            (self.prompts / f"{name}.txt").write_text(text)

    @property
    def config(self) -> dict[str, Any]:
        evaluators = ROOT / "resources/evaluators"
        return {
            "model": str(self.model),
            "results": str(self.folder / "results"),
            "sampler": {"steps": 3},
            "protect": {"prompts": str(self.prompts / "protected.txt")},
            "concepts": [self.concept()],
            "methods": [{"name": "ours"}],
            "sample": {"prompts": {g: str(self.prompts / f"{g}.txt") for g in ("subject", "class", "unrelated")}},
            "evaluate": {"clip": str(evaluators / "clip"), "dino": str(evaluators / "dino")},
            "validate": {"prompts": ["a {subject}"]},
            "comparison": {"steps": 3, "methods": [], "reference": None},
        }

    def concept(self, **changes) -> dict[str, Any]:
        return {"name": "thing", "images": str(self.photos), "class": "star", "prompt": "a {subject}", **changes}

    def json(self, name: str, change: Callable[[dict], Any]) -> None:
        """Change a JSON file of the model in place."""
        path = self.model / name
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))


@dataclass(frozen=True)
class Row:
    """One case: a function that spoils the world and may return changes of its config, and parts of the message."""

    name: str
    spoil: Callable[[World], dict | None]
    says: tuple[str, ...]


UNET = "unet/diffusion_pytorch_model.safetensors"
ROWS: list[Row] = []


def row(name: str, *says: str) -> Callable:
    def add(spoil: Callable[[World], dict | None]) -> Callable:
        ROWS.append(Row(name, spoil, says))
        return spoil

    return add


def changed(name: str, changes: dict | Callable[[World], dict], *says: str) -> None:
    """Add a row that changes only the config."""
    row(name, *says)(changes if callable(changes) else lambda _world: changes)


def written(name: str, file: str, content: bytes | str, *says: str) -> None:
    """Add a row that writes one file of the world."""

    def spoil(world: World) -> None:
        path = world.folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    row(name, *says)(spoil)


# Text that must be shown unchanged.
SMILE = "\N{SMILING FACE WITH OPEN MOUTH}"
SCRIPT = "<script>alert(1)</script>\"'&"
UNUSUAL = [
    "a star in 'single' and \"double\" quotes",
    f"a {SMILE} star \N{FAMILY}\N{ZERO WIDTH JOINER}\N{BLACK HEART SUIT}",
    "\u05db\u05d5\u05db\u05d1 \u05d0\u05d3\u05d5\u05dd, \u0646\u062c\u0645\u0629 \u062d\u0645\u0631\u0627\u0621",
    "../../etc/passwd /tmp/x C:\\Windows\\* %s $HOME `ls` ~",
    SCRIPT,
    "a\u2028b\u0085c\u2029d",
    "\u661f\u306e\u5199\u771f",
    "-- --config x=1 #no comment",
]
