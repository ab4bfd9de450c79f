"""Rule gallery: copy the pictures to one folder and write the page around them."""

from pathlib import Path

from nullbooth.gallery import write_gallery
from nullbooth.progress import log_to


def main(out: str, results: str, template: str, runs, concepts, methods, seeds, model, sampler, small) -> None:
    about = {
        "model": model,
        "steps": sampler["steps"],
        "guidance": sampler["guidance"],
        "methods": len(methods) * len(seeds),
        "seeds": len(seeds),
        "small": small,
    }
    write_gallery(Path(out), Path(template), Path(results), runs, concepts, about)


if __name__ == "__main__":
    log_to(snakemake.log[0])
    main(snakemake.output[0], **snakemake.params)
