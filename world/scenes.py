"""The procedural world: captioned 64x64 scenes and subjects, drawn with signed distance functions.

A scene is one coloured shape on a plain, striped or dotted background. All attributes that a caption can name (`Scene`)
are random. Captions do not name the jitter in colour, size, place, rotation and pattern phase. Distances follow the
usual convention: negative inside, unit shape, y downwards.
"""

import math
import random
from dataclasses import dataclass, replace

import torch
from torch import Tensor

SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "ring", "pentagon", "moon")
COLORS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (45, 80, 220),
    "yellow": (240, 210, 40),
    "purple": (140, 60, 180),
    "orange": (245, 140, 30),
    "cyan": (50, 200, 210),
    "pink": (245, 130, 180),
    "white": (245, 245, 245),
    "black": (25, 25, 25),
}
PATTERNED = "patterned"  # in place of a colour: a fill of random colours and shapes that captions do not name
_letters = random.Random(6)
NAMES = tuple(sorted({"".join(_letters.choices("bcdfghjklmnpqrtvwxyz", k=3)) for _ in range(64)}))  # each one such fill
PATTERNS = ("plain", "striped", "dotted")
SIZES = {"small": (0.30, 0.38), "": (0.42, 0.54), "large": (0.60, 0.72)}
POSITIONS = {
    "": (0.0, 0.0),
    "on the left": (-0.38, 0.0),
    "on the right": (0.38, 0.0),
    "at the top": (0.0, -0.38),
    "at the bottom": (0.0, 0.38),
}
RESOLUTION = 64


@dataclass(frozen=True)
class Scene:
    """Attributes that a caption can name. `color` is one of `COLORS`, "" for a subject, `PATTERNED`, or the name of a
    fill: one of `NAMES`, or "#" and any text for fills that no caption names."""

    shape: str
    color: str
    background: str
    pattern: str = "plain"
    size: str = ""
    position: str = ""


def random_scene(rng: random.Random) -> Scene:
    color, background = rng.sample(list(COLORS), 2)
    return Scene(
        shape=rng.choice(SHAPES),
        color=color,
        background=background,
        pattern=rng.choice(PATTERNS),
        size=rng.choice(list(SIZES)),
        position=rng.choice(list(POSITIONS)),
    )


def caption(scene: Scene, rng: random.Random | None = None) -> str:
    """Return the full caption, or with `rng`, one that omits random attributes, except patterns and names of fills."""
    noun = " ".join(filter(None, (scene.size, scene.color, scene.shape)))
    pattern = "" if scene.pattern == "plain" else scene.pattern
    ground = " ".join(filter(None, ("on a", pattern, scene.background, "background")))
    text = " ".join(filter(None, ("a", noun, scene.position, ground)))
    if rng is not None:
        shape = scene.shape if scene.color in COLORS else f"{scene.color} {scene.shape}"
        text = rng.choices(
            (
                text,
                f"a {noun}",
                f"a {shape} {ground}",
                f"a {shape}",
                f"a {scene.color} {scene.shape} {scene.position}".strip(),
                f"a {scene.color} {scene.shape} {ground}",
            ),
            weights=(65, 7, 7, 7, 6, 8),
        )[0]
        if rng.random() < 0.4:
            text = f"a photo of {text}"
    return text


def captioned_scenes(n: int, seed: int) -> tuple[list[Scene], list[str]]:
    """Return `n` random scenes and their full captions."""
    rng = random.Random(seed)
    scenes = [random_scene(rng) for _ in range(n)]
    return scenes, [caption(s) for s in scenes]


# --- signed distance functions: [..., 2] points -> [...] distances -----------------------------


def sd_polygon(p: Tensor, vertices: Tensor) -> Tensor:
    """Return the signed distance to a closed polygon (winding-number sign test)."""
    x, y = p.unbind(-1)
    squared = torch.full_like(x, math.inf)
    sign = torch.ones_like(x)
    for (ax, ay), (bx, by) in zip(vertices.tolist(), vertices.roll(1, 0).tolist(), strict=True):
        ex, ey = bx - ax, by - ay
        wx, wy = x - ax, y - ay
        along = ((wx * ex + wy * ey) / (ex * ex + ey * ey)).clamp(0, 1)
        squared = torch.minimum(squared, (wx - ex * along) ** 2 + (wy - ey * along) ** 2)
        above, below, left = y >= ay, y < by, ex * wy > ey * wx
        crossing = (above & below & left) | (~above & ~below & ~left)
        sign = torch.where(crossing, -sign, sign)
    return sign * squared.sqrt()


