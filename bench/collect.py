"""Cost of collecting second moments while the denoiser runs.

A prompt is one call with both branches of guidance (batch 2). Every variant makes the same calls:

    no hooks            the denoiser alone
    nullbooth           nullbooth.statistics.moments.collecting, one site per distinct feature
    stored features     a simpler approach: keep the inputs of all sites for all prompts, multiply afterwards
    no hooks, batch 1   the branches one after another, for comparison with
    peft CorDA          calib_cov_distribution of peft.tuners.lora.corda, on the sites that nullbooth hooks

CorDA's collector only takes batch 1 (it squeezes the batch axis). It is separate from preprocess_corda, so that CorDA's
inversion and SVD are not timed here. For a fair comparison it hooks one site per distinct feature; by default it hooks
all sites. Under autocast its products are bfloat16; those of nullbooth stay float32.

Bar: nullbooth at most 1.05 times the denoiser alone, with memory that does not grow with the number of prompts.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from common import MIB, build_unet, denoiser_arguments, denoiser_inputs, parser, peak_memory, report, side_by_side
from peft import LoraConfig
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import calib_cov_distribution
from torch import Tensor, nn

from nullbooth.models.precision import autocast
from nullbooth.models.sites import find_features, find_sites
from nullbooth.statistics.moments import Moment, collecting

Calls = list[dict[str, Tensor]]
PROMPTS = (1, 2, 4)  # for memory


def run(unet: nn.Module, calls: Calls) -> None:
    for arguments in calls:
        unet(**arguments)


def branches(calls: Calls) -> Calls:
    """Split every call into two of batch 1."""
    return [{k: v if v.ndim == 0 else v[i : i + 1] for k, v in call.items()} for call in calls for i in range(2)]


def hooked(unet: nn.Module, sites: dict[str, nn.Linear], calls: Calls) -> dict[str, Moment]:
    with collecting(sites) as moments:
        run(unet, calls)
    return moments


def keep_features(unet: nn.Module, sites: dict[str, nn.Linear], calls: Calls) -> dict[str, list[Tensor]]:
    """Return the inputs of all sites in all calls, by site."""
    kept = {name: [] for name in sites}
    handles = [
        module.register_forward_pre_hook(lambda _module, args, to=kept[name]: to.append(args[0].detach()))
        for name, module in sites.items()
    ]
    run(unet, calls)
    for handle in handles:
        handle.remove()
    return kept


def stored(unet: nn.Module, sites: dict[str, nn.Linear], calls: Calls) -> dict[str, Tensor]:
    """Return second moments from stored features."""
    moments = {}
    for name, parts in keep_features(unet, sites, calls).items():
        x = torch.cat(parts).flatten(0, -2).float()
        moments[name] = x.T @ x / len(x)
    return moments


def corda(unet: nn.Module, sites: dict[str, nn.Linear], calls: Calls) -> None:
    """Collect with peft, and remove the matrices that it leaves on the modules."""
    config = LoraConfig(target_modules=list(sites), init_lora_weights="corda", corda_config=CordaConfig())
    calib_cov_distribution(unet, config, lambda: run(unet, calls), None, None)
    for name, module in sites.items():
        assert module.sample_count == len(calls), f"peft did not see every call of {name}"
        del module.covariance_matrix, module.sample_count


def time_rows(unet: nn.Module, sites: dict, distinct: dict, calls: Calls, repeats: int) -> list[dict]:
    variants = {
        "no hooks": lambda: run(unet, calls),
        "nullbooth": lambda: hooked(unet, distinct, calls),
        "stored features": lambda: stored(unet, sites, calls),
        "no hooks, batch 1": lambda: run(unet, branches(calls)),
        "peft CorDA, batch 1": lambda: corda(unet, distinct, branches(calls)),
    }
    times = side_by_side(variants, repeats)
    alone = times["no hooks, batch 1"]["ratio"]
    return [
        {"variant": name, **row, "ratio at its batch": row["ratio"] / (alone if "batch 1" in name else 1.0)}
        | {"bar": 1.05 if name == "nullbooth" else None}
        for name, row in times.items()
    ]


def held(collected: dict[str, Moment] | dict[str, list[Tensor]] | None) -> float:
    """Return the MiB of moments or features that a variant holds at the end."""
    parts = (collected or {}).values()
    return sum(part.total.nbytes if isinstance(part, Moment) else sum(x.nbytes for x in part) for part in parts) / MIB


def memory_rows(variants: dict[str, Callable[[Calls], Any]], calls: Calls, device: str) -> list[dict]:
    """Return the peak memory of 1, 2 and 4 prompts, and that held at the end. The first rows are activations alone."""
    rows = []
    for name, collect in variants.items():
        for n in PROMPTS:
            peak, kept = peak_memory(partial(collect, calls[:n]), device)
            rows.append({"variant": name, "prompts": n, "peak MiB": peak, "held MiB": held(kept)})
            del kept
    return rows


def main(args) -> None:
    torch.manual_seed(0)
    unet = build_unet(args.size, args.device)
    sites = find_sites(unet)
    calls = [denoiser_inputs(unet, 2, args.latents, 500.0) for _ in range(max(args.prompts, *PROMPTS))]
    with torch.no_grad(), autocast(unet.device, args.precision):
        probes = [calls[0], calls[0] | {"timestep": torch.tensor(20.0, device=unet.device)}]
        features = find_features(sites, lambda i: unet(**probes[i]))
        distinct = {f.name: sites[f.name] for f in features}
        print(f"{len(sites)} sites read {len(features)} distinct features")
        report("collect", time_rows(unet, sites, distinct, calls[: args.prompts], args.repeats), args)
        variants = {
            "no hooks": lambda calls: run(unet, calls),
            "nullbooth": lambda calls: hooked(unet, distinct, calls),
            "stored features": lambda calls: keep_features(unet, sites, calls),
        }
        report("collect: memory", memory_rows(variants, calls, args.device), args)


if __name__ == "__main__":
    p = denoiser_arguments(parser(__doc__, repeats=3))
    p.add_argument("--prompts", type=int, default=2, help="calls per timing")
    main(p.parse_args())
