"""Faults in users' inputs, one row per case: its name, the fault, and parts of the message."""

import json
import os
import shutil
import struct
from datetime import date
from pathlib import Path

import numpy as np
from hostile import ROWS, TOKEN, UNET, changed, photograph, png, row, written
from PIL import Image
from safetensors.numpy import save_file

__all__ = ["ROWS"]

# --- the config ----------------------------------------------------------------------------------------

changed("misspelt key", {"trian": {}}, "trian: unknown key; did you mean 'train'?")
changed("misspelt inner key", {"sampler": {"stepps": 3}}, "sampler.stepps: unknown key; did you mean 'steps'?")
changed("wrong type", {"sampler": {"steps": "fifty"}}, "sampler.steps: 'fifty'", "integer")
changed("a fraction of steps", {"sampler": {"steps": 3.0}}, "sampler.steps: 3.0", "integer")
changed("not a number", {"sampler": {"guidance": float("nan")}}, "sampler.guidance: nan", "finite")
changed("infinite", {"train": {"learning_rate": float("inf")}}, "train.learning_rate: inf", "finite")
changed("too large", {"protect": {"seed": 10**400}}, "protect.seed", "too large")
changed("a date", {"sampler": {"options": {"a": date(2020, 1, 1)}}}, "sampler.options.a", "2020", "quotes")
changed("a key that is no text", {"sampler": {False: 1}}, "sampler", "False", "quotes")
changed("nested", lambda _: {"sampler": {"options": nested(3000)}}, "sampler.options", "nested")
changed("endless text", {"device": "x" * 100_000}, "device: 'xxx")
changed("a token", {"model": f"https://huggingface.co/a/b?token={TOKEN}"}, "model:", "token", "HF_TOKEN")
changed("a password", {"evaluate": {"clip": "https://me:secret@host/clip"}}, "evaluate.clip:", "password")
changed("guidance 0", {"sampler": {"guidance": 0}}, "sampler.guidance: 0", "1", "no guidance")
changed("device", {"device": "gpu"}, "device: 'gpu'", "auto")
changed("scheduler", {"sampler": {"scheduler": "DDIMSheduler"}}, "sampler.scheduler: 'DDIMSheduler'", "DDIMScheduler")
changed(
    "more steps than the scheduler has",
    {"sampler": {"steps": 30, "options": {"num_train_timesteps": 20}}},
    "sampler.steps: 30",
    "20",
)
changed(
    "more steps than the scheduler has, compared",
    {"comparison": {"steps": 30}, "sampler": {"options": {"num_train_timesteps": 20}}},
    "comparison.steps: 30",
    "20",
)
for bad in ("../x", "a b", "a/b", "", ".", "x\n", "null", "None", "NaN", "base", "unrelated", "class", "x" * 300, None):
    changed(f"concept {bad!r:.20}", lambda w, bad=bad: {"concepts": [w.concept(name=bad)]}, "concepts.0.name")
for bad in ("../x", "a b", "null", "x\n", None):
    changed(f"method {bad!r}", {"methods": [{"name": bad}]}, "methods.0.name")
changed(
    "names alike but for their case",
    lambda w: {"concepts": [w.concept(), w.concept(name="Thing")]},
    "concepts: the name",
    "'Thing'",
)
changed("an empty class", lambda w: {"concepts": [w.concept(**{"class": ""})]}, "concepts.0.class: ''")
changed("a bell", lambda w: {"concepts": [w.concept(identifier="v\x07k")]}, "concepts.0.identifier", "U+0007")
changed(
    "half a character", lambda w: {"concepts": [w.concept(identifier="v\ud800")]}, "concepts.0.identifier", "U+D800"
)
changed("results nowhere", {"results": ""}, "results: ''")
changed("results with braces", {"results": "a{b}"}, "results: 'a{b}'")
changed("results around the photographs", lambda w: {"results": str(w.folder)}, "results: ", "lies in it", "lost")
changed("results in place of a file", lambda w: {"results": str(w.prompts / "class.txt")}, "results: ", "a file")
changed(
    "a rival with a prior",
    {"methods": [{"name": "a", "method": "lora", "prior": "images"}]},
    "methods.0.prior: 'images'",
)
changed(
    "8-bit Adam without its package",
    {"train": {"optimizer": "adamw8bit"}},
    "train.optimizer",
    "pip install bitsandbytes",
)
changed("a tracker without its package", {"trackers": ["wandb"]}, "trackers.0: wandb", "pip install wandb")
changed(
    "several GPUs where one is named",
    {"device": "cuda:1", "methods": [{"name": "a", "sweep": [{"gpus": 2}]}]},
    "methods.0.sweep.0.gpus: device cuda:1 is one GPU",
    "device: auto",
)
changed(
    "an identifier in a protected prompt",
    lambda w: {"concepts": [w.concept(identifier="Ring")], "train": {"inversion_steps": 5}},
    "concepts.0.identifier: 'Ring'",
    "'a blue ring'",
    "another identifier",
)