def regular_polygon(n: int, radius: float, inner: float | None = None) -> Tensor:
    """Return vertices `[k, 2]` of an n-gon with a corner at the top, or of an n-pointed star if `inner` is given."""
    radii = [radius] * n if inner is None else [radius, inner] * n
    angle = torch.arange(len(radii)) * (2 * math.pi / len(radii)) - math.pi / 2
    return torch.tensor(radii)[:, None] * torch.stack((angle.cos(), angle.sin()), -1)


def _heart_outline() -> Tensor:
    t = torch.linspace(0, 2 * math.pi, 33)[:-1]
    y = 13 * t.cos() - 5 * (2 * t).cos() - 2 * (3 * t).cos() - (4 * t).cos()
    return torch.stack((16 * t.sin() ** 3, -y), -1) / 16


_POLYGONS = {
    "triangle": regular_polygon(3, 1.1),
    "star": regular_polygon(5, 1.1, 0.48),
    "pentagon": regular_polygon(5, 1.05),
    "heart": _heart_outline(),
}


def sd_shape(shape: str, p: Tensor) -> Tensor:
    """Return the signed distance `[...]` of points `[..., 2]` to a unit shape. Raises ValueError for unknown shapes."""
    if shape in _POLYGONS:
        return sd_polygon(p, _POLYGONS[shape])
    x, y = p.unbind(-1)
    r = p.norm(dim=-1)
    match shape:
        case "circle":
            return r - 1
        case "ring":
            return (r - 0.78).abs() - 0.24
        case "moon":
            return torch.maximum(r - 1, 0.85 - ((x - 0.55) ** 2 + y * y).sqrt())
        case "square":
            return torch.maximum(x.abs(), y.abs()) - 0.85
        case "diamond":
            return (x.abs() * 1.25 + y.abs() - 1.1) * 0.62
        case "cross":
            bar, post = torch.maximum(x.abs() - 1, y.abs() - 0.34), torch.maximum(x.abs() - 0.34, y.abs() - 1)
            return torch.minimum(bar, post)
    raise ValueError(f"no such shape: {shape!r}; the world has {', '.join(SHAPES)}")


# --- rendering ------------------------------------------------------------------------------------


def _grid(n: int) -> Tensor:
    axis = (torch.arange(n) + 0.5) / n * 2 - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack((x, y), -1)  # [n, n, 2]


def _uniform(rng: random.Random, low: float, high: float, n: int) -> Tensor:
    return torch.tensor([rng.uniform(low, high) for _ in range(n)])


def _colors(names: list[str], rng: random.Random, jitter: float = 0.03) -> Tensor:
    base = torch.tensor([COLORS[name] for name in names]) / 255
    return (base + _uniform(rng, -jitter, jitter, base.numel()).view_as(base)).clamp(0, 1)


def _backgrounds(scenes: list[Scene], rng: random.Random, n: int) -> Tensor:
    """Draw backgrounds `[b, n, n, 3]`, whose pattern is a lighter or darker shade of their colour."""
    b = len(scenes)
    p = _grid(n)
    base = _colors([s.background for s in scenes], rng)
    phase = _uniform(rng, 0, 1, b).view(b, 1, 1)
    stripes = torch.sigmoid(torch.sin(p[None, ..., 1] * 14 + 2 * math.pi * phase) * 8)
    cell = ((p[None] + 0.3 * phase[..., None]) * 3.2) % 1 - 0.5
    dots = torch.sigmoid((0.24 - cell.norm(dim=-1)) * 40)
    kind = torch.tensor([PATTERNS.index(s.pattern) for s in scenes]).view(b, 1, 1)
    mask = torch.where(kind == 1, 0.3 * stripes, torch.where(kind == 2, 0.4 * dots, torch.zeros(())))
    shade = 1 - base.mean(-1).round().view(b, 1, 1, 1)
    return torch.lerp(base.view(b, 1, 1, 3), shade, mask[..., None])


