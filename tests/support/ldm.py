"""Single files with the names of the original repositories (LDM), written without the conversion of diffusers."""

import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
ENDS = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet_place(layer: str, per_block: int, attended: set[int]) -> str:
    """Return the LDM name of a layer of UNet2DConditionModel. attended: upper blocks with attention."""
    if layer in ENDS:
        return ENDS[layer]
    kind, *rest = layer.split(".")
    if kind == "mid_block":
        part, number, *inner = rest
        place = 1 if part == "attentions" else 2 * int(number)
        return f"middle_block.{place}.{within(part, '.'.join(inner))}"
    block, part, number, *inner = rest
    inner, down = ".".join(inner), kind == "down_blocks"
    if part == "downsamplers":
        return f"input_blocks.{(int(block) + 1) * (per_block + 1)}.0.op"
    if part == "upsamplers":
        last = int(block) * (per_block + 1) + per_block
        return f"output_blocks.{last}.{2 if int(block) in attended else 1}.conv"
    place = int(block) * (per_block + 1) + int(number) + (1 if down else 0)
    return f"{'input' if down else 'output'}_blocks.{place}.{int(part == 'attentions')}.{within(part, inner)}"


def within(part: str, inner: str) -> str:
    return RESNET[inner] if part == "resnets" else inner


def unet_weights(unet: Any) -> dict[str, Tensor]:
    attended = {i for i, kind in enumerate(unet.config.up_block_types) if "CrossAttn" in kind}
    found = {}
    for name, weight in unet.state_dict().items():
        layer, _, last = name.rpartition(".")
        # Layers inside attention blocks have the same names in both.
        found[f"{unet_place(layer, unet.config.layers_per_block, attended)}.{last}"] = weight
    return found


def vae_weights(vae: Any) -> dict[str, Tensor]:
    blocks, found = len(vae.config.block_out_channels), {}
    for name, weight in vae.state_dict().items():
        side, *inner = name.split(".")
        layer, last = ".".join(inner[:-1]), inner[-1] if inner else ""
        layer = layer.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        if match := re.fullmatch(r"mid_block\.resnets\.(\d)\.(.+)", layer):
            layer = f"mid.block_{int(match[1]) + 1}.{match[2]}"
        elif match := re.fullmatch(r"mid_block\.attentions\.0\.(.+)", layer):
            layer = f"mid.attn_1.{VAE_ATTENTION[match[1]]}"
            weight = weight[:, :, None, None] if weight.ndim == 2 else weight
        elif match := re.fullmatch(r"(down|up)_blocks\.(\d)\.(resnets|\w+samplers)\.(\d)\.(.+)", layer):
            kind, block, part, number, rest = match.groups()
            block = int(block) if kind == "down" else blocks - 1 - int(block)
            layer = f"{kind}.{block}." + (f"block.{number}.{rest}" if part == "resnets" else f"{kind}sample.{rest}")
        found[".".join(filter(None, (side, layer, last)))] = weight
    return found


def clip_weights(clip: Any) -> dict[str, Tensor]:
    """Rename weights as older versions of transformers did, with `text_model`."""
    return {
        name if name.startswith("text_") else f"text_model.{name}": weight for name, weight in clip.state_dict().items()
    }


def open_clip_weights(clip: Any) -> dict[str, Tensor]:
    """Return the weights of a CLIP in open_clip's form: queries, keys and values as one linear layer."""
    given = {name.removeprefix("text_model."): weight for name, weight in clip.state_dict().items()}
    found = {
        "positional_embedding": given["embeddings.position_embedding.weight"],
        "token_embedding.weight": given["embeddings.token_embedding.weight"],
        "ln_final.weight": given["final_layer_norm.weight"],
        "ln_final.bias": given["final_layer_norm.bias"],
    }
    if "text_projection.weight" in given:
        found["text_projection"] = given["text_projection.weight"].T
    names = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    names["self_attn.out_proj"] = "attn.out_proj"
    for i in range(clip.config.num_hidden_layers):
        ours, theirs = f"encoder.layers.{i}", f"transformer.resblocks.{i}"
        for last in ("weight", "bias"):
            found |= {f"{theirs}.{new}.{last}": given[f"{ours}.{old}.{last}"] for old, new in names.items()}
            parts = [given[f"{ours}.self_attn.{kind}_proj.{last}"] for kind in "qkv"]
            found[f"{theirs}.attn.in_proj_{last}"] = torch.cat(parts)
    return found