# --- edits ---------------------------------------------------------------------------------------------


def editing(name: str, edits: list[dict], *says: str, **contexts: str) -> None:
    """Add a row with edits and files of contexts."""

    def spoil(world):
        for key, text in contexts.items():
            (world.prompts / f"{key}.txt").write_text(text)
        return {"edits": edits, "edit": {key: str(world.prompts / f"{key}.txt") for key in contexts}}

    row(f"edits: {name}", *says)(spoil)


MOON = {"from": "a moon", "to": "a star"}
editing("no target", [{"from": "a moon"}], "edits.0: missing to")
editing("no source", [MOON, {"to": "a moon"}], "edits.1: missing from")
editing("a blank source", [{"from": " ", "to": "a star"}], "edits.0.from: ' '")
editing("a placeholder as source", [{"from": "a {moon}", "to": ""}], "edits.0.from: 'a {moon}'", "without { }")
editing("a placeholder as target", [MOON, {"from": "a ring", "to": "{x}"}], "edits.1.to: '{x}'", "without { }")
editing("a misspelt key", [{**MOON, "too": ""}], "edits.0.too: unknown key; did you mean 'to'?")
editing("no text", [{"from": "a moon", "to": None}], "edits.0.to: None", "string")
editing("a bell", [{"from": "a \x07", "to": ""}], "edits.0.from", "U+0007")
editing("no change", [{"from": "a moon", "to": " a  moon"}], "edits.0: from and to are both 'a moon'")
editing("none at all", [MOON, {"from": "a ring", "to": "a ring"}], "edits.1: from and to are both 'a ring'")
editing(
    "two of one prompt",
    [MOON, {"from": "A  Moon", "to": ""}],
    "edits.1.from: 'A Moon': edits.0",
    "one meaning",
    "remove",
)
editing(
    "two of one prompt in other contexts",
    [MOON, {"from": "a photo of a moon", "to": ""}],
    "edits.1.from: 'a photo of a moon': edits.0 changes the prompt 'a photo of a moon' too",
    templates="{concept}\na photo of {concept}\n",
)
for key in ("templates", "paraphrases"):
    editing(f"{key} without edit", [MOON], f"edit.{key}: 'a photo': {{concept}} is not in it", **{key: "a photo\n"})
    editing(
        f"{key} with a subject",
        [MOON],
        f"edit.{key}: ",
        "unknown placeholder {subject}; use {concept}",
        **{key: "a {concept} and a {subject}\n"},
    )
    editing(f"no {key}", [MOON], f"{key}.txt: no prompts in it; write one per line", **{key: "# {concept}\n"})
    changed(f"edits: {key} nowhere", {"edits": [MOON], "edit": {key: "no.txt"}}, f"edit.{key}: 'no.txt': no such file")
    editing(f"long {key}", [MOON], f"edit.{key}: ", "tokens", "reads 6", **{key: "{concept} " + "star " * 10_000})
editing(
    "paraphrases that are templates",
    [MOON],
    "edit.paraphrases: 'a {concept}' is also one of edit.templates",
    templates="a {concept}\nthe {concept}\n",
    paraphrases="a {concept}\n",
)


@row("edits: results around their contexts", "results: ", "edit.templates (", "lies in it and might be lost")
def _(world):
    (world.folder / "contexts").mkdir()
    (world.folder / "contexts/a.txt").write_text("a {concept}\n")
    return {"results": str(world.folder / "contexts"), "edit": {"templates": str(world.folder / "contexts/a.txt")}}


changed("edits: a ridge of nothing", {"edit": {"l2": 0}}, "edit.l2: 0")
changed("edits: no pictures", {"edit": {"pictures": 0}}, "edit.pictures: 0")
changed("edits: no such rule", {"edit": {"rule": {"enrgy": 0.1}}}, "edit.rule")


# --- subjects one after another ------------------------------------------------------------------------


