"""Estimated costs of the workflow's jobs by rule, from shapes of models and speeds of machines (`planning.cost`)."""

from collections.abc import Iterable

from nullbooth.inputs.methods import METHODS
from nullbooth.planning.cost import (
    CACHED,
    CARD_MARGIN,
    CARD_OVERHEAD,
    EIGVALSH,
    FLOAT64_RATE,
    KEPT,
    LOAD,
    PICTURE_BYTES,
    READ,
    REPLAYED,
    RESIDENT,
    START,
    TRAINER,
    WRITE,
    Job,
    Machine,
    Model,
    Reading,
    Run,
    Work,
    activations,
    eigh_seconds,
    kept_of_moments,
    moment_arrays,
    pass_seconds,
    product_seconds,
    projector_arrays,
    raw,
    stored,
    trajectory_arrays,
    widest,
)


def described(rule: str, size: tuple[float, float]) -> tuple[float, float]:
    """Add a job's log, and its benchmark file if it has one, to bytes and files."""
    return size[0] + 1e3, size[1] + (1 if rule in CACHED else 2)


def gpu_job(
    machine: Machine,
    rule: str,
    count: int,
    seconds: float,
    loaded: float,
    device: float,
    host: float,
    size: tuple[float, float],
) -> Job:
    """Return a job that loads `loaded` bytes of weights. `device` is its peak memory in bytes, weights included: on the
    GPU if there is one, and then the host holds the weights too, while they are loaded."""
    size = described(rule, size)
    seconds += START["model"] + loaded / LOAD
    host += RESIDENT["model"]
    if not machine.gpus:
        return Job(rule, count, seconds, False, host + device, 0.0, *size)
    return Job(rule, count, seconds, True, host + loaded, CARD_MARGIN * device + CARD_OVERHEAD, *size)


def sampling(model: Model, work: Work, machine: Machine, passes: float, decoded: float) -> float:
    """Return the peak bytes on the device while sampling: weights, autocast's copies, and the larger of `passes` and
    `decoded`, the activations. With offloading, which needs a GPU, the weights of one part at a time."""
    copies = model.copied * (model.parameters + model.text_parameters + model.vae_parameters)
    if not (work.offload and machine.gpus):
        return copies + model.weight_bytes + max(passes, decoded)
    largest = max(model.itemsize * model.largest_text, 4 * model.vae_parameters + decoded)
    return copies + max(largest, model.denoiser_bytes + passes)


def cpu_job(rule: str, count: int, start: str, seconds: float, host: float, size: tuple[float, float]) -> Job:
    return Job(rule, count, seconds + START[start], False, host + RESIDENT[start], 0.0, *described(rule, size))


def trajectory(model: Model, work: Work, machine: Machine, count: int, prompts: int) -> Job:
    """Sampling of `prompts` prompts, from noise to pictures."""
    samples = prompts * work.branches
    arrays = trajectory_arrays(model, work, prompts)
    seconds = work.steps * pass_seconds(model, machine, samples, work.batch * work.branches)
    seconds += samples * model.text_flops / machine.rate + raw(arrays) / WRITE["latents"]
    # The latents of all branches are kept until the end, and copied once more when the batches are joined.
    host = raw(arrays[:1]) * (work.branches + 1) + 2 * raw(arrays[1:])
    passes = activations(model.pass_bytes, min(prompts, work.batch) * work.branches)
    device = sampling(model, work, machine, passes, 0.0)
    return gpu_job(machine, "trajectory", count, seconds, model.weight_bytes, device, host, stored(arrays))


def moments(model: Model, work: Work, machine: Machine, prompts: int, readings: list[Reading]) -> tuple[float, float]:
    """Return seconds and bytes on the device of the passes of one timestep."""
    samples, batch = prompts * work.branches, min(prompts, work.batch) * work.branches
    seconds = pass_seconds(model, machine, samples, batch) + product_seconds(readings, machine, samples)
    # If all features are static, as those of keys and values are, there are no readings after step 0.
    held = sum(8.0 * r.width**2 for r in readings) + 12 * max((r.width for r in readings), default=0) ** 2
    return seconds, model.denoiser_bytes + held + activations(model.pass_bytes, batch)


