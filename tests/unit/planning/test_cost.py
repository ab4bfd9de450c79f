"""The cost model: arithmetic, shapes without weights, and comparison with Snakemake and real stores."""

import json
import shutil
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import families
import numpy as np
import pytest
import tiny
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from running import ROOT, planned, script
from torch._subclasses.fake_tensor import FakeTensorMode

from nullbooth.inputs.settings import complete, sweep_points
from nullbooth.learning.replay import CACHED_BYTES
from nullbooth.models.loading import ModelSource, load_denoiser, load_pipeline
from nullbooth.models.precision import autocast
from nullbooth.models.sites import find_features, find_sites
from nullbooth.models.sites_by_name import DEFAULT
from nullbooth.planning import cost, estimate, shapes_from_headers
from nullbooth.planning.cost import Array, Job, Machine, Run, Work, card, moment_arrays, stored
from nullbooth.planning.plan import Limits, amount, duration, table, total, wall_seconds, warnings, work_of
from nullbooth.planning.shapes_exact import LiveBytes, peak_bytes, pipeline_shapes, run, unet_inputs
from nullbooth.statistics.eigenvectors import decompose_store
from nullbooth.statistics.sums import sum_shards
from nullbooth.storage import zarrstore

sys.path.insert(0, str(ROOT / "bench"))
import architectures
import scaling

FAMILIES = scaling.models()
SDXL, SD35, FLUX = (FAMILIES[name] for name in ("Stable Diffusion XL", "Stable Diffusion 3.5 large", "FLUX.1-dev"))
CPU = Machine(100e9, 50e9, 0, 2)
STATISTICS = ("trajectory", "moments", "covariance", "pool", "projector")


def by_rule(model, work, machine) -> dict[str, Job]:
    return {job.rule: job for job in estimate.jobs(model, work, machine)}


# Arithmetic


@given(shards=st.integers(1, 40), times=st.integers(2, 9), model=st.sampled_from(sorted(FAMILIES)))
def test_gpu_time_and_disk_of_shards_grow_with_the_prompts(shards, times, model):
    """Compares full shards only; held-out prompts have separate jobs, whose cost does not grow."""
    few, many = (Work(prompts=100 * n, shard_size=100, steps=7) for n in (shards, shards * times))
    one, all_ = (by_rule(FAMILIES[model], work, card(312e12)) for work in (few, many))
    heldout = estimate.trajectory(FAMILIES[model], few, card(312e12), 1, few.heldout).seconds
    sampled = [total([found["trajectory"]], "seconds") - heldout for found in (one, all_)]
    assert one["moments"].count * times == all_["moments"].count == shards * times * 7
    assert total([all_["moments"]], "seconds") == pytest.approx(times * total([one["moments"]], "seconds"))
    assert total([all_["moments"]], "disk") == pytest.approx(times * total([one["moments"]], "disk"))
    assert sampled[1] == pytest.approx(times * sampled[0])
    for rule in ("projector", "pool", "mechanism", "adapter", "heldout_moments", "spectra"):
        assert one[rule] == all_[rule], f"{rule} does not depend on the number of protected prompts"


def test_the_memory_of_a_trajectory_grows_with_the_shard_and_that_of_moments_on_the_card_does_not():
    small, large = (by_rule(SDXL, Work(10_000, size, 50), card(312e12)) for size in (100, 1000))
    latents = 50 * 900 * SDXL.latent * 4
    assert large["trajectory"].host - small["trajectory"].host > latents
    assert large["moments"].card == small["moments"].card


def test_more_gpus_cost_the_same_hours_and_less_time():
    work = Work(prompts=10_000, shard_size=100, steps=20)
    one, many = (estimate.jobs(SDXL, work, card(312e12, n)) for n in (1, 8))
    assert one == many
    ratio = wall_seconds(one, card(312e12, 1)) / wall_seconds(many, card(312e12, 8))
    assert 4 < ratio <= 8