def in_turn(name, changes: dict, *says, prompts="a blue {subject}\n", **method):
    """Add a row with a config of lifelong learning that has one fault."""

    def spoil(world):
        (world.prompts / "taught.txt").write_text(prompts)
        given = {"prompts": str(world.prompts / "taught.txt")} | changes.get("lifelong", {})
        ours = {"name": "ours", "lifelong": "sequence"} | method
        return {"methods": [ours]} | changes | {"lifelong": given}

    row(f"lifelong: {name}", *says)(spoil)


in_turn("no such way", {}, "methods.0.lifelong: 'sequense'", lifelong="sequense")
in_turn("no weight", {"lifelong": {"weight": 0}}, "lifelong.weight: 0")
in_turn("one half", {"lifelong": {"pair": ["a {subject}"]}}, "lifelong.pair: ")
in_turn("a stranger", {"lifelong": {"pair": ["a {subject}", "a {sbject}"]}}, "lifelong.pair: ", "{sbject}")
long = "{subject} " + "star " * 390
in_turn("long halves", {"lifelong": {"pair": ["a", long]}}, "lifelong.pair: ", "tokens", "reads 6")
in_turn("prompts nowhere", {"lifelong": {"prompts": "no.txt"}}, "lifelong.prompts: 'no.txt': no such file")
in_turn("no prompts", {}, "taught.txt: no prompts in it; write one per line", prompts="# a {subject}\n")
in_turn("long prompts", {}, "lifelong.prompts: ", "tokens", "reads 6", prompts=long)
in_turn("nameless prompts", {}, "lifelong.prompts: ", "'a b': {subject} is not in it", prompts="{subject}\na b\n")
in_turn("a stranger in prompts", {}, "lifelong.prompts: ", "unknown placeholder {x}", prompts="a {subject} {x}\n")


@row("lifelong: results around its prompts", "results: ", "lifelong.prompts (", "lies in it and might be lost")
def _(world):
    (world.folder / "mine").mkdir()
    (world.folder / "mine/a.txt").write_text("a {subject}\n")
    return {"results": str(world.folder / "mine"), "lifelong": {"prompts": str(world.folder / "mine/a.txt")}}


def nested(depth: int) -> list:
    inner: list = []
    for _ in range(depth):
        inner = [inner]
    return inner


# --- prompts -------------------------------------------------------------------------------------------

LONG = "star " * 10_000
written("no prompts", "prompts/protected.txt", "# a comment\n\n", "protected.txt: no prompts in it; write one per line")
written("an empty prompt file", "prompts/class.txt", "", "class.txt: no prompts in it; write one per line")
written("UTF-16", "prompts/protected.txt", "a star".encode("utf-16"), "protected.txt", "UTF-8")
written("NUL", "prompts/protected.txt", "a star\na\0b\n", "protected.txt:2", "U+0000", "remove it")
written("escape", "prompts/subject.txt", "a {subject} \x1b[31m\n", "subject.txt:1", "U+001B", "remove it")
written("10,000 tokens", "prompts/protected.txt", LONG, "protect.prompts: 'star star", "10000 tokens", "reads 6")
written(
    "10,000 tokens drawn",
    "prompts/subject.txt",
    "{subject} " + LONG,
    "sample.prompts.subject: 'sks star",
    "1000",
    "reads 6",
)
written("10,000 tokens, caption", "photos/0.txt", LONG, "concepts.0.images: 'star star", "10000 tokens")
written(
    "stray placeholder",
    "prompts/subject.txt",
    "a {sbject}\n",
    "sample.prompts.subject: ",
    "unknown placeholder {sbject}",
    "{subject}",
)
written(
    "placeholder with blanks",
    "prompts/unrelated.txt",
    "a { ring, disk}\n",
    "sample.prompts.unrelated: ",
    "unknown placeholder { ring, disk}",
)
changed(
    "no prompt file",
    lambda w: {"protect": {"prompts": str(w.folder / "none.txt")}},
    "protect.prompts: ",
    "none.txt': no such file",
)
changed("a folder of prompts", lambda w: {"protect": {"prompts": str(w.prompts)}}, "protect.prompts: ", "no such file")
changed("endless prompts", {"protect": {"prompts": "/dev/zero"}}, "protect.prompts: '/dev/zero': no such file")
changed(
    "a name too long", {"sample": {"prompts": {"class": "x" * 3000}}}, "sample.prompts.class: 'xxx", "3000 characters"
)

# --- photographs ---------------------------------------------------------------------------------------


