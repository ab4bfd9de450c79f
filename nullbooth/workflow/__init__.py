"""What the rules compute when Snakemake reads them. Imports no torch."""

# The keys of `snakemake.config` that jobs may read (docs/architecture.md, first law). A job's params say what its
# result is made of; these say how it is made, and where things lie.
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
    # Where things lie. The identity in the params holds what is in them.
    "concepts",
    "evaluate",
    "model",
    "model_config",
    "protect.pack",
    "results",
    "revision",
    "variant",
    # How the model computes. The identity holds these too; a job is given them with the model that it loads.
    "attention",
    "precision",
    "protect.negatives",
    "resolution",
    "sampler.guidance",
    "sampler.steps",
    "weights",
)
# The job of the rule `plan` makes no result: it may read anything.
