"""Train the two evaluators of the embedded world, which are independent of the generator.

One is CLIP-shaped: both towers, contrastive on captions. The other is DINO-shaped with linear attribute heads
on its features, so that a picture can be checked against what its prompt says. A fifth of the scenes have a
patterned fill of random colours. Its features also learn to tell one thing from another: two pictures of the same
patterned thing, in other places, are each other's nearest (InfoNCE, arXiv 1807.03748). Without that any patterned
star was as near to a subject as the subject. The subjects themselves are never among these things.
"""

import argparse
import json
import random
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, Dinov2Config, Dinov2Model

from world import tokenizer as tokens
from world.loop import fit, load_average
from world.scenes import COLORS, PATTERNS, POSITIONS, RESOLUTION, SHAPES, SIZES, Scene, caption, random_scene, render
from world.vae import random_mask, sprinkle

ATTRIBUTES = {
    "shape": SHAPES,
    "color": tuple(COLORS),
    "background": tuple(COLORS),
    "pattern": PATTERNS,
    "size": tuple(SIZES),
    "position": tuple(POSITIONS),
    "fill": ("flat", "patterned"),
}
TOWER = dict(hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4)
PATCH = 8
MEAN_STD = dict(image_mean=[0.5] * 3, image_std=[0.5] * 3)


def labels(scenes: list[Scene], patterned: Tensor) -> Tensor:
    """Return indices `[b, attributes]` int64; -100 (ignored) for the colour of a patterned object."""
    columns = [[values.index(getattr(s, name)) for s in scenes] for name, values in list(ATTRIBUTES.items())[:-1]]
    y = torch.tensor([*columns, patterned.long().tolist()]).T.contiguous()
    y[patterned, list(ATTRIBUTES).index("color")] = -100
    return y


def patterned_scenes(scenes: list[Scene], rng: random.Random) -> Tensor:
    """Draw scenes with objects filled by two random colours in a random pattern, some with a rim or spots."""
    b, state = len(scenes), rng.getstate()
    flat = render(scenes, rng)
    probe = [Scene(s.shape, "white", "black", "plain", s.size, s.position) for s in scenes]
    rng.setstate(state)
    black = render(probe, rng)
    inside = ((black.mean(1, keepdim=True) - 0.1) / 0.85).clamp(0, 1)
    fill = torch.lerp(torch.rand(b, 3, 1, 1), torch.rand(b, 3, 1, 1), random_mask(b, RESOLUTION))
    fill = torch.where(torch.rand(b, 1, 1, 1) < 0.5, sprinkle(fill, 8), fill)
    rim = 1 - F.avg_pool2d(inside, 7, 1, 3).pow(4)
    fill = torch.where(torch.rand(b, 1, 1, 1) < 0.5, torch.lerp(fill, torch.rand(b, 3, 1, 1), rim), fill)
    return torch.lerp(flat, fill, inside)