def test_products_of_one_feature_by_hand():
    """Width 3, 5 rows, one timestep and no other costs: 2 * 5 * 3^2 FLOP per sample."""
    [reading] = scaling.models()["Stable Diffusion 1.5"].readings[:1]
    reading = replace(reading, width=3, rows=5, static=False)
    model = replace(SDXL, readings=(reading,), flops=0.0, calls=0, parameters=0)
    work = Work(prompts=4, shard_size=4, steps=1, branches=2)
    seconds = estimate.moments(model, work, Machine(1e30, 720.0), 4, [reading])[0]
    assert seconds == pytest.approx(4 * 2 * 2 * 5 * 9 / 720)


HALVED = scaling.models("bf16")
GPU_RULES = ("trajectory", "moments", "heldout_moments", "adapter", "base_images", "tuned_images")


@pytest.mark.parametrize("name", FAMILIES)
def test_half_the_weights_need_less_of_the_card_in_every_stage(name):
    work = Work(prompts=1000, shard_size=125, steps=28, batch=2, picture_batch=2)
    full, half = (by_rule(found[name], work, card(312e12)) for found in (FAMILIES, HALVED))
    for rule in GPU_RULES:
        assert half[rule].card < full[rule].card, rule
        assert half[rule].host <= full[rule].host, rule
    saved = 1.1 * 2 * FAMILIES[name].parameters
    assert full["moments"].card - half["moments"].card == pytest.approx(saved, rel=0.02)
    assert {rule: job.disk for rule, job in full.items()} == {rule: job.disk for rule, job in half.items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_offloading_leaves_one_part_on_the_card(name):
    """With few samples, the peak is the weights of the denoiser or of a larger text encoder."""
    model = replace(HALVED[name], pass_bytes=(0.0, 0.0), decode_bytes=(0.0, 0.0))
    work = Work(prompts=1000, shard_size=125, steps=28)
    together, apart = (by_rule(model, replace(work, offload=on), card(312e12)) for on in (False, True))
    assert together["trajectory"].card == pytest.approx(1.1 * model.weight_bytes + 0.6e9)
    largest = 2 * max(model.parameters, model.largest_text)
    assert apart["trajectory"].card == apart["base_images"].card == pytest.approx(1.1 * largest + 0.6e9)
    for rule in ("moments", "adapter", "evaluate"):
        assert apart[rule] == together[rule], rule
    without = [by_rule(model, replace(work, offload=on), CPU) for on in (False, True)]
    assert without[0] == without[1], "without a GPU there is nothing to offload to"


def test_training_holds_no_text_encoders_unless_it_validates():
    work = Work(prompts=1000, shard_size=125, steps=28)
    plain, larger = (
        by_rule(replace(SD35, text_parameters=SD35.text_parameters + more), work, card(312e12)) for more in (0, 10**9)
    )
    assert plain["adapter"].card == larger["adapter"].card
    validated = replace(work, runs=(Run(validated=1),))
    plain, larger = (
        by_rule(replace(SD35, text_parameters=SD35.text_parameters + more), validated, card(312e12))
        for more in (0, 10**11)
    )
    assert larger["adapter"].card > plain["adapter"].card + 4e11


@pytest.mark.parametrize("name", FAMILIES)
def test_gradient_checkpointing_takes_less_memory_and_more_time(name):
    work = Work(prompts=1000, shard_size=125, steps=28)
    plain, saving = (
        by_rule(HALVED[name], replace(work, runs=(Run(checkpointing=on),)), card(312e12))["adapter"]
        for on in (False, True)
    )
    assert saving.card < 0.7 * plain.card
    assert saving.seconds > plain.seconds


def test_scope_timestep_holds_a_projector_for_every_step():
    pooled, every = (estimate.projector_bytes(SDXL, Run(scope=scope), 50) for scope in ("pooled", "timestep"))
    static = 2 * 2048**2
    assert every - static == 50 * (pooled - static)


# Stores


@given(n=st.integers(1, 300), rows=st.sampled_from([None, 1, 7]), width=st.sampled_from([1, 5]), seed=st.integers(0, 9))
def test_files_of_a_store_are_counted_as_it_writes_them(tmp_path_factory, n, rows, width, seed):
    path = tmp_path_factory.mktemp("store") / "x.zarr"
    x = np.random.default_rng(seed).standard_normal((n, width))
    zarrstore.write(path, {"x": x, "y": x[:1]}, {}, chunk_rows={"x": rows} if rows else None)
    files = sum(p.is_file() for p in path.rglob("*"))
    size, counted = stored([Array(x.shape, 8, 1.0, rows), Array((1, width), 8, 1.0)])
    assert counted == files + 1  # Snakemake's time stamp
    assert size > 0


def test_large_arrays_are_chunked_as_the_store_does(tmp_path):
    c = np.ones(3 << 20)  # 24 MiB
    zarrstore.write(tmp_path / "x.zarr", {"x": c}, {})
    assert sum(p.is_file() for p in (tmp_path / "x.zarr").rglob("*")) == stored([Array(c.shape, 8, 1.0)])[1] - 1 == 5


@pytest.fixture(scope="module")
def embedded():
    return pipeline_shapes(str(ROOT / "resources" / "tinyworld"), None, DEFAULT, "bf16")


@pytest.fixture(scope="module")
def stores(tmp_path_factory, config_of) -> tuple[Path, Work]:
    """Stores of the workflow's scripts for the embedded model: 48 protected prompts, 2 timesteps."""
    folder = tmp_path_factory.mktemp("stores")
    config = config_of({"sampler": {"steps": 2}})
    prompts = (ROOT / "config/prompts/protected.txt").read_text().splitlines()
    prompts = [line for line in prompts if line and not line.startswith("#")][:48]
    trajectory = folder / "trajectory.zarr"
    script("trajectory").main(trajectory, prompts, config["sampler"], 0, {}, config)
    for step in range(2):
        script("moments").main(folder / f"moments{step}.zarr", trajectory, step, DEFAULT, {}, config)
        shards = {"a": {}}
        sum_shards(folder / f"covariance{step}.zarr", [folder / f"moments{step}.zarr"], shards, {})
        decompose_store(folder / f"projector{step}.zarr", folder / f"covariance{step}.zarr", {})
    return folder, Work(prompts=48, shard_size=48, steps=2, runs=(Run(scope="timestep"),))


@pytest.fixture(scope="module")
def config_of():
    """Return a complete config that extends config/minimal.yaml."""
    schema = yaml.safe_load((ROOT / "config" / "schema.yaml").read_text())
    minimal = yaml.safe_load((ROOT / "config" / "minimal.yaml").read_text())
    common = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())

    def made(changes: dict) -> dict:
        config = common
        for layer in (minimal, changes):
            both = {k: {**config[k], **v} for k, v in layer.items() if isinstance(config.get(k), dict)}
            config = {**config, **layer, **both}
        config = complete(config, schema)
        for entry in config["concepts"]:
            entry["class_prompts"] = [entry["prompt"]]
        return config

    return made