def statistics(model: Model, work: Work, machine: Machine) -> list[Job]:
    """Jobs from held-out trajectories and moments to projectors. Step 0 also has the static features."""
    moving, every = [r for r in model.readings if not r.static], list(model.readings)
    parts = ((1, every), (work.steps - 1, moving))
    found = [trajectory(model, work, machine, 1, work.heldout)]
    for count, readings in parts:
        found += [shard_moments(model, work, machine, count, readings), covariance(work, count, readings)]
    # Only moments that some adapter reads are decomposed: those of all timesteps, or the pooled ones.
    scopes = {run.scope == "pooled" for run in work.runs if run.ours}
    if True in scopes:
        found += [pool(work, every, moving), projector(1, every)]
    if False in scopes:
        found += [projector(*part) for part in parts]
    found.append(spectra(parts))
    if work.shards > 1:
        found += [shard_pool(work, every, moving), leak(work, parts)]
        found.append(cpu_job("leaks", 1, "figures", 0.5, 0.0, (1e5, 2)))
    return [*found, heldout(model, work, machine, parts)]


def shard_moments(model: Model, work: Work, machine: Machine, count: int, readings: list[Reading]) -> Job:
    arrays = moment_arrays(readings, kept_of_moments(work.largest / work.batch))
    given = raw(trajectory_arrays(model, work, work.largest)[1:]) + 4.0 * work.largest * model.latent
    seconds, device = moments(model, work, machine, work.largest, readings)
    seconds += given / READ["latents"] + raw(arrays) / WRITE["moments"]
    count *= work.shards
    size = stored(arrays)
    return gpu_job(machine, "moments", count, seconds, model.denoiser_bytes, device, given + raw(arrays), size)


def covariance(work: Work, count: int, readings: list[Reading]) -> Job:
    """Sums of the moments of all shards."""
    arrays = moment_arrays(readings, kept_of_moments(work.prompts / work.batch))
    seconds = work.shards * raw(arrays) / READ["moments"] + raw(arrays) / WRITE["moments"]
    return cpu_job("covariance", count, "numpy", seconds, raw(arrays) + 2 * widest(readings), stored(arrays))


def pool(work: Work, every: list[Reading], moving: list[Reading]) -> Job:
    arrays = moment_arrays(every, KEPT["pooled"])
    read = raw(arrays) + (work.steps - 1) * raw(moment_arrays(moving, 1.0))
    seconds = read / READ["moments"] + raw(arrays) / WRITE["moments"]
    host = raw(arrays) + (work.steps + 2) * widest(every)
    return cpu_job("pool", 1, "numpy", seconds, host, stored(arrays))


def shard_pool(work: Work, every: list[Reading], moving: list[Reading]) -> Job:
    """One `pool` job per shard."""
    job = pool(work, every, moving)
    return job._replace(rule="shard_pool", count=work.shards, files=job.files + 1)


def leak(work: Work, parts: Iterable[tuple[int, list[Reading]]]) -> Job:
    """One job per number of shards: it reads their pooled moments, half of all on average, and the held-out moments."""
    [(_, every), *_], moments = parts, [array for n, readings in parts for array in n * moment_arrays(readings, 1.0)]
    shards = (work.shards + 1) / 2 * raw(moment_arrays(every, 1.0))
    products = sum(8.0 * r.width**3 for r in every) / FLOAT64_RATE
    seconds = eigh_seconds(every) + products + (shards + raw(moments)) / READ["moments"]
    return cpu_job("leak", work.shards, "numpy", seconds, 12 * widest(every), (1e4, 1))


def projector(count: int, readings: list[Reading]) -> Job:
    arrays, read = projector_arrays(readings), raw(moment_arrays(readings, 1.0))
    seconds = eigh_seconds(readings) + read / READ["moments"] + raw(arrays) / WRITE["vectors"]
    return cpu_job("projector", count, "numpy", seconds, raw(arrays) + 10 * widest(readings), stored(arrays))


def spectra(parts: Iterable[tuple[int, list[Reading]]]) -> Job:
    """Eigenvalues of all moments, one after another."""
    seconds, host = 0.0, 0.0
    for count, readings in parts:
        seconds += count * (EIGVALSH * eigh_seconds(readings) + raw(moment_arrays(readings, 1.0)) / READ["moments"])
        host = max(host, 8 * widest(readings))
    return cpu_job("spectra", 1, "figures", seconds, host, (2e5, 3))