@row("no photographs", "photos: no image in it", ".png")
def _(world):
    for path in world.photos.iterdir():
        path.unlink()


changed(
    "no folder", lambda w: {"concepts": [w.concept(images="nowhere")]}, "concepts.0.images: nowhere: no such folder"
)
changed(
    "no holdout", lambda w: {"concepts": [w.concept(holdout="nowhere")]}, "concepts.0.holdout: nowhere: no such folder"
)
written("text named .jpg", "photos/b.jpg", "not a picture", "b.jpg: not a readable image", "remove it")
written(
    "PostScript named .png",
    "photos/b.png",
    "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "b.png: not a readable",
)
written("a scalable drawing", "photos/b.svg", "<svg/>", "b.svg", "PNG or JPEG")
written("a telephone's format", "photos/b.HEIC", b"ftypheic", "b.HEIC", "PNG or JPEG")
written(
    "a decompression bomb",
    "photos/b.png",
    png(10_000, 10_000, bytes(30_001) * 10_000),
    "b.png: ",
    "pixels",
    "scale it down",
)
written("a header that lies", "photos/b.png", png(9000, 9000, bytes(100)), "b.png: not a readable image")


@row("20,000 x 20,000", "b.png: ", "pixels", "scale it down")
def _(world):
    (world.photos / "b.png").write_bytes(png(20_000, 20_000, bytes(100)))


@row("1x1", "b.png: 1 x 1 pixels", "16")
def _(world):
    Image.new("RGB", (1, 1)).save(world.photos / "b.png")


for kind, options in {"jpg": {}, "png": {}, "webp": {"lossless": True}}.items():

    @row(f"truncated {kind}", f"b.{kind}: not a readable image", "again")
    def _(world, kind=kind, options=options):
        path = world.photos / f"b.{kind}"
        photograph(size=256).save(path, **options)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


for kind in ("gif", "webp", "png"):

    @row(f"animated {kind}", f"b.{kind}: ", "an animated", "the one picture")
    def _(world, kind=kind):
        photograph(0).save(world.photos / f"b.{kind}", save_all=True, append_images=[photograph(1)])


@row("a folder named .png", "b.png: not a file")
def _(world):
    (world.photos / "b.png").mkdir()


@row("a pipe named .png", "b.png: not a file")
def _(world):
    os.mkfifo(world.photos / "b.png")


@row("a link to a picture elsewhere", "b.png: a link that leaves", "copy")
def _(world):
    photograph().save(world.folder / "private.png")
    (world.photos / "b.png").symlink_to("../private.png")


@row("a link to nothing", "b.png: not a file")
def _(world):
    (world.photos / "b.png").symlink_to("nothing.png")


@row("a caption that is a link", "0.txt: a link that leaves", "copy")
def _(world):
    (world.folder / "secret").write_text("secret")
    (world.photos / "0.txt").symlink_to(world.folder / "secret")


@row("pictures in subfolders alone", "photos: no image in it", "'10_vbk star' has 3", "name one of them")
def _(world):
    (world.photos / "10_vbk star").mkdir()
    for path in world.photos.glob("*.png"):
        path.rename(world.photos / "10_vbk star" / path.name)


@row("a TIFF of several pictures", "b.tif: a TIFF of several", "the one picture")
def _(world):
    photograph(0).save(world.photos / "b.tif", save_all=True, append_images=[photograph(1)])


@row("a picture under another ending", "b.jpg: not a readable image", "its content is avif")
def _(world):
    photograph().save(world.photos / "b.jpg", "AVIF")


for kind in ("tif", "jp2", "tga", "ppm", "avif"):

    @row(f"truncated {kind}", f"b.{kind}: not a readable image", "again")
    def _(world, kind=kind):
        path = world.photos / f"b.{kind}"
        photograph(size=256).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


for ending in ("jxl", "nef", "RAF", "psd"):
    written(f"a picture in {ending}", f"photos/b.{ending}", "x", f"b.{ending}", "PNG or JPEG")

# --- captions ------------------------------------------------------------------------------------------

