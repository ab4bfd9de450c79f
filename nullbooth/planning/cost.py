"""Costs: shapes of models, sizes of runs, speeds of machines, and sizes of stores.

Pure arithmetic, for nullbooth.planning.estimate; docs/scaling.md explains the formulas. Sizes are in bytes, times in
seconds. The comments of constants name their source: a measurement or a reference.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil, log2, prod
from typing import NamedTuple

from nullbooth.inputs.methods import OURS

# Measured by bench/constants.py: processor seconds on one core of an AMD EPYC (Zen 4) virtual machine, torch 2.13.
EIGH = {320: 0.0102, 640: 0.0474, 1280: 0.344, 2048: 1.75, 3072: 6.23}  # by width; `eigh` scales with its cube
EIGVALSH = 0.4  # of the time of eigh
FLOAT64_RATE = 50e9  # FLOP/s of NumPy's products
CORE_UTILISATION = {"fp32": 0.85, "bf16": 0.6, "fp16": 0.6}  # share of a large product's FLOP/s that passes reach
CORE_CALL = 26e-6  # seconds that a kernel call takes besides its arithmetic
WRITE = {"moments": 62e6, "vectors": 225e6, "latents": 200e6}  # bytes of arrays per second, into compressed stores
READ = {"moments": 260e6, "vectors": 700e6, "latents": 460e6}
LOAD = 1e9  # bytes of weights per second, from a file in the system's cache: a shared file system may be slower
# Seconds until a job begins its work, and its memory then, without weights: measured in runs of the embedded model.
START = {"numpy": 0.4, "figures": 1.8, "torch": 2.1, "model": 7.5}
RESIDENT = {"numpy": 52e6, "figures": 120e6, "torch": 235e6, "model": 505e6}
TRAINER = 85e6  # memory of accelerate and TensorBoard
# Share of bytes that compression leaves. For moments, see `kept_of_moments`; for conditions, it depends on the encoder.
KEPT = {"latents": 0.922, "conditions": 0.4, "vectors": 0.927, "values": 1.01, "pooled": 0.89}
# Published figures for GPUs; docs/scaling.md has the sources.
UTILISATION = 0.3  # share of a card's peak FLOP/s in bfloat16 that denoisers reach in diffusers
CARD_CALL = 14e-6  # CORE_CALL of a GPU
FLOAT32_SHARE = 1 / 16  # of that peak, for products in float32 without TF32: A100, H100; consumer cards have more
PRODUCT_UTILISATION = 0.8  # share of the float32 peak that large products reach
CARD_OVERHEAD, CARD_MARGIN = 0.6e9, 1.1  # bytes of CUDA itself; factor for gaps of its allocator

CHUNK_BYTES = 8 << 20  # as nullbooth.storage.zarrstore
REPLAYED = 1 << 30  # bytes, as nullbooth.learning.replay
STORE_BYTES, ARRAY_BYTES = 1300, 1000  # of the metadata of a store, and of each array in it
ENCODERS = 1.8e9  # bytes of CLIP ViT-L/14 and DINO ViT-S/16 in float32
PICTURE_BYTES = 1.5  # of a PNG, per pixel
CACHED = ("trajectory", "moments", "covariance", "pool", "projector")  # rules without a benchmark file


@dataclass(frozen=True)
class Reading:
    """A feature of the sites: `[rows, width]` for each sample."""

    width: int
    rows: int
    static: bool  # the same at every timestep
    sites: int
    outs: int  # sum of the out_features of its sites

    @property
    def packed(self) -> int:
        """Bytes of a stored second moment before compression: the upper triangle in float64."""
        return 4 * self.width * (self.width + 1)


@dataclass(frozen=True)
class Model:
    """Shapes of a pipeline. A sample is one latent in one branch of guidance. The VAE's weights are always float32."""

    name: str
    parameters: int  # of the denoiser
    text_parameters: int
    largest_text: int  # parameters of the largest text encoder
    vae_parameters: int
    readings: tuple[Reading, ...]
    latent: int  # numbers of a latent
    condition: int  # numbers that the denoiser receives for a prompt, in one branch
    pixels: int
    calls: int  # of kernels, in one pass
    flops: float  # of one sample in one pass
    train_flops: float  # of one sample, forwards and backwards
    decode_flops: float
    text_flops: float  # of one prompt
    pass_bytes: tuple[float, float]  # activations: a fixed part, and a part per sample
    train_bytes: tuple[float, float]
    checkpointed_bytes: tuple[float, float]  # the same with gradient checkpointing
    decode_bytes: tuple[float, float]
    weights: str = "fp32"
    precision: str = "bf16"  # of passes

    @property
    def itemsize(self) -> int:
        """Bytes of a weight."""
        return 4 if self.weights == "fp32" else 2

    @property
    def denoiser_bytes(self) -> float:
        return self.itemsize * self.parameters

    @property
    def weight_bytes(self) -> float:
        """Bytes of the weights of the whole pipeline."""
        return self.denoiser_bytes + self.itemsize * self.text_parameters + 4 * self.vae_parameters

    @property
    def copied(self) -> int:
        """Bytes per weight of the half-precision copies that autocast keeps of float32 weights while sampling."""
        return 2 if self.weights == "fp32" and self.precision != "fp32" else 0


@dataclass(frozen=True)
class Run:
    """One training and its pictures. samples: in one training step, with accumulation and prior."""

    method: str = OURS
    scope: str = "pooled"
    rank: int | str = 16
    steps: int = 300
    samples: int = 8
    microbatch: int = 8
    pictures: int = 40
    checkpoint_every: int = 100
    checkpointing: bool = False  # of gradients
    validated: int = 0  # validation pictures at a time

    @property
    def files(self) -> int:
        """Number of files beside the adapter: TensorBoard's, and a checkpoint if there is one."""
        return 1 + (self.steps > self.checkpoint_every)

    @property
    def ours(self) -> bool:
        """True for NullBooth's own method, False for a rival."""
        return self.method == OURS


