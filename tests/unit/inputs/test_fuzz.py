"""Random configs, adapters, photographs, captions and model files give a correct result or one clear error."""

import json
import math
import shutil
import struct
from pathlib import Path

import icc
import pytest
import tiny
import torch
from hostile import World, overlay
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from nullbooth.adapters.export import export_lora
from nullbooth.adapters.file import FORMAT, AdapterInfo
from nullbooth.adapters.loaded import load_adapter
from nullbooth.errors import InputError
from nullbooth.inputs.photographs import captions, check_image, list_images, open_image
from nullbooth.inputs.prompts import read_prompts
from nullbooth.inputs.settings import complete
from nullbooth.storage.digests import digest
from nullbooth.storage.tensorfile import save_tensors
from nullbooth.workflow.preflight import check_inputs

LONGEST = 2000  # most characters of a message, because people read it


def run(function, *arguments):
    """Return the result of a call, or None if it refused its input with one of the project's errors."""
    try:
        return function(*arguments)
    except InputError as error:
        assert 10 < len(str(error)) < LONGEST, error
        return None


# --- configs -------------------------------------------------------------------------------------------

WILD_TEXT = st.text(st.characters(codec=None), max_size=40) | st.sampled_from(
    [
        "",
        ".",
        "..",
        "/",
        "~",
        "a/b",
        "a/b/c",
        "null",
        "{}",
        "{x}",
        "%s",
        "x" * 5000,
        "/dev/zero",
        "\0",
        "-",
        "1e-3",
        "☃",
    ]
)
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-(10**300), 10**300), st.floats(), WILD_TEXT, st.dates(),
    st.binary(max_size=5), st.sampled_from([-1, 0, 1e308, math.nan, math.inf, 1 << 62]),
)  # fmt: skip
ANYTHING = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(LEAVES.filter(bool) | WILD_TEXT, inner, max_size=4),
    max_leaves=8,
)


def places(value: object, place: tuple = ()) -> list[tuple]:
    """Yield the paths of all values in nested dictionaries and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place] * bool(place) + [found for key, inner in items for found in places(inner, (*place, key))]


def put(value: object, place: tuple, new: object) -> object:
    """Return a copy with another value at one place."""
    if not place:
        return new
    copy = value.copy()
    copy[place[0]] = put(copy[place[0]], place[1:], new)
    return copy


@pytest.fixture(scope="module")
def world(tmp_path_factory, pipeline_folder):
    folder = tmp_path_factory.mktemp("world")
    return World(folder, shutil.copytree(pipeline_folder, folder / "model"))


@pytest.fixture(scope="module")
def whole(world, root):
    """Return the project's complete config for this world, and its schema."""
    import yaml

    schema = yaml.safe_load((root / "config/schema.yaml").read_text())
    project = yaml.safe_load((root / "config/config.yaml").read_text())
    return complete(overlay(project, world.config), schema), schema


def checked(config: dict, schema: dict) -> dict:
    config = complete(config, schema)
    check_inputs(config)
    return config


def test_the_sound_config_passes(whole):
    assert checked(*whole)["sampler"]["steps"] == 3


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_config_is_taken_or_refused(whole, data):
    config, schema = whole
    for _ in range(data.draw(st.integers(1, 2))):
        config = put(config, data.draw(st.sampled_from(places(config))), data.draw(ANYTHING))
        if not isinstance(config, dict):
            return
    taken = run(checked, config, schema)
    if taken is not None:
        json.dumps(taken, allow_nan=False).encode()
        assert len(digest(taken)) == 16


@settings(max_examples=50)
@given(st.dictionaries(WILD_TEXT, ANYTHING, max_size=4))
def test_any_dictionary_is_no_config(whole, found):
    with pytest.raises(InputError):
        checked(found, whole[1])


def endless() -> list:
    found: list = []
    found.append(found)
    return found


@pytest.mark.parametrize(
    ("value", "problem"), [(endless(), "nested"), (10**5000, "too large")], ids=["itself", "digits"]
)
def test_values_that_cannot_even_be_shown(whole, value, problem):
    config, schema = whole
    with pytest.raises(InputError, match=rf"^sampler\.options\.a.*{problem}"):
        checked(overlay(config, {"sampler": {"options": {"a": value}}}), schema)


# --- prompts, captions and photographs -----------------------------------------------------------------


@settings(max_examples=100)
@given(st.binary(max_size=60) | WILD_TEXT.map(lambda text: text.encode("utf-8", "replace")))
@example("a\u2028b\r\nc\rd".encode())
def test_any_prompt_file_is_read_or_refused(world, content):
    path = world.folder / "any.txt"
    path.write_bytes(content)
    for prompt in run(read_prompts, path, "protect.prompts") or []:
        assert prompt == prompt.strip()
        assert "\n" not in prompt
        assert "\0" not in prompt