written("a caption without an image", "photos/7.txt", "a {subject}", "7.txt: a caption without an image", "rename")
written("an empty caption", "photos/0.txt", " \n", "0.txt: an empty caption", "remove the file")
written("a caption in UTF-16", "photos/0.txt", "a {subject}".encode("utf-16"), "0.txt", "UTF-8")
written("a caption with NUL", "photos/0.txt", "a \0", "0.txt", "U+0000")
LISTED = "metadata.jsonl:1"
for name, line, *says in (
    ("a listed image not there", '{"file_name": "9.png", "text": "x"}', f"{LISTED}: '9.png'", "no such image"),
    ("a listed image elsewhere", '{"file_name": "../x.png", "text": "x"}', f"{LISTED}: '../x.png'", "no such image"),
    ("a text that is none", '{"file_name": "0.png", "text": 5}', LISTED, "expected"),
    ("a name that is none", '{"file_name": ["0.png"], "text": "x"}', LISTED, "expected"),
    ("no JSON", "0.png: a star", LISTED, "expected"),
    ("JSON without end", "[" * 100_000, LISTED, "expected"),
    ("listed twice", '{"file_name": "0.png", "text": "x"}\n' * 2, "metadata.jsonl:2: '0.png'", "twice"),
    ("an empty listed caption", '{"file_name": "0.png", "text": ""}', LISTED, "empty caption"),
    ("half a character, listed", '{"file_name": "0.png", "text": "\\ud800"}', LISTED, "U+D800"),
    ("10,000 tokens, listed", json.dumps({"file_name": "0.png", "text": LONG}), "concepts.0.images: 'star", "10000"),
):  # fmt: skip
    written(name, "photos/metadata.jsonl", line, *says)

TABLE = "file_name,text\n"
for name, rows, *says in (
    ("another column", "file_name,prompt\n0.png,x\n", "metadata.csv:1: expected the columns file_name and text"),
    ("another separator", "file_name;text\n0.png;x\n", "metadata.csv:1: expected", "commas"),
    ("a comma too many", TABLE + "0.png,a {subject}, asleep\n", "metadata.csv:2: ", "in quotes"),
    ("an image not there", TABLE + "9.png,x\n", "metadata.csv:2: '9.png'", "no such image"),
    ("twice", TABLE + "0.png,x\n" * 2, "metadata.csv:3: '0.png'", "twice"),
    ("in UTF-16", (TABLE + "0.png,x\n").encode("utf-16"), "metadata.csv: not UTF-8"),
):
    written(f"a table of captions: {name}", "photos/metadata.csv", rows, *says)
written("a .caption without an image", "photos/7.caption", "a {subject}", "7.caption: a caption without an image")
written("an empty .caption", "photos/0.caption", " ", "0.caption: an empty caption")


@row("captions that differ", "0.png: its captions differ: metadata.csv 'a cat', 0.txt 'a dog'", "keep one")
def _(world):
    (world.photos / "0.txt").write_text("a dog")
    (world.photos / "metadata.csv").write_text(TABLE + "0.png,a cat\n")


for other in ("[trigger]", "[name]", "[filewords]", "[Trigger Word]", "{trigger}", "{masterpiece:1.2}", "{}"):
    says = (f"0.png: 'a photo of {other}'", f"unknown placeholder {other}; use {{subject}}")
    written(f"a caption for another tool, {other}", "photos/0.txt", f"a photo of {other}", "concepts.0.images: ", *says)
for name, text in {
    "no subject": "a star\n",
    "the class alone": "a {class}\n",
    "one of two": "{subject}\na b\n",
}.items():
    written(f"subject prompts: {name}", "prompts/subject.txt", text, "sample.prompts.subject: ", "write {subject}")


@row(
    "subject prompts: the word of another concept", "sample.prompts.subject: 'a sks star': neither {subject} nor 'vbk'"
)
def _(world):
    (world.prompts / "subject.txt").write_text("a sks star\n")
    return {"concepts": [world.concept(), world.concept(name="other", identifier="vbk")]}


INDEX, OWN = "model_index.json", "code of its own"

# --- models --------------------------------------------------------------------------------------------

changed("no model", lambda w: {"model": str(w.folder / "none")}, "model: ", "none", "neither a folder nor a Hub id")
changed("a folder with a slip in its name", {"model": "resources/tinywrld"}, "model: 'resources/tinywrld'", "tinyworld")
changed("no id", {"model": "a b/c d"}, "model: 'a b/c d' is neither a folder nor a Hub id")
for kind in (".ckpt", ".bin", ".pt", ".SAFETENSORS"):

    @row(
        f"a model in one {kind} file", "model: ", f"sd{kind}", "not a .safetensors file", "from_single_file", "save_pre"
    )
    def _(world, kind=kind):
        (world.folder / f"sd{kind}").write_bytes(b"x")
        return {"model": str(world.folder / f"sd{kind}")}


