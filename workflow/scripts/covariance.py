"""Rule covariance: second moments of all protected prompts at one timestep, the sums of those of every shard."""

from nullbooth.errors import StoreError
from nullbooth.storage import zarrstore
from nullbooth.storage.progress import log_to, reporter

KEPT = ("features", "timestep", "timesteps", "denoiser")


def main(out: str, moments: list[str], shards: dict[str, dict], identity: dict) -> None:
    report, identities = reporter("shards"), list(shards.values())
    first = zarrstore.read(moments[0], identities[0])
    known, totals, rows = {key: first.attrs[key] for key in KEPT}, {}, {}
    for i, (path, shard) in enumerate(zip(moments, identities, strict=True), 1):
        group = zarrstore.read(path, shard)
        for key in KEPT:
            if group.attrs[key] != known[key]:
                raise StoreError(f"{path}: its {key} differs from that of {moments[0]}; delete both, run again")
        for name, n in group.attrs["rows"].items():
            totals[name] = totals[name] + group[name][:] if name in totals else group[name][:]
            rows[name] = rows.get(name, 0) + n
        report(i, len(moments))
    zarrstore.write(out, totals, identity, rows=rows, shards=list(shards), **known)


if __name__ == "__main__":
    log_to(snakemake.log[0])
    moments, shards = snakemake.input.moments, snakemake.params.shards
    # The first ones, where no more are taken (protect.prompts_until).
    main(snakemake.output[0], moments, dict(list(shards.items())[: len(moments)]), snakemake.params.identity)