@settings(max_examples=150)
@given(
    st.binary(max_size=60)
    | ANYTHING.map(lambda value: json.dumps(value, default=str, skipkeys=True).encode("utf-8", "replace"))
    | st.fixed_dictionaries({"file_name": LEAVES | st.just("0.png"), "text": LEAVES}).map(
        lambda value: json.dumps(value, default=str).encode("utf-8", "replace")
    )
)
@example(b'{"file_name": "0.png", "text": 1' + b"0" * 5000 + b"}")
def test_any_list_of_captions_is_read_or_refused(world, content):
    paths = list_images(world.photos)
    (world.photos / "metadata.jsonl").write_bytes(content)
    try:
        found = run(captions, paths, "default")
    finally:
        (world.photos / "metadata.jsonl").unlink()
    assert found is None or (len(found) == 3 and all(text.strip() for text in found))


PICTURES = [
    ("PNG", "RGB"),
    ("PNG", "P"),
    ("PNG", "LA"),
    ("JPEG", "RGB"),
    ("JPEG", "CMYK"),
    ("WEBP", "RGB"),
    ("GIF", "P"),
    ("BMP", "RGB"),
    ("TIFF", "RGB"),
    ("TIFF", "CMYK"),
    ("TIFF", "I;16"),
    ("JPEG2000", "RGB"),
    ("TGA", "RGBA"),
    ("PPM", "RGB"),
    ("AVIF", "RGB"),
]
ENDINGS = {"TIFF": "tif", "JPEG2000": "jp2", "TGA": "tga", "PPM": "ppm", "AVIF": "avif"}  # of others: any


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    from hostile import photograph

    found = []
    for i, (kind, mode) in enumerate(PICTURES):
        image = photograph(i, 32, mode)
        image.getexif()[0x0112] = 6
        path = tmp_path_factory.mktemp("picture") / f"a.{ENDINGS.get(kind, 'png')}"
        exif = {} if kind in ("GIF", "BMP", "TGA", "PPM", "JPEG2000") else {"exif": image.getexif()}
        profile = {"icc_profile": icc.rgb("Adobe RGB")} if mode == "RGB" and exif else {}
        image.save(path, kind, **exif, **profile)
        found.append((path.suffix, path.read_bytes()))
    return found


@st.composite
def damaged(draw, whole: bytes) -> bytes:
    """Files that are cut off, have changed bytes at the start or anywhere, or have inserted bytes."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, min(len(content), 200) - 1) | st.integers(0, len(content) - 1))
        match draw(st.sampled_from(["cut", "bit", "byte", "more"])):
            case "cut":
                content = content[: max(1, place)]
            case "bit":
                content[place] ^= 1 << draw(st.integers(0, 7))
            case "byte":
                content[place] = draw(st.sampled_from([0, 255, 127, 128, 1]))
            case "more":
                content[place:place] = draw(st.binary(min_size=1, max_size=8))
    return bytes(content)


@settings(max_examples=600)
@given(st.data())
def test_any_picture_is_opened_or_refused(pictures, world, data):
    suffix, content = data.draw(st.sampled_from(pictures))
    path = world.folder / f"any{suffix}"
    path.write_bytes(data.draw(damaged(content)))
    run(check_image, path)
    image = run(open_image, path)
    assert image is None or image.mode == "RGB"


# --- files of a model ----------------------------------------------------------------------------------

FILES = [
    "model_index.json",
    "unet/config.json",
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/tokenizer.json",
    "unet/diffusion_pytorch_model.safetensors",
]


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_file_of_a_model_is_taken_or_refused(whole, world, name, data):
    path = world.model / name
    before = path.read_bytes()
    if name.endswith(".json") and data.draw(st.booleans()):
        content = json.loads(before)
        place = data.draw(st.sampled_from(places(content)[:60]))
        value = data.draw(LEAVES.filter(lambda v: v is None or isinstance(v, (bool, int, float, str))))
        after = json.dumps(put(content, place, value)).encode()
    else:
        after = data.draw(damaged(before[:3000]))
    try:
        path.write_bytes(after)
        run(checked, *whole)
    finally:
        path.write_bytes(before)


@settings(max_examples=40)
@given(ANYTHING, st.sampled_from([("weight_map",), ()]))
def test_any_list_of_weights_is_taken_or_refused(whole, world, found, place):
    weights = world.model / "vae/diffusion_pytorch_model.safetensors"
    index = weights.with_name(f"{weights.name}.index.json")
    content = json.dumps({"weight_map": found} if place else found, default=str, skipkeys=True)
    hidden = weights.rename(weights.with_suffix(".hidden"))
    try:
        index.write_text(content, encoding="utf-8", errors="replace")
        run(checked, *whole)
    finally:
        index.unlink()
        hidden.rename(weights)


# --- adapters ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Valid adapter files: every scope, low and full rank."""
    given_, unet = tiny.protected_inputs(), tiny.unet()
    found = []
    for scope, rank in (("timestep", 4), ("pooled", 4), ("timestep", "full"), ("pooled", "full")):
        adapter = tiny.randomise(tiny.adapter(unet, given_, scope, rank))
        info = AdapterInfo(scope, rank, tuple(given_.timesteps), "UNet2DConditionModel", "m", "p", "r")
        path = tmp_path_factory.mktemp("adapter") / "a.safetensors"
        adapter.save(path, info)
        found.append(path.read_bytes())
    return found