def draw(b: int, rng: random.Random) -> tuple[Tensor, list[Scene], Tensor]:
    """Return images in [-1, 1] with slight blur and noise, their scenes, and a mask of those with a patterned fill."""
    scenes = [random_scene(rng) for _ in range(b)]
    patterned = torch.arange(b) < b // 5
    x = torch.cat((patterned_scenes(scenes[: b // 5], rng), render(scenes[b // 5 :], rng)))
    return weathered(x), scenes, patterned


def same_things(n: int, rng: random.Random) -> Tensor:
    """Return images `[2 n, 3, 64, 64]`: `n` patterned things of three shapes, then the same moved and resized."""
    shapes = rng.sample(SHAPES, 3)
    things = [(rng.choice(shapes), f"#{rng.random()}") for _ in range(n)]
    scenes = [replace(random_scene(rng), shape=shape, color=fill) for shape, fill in 2 * things]
    return weathered(render(scenes, rng))


def weathered(x: Tensor) -> Tensor:
    """Scale images from [0, 1] to [-1, 1], and add slight blur and noise."""
    b = len(x)
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    x = torch.lerp(x, blurred, torch.rand(b, 1, 1, 1) * (torch.rand(b, 1, 1, 1) < 0.5))
    x = x + torch.randn_like(x) * torch.rand(b, 1, 1, 1) * 0.05
    return x.clamp(0, 1) * 2 - 1


def dino_features(model: Dinov2Model, x: Tensor) -> Tensor:
    return model(x).pooler_output


def info_nce(similarity: Tensor) -> Tensor:
    """Return the symmetric cross-entropy of a similarity `[n, n]` whose row i matches column i only."""
    diagonal = torch.arange(len(similarity))
    return (F.cross_entropy(similarity, diagonal) + F.cross_entropy(similarity.T, diagonal)) / 2


def head_losses(logits: Tensor, y: Tensor) -> Tensor:
    parts = logits.split([len(v) for v in ATTRIBUTES.values()], -1)
    return torch.stack([F.cross_entropy(part.float(), y[:, i]) for i, part in enumerate(parts)])


@torch.no_grad()
def accuracy(model: Dinov2Model, heads: nn.Linear, n: int = 2000, seed: int = 10**6) -> dict[str, float]:
    """Return the accuracy of every head on unseen, unaltered scenes."""
    rng = random.Random(seed)
    scenes = [random_scene(rng) for _ in range(n)]
    x = torch.cat([render(scenes[i : i + 100], rng) for i in range(0, n, 100)]) * 2 - 1
    logits = torch.cat([heads(dino_features(model, part)) for part in x.split(200)])
    parts = logits.split([len(v) for v in ATTRIBUTES.values()], -1)
    y = labels(scenes, torch.zeros(n, dtype=torch.bool))
    return {
        name: (part.argmax(-1) == y[:, i]).float().mean().item()
        for i, (name, part) in enumerate(zip(ATTRIBUTES, parts, strict=True))
    }


def train(out: Path, checkpoint: Path, steps: int, batch: int) -> None:
    torch.manual_seed(1)
    tokenizer = tokens.load(checkpoint.with_suffix(".tokenizer"))
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    clip_config = CLIPConfig(
        text_config=dict(
            **{**TOWER, "num_hidden_layers": 2},
            **special,
            pad_token_id=tokenizer.pad_token_id,
            vocab_size=len(tokenizer),
            max_position_embeddings=tokens.MAX_LENGTH,
        ),
        vision_config=dict(**TOWER, image_size=RESOLUTION, patch_size=PATCH),
        projection_dim=128,
        logit_scale_init_value=2.66,
    )
    dino_config = Dinov2Config(
        hidden_size=128,
        num_hidden_layers=5,
        num_attention_heads=4,
        mlp_ratio=4,
        image_size=RESOLUTION,
        patch_size=PATCH,
        layerscale_value=0.5,
    )
    clip, dino = CLIPModel(clip_config), Dinov2Model(dino_config)
    heads = nn.Linear(128, sum(len(v) for v in ATTRIBUTES.values()))
    clip_heads = nn.Linear(128, heads.out_features)  # only while training: contrast alone learns shapes slowly
    print(f"CLIP {clip.num_parameters() / 1e6:.2f} M, DINO {dino.num_parameters() / 1e6:.2f} M parameters")

    def loss_of(step: int) -> Tensor:
        rng = random.Random(10**7 + step)
        x, scenes, patterned = draw(batch, rng)
        y = labels(scenes, patterned)
        texts = [caption(s, rng if rng.random() < 0.5 else None) for s in scenes]
        ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        pairs = same_things(batch // 2, rng)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = heads(dino_features(dino, x))
            things = dino_features(dino, pairs)
            both = clip(input_ids=ids[batch // 5 :], pixel_values=x[batch // 5 :])
            clip_logits = clip_heads(both.vision_model_output.pooler_output)
        one, two = F.normalize(things.float(), dim=-1).chunk(2)
        contrast = info_nce(both.logits_per_image.float()) + info_nce(one @ two.T / 0.1)
        attributes = head_losses(logits, y).mean() + head_losses(clip_logits, y[batch // 5 :]).mean()
        return attributes + contrast

    def save(average: dict[str, dict[str, Tensor]]) -> None:
        final_dino = load_average(Dinov2Model(dino_config), average["dino"])
        final_heads = load_average(nn.Linear(128, heads.out_features), average["heads"])
        load_average(CLIPModel(clip_config), average["clip"]).save_pretrained(out / "clip")
        tokenizer.save_pretrained(out / "clip")
        final_dino.save_pretrained(out / "dino")
        size = dict(
            do_resize=True,
            size={"height": RESOLUTION, "width": RESOLUTION},
            do_center_crop=False,
            **MEAN_STD,
        )
        for name in ("clip", "dino"):
            CLIPImageProcessor(**size).save_pretrained(out / name)
        save_file({k: v.contiguous() for k, v in final_heads.state_dict().items()}, out / "dino" / "heads.safetensors")
        (out / "dino" / "heads.json").write_text(json.dumps(ATTRIBUTES, indent=1) + "\n")
        print(f"attribute accuracy on scenes: {accuracy(final_dino, final_heads, 500)}", flush=True)

    modules = {"clip": clip, "dino": dino, "heads": heads, "clip_heads": clip_heads}
    fit(modules, loss_of, steps=steps, lr=1e-3, checkpoint=checkpoint, ema_decay=0.995, snapshot=save)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=80)
    args = parser.parse_args()
    train(args.out, args.checkpoint, args.steps, args.batch)