def heldout(model: Model, work: Work, machine: Machine, parts: Iterable[tuple[int, list[Reading]]]) -> Job:
    """Moments of unprotected prompts: all timesteps in one job, and in one store."""
    kept = kept_of_moments(work.heldout / work.batch)
    arrays = [array for count, readings in parts for array in count * moment_arrays(readings, kept)]
    seconds, device = moments(model, work, machine, work.heldout, list(model.readings))
    seconds = work.steps * seconds + raw(arrays) / WRITE["moments"]
    size = stored(arrays)
    return gpu_job(machine, "heldout_moments", 1, seconds, model.denoiser_bytes, device, raw(arrays), size)


def projector_bytes(model: Model, run: Run, steps: int) -> float:
    """Return the most bytes of an adapter's projectors: the thinner of two bases, in float32, at each of its steps."""
    if not run.ours:
        return 0.0
    times = {True: 1, False: 1 if run.scope == "pooled" else steps}
    return sum(2.0 * r.width**2 * times[r.static] for r in model.readings)


def trained(model: Model, run: Run) -> float:
    """Return the number of trained parameters."""
    if METHODS[run.method].whole:
        return model.parameters
    if run.rank == "full":
        return sum(r.width * r.outs for r in model.readings)
    return sum(int(run.rank) * (r.sites * r.width + r.outs) for r in model.readings)


def saved(model: Model, run: Run, steps: int) -> float:
    """Return the bytes of an adapter's file."""
    if not run.ours or run.scope == "pooled" or run.rank == "full":
        return 4.0 * trained(model, run)
    times = {True: 1, False: steps}
    return 4.0 * int(run.rank) * sum(times[r.static] * r.sites * r.width + r.outs for r in model.readings)


def training(model: Model, work: Work, machine: Machine, run: Run) -> list[Job]:
    """Training of an adapter, its pictures, and the measurements of both."""
    projectors = projector_bytes(model, run, work.steps)
    flops = (3 * model.flops if METHODS[run.method].whole else model.train_flops) + run.checkpointing * model.flops
    seconds = run.steps * pass_seconds(model, machine, run.samples, run.microbatch, flops, calls=3)
    seconds += 2 * projectors / READ["vectors"]
    size = saved(model, run, work.steps) + 12 * trained(model, run) * (run.steps > run.checkpoint_every), 3 + run.files
    host = TRAINER + 3 * projectors + (replayed(model, work) if METHODS[run.method].prior == "protected" else 0.0)
    device = learning(model, work, machine, run)
    found = [gpu_job(machine, "adapter", 1, seconds, model.weight_bytes, device, host, size)]
    found.append(drawing(model, work, machine, "tuned_images", run.pictures, run))
    found.append(measuring(work, machine, "evaluate", run.pictures))
    if work.protecting:
        found.append(mechanism(model, work))
    return found


def measuring(work: Work, machine: Machine, rule: str, n: int) -> Job:
    """Embedding of n pictures, of a run or of the base model, by both evaluators. Assumes vision transformers with 257
    tokens, whose passes take two operations per weight and token."""
    of_picture = 2 * work.encoders / 4 * 257 / (machine.rate if machine.gpus else machine.rate / machine.cores)
    seconds, passes = n * (0.03 + of_picture), 0.2 * work.encoders
    return gpu_job(machine, rule, 1, seconds, work.encoders, work.encoders + passes, 0.0, (4e4, 1))


def learning(model: Model, work: Work, machine: Machine, run: Run) -> float:
    """Return the peak bytes on the device in a training: while it encodes photographs and captions (on a GPU, with only
    the VAE and one text encoder), while it learns, or while it draws validation pictures, with all parts."""
    held = model.denoiser_bytes + projector_bytes(model, run, work.steps) + 16 * trained(model, run)
    if METHODS[run.method].own_weights and not METHODS[run.method].whole:
        held += model.denoiser_bytes  # a copy of the initial weights, to compute the change
    others, decoded = model.weight_bytes - model.denoiser_bytes, activations(model.decode_bytes, 1)
    parts = model.itemsize * model.largest_text + 4 * model.vae_parameters
    encoding = (parts if machine.gpus else model.weight_bytes) + decoded
    steps = model.checkpointed_bytes if run.checkpointing else model.train_bytes
    peaks = [encoding, held + activations(steps, run.microbatch)]
    if run.validated:
        passes = activations(model.pass_bytes, run.validated * work.branches)
        copies = model.copied * model.text_parameters
        peaks.append(held + others + copies + max(passes, activations(model.decode_bytes, run.validated)))
    return max(peaks)