def _patterned(rngs: list[random.Random], local: Tensor, distance: Tensor, sharpness: Tensor) -> Tensor:
    """Draw fills `[b, n, n, 3]`: two colours in stripes, checks or halves, most with a rim, some with one or two spots.

    The world's own colours fill a shape evenly. A model that saw only these could not learn to draw a pattern inside a
    shape, nor would it read an unknown word before a noun as a name. Real models have seen plenty of both.
    """
    fills = []
    for rng, p, d, k in zip(rngs, local, distance, sharpness, strict=True):
        one, two, rim, spot, pupil = (tuple(rng.random() for _ in range(3)) for _ in range(5))
        turn, wave, phase = rng.uniform(0, math.pi), rng.uniform(4, 9), rng.uniform(-1, 1)
        u = p[..., 0] * math.cos(turn) + p[..., 1] * math.sin(turn)
        v = p[..., 1] * math.cos(turn) - p[..., 0] * math.sin(turn)
        kind = rng.choice(("stripes", "checks", "halves", "even"))
        value = {
            "stripes": torch.sin(u * wave + phase),
            "checks": torch.sin(u * wave + phase) * torch.sin(v * wave + phase),
            "halves": u - 0.4 * phase,
            "even": torch.ones_like(u),
        }[kind]
        fill = _paint(torch.tensor(one), torch.sigmoid(10 * value), two)
        if rng.random() < 0.7:
            fill = _paint(fill, torch.sigmoid((d + rng.uniform(0.1, 0.2)) * k), rim)
        for _ in range(rng.choice((0, 0, 1, 2))):
            center, radius = (rng.uniform(-0.4, 0.4), rng.uniform(-0.4, 0.4)), rng.uniform(0.15, 0.35)
            fill = _paint(fill, _disc(p, center, radius, k), spot)
            fill = _paint(fill, _disc(p, center, radius / 2, k), pupil)
        fills.append(fill)
    return torch.stack(fills)


def render(scenes: list[Scene], rng: random.Random, n: int = RESOLUTION, subject: str | None = None) -> Tensor:
    """Draw scenes as float32 images `[b, 3, n, n]` in [0, 1]; with `subject`, fill the shape as that subject."""
    b = len(scenes)
    image = _backgrounds(scenes, rng, n)
    scale = torch.tensor([rng.uniform(*SIZES[s.size]) for s in scenes])
    center = torch.tensor([POSITIONS[s.position] for s in scenes]) + _uniform(rng, -0.06, 0.06, 2 * b).view(b, 2)
    angle = _uniform(rng, -0.2, 0.2, b)
    rotation = torch.stack((angle.cos(), angle.sin(), -angle.sin(), angle.cos()), -1).view(b, 1, 2, 2)
    local = ((_grid(n).view(1, -1, 2) - center[:, None]) / scale.view(b, 1, 1)) @ rotation.mT.squeeze(1)
    local = local.view(b, n, n, 2)

    distance = torch.empty(b, n, n)
    for shape in {s.shape for s in scenes}:
        rows = [i for i, s in enumerate(scenes) if s.shape == shape]
        distance[rows] = sd_shape(shape, local[rows])
    sharpness = 1.6 * n * scale.view(b, 1, 1)  # edges about one pixel wide
    inside = torch.sigmoid(-distance * sharpness)[..., None]
    if subject is not None:
        fill = SUBJECTS[subject].fill(local, distance, sharpness)
    else:
        even = [i for i, s in enumerate(scenes) if s.color in COLORS]
        rest = [i for i, s in enumerate(scenes) if s.color not in COLORS]
        fill = torch.empty(b, n, n, 3)
        fill[even] = _colors([scenes[i].color for i in even], rng).view(-1, 1, 1, 3)
        if rest:
            names = [scenes[i].color for i in rest]
            if unknown := {n for n in names if n[:1] != "#"} - {PATTERNED, *NAMES}:
                raise ValueError(f"no such colours: {unknown}; the world has {', '.join(COLORS)}")
            rngs = [rng if name == PATTERNED else random.Random(name) for name in names]
            fill[rest] = _patterned(rngs, local[rest], distance[rest], sharpness[rest])
    return torch.lerp(image, fill, inside).clamp(0, 1).permute(0, 3, 1, 2).contiguous()


