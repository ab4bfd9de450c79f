"""Small colour profiles (ICC), and formulas for their colours."""

import struct

import numpy as np

# Red, green and blue of colour spaces as XYZ, relative to D50.
PRIMARIES = {
    "sRGB": [(0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410)],
    "Adobe RGB": [(0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)],
    "Display P3": [(0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)],
}


def _fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def _curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"


def profile(space: str, tags: dict[str, bytes], kind: str = "mntr", pcs: str = "XYZ ") -> bytes:
    """Return a profile of a colour space of pictures, relative to D50."""
    text = "x".encode("utf-16-be")
    name = b"mluc\0\0\0\0" + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(text), 28) + text + b"\0\0"
    content = {"desc": name, "cprt": name, "wtpt": b"XYZ \0\0\0\0" + _fixed(0.9642, 1, 0.8249), **tags}
    table, body, start = b"", b"", 132 + 12 * len(content)
    for key, value in content.items():
        table += key.encode() + struct.pack(">II", start + len(body), len(value))
        body += value + b"\0" * (-len(value) % 4)
    head = struct.pack(
        ">I4sI4s4s4s", start + len(body), b"none", 0x04000000, kind.encode(), space.encode(), pcs.encode()
    )
    head += b"\0" * 12 + b"acsp" + b"\0" * 28 + _fixed(0.9642, 1, 0.8249)
    return head.ljust(128, b"\0") + struct.pack(">I", len(content)) + table + body


def rgb(name: str, gamma: float = 2.2) -> bytes:
    columns = {f"{c}XYZ": b"XYZ \0\0\0\0" + _fixed(*xyz) for c, xyz in zip("rgb", PRIMARIES[name], strict=True)}
    return profile("RGB ", columns | {f"{c}TRC": _curve(gamma) for c in "rgb"})


def grey(gamma: float) -> bytes:
    return profile("GRAY", {"kTRC": _curve(gamma)})


def cmyk(corners: dict[tuple[int, ...], tuple[int, int, int]]) -> bytes:
    """Return a profile of inks from corners (0 or 1 of each) as L (0 to 255), a + 128, b + 128; others are white."""
    grid = [corners.get(tuple(map(int, f"{i:04b}")), (255, 128, 128)) for i in range(16)]
    ramp = bytes(range(256))
    lut = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + _fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    return profile("CMYK", {"A2B0": lut + ramp * 4 + bytes(np.ravel(grid).tolist()) + ramp * 3}, "prtr", "Lab ")


def in_srgb(color: tuple[int, int, int], name: str, gamma: float = 2.2) -> np.ndarray:
    """Convert a colour of another space to sRGB from 0 to 255."""
    xyz = np.array(PRIMARIES[name]).T @ (np.array(color) / 255) ** gamma
    return encoded(np.linalg.inv(np.array(PRIMARIES["sRGB"]).T) @ xyz)


def encoded(linear: np.ndarray) -> np.ndarray:
    """Convert linear light to sRGB from 0 to 255."""
    linear = np.clip(linear, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