UNET_WEIGHT, VAE_WEIGHT = "model.diffusion_model.out.2.bias", "first_stage_model.quant_conv.bias"
CLIP_WEIGHT = "cond_stage_model.transformer.text_model.final_layer_norm.bias"
WHOLE = (UNET_WEIGHT, VAE_WEIGHT, CLIP_WEIGHT)


def one_file(world, *names):
    """Return a config with a single-file model that has weights of these names, and the world's configs."""
    path = world.folder / "one.safetensors"
    save_file({name: np.zeros(2, np.float32) for name in names}, path)
    return {"model": str(path), "model_config": str(world.model)}


@row("a model in one broken file", "model: ", "sd.safetensors", "broken", "again")
def _(world):
    (world.folder / "sd.safetensors").write_bytes(b"x")
    return {"model": str(world.folder / "sd.safetensors")}


LORAS = (
    "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight",
    "unet.mid_block.attentions.0.proj_in.lora_A.weight",
)
for name, names, *says in (
    ("a LoRA by kohya", LORAS[:1], "is a LoRA", "lora_unet", "give the base model"),
    ("a LoRA by peft", LORAS[1:], "is a LoRA", "lora_A", "give the base model"),
    ("a transformer alone", ["double_blocks.0.img_attn.qkv.weight"], "has no unet (model.diffusion_model.*)", "no vae"),
    ("a denoiser alone", WHOLE[:1], "has no vae (first_stage_model.* or vae.*), no text_encoder", "whole pipeline"),
    ("a denoiser and its VAE", WHOLE[:2], "has no text_encoder (cond_stage_model.* or ", "folder or Hub id"),
    ("text encoder and VAE", WHOLE[1:], "has no unet (model.diffusion_model.*): it is not", "folder or Hub id"),
):  # fmt: skip

    @row(f"{name} in one file", "model: ", "one.safetensors", *says)
    def _(world, names=names):
        return {**one_file(world, *names), "model_config": None}


@row("one text encoder of two", "has no text_encoder_2 (conditioner.embedders.1.* or ", "not a whole pipeline")
def _(world):
    world.json(INDEX, lambda content: content.update(text_encoder_2=content["text_encoder"]))
    shutil.copytree(world.model / "text_encoder", world.model / "text_encoder_2")
    return one_file(world, *WHOLE)


@row("a text encoder that no file has", "has no text_encoder_2 (Gemma2Model cannot be read from one)")
def _(world):
    world.json(INDEX, lambda content: content.update(text_encoder_2=["transformers", "Gemma2Model"]))
    shutil.copytree(world.model / "text_encoder", world.model / "text_encoder_2")
    return one_file(world, *WHOLE)


row("a variant of one file", "variant: 'fp16': ", "one.safetensors is one file", "remove it")(
    lambda world: {**one_file(world, *WHOLE), "variant": "fp16"}
)
changed("configs for a folder", lambda w: {"model_config": str(w.model)}, "model_config: ", "remove it")
for name, configs, *says in (
    ("nowhere", "none", "model_config: 'none' is neither a folder nor a Hub id"),
    ("in a folder of something else", ".", "has no model_index.json; give the folder of a diffusers pipeline"),
    ("in one file", "one.safetensors", "one.safetensors is one file; give the folder"),
):

    @row(f"configs {name}", "model_config: ", *says)
    def _(world, configs=configs):
        place = configs if configs == "none" else str(world.folder / configs)
        return {**one_file(world, *WHOLE), "model_config": place}


for name, file, change, *says in (
    ("with a pipeline of its own", "model_index.json", {"_class_name": ["pipeline", "X"]}, "code of its own"),
    ("with a denoiser of its own", "unet/config.json", {"auto_map": {"AutoModel": "evil.X"}}, "code of its own"),
    ("without cross-attention", "unet/config.json", {"_class_name": "UNet2DModel"}, "cross-attention"),
    ("without a part", "model_index.json", {"vae2": ["diffusers", "AutoencoderKL"]}, "vae2", "no such folder"),
):

    @row(f"configs {name}", "model_config: ", file if "part" not in name else "vae2", *says)
    def _(world, file=file, change=change):
        world.json(file, lambda content: content.update(change))
        return one_file(world, *WHOLE)


@row("more steps than the scheduler of one file has", "sampler.steps: 30", "20")
def _(world):
    world.json("scheduler/scheduler_config.json", lambda content: content.update(num_train_timesteps=20))
    return {**one_file(world, *WHOLE), "sampler": {"steps": 30}}