@pytest.fixture(scope="module")
def loaded_pipeline(pipeline_folder):
    from nullbooth.models.loading import ModelSource, load_pipeline

    return load_pipeline(ModelSource(str(pipeline_folder)), torch.device("cpu"))


def used(pipeline, path) -> None:
    """Load, run at two timesteps, unload and export; the model must be unchanged, even after an error."""
    unet, given_ = pipeline.unet, tiny.protected_inputs()
    before = {name: p.clone() for name, p in unet.named_parameters()}
    loaded = run(load_adapter, pipeline, path)
    if loaded is not None:
        for t in (901.0, 3.0):
            assert tiny.predict(unet, given_.latents[0], t, given_.prompts).shape == given_.latents[0].shape
        loaded.unload()
    assert all(p.equal(before[name]) for name, p in unet.named_parameters())
    assert not unet._forward_pre_hooks
    out = path.with_name("lora.safetensors")
    run(export_lora, path, out)
    out.unlink(missing_ok=True)


@settings(max_examples=120)
@given(st.data())
def test_any_damage_to_an_adapter_is_survived(adapters, loaded_pipeline, world, data):
    path = world.folder / "any.safetensors"
    path.write_bytes(data.draw(damaged(data.draw(st.sampled_from(adapters))) | st.binary(max_size=40)))
    used(loaded_pipeline, path)


def seal(path: Path) -> None:
    """Correct the checksum of a file if it can be read, so that later checks are tested too."""
    try:
        with safe_open(path, "pt") as file:
            metadata = {key: value for key, value in (file.metadata() or {}).items() if key != "checksum"}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except SafetensorError:
        return
    save_tensors(path, tensors, metadata)


@settings(max_examples=120)
@given(st.data())
def test_any_header_of_an_adapter_is_survived(adapters, loaded_pipeline, world, data):
    """Wrong shapes, types, offsets and descriptions in a file that is otherwise valid."""
    content = data.draw(st.sampled_from(adapters))
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    site = data.draw(st.sampled_from(sorted(header)))
    if site == "__metadata__":
        info = json.loads(header[site]["info"])
        info = put(info, data.draw(st.sampled_from(places(info))), data.draw(LEAVES))
        text = json.dumps(info, default=str) if data.draw(st.booleans()) else data.draw(WILD_TEXT)
        header[site] = {"format": FORMAT, "info": text} if data.draw(st.booleans()) else {"info": text}
    else:
        entry = header.pop(site)
        match data.draw(st.sampled_from(["gone", "name", "shape", "dtype", "offsets"])):
            case "name":
                header[data.draw(st.sampled_from(["x.up", "up", "", f"{site}.up", "conv_in.delta", site + "x"]))] = (
                    entry
                )
            case "shape":
                shape = data.draw(st.permutations(entry["shape"]) | st.lists(st.integers(0, 1 << 63), max_size=4))
                header[site] = {**entry, "shape": shape}
            case "dtype":
                kind = data.draw(st.sampled_from(["I32", "U32", "F16", "BF16", "F64", "BOOL", "F8_E4M3", "C64", "X"]))
                header[site] = {**entry, "dtype": kind}
            case "offsets":
                header[site] = {
                    **entry,
                    "data_offsets": data.draw(st.lists(st.integers(0, 1 << 40), min_size=2, max_size=2)),
                }
    text = json.dumps(header).encode("utf-8", "replace")
    declared = data.draw(st.just(len(text)) | st.integers(0, (1 << 64) - 1))
    path = world.folder / "any.safetensors"
    path.write_bytes(struct.pack("<Q", declared) + text + content[8 + length :])
    seal(path)
    used(loaded_pipeline, path)


SHAPES = st.lists(st.integers(1, 5), min_size=0, max_size=4)


@settings(max_examples=80)
@given(
    st.dictionaries(st.sampled_from(["up", "down", "delta", "vectors", "gain", "keep"]), SHAPES, max_size=6),
    st.lists(st.floats(), max_size=4),
    st.sampled_from([torch.float32, torch.float16, torch.int64, torch.bool, torch.complex64]),
)
def test_any_tensors_for_a_site_are_survived(loaded_pipeline, world, shapes, timesteps, dtype):
    site = next(name for name, _ in loaded_pipeline.unet.named_modules() if name.endswith("attn2.to_q"))
    info = {"scope": "pooled", "rank": 4, "timesteps": timesteps, "denoiser": "", "model": "", "prompt": "", "rule": ""}
    tensors = {f"{site}.{part}": torch.zeros(shape, dtype=dtype) for part, shape in shapes.items()}
    path = world.folder / "any.safetensors"
    save_tensors(path, tensors, {"format": FORMAT, "info": json.dumps(info)})
    used(loaded_pipeline, path)