SD3 = {
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}
SD3_BLOCK = {
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn2.to_out.0": "x_block.attn2.proj",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
}
SD3_FUSED = {"attn.to_{}": "x_block.attn", "attn.add_{}_proj": "context_block.attn", "attn2.to_{}": "x_block.attn2"}


def sd3_weights(transformer: Any) -> dict[str, Tensor]:
    """Join queries, keys and values of a stream into one linear layer, and swap scale and shift of the last norms."""
    given = transformer.state_dict()
    found = {"pos_embed": given.pop("pos_embed.pos_embed")}
    for i in range(transformer.config.num_layers):
        for ours, theirs in SD3_FUSED.items():
            for last in ("weight", "bias"):
                names = [f"transformer_blocks.{i}.{ours.format(kind)}.{last}" for kind in "qkv"]
                if names[0] in given:
                    found[f"joint_blocks.{i}.{theirs}.qkv.{last}"] = torch.cat([given.pop(name) for name in names])
    swapped = ("norm_out.linear", f"transformer_blocks.{transformer.config.num_layers - 1}.norm1_context.linear")
    for name, weight in given.items():
        layer, _, last = name.rpartition(".")
        if layer in swapped:
            weight = torch.cat(weight.chunk(2)[::-1])
        if block := re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", layer):
            found[f"joint_blocks.{block[1]}.{SD3_BLOCK[block[2]]}.{last}"] = weight
        else:
            found[f"{SD3[layer]}.{last}"] = weight
    return found


def weights_of_sd3(pipeline: Any) -> dict[str, Tensor]:
    """Return the third text encoder without the second copy of its embeddings."""
    third = {k: v for k, v in pipeline.text_encoder_3.state_dict().items() if k != "encoder.embed_tokens.weight"}
    parts = {
        "model.diffusion_model.": sd3_weights(pipeline.transformer),
        "first_stage_model.": vae_weights(pipeline.vae),
        "text_encoders.clip_l.transformer.": pipeline.text_encoder.state_dict(),
        "text_encoders.clip_g.transformer.": pipeline.text_encoder_2.state_dict(),
        "text_encoders.t5xxl.transformer.": third,
    }
    return joined(parts)


def joined(parts: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": w.contiguous() for prefix, part in parts.items() for name, w in part.items()}


def weights(pipeline: Any) -> dict[str, Tensor]:
    """Return all weights of a Stable Diffusion 1, 2 or XL pipeline."""
    xl = hasattr(pipeline, "text_encoder_2")
    two = pipeline.unet.config.use_linear_projection and not xl
    parts = {"model.diffusion_model.": unet_weights(pipeline.unet), "first_stage_model.": vae_weights(pipeline.vae)}
    clip = "conditioner.embedders.0.transformer." if xl else "cond_stage_model.transformer."
    if two:
        parts["cond_stage_model.model."] = open_clip_weights(pipeline.text_encoder)
    else:
        parts[clip] = clip_weights(pipeline.text_encoder)
    if xl:
        parts["conditioner.embedders.1.model."] = open_clip_weights(pipeline.text_encoder_2)
    return joined(parts)


def save(pipeline: Any, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    found = weights_of_sd3(pipeline) if hasattr(pipeline, "text_encoder_3") else weights(pipeline)
    save_file(found, file, {"format": "pt"})
    return file


def without_weights(folder: Path, to: Path) -> Path:
    """Copy only configs and tokenizers of a pipeline's folder."""
    return shutil.copytree(folder, to, ignore=shutil.ignore_patterns("*.safetensors"))