@row("no prompt for the tokenizer of one file", "concepts.0.images: 'star", "10000")
def _(world):
    (world.photos / "0.txt").write_text("star " * 10_000)
    return one_file(world, *WHOLE)


@row("an evaluator in one file", "evaluate.clip: ", "one.safetensors is one file; give the folder")
def _(world):
    return {"evaluate": {"clip": one_file(world, "a")["model"]}}


written("an index that is not JSON", "model/model_index.json", "{", "model_index.json", "not a JSON object")
written("an index that is a list", "model/model_index.json", "[1]", "model_index.json", "not a JSON object")
PLAIN = {"down_block_types": ["DownBlock2D"], "mid_block_type": "UNetMidBlock2D", "up_block_types": ["UpBlock2D"]}
for name, file, change, *says in (
    ("an unknown pipeline", INDEX, {"_class_name": "MyPipeline"}, "model: ", "'MyPipeline'", "diffusers"),
    ("a pipeline with code", INDEX, {"_class_name": ["pipeline", "X"]}, INDEX, OWN),
    ("a denoiser with code", INDEX, {"unet": ["my_unet", "MyUNet"]}, "unet: ", "'my_unet'", OWN),
    ("an unknown denoiser", INDEX, {"unet": ["diffusers", "MyUNet"]}, "unet: ", "'MyUNet'"),
    ("no denoiser", INDEX, {"unet": [None, None]}, INDEX, "unet or transformer"),
    ("a component that is a path", INDEX, {"../x": ["diffusers", "AutoencoderKL"]}, "'../x'"),
    ("a component without a folder", INDEX, {"vae2": ["diffusers", "AutoencoderKL"]}, "vae2", "no such folder"),
    ("no cross-attention", "unet/config.json", PLAIN, "unet/config.json", "cross-attention"),
    ("joint attention", "unet/config.json", {"cross_attention_dim": None}, "unet/config.json", "cross-attention"),
    ("no scheduler", INDEX, {"scheduler": [None, None]}, INDEX, "no scheduler"),
    ("no VAE", INDEX, {"vae": [None, None]}, INDEX, "no vae"),
    ("no text encoder", INDEX, {"text_encoder": [None, None]}, INDEX, "no text_encoder"),
    ("no tokenizer", INDEX, {"tokenizer": [None, None]}, INDEX, "no tokenizer"),
    ("a class of the past", INDEX, {"tokenizer": ["transformers", "CLIPTokenizerOld"]}, "tokenizer: ", "update it"),
    ("a picture given", INDEX, {"_class_name": "StableDiffusionImg2ImgPipeline"}, "'StableDiffusionPipeline'"),
    ("a mask given", INDEX, {"_class_name": "StableDiffusionInpaintPipeline"}, "from a prompt alone"),
    ("a control picture given", INDEX, {"_class_name": "StableDiffusionControlNetPipeline"}, "from a prompt alone"),
    ("a picture varied", INDEX, {"_class_name": "StableDiffusionImageVariationPipeline"}, "from a prompt alone"),
    ("a small picture given", "unet/config.json", {"in_channels": 7}, "in_channels: 7", "upscaling"),
    ("a class given", "unet/config.json", {"num_class_embeds": 10}, "num_class_embeds: 10", "class labels"),
    ("an embedding given", "unet/config.json", {"class_embed_type": "projection"}, "class_embed_type: 'projection'"),
    ("a picture's embedding", "unet/config.json", {"addition_embed_type": "image"}, "addition_embed_type: 'image'"),
    ("a picture for text", "unet/config.json", {"encoder_hid_dim_type": "image_proj"}, "encoder_hid_dim_type: 'image"),
    ("pooled text of none", "unet/config.json", {"addition_embed_type": "text_time"}, "no text_encoder_2"),
    ("an encoder's own code", "text_encoder/config.json", {"auto_map": {"AutoModel": "evil.X"}}, "auto_map", OWN),
):  # fmt: skip

    @row(name, *says)
    def _(world, file=file, change=change):
        world.json(file, lambda content: content.update(change))


@row("a feature extractor of the past where a text encoder is", "text_encoder: ", "replace it by 'CLIPImage")
def _(world):
    world.json(INDEX, lambda content: content.update(text_encoder=["transformers", "CLIPFeatureExtractor"]))


for file in (
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "tokenizer/tokenizer_config.json",
    "unet/config.json",
    "vae/config.json",
):

    @row(f"no {file}", "model: ", f"{Path(file).parent} has no {Path(file).name}; download the model again")
    def _(world, file=file):
        (world.model / file).unlink()


