"""Models small enough for tests, and so few protected inputs that their features do not span the whole space."""

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, PreTrainedTokenizerBase

from nullbooth.learning.adapter import Adapter
from nullbooth.models.sites import find_features, find_sites
from nullbooth.statistics.moments import Moment, collecting
from nullbooth.statistics.projector import Projector, decompose, projector
from world import tokenizer as tokens

WIDTH = 32  # in_features of every site
TOKENS = 8  # of a prompt, padding included
ENERGY = 1e-7  # above the rounding errors that low-rank features have in their null space
NOISE = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction")


def unet(seed: int = 0, **changes) -> UNet2DConditionModel:
    """Build a UNet with 4 cross-attention blocks, all at 2x2: 4 rows for one latent at one timestep."""
    torch.manual_seed(seed)
    settings = dict(
        sample_size=4,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, WIDTH),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    return UNet2DConditionModel(**(settings | changes)).eval().requires_grad_(False)


def tokenizer() -> PreTrainedTokenizerBase:
    """Load the embedded model's tokenizer, whose token numbers never change, with a limit of few tokens."""
    found = tokens.load(Path(__file__).parents[1] / "resources/tinyworld/tokenizer")
    found.model_max_length = TOKENS
    return found


def clip(cls: type = CLIPTextModel, seed: int = 1, width: int = WIDTH) -> CLIPTextModel | CLIPTextModelWithProjection:
    torch.manual_seed(seed)
    words = tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        projection_dim=width,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    return cls(config)


def vae(**changes) -> AutoencoderKL:
    torch.manual_seed(1)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        **changes,
    )


def save_pipeline(folder: Path) -> None:
    """Save a whole Stable Diffusion pipeline for 16x16 pictures."""
    StableDiffusionPipeline(
        vae=vae(),
        text_encoder=clip(),
        tokenizer=tokenizer(),
        unet=unet(),
        scheduler=DDIMScheduler(**NOISE, timestep_spacing="trailing", clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


@dataclass
class Protected:
    """latents: `[T, n, 4, 4, 4]`; timesteps: T values; prompts: `[n, tokens, width]`, one row per latent."""

    latents: Tensor
    timesteps: list[float]
    prompts: Tensor


def protected_inputs(seed: int = 5, n: int = 2, tokens_: int = 4) -> Protected:
    """Return inputs with 8 rows of every image feature per timestep, 24 in all, and 8 rows of text: fewer than 32."""
    generator = torch.Generator().manual_seed(seed)
    timesteps = [901.0, 501.0, 101.0]
    latents = torch.randn(len(timesteps), n, 4, 4, 4, generator=generator)
    return Protected(latents, timesteps, torch.randn(n, tokens_, WIDTH, generator=generator))


@torch.no_grad()
def predict(denoiser: nn.Module, latents: Tensor, timestep: float | Tensor, prompts: Tensor) -> Tensor:
    return denoiser(latents, torch.as_tensor(timestep), encoder_hidden_states=prompts).sample


def predictions(denoiser: nn.Module, given: Protected) -> Tensor:
    """Return the denoiser's outputs `[T, n, ...]` at every cached timestep."""
    calls = zip(given.latents, given.timesteps, strict=True)
    return torch.stack([predict(denoiser, x, t, given.prompts) for x, t in calls])


@torch.no_grad()
def moments(denoiser: nn.Module, given: Protected, pooled: bool = False) -> dict[str, list[Moment]]:
    """Return moments by site: one per timestep, or one for all; static features always have one."""
    sites = find_sites(denoiser)
    t = given.timesteps
    features = find_features(sites, lambda i: predict(denoiser, given.latents[0], t[i], given.prompts))
    found: dict[str, list[Moment]] = {feature.name: [] for feature in features}
    first = {feature.name: sites[feature.name] for feature in features}
    steps = [range(len(t))] if pooled else [[s] for s in range(len(t))]
    for step in steps:
        with collecting(first) as part:
            for s in step:
                predict(denoiser, given.latents[s], t[s], given.prompts)
        for feature in features:
            if not (feature.static and found[feature.name]):
                found[feature.name].append(part[feature.name])
    return {site: found[feature.name] for feature in features for site in feature.sites}


def projectors(
    denoiser: nn.Module, given: Protected, pooled: bool = False, rule: str = "energy", value: float = ENERGY
) -> dict[str, list[Projector]]:
    """Return projectors by site, as the workflow makes them. Sites of one feature share one list."""
    by_feature: dict[int, list[Projector]] = {}
    result = {}
    for site, ms in moments(denoiser, given, pooled).items():
        if id(ms) not in by_feature:
            by_feature[id(ms)] = [projector(*decompose(m.mean().numpy(), site), rule, value, site) for m in ms]
        result[site] = by_feature[id(ms)]
    return result


def adapter(denoiser: nn.Module, given: Protected, scope: str, rank: int | str = 4, **options) -> Adapter:
    torch.manual_seed(3)
    stacks = projectors(denoiser, given, pooled=scope == "pooled")
    return Adapter(find_sites(denoiser), stacks, given.timesteps, scope, rank, **options)


def randomise(adapter: Adapter, std: float = 0.3) -> Adapter:
    """Fill every factor with random numbers, as if trained."""
    torch.manual_seed(4)
    with torch.no_grad():
        for p in adapter.parameters():
            p.copy_(torch.randn_like(p) * std)
    return adapter


def fit(denoiser: nn.Module, adapter: Adapter, steps: int = 12, lr: float = 0.05, optimizer=torch.optim.Adam) -> None:
    """Run training steps on random data at the cached timesteps, mixed within a batch except for scope `shared`."""
    generator = torch.Generator().manual_seed(7)
    parameters = [p for p in adapter.parameters() if p.requires_grad]
    optimizer = optimizer(parameters, lr)
    with adapter.attached(denoiser):
        for _ in range(steps):
            before = adapter.snapshot()
            rows = torch.randint(len(adapter.timesteps), (6,), generator=generator)
            if adapter.scope == "shared":
                rows[:] = rows[0]
            x, target = torch.randn(2, 6, 4, 4, 4, generator=generator)
            prompts = torch.randn(6, 4, WIDTH, generator=generator)
            prediction = denoiser(x, adapter.timesteps[rows], encoder_hidden_states=prompts).sample
            optimizer.zero_grad()
            ((prediction - target) ** 2).mean().backward()
            optimizer.step()
            if adapter.scope == "shared":
                adapter.project_updates(before, rows[0])


def change(a: Tensor, b: Tensor) -> float:
    """Return the relative distance of two tensors."""
    return ((a - b).norm() / b.norm()).item()