@pytest.mark.parametrize(("rule", "pattern"), [(rule, f"{rule}?.zarr") for rule in STATISTICS if rule != "pool"])
def test_disk_and_files_of_real_stores(embedded, stores, rule, pattern):
    folder, work = stores
    pattern = "trajectory.zarr" if rule == "trajectory" else pattern
    written = [p for place in folder.glob(pattern) for p in place.rglob("*") if p.is_file()]
    if rule == "trajectory":
        job = estimate.trajectory(embedded, work, CPU, 1, work.prompts)
    else:
        job = by_rule(embedded, work, CPU)[rule]
    stamps = logs = job.count
    assert job.count == len(list(folder.glob(pattern)))
    assert job.count * job.files == len(written) + stamps + logs
    assert job.count * job.disk == pytest.approx(sum(p.stat().st_size for p in written), rel=0.05)


# Shapes


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Stable Diffusion 1.5", 859_520_964),
        ("Stable Diffusion XL", 2_567_463_684),
        ("Stable Diffusion 3.5 large", 8_056_627_520),
        ("FLUX.1-dev", 11_901_408_320),
    ],
)
def test_parameters_of_public_architectures(name, parameters):
    assert sum(p.numel() for p in architectures.build(name).parameters()) == parameters
    assert FAMILIES[name].parameters == parameters