WORDS = "tokenizer/tokenizer.json"


@row("no vocabulary", "tokenizer has no vocabulary", "download the model again")
def _(world):
    (world.model / WORDS).unlink()


@row("half a vocabulary in two files", "tokenizer has no vocabulary", "merges.txt")
def _(world):
    words = json.loads((world.model / WORDS).read_text())["model"]["vocab"]
    (world.model / WORDS).unlink()
    (world.model / "tokenizer/vocab.json").write_text(json.dumps(words))


for name, vocabulary, said in (
    ("an empty vocabulary", {}, "0 tokens"),
    ("a vocabulary of special tokens", {"<|startoftext|>": 0, "<|endoftext|>": 1}, "2 tokens"),
    ("a vocabulary that was cut", {str(i): i for i in range(300)}, "300 tokens, but its text encoder has 450"),
    ("a number as vocabulary", 7, "has no vocabulary"),
):

    @row(name, "tokenizer", said)
    def _(world, vocabulary=vocabulary):
        world.json(WORDS, lambda content: content["model"].update(vocab=vocabulary, merges=[]))

    @row(f"{name}, in vocab.json", "tokenizer", said if isinstance(vocabulary, dict) else "not a JSON object")
    def _(world, vocabulary=vocabulary):
        (world.model / WORDS).unlink()
        (world.model / "tokenizer/vocab.json").write_text(json.dumps(vocabulary))
        (world.model / "tokenizer/merges.txt").write_text("#version: 0.2\n")


@row("a vocabulary without its merges", "1450 tokens, but only 0 merges")
def _(world):
    more = {f"word{i}": 450 + i for i in range(1000)}
    world.json(WORDS, lambda content: content["model"].update(vocab=content["model"]["vocab"] | more, merges=[]))


@row("a vocabulary of no bytes", "spiece.model: only 0 bytes")
def _(world):
    (world.model / WORDS).unlink()
    (world.model / "tokenizer/spiece.model").touch()


for suffix in (".bin", ".ckpt", ".pt", ".pth"):

    @row(f"pickled weights, {suffix}", "unet", suffix, "pickle", "save_pretrained")
    def _(world, suffix=suffix):
        (world.model / UNET).rename((world.model / UNET).with_suffix(suffix))


@row("no weights", "vae: no diffusion_pytorch_model.safetensors")
def _(world):
    (world.model / "vae/diffusion_pytorch_model.safetensors").unlink()


@row("weights of one precision only", "unet: no diffusion_pytorch_model.safetensors", "fp16", "rename")
def _(world):
    (world.model / UNET).rename((world.model / UNET).with_suffix(".fp16.safetensors"))


@row("cut weights", UNET, "broken", "again")
def _(world):
    content = (world.model / UNET).read_bytes()
    (world.model / UNET).write_bytes(content[: len(content) // 2])


for name, content in {
    "a page in place of weights": b"<!doctype html><title>404</title>",
    "a header of 2^60 bytes": struct.pack("<Q", 1 << 60) + b"{}",
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
}.items():
    written(name, f"model/{UNET}", content, UNET, "broken", "again")

for place, *says in (("../../private.safetensors", "is outside its folder"), ("none.safetensors", "no such file")):

    @row(f"weights at {place}", "unet/diffusion_pytorch_model.safetensors.index.json", place, *says)
    def _(world, place=place):
        (world.folder / "private.safetensors").write_bytes((world.model / UNET).read_bytes())
        (world.model / UNET).unlink()
        (world.model / f"{UNET}.index.json").write_text(json.dumps({"weight_map": {"conv_in.weight": place}}))


@row("an encoder with code", "evaluate.dino: ", "auto_map", "code of its own")
def _(world):
    folder = world.folder / "dino"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "evil.X"}}))
    return {"evaluate": {"dino": str(folder)}}


@row("a pickled encoder", "evaluate.dino: ", "pytorch_model.bin", "pickle")
def _(world):
    folder = world.folder / "dino"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "dinov2"}')
    (folder / "pytorch_model.bin").write_bytes(b"x")
    return {"evaluate": {"dino": str(folder)}}


@row("no weights of LPIPS", "evaluate.lpips: ", "alex.pth", "broken")
def _(world):
    (world.folder / "alex.pth").write_bytes(b"x")
    return {"evaluate": {"lpips": str(world.folder / "alex.pth")}}
