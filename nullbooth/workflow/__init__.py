"""Computations of the rules when Snakemake reads them. Imports no torch."""

# The keys of `snakemake.config` that jobs may read (docs/architecture.md, first law). A job's params determine its
# result; these keys only say how to make it, and where its inputs are.
HOW = (
    # Where and how fast.
    "device",
    "offload",
    "plan",
    "protect.batch",
    "sample.batch",
    "trackers",
    "validate.every",
    "validate.prompts",
    # Paths. The identity in the params covers their contents.
    "concepts",
    "evaluate",
    "model",
    "model_config",
    "protect.pack",
    "results",
    "revision",
    "variant",
    # How the model computes. The identity covers these too; a job needs them to load the model.
    "attention",
    "precision",
    "protect.negatives",
    "resolution",
    "sampler.guidance",
    "sampler.steps",
    "weights",
)
# The job of the rule `plan` may read all keys, because it makes no result.