def test_stored_shapes_are_those_of_the_configs():
    found = architectures.shapes("Stable Diffusion 1.5")
    assert json.loads(json.dumps(asdict(found))) == json.loads(json.dumps(asdict(FAMILIES["Stable Diffusion 1.5"])))
    assert found.flops == pytest.approx(803e9, rel=0.01), "for 64x64 latents and 77 tokens, as published"


def test_shapes_without_weights_are_those_of_the_model(pipeline_folder, pipeline):
    model = pipeline_shapes(str(pipeline_folder), None, DEFAULT, "fp32")
    unet = load_denoiser(ModelSource(str(pipeline_folder)), torch.device("cpu"))
    given = tiny.protected_inputs(tokens_=tiny.TOKENS)
    calls = [lambda t=t: tiny.predict(unet, given.latents[0], t, given.prompts) for t in given.timesteps[:2]]
    features = find_features(find_sites(unet), lambda i: calls[i]())
    assert Counter((r.width, r.sites, r.static) for r in model.readings) == Counter(
        (f.width, len(f.sites), f.static) for f in features
    )
    assert {r.rows for r in model.readings if not r.static} == {4}
    assert [r.rows for r in model.readings if r.static] == [tiny.TOKENS]
    assert model.parameters == sum(p.numel() for p in unet.parameters())
    assert model.text_parameters == sum(p.numel() for p in pipeline.text_encoder.parameters())
    assert model.vae_parameters == sum(p.numel() for p in pipeline.vae.parameters())
    assert model.latent == given.latents[0, 0].numel()
    assert model.condition == tiny.TOKENS * tiny.WIDTH
    assert model.pixels == 16 * 16


@pytest.mark.parametrize("sites", [None, find_sites])
def test_simulated_memory_is_that_of_real_tensors(sites):
    """Forwards and backwards: tensors that autograd keeps count too."""
    inputs = unet_inputs(tiny.TOKENS, 4)
    real = tiny.unet()
    with torch.device("meta"):
        fake = tiny.unet()
    rows = inputs(real, 32)
    with LiveBytes() as memory:
        run(real, rows, sites)
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake.to_empty(device="cpu")
        simulated = peak_bytes(fake, inputs, 32, "fp32", sites)
    assert simulated == memory.peak > 100_000


@pytest.mark.parametrize("sites", [None, find_sites])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_simulated_memory_of_half_precision_weights_is_that_of_real_tensors(sites, checkpointing):
    inputs = unet_inputs(tiny.TOKENS, 4)
    real = tiny.unet().bfloat16()
    with torch.device("meta"):
        fake = tiny.unet().bfloat16()
    for unet in (real, fake):
        if checkpointing:
            unet.enable_gradient_checkpointing()
    with autocast(torch.device("cpu"), "bf16"):
        rows = inputs(real, 32)
        with LiveBytes() as memory:
            run(real, rows, sites)
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake.to_empty(device="cpu")
        simulated = peak_bytes(fake, inputs, 32, "bf16", sites)
    assert simulated == pytest.approx(memory.peak, rel=0.02), "except states of random generators"
    assert memory.peak > 50_000