def replayed(model: Model, work: Work) -> float:
    """Return the bytes of trajectories that a training on them keeps in memory (nullbooth.learning.replay)."""
    latents, conditions, *_ = trajectory_arrays(model, work, work.largest)
    return min(REPLAYED, work.shards * raw([latents])) + 2 * raw([conditions])


def mechanism(model: Model, work: Work) -> Job:
    """Products of two moments of every reading and step with the weights and the change of every site."""
    products = work.steps * sum(8.0 * r.outs * r.width**2 for r in model.readings) / FLOAT64_RATE
    read = 2 * work.steps * raw(moment_arrays(model.readings, 1.0)) / READ["moments"]
    weights, of_sites = model.denoiser_bytes, sum(r.outs * r.width for r in model.readings)
    copies = model.itemsize + (4 if model.itemsize < 4 else 0)  # the initial weights, and a float32 copy
    host = weights + copies * of_sites + 6 * widest(model.readings)
    return cpu_job("mechanism", 1, "model", weights / LOAD + products + read, host, (2e5, 3))


def drawing(model: Model, work: Work, machine: Machine, rule: str, n: int, run: Run | None = None) -> Job:
    """Drawing of `n` pictures, by the base model, or with a run's adapter, which the device then holds with the weights
    that it replaces."""
    seconds = work.steps * pass_seconds(model, machine, n * work.branches, work.picture_batch * work.branches)
    seconds += n * model.decode_flops / machine.rate
    batch = min(n, work.picture_batch)
    passes, decoded = activations(model.pass_bytes, batch * work.branches), activations(model.decode_bytes, batch)
    device = sampling(model, work, machine, passes, decoded)
    if run is not None:
        changed = model.parameters if METHODS[run.method].whole else sum(r.outs * r.width for r in model.readings)
        device += saved(model, run, work.steps) + model.itemsize * changed
    host, size = 24.0 * n * model.pixels, (PICTURE_BYTES * n * model.pixels, n + 2)
    return gpu_job(machine, rule, 1, seconds, model.weight_bytes, device, host, size)


def jobs(model: Model, work: Work, machine: Machine) -> list[Job]:
    """Return all jobs of `snakemake results/samples` without earlier results, one entry per rule, in order."""
    found = []
    if work.protecting or any(METHODS[run.method].reads == "trajectories" for run in work.runs):
        found.append(trajectory(model, work, machine, work.shards, work.largest))
    if work.protecting:
        found += statistics(model, work, machine)
    found += [drawing(model, work, machine, "class_images", n) for n in work.class_pictures]
    found += [drawing(model, work, machine, "base_images", n) for n in work.base]
    found += [measuring(work, machine, "embed_base", n) for n in work.base]
    found += [job for run in work.runs for job in training(model, work, machine, run)]
    found.append(cpu_job("evaluation", 1, "numpy", 0.1, 0.0, (1e5, 2)))
    found.append(cpu_job("gallery", 1, "figures", 0.5, 160e6, (1e6, 3)))
    by_rule: dict[str, list[Job]] = {}
    for job in found:
        if job.count:
            by_rule.setdefault(job.rule, []).append(job)
    return [combined(group) for group in by_rule.values()]


def combined(group: list[Job]) -> Job:
    """Combine jobs of one rule into one entry: means of seconds, disk and files, maxima of memory."""
    count = sum(job.count for job in group)
    seconds, disk, files = (
        sum(getattr(job, key) * job.count for job in group) / count for key in ("seconds", "disk", "files")
    )
    host, card_ = (max(getattr(job, key) for job in group) for key in ("host", "card"))
    return Job(group[0].rule, count, seconds, group[0].gpu, host, card_, disk, files)