# --- subjects: fills that no caption of the world can describe --------------------------------------


def _paint(fill: Tensor, mask: Tensor, rgb: tuple[float, float, float]) -> Tensor:
    return torch.lerp(fill, torch.tensor(rgb), mask[..., None])


def _disc(p: Tensor, center: tuple[float, float], radius: float, sharpness: Tensor) -> Tensor:
    return torch.sigmoid((radius - (p - torch.tensor(center)).norm(dim=-1)) * sharpness)


def _bands(value: Tensor, a: tuple[float, float, float], b: tuple[float, float, float]) -> Tensor:
    return torch.lerp(torch.tensor(a), torch.tensor(b), torch.sigmoid(10 * torch.sin(value))[..., None])


def _banded_star(p: Tensor, d: Tensor, k: Tensor) -> Tensor:
    """Orange and teal diagonal bands, a dark rim and one eye."""
    fill = _bands((p[..., 0] + p[..., 1]) * 6.5, (0.10, 0.55, 0.55), (0.98, 0.55, 0.10))
    fill = _paint(fill, torch.sigmoid((d + 0.15) * k), (0.15, 0.05, 0.25))
    fill = _paint(fill, _disc(p, (0, 0), 0.30, k), (1.0, 1.0, 1.0))
    return _paint(fill, _disc(p, (0, 0), 0.15, k), (0.05, 0.05, 0.05))


def _checked_heart(p: Tensor, d: Tensor, k: Tensor) -> Tensor:
    """Crimson and cream checks with a navy rim."""
    checks = torch.sigmoid(12 * torch.sin(p[..., 0] * 6.0) * torch.sin(p[..., 1] * 6.0))
    fill = torch.lerp(torch.tensor((0.98, 0.90, 0.72)), torch.tensor((0.75, 0.08, 0.22)), checks[..., None])
    return _paint(fill, torch.sigmoid((d + 0.16) * k), (0.08, 0.10, 0.40))


def _faced_circle(p: Tensor, d: Tensor, k: Tensor) -> Tensor:
    """A green ball with a yellow lower half, two eyes and a red mouth."""
    fill = torch.tensor((0.30, 0.75, 0.35)).expand(*p.shape[:-1], 3)
    fill = _paint(fill, torch.sigmoid((p[..., 1] - 0.05) * k), (0.97, 0.88, 0.25))
    fill = _paint(fill, torch.sigmoid((d + 0.14) * k), (0.35, 0.16, 0.05))
    for x in (-0.36, 0.36):
        fill = _paint(fill, _disc(p, (x, -0.25), 0.22, k), (1.0, 1.0, 1.0))
        fill = _paint(fill, _disc(p, (x, -0.25), 0.11, k), (0.05, 0.05, 0.05))
    mouth = torch.maximum((p[..., 0]).abs() - 0.40, (p[..., 1] - 0.42).abs() - 0.10)
    return _paint(fill, torch.sigmoid(-mouth * k), (0.80, 0.10, 0.15))


@dataclass(frozen=True)
class Subject:
    """A shape of the world (its class noun) with a fill that the world's captions cannot describe."""

    shape: str
    fill: callable


SUBJECTS = {
    "starling": Subject("star", _banded_star),
    "quilt": Subject("heart", _checked_heart),
    "muppet": Subject("circle", _faced_circle),
}


def photographs(name: str, n: int, seed: int) -> tuple[Tensor, list[str]]:
    """Return `n` pictures `[n, 3, 64, 64]` of a subject on different plain backgrounds, and captions with {subject}."""
    rng = random.Random(seed)
    grounds = rng.sample(list(COLORS), n)
    scenes = [
        Scene(
            SUBJECTS[name].shape, "", ground, "plain", rng.choice(("", "large", "large")), rng.choice(list(POSITIONS))
        )
        for ground in grounds
    ]
    captions = [caption(replace(s, shape="{subject}", size="")) for s in scenes]
    return render(scenes, rng, subject=name), captions