@pytest.mark.parametrize("weights", ["fp32", "bf16"])
def test_weights_and_what_autocast_keeps_of_them(pipeline_folder, weights):
    """Compares the bytes of real tensors with those from configs and from headers."""
    pipeline = load_pipeline(ModelSource(str(pipeline_folder), weights=weights), torch.device("cpu"))
    parts = [part.parameters() for part in (pipeline.unet, pipeline.text_encoder, pipeline.vae)]
    held = sum(p.nbytes for part in parts for p in part)
    own = sum(p.nbytes for p in pipeline.unet.parameters())
    given = tiny.protected_inputs(tokens_=tiny.TOKENS)
    with torch.no_grad(), autocast(torch.device("cpu"), "bf16"), LiveBytes() as memory:
        tiny.predict(
            pipeline.unet, given.latents[0].to(pipeline.unet.dtype), 901.0, given.prompts.to(pipeline.unet.dtype)
        )
        copies = memory.live
    for model in (
        pipeline_shapes(str(pipeline_folder), None, DEFAULT, "bf16", weights),
        shapes_from_headers.read(pipeline_folder, DEFAULT, weights=weights, precision="bf16"),
    ):
        assert (model.weight_bytes, model.denoiser_bytes) == (held, own)
        assert model.largest_text == sum(p.numel() for p in pipeline.text_encoder.parameters())
        assert copies == pytest.approx(model.copied * model.parameters, rel=0.02), "except biases of norms"


def test_freed_memory_does_not_count():
    """Each of five additions holds its operand and its result, but nothing earlier; views hold nothing."""
    x = torch.ones(1000)
    with LiveBytes() as memory:
        for _ in range(5):
            x = (x + 1)[:].view(10, 100).flatten()
        assert memory.live == 4000
    assert memory.peak == 8000


def test_another_kind_of_denoiser_is_refused(tmp_path):
    index = {"_class_name": "WanPipeline", "transformer": ["diffusers", "WanTransformer3DModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(
        ValueError, match="WanTransformer3DModel is not a known denoiser; use Stable Diffusion 1, 2 and XL or PixArt"
    ):
        pipeline_shapes(str(tmp_path), None, DEFAULT, "fp32")


# What Snakemake would run


COMPARED = {
    "concepts": [
        {"name": name, "images": f"resources/subjects/{name}/train", "class": "star"} for name in ("starling", "quilt")
    ],
    "methods": [
        {"name": "pooled", "sweep": [{"steps": 3}, {"steps": 4}]},
        {"name": "prior", "method": "dreambooth-prior"},
        {"name": "corda", "method": "corda"},
    ],
    "protect": {"shard_size": 3},
    "seeds": [0, 1],
    "sampler": {"steps": 5},
}
RIVALS = {"methods": [{"name": "lora", "method": "lora"}], "sampler": {"steps": 2}}
REPLAYED = {"methods": [{"name": "replay", "method": "replay"}], "protect": {"shard_size": 3}}


@pytest.mark.parametrize("changes", [{}, COMPARED, RIVALS, REPLAYED], ids=["minimal", "compared", "rivals", "replayed"])
def test_jobs_are_those_of_a_dry_run(changes, config_of, embedded, tmp_path):
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump({**changes, "results": str(tmp_path / "results")}))
    known = planned("--configfile", "config/minimal.yaml", str(tmp_path / "settings.yaml"), "--", "samples")
    assert known.pop("samples") == 1
    config = config_of(changes)
    methods = {point["name"]: point for entry in config["methods"] for point in sweep_points(entry)}
    counts = {"subject": 1, "class": 1, "unrelated": 3, "protected": 4}
    jobs = estimate.jobs(embedded, work_of(config, 4, counts, methods), CPU)
    assert {job.rule: job.count for job in jobs} == known


def test_replay_takes_trajectories_and_memory_for_them():
    assert cost.REPLAYED == CACHED_BYTES
    works = {
        name: Work(1000, 512, 50, runs=(Run(method=name, samples=16, microbatch=16),)) for name in ("lora", "replay")
    }
    jobs = {name: by_rule(SDXL, work, card(312e12)) for name, work in works.items()}
    assert "trajectory" not in jobs["lora"]
    assert jobs["replay"]["trajectory"].count == 2
    assert jobs["replay"]["adapter"].host - jobs["lora"]["adapter"].host > CACHED_BYTES


# For people