@dataclass(frozen=True)
class Work:
    """Sizes of a run of the workflow."""

    prompts: int  # protected
    shard_size: int
    steps: int  # of the sampler
    branches: int = 2  # 1 without classifier-free guidance
    batch: int = 16  # prompts per pass
    heldout: int = 16  # unprotected prompts
    runs: tuple[Run, ...] = (Run(),)
    base: tuple[int, ...] = (16, 24)  # pictures of each job that draws with the base model
    class_pictures: tuple[int, ...] = ()  # of each concept whose methods train on them
    picture_batch: int = 16
    encoders: float = ENCODERS  # bytes of the evaluators
    packed: bool = False  # projectors come from a pack, without statistics
    offload: bool = False  # the parts of a pipeline are on the GPU one at a time

    @property
    def shards(self) -> int:
        return ceil(self.prompts / self.shard_size)

    @property
    def largest(self) -> int:
        """Prompts of the largest shard."""
        return min(self.prompts, self.shard_size)

    @property
    def protecting(self) -> bool:
        """True if statistics are needed."""
        return not self.packed and any(run.ours for run in self.runs)


@dataclass(frozen=True)
class Machine:
    """Speed of a machine. Rates are FLOP/s of one GPU, or, if `gpus` is 0, of all `cores` together."""

    rate: float  # of denoiser passes
    product_rate: float  # of float32 products
    gpus: int = 0
    cores: int = 2

    @property
    def call(self) -> float:
        return CARD_CALL if self.gpus else CORE_CALL


class Job(NamedTuple):
    """The jobs of one rule: their number, and the cost of each, in seconds, bytes and files."""

    rule: str
    count: int  # type: ignore[assignment] # hides tuple's method
    seconds: float  # mean
    gpu: bool  # whether it uses a GPU on this machine
    host: float  # memory of the largest job
    card: float  # GPU memory of the largest job
    disk: float  # mean
    files: float  # mean, with log and benchmark


class Array(NamedTuple):
    shape: tuple[int, ...]
    itemsize: int
    kept: float
    rows: int | None = None  # of a chunk


def card(peak: float, gpus: int = 1, cores: int = 8) -> Machine:
    """Return a machine with GPUs of `peak` FLOP/s in bfloat16, and `cores` cores for each."""
    return Machine(UTILISATION * peak, PRODUCT_UTILISATION * FLOAT32_SHARE * peak, gpus, cores * gpus)


def stored(arrays: Iterable[Array]) -> tuple[float, int]:
    """Return bytes and files of a store, as nullbooth.storage.zarrstore writes it, with the timestamp of Snakemake."""
    size, files = float(STORE_BYTES), 2
    for shape, itemsize, kept, rows in arrays:
        rows = rows or max(1, CHUNK_BYTES // (itemsize * prod(shape[1:])))
        size += itemsize * prod(shape) * kept + ARRAY_BYTES
        files += 1 + ceil(shape[0] / rows)
    return size, files


def raw(arrays: Iterable[Array]) -> float:
    return sum(array.itemsize * prod(array.shape) for array in arrays)


def kept_of_moments(batches: float) -> float:
    """Return the share of a moment's bytes that compression leaves. It grows with the number of float32 products in the
    float64 sum. Measured by bench/constants.py."""
    return min(0.93, 0.557 + 0.0265 * log2(max(1.0, batches)))


def moment_arrays(readings: Iterable[Reading], kept: float) -> list[Array]:
    return [Array((r.packed // 8,), 8, kept) for r in readings]


def projector_arrays(readings: Iterable[Reading]) -> list[Array]:
    values = [Array((r.width,), 8, KEPT["values"]) for r in readings]
    return values + [Array((r.width, r.width), 4, KEPT["vectors"]) for r in readings]


def trajectory_arrays(model: Model, work: Work, prompts: int) -> list[Array]:
    latents = Array((work.steps, prompts, model.latent), 4, KEPT["latents"], 1)
    conditions = Array((work.branches, prompts, model.condition), 4, KEPT["conditions"])
    timesteps = Array((work.steps,), 8, 1.0)
    return [latents, conditions, timesteps, timesteps]  # timesteps of the calls, and of the steps


def eigh_seconds(readings: Iterable[Reading]) -> float:
    return sum(eigh(r.width) for r in readings)


def eigh(width: int) -> float:
    nearest = min(EIGH, key=lambda known: abs(log2(known / width)))
    return EIGH[nearest] * (width / nearest) ** 3


def pass_seconds(
    model: Model, machine: Machine, samples: float, batch: float, flops: float | None = None, calls: int = 1
) -> float:
    """Return the seconds of `samples` samples in passes of `batch`, for arithmetic and kernel calls. flops: per sample.
    calls: kernel calls as a multiple of those of a pass without gradients."""
    kernels = ceil(samples / max(1, batch)) * calls * model.calls
    return samples * (flops or model.flops) / machine.rate + kernels * machine.call


def product_seconds(readings: Iterable[Reading], machine: Machine, samples: float) -> float:
    """Return the seconds of the products x^T x in float32."""
    return samples * sum(2 * r.rows * r.width**2 for r in readings) / machine.product_rate


def activations(parts: tuple[float, float], samples: float) -> float:
    return parts[0] + parts[1] * samples


def widest(readings: Iterable[Reading]) -> float:
    return max((r.packed for r in readings), default=0.0)
