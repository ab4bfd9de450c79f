"""Rules base_images, class_images and tuned_images: draw prompts from noise that depends on prompt and number."""

from nullbooth.evaluation.drawing import draw_prompts
from nullbooth.storage.progress import log_to

if __name__ == "__main__":
    log_to(snakemake.log[0])
    adapters = [*snakemake.input.get("earlier", []), *snakemake.input.get("adapters", [])]
    draw_prompts(snakemake.output[0], adapters, **snakemake.params, config=snakemake.config)