def test_warnings_name_the_rule_and_a_hint():
    jobs = estimate.jobs(SDXL, Work(1000, 512, 50, runs=(Run(scope="timestep"),)), card(312e12))
    largest = max(job.card for job in jobs)
    assert warnings(jobs, Limits(largest, None, None)) == []
    [found] = warnings(jobs, Limits(largest - 1, None, None))
    assert found.startswith("adapter needs ")
    assert "train.gradient_checkpointing" in found
    every = warnings(jobs, Limits(1e9, 1e9, 1e9))
    named = {line.split()[0] for line in every}
    assert {"trajectory", "moments", "adapter", "tuned_images", "heldout_moments", "all"} <= named
    assert sum("on the card" in line for line in every) == sum(job.gpu for job in jobs)
    assert f"{amount(total(jobs, 'disk'))} on disk, but only 1.0 GB are free" in every[-1]


def test_every_gpu_rule_has_a_hint():
    runs = (Run(), Run(method="dreambooth-prior"), Run(method="corda"))
    work = Work(1000, 512, 50, runs=runs, class_pictures=(100,))
    for job in estimate.jobs(SDXL, work, card(312e12)):
        if job.gpu:
            assert len(warnings([job], Limits(job.card / 2, None, None))) == 1


def test_the_table_has_a_line_for_each_rule():
    jobs = estimate.jobs(SDXL, Work(1000, 512, 50), card(312e12))
    lines = table(jobs).splitlines()
    assert [line.split()[0] for line in lines] == ["step", *(job.rule for job in jobs)]
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (42, "42 s"),
        (89, "89 s"),
        (91, "1.5 min"),
        (3000, "50 min"),
        (7200, "2.0 h"),
        (2e5, "2.3 days"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("size", "text"), [(0, "0.0 kB"), (1.2e6, "1.2 MB"), (24.4e9, "24 GB"), (2.34e12, "2.3 TB")])
def test_amounts(size, text):
    assert amount(size) == text


def test_the_tables_of_the_document_are_those_of_the_code():
    text = scaling.DOCUMENT.read_text()
    assert scaling.filled(text, scaling.tables()) == text, "run python bench/scaling.py"


def test_the_cards_of_the_readme_are_those_of_the_code():
    text = scaling.README.read_text()
    assert scaling.filled(text, scaling.summary()) == text, "run python bench/scaling.py"


@pytest.mark.parametrize("gigabytes", scaling.CARDS)
def test_settings_for_cards_are_settings(gigabytes, config_of):
    config = config_of(scaling.CARDS[gigabytes])
    assert config["weights"] == "bf16"
    counts = {"subject": 1, "class": 1, "unrelated": 3, "protected": 4}
    methods = {point["name"]: point for entry in config["methods"] for point in sweep_points(entry)}
    found = work_of(config, 4, counts, methods)
    assert found.offload == config["offload"]
    assert all(run.checkpointing for run in found.runs)


def test_a_document_without_a_mark_is_refused():
    with pytest.raises(ValueError, match="0 marks for the table time"):
        scaling.filled("no mark here", {"time": "| a |"})


def test_moments_are_stored_packed():
    [array] = moment_arrays([replace(SDXL.readings[0], width=4)], 1.0)
    assert array.shape == (len(zarrstore.pack_symmetric(np.eye(4))),)


# Headers


def like(reading):
    return reading.width, reading.static, reading.sites, reading.outs


@pytest.mark.parametrize(
    "sites",
    [DEFAULT, ("*.attn2.to_q", "*.attn2.to_out.*"), (*DEFAULT, "!*.to_[qv]"), ("self-attention", "feed-forward")],
)
def test_headers_and_configs_give_the_same_shapes(pipeline_folder, sites):
    known, found = (
        pipeline_shapes(str(pipeline_folder), None, sites, "fp32"),
        shapes_from_headers.read(pipeline_folder, sites),
    )
    for key in ("parameters", "text_parameters", "vae_parameters", "latent", "condition", "pixels"):
        assert getattr(found, key) == getattr(known, key), key
    assert Counter(map(like, found.readings)) == Counter(map(like, known.readings))


@pytest.mark.parametrize("sites", [DEFAULT, ("self-attention", "feed-forward")])
@pytest.mark.parametrize("family", families.SMALL)
def test_headers_give_shapes_of_every_family(tmp_path, family, sites):
    """Except the sharing of tensors: text that passes through a block may be the same tensor or not."""
    folder, small = families.save(family, tmp_path / "model"), families.SMALL[family]
    if sites != DEFAULT:  # not all have both
        sites = {"Sana": ("self-attention",), "FLUX.1": ("feed-forward",), "Stable Diffusion 3": ("feed-forward",)}.get(
            family, sites
        )
    how = {"resolution": small.get("resolution"), "most": small["arguments"]["max_sequence_length"]}
    known = pipeline_shapes(str(folder), None, sites, "fp32", **how)
    found = shapes_from_headers.read(folder, sites, **how)
    for key in ("parameters", "text_parameters", "vae_parameters", "latent", "condition", "pixels"):
        assert getattr(found, key) == pytest.approx(getattr(known, key), rel=0.1), key
    assert sum(r.sites for r in found.readings) == sum(r.sites for r in known.readings)
    assert Counter(map(like, found.readings)) == Counter(map(like, known.readings))


@pytest.mark.parametrize(
    ("known", "kind", "config"),
    [
        (SD35, "SD3Transformer2DModel", architectures.SD35_LARGE | {"in_channels": 16, "joint_attention_dim": 4096}),
        (FLUX, "FluxTransformer2DModel", {"in_channels": 64, "joint_attention_dim": 4096, "num_single_layers": 38}),
    ],
)
def test_headers_bound_the_memory_of_transformers(known, kind, config):
    """At real sizes, with simulated tensors."""
    rest = {"num_layers": 19, "num_attention_heads": 24, "attention_head_dim": 64 if known is SD35 else 128}
    config = {"_class_name": kind, "patch_size": 2, **rest, **config}
    sample = shapes_from_headers.sample_of(config, 128, shapes_from_headers.tokens_of(kind, 77, None))
    assert sample.latent == known.latent
    assert known.pass_bytes[1] <= shapes_from_headers.PASS * sample.stream <= 2.5 * known.pass_bytes[1]
    assert known.train_bytes[1] <= sample.kept * sample.stream <= 2 * known.train_bytes[1]


def test_headers_bound_the_memory_of_exact_shapes(embedded):
    found = shapes_from_headers.read(ROOT / "resources" / "tinyworld", DEFAULT)
    work = Work(prompts=96, shard_size=48, steps=10, runs=(Run(), Run(scope="timestep")))
    known = {job.rule: job.host / 1e6 for job in estimate.jobs(embedded, work, CPU)}
    asked = shapes_from_headers.memory(found, work, 0)
    assert known.keys() == asked.keys()
    for rule, megabytes in known.items():
        assert megabytes <= asked[rule] <= 1.7 * megabytes, rule


def test_keys_and_values_alone_have_only_static_features():
    found = shapes_from_headers.read(ROOT / "resources" / "tinyworld", ["*.attn2.to_k", "*.attn2.to_v"])
    assert all(reading.static for reading in found.readings)
    asked = shapes_from_headers.memory(found, Work(prompts=96, shard_size=48, steps=10, runs=(Run(),)), 0)
    assert all(megabytes > 0 for rule, megabytes in asked.items())


def test_weights_in_other_precisions_are_not_counted(tmp_path, pipeline_folder):
    folder = tmp_path / "model"
    shutil.copytree(pipeline_folder, folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copy(weights, weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert shapes_from_headers.read(folder, DEFAULT) == replace(
        shapes_from_headers.read(pipeline_folder, DEFAULT), name=str(folder)
    )
    weights.unlink()
    with pytest.raises(ValueError, match="unet: no safetensors file"):
        shapes_from_headers.read(folder, ["*.attn2.to_q"])
