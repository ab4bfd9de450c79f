"""Rule embed_base: embed the base model's pictures, once for all runs that are compared with them."""

from pathlib import Path

from nullbooth.evaluation.encoders import embed_images, load_encoders, save_embeddings
from nullbooth.evaluation.pictures import read_group
from nullbooth.models.precision import pick_device
from nullbooth.storage.pictures import read_drawn
from nullbooth.storage.progress import log_to


def main(out: str, pictures: str, identity: dict, config: dict) -> None:
    encoders = load_encoders(config["evaluate"], identity, pick_device(config["device"]))
    drawn = {Path(pictures): read_drawn(Path(pictures))["images"]}
    found = {}
    for group in dict.fromkeys(entry["group"] for entry in drawn[Path(pictures)]):
        entries, x = read_group(drawn, group)
        print(f"embedding {len(entries)} pictures: {group}")
        for name, encoder in encoders.items():
            found[name, group] = embed_images(encoder, x)
    save_embeddings(out, found)


if __name__ == "__main__":
    log_to(snakemake.log[0])
    main(snakemake.output[0], snakemake.input[0], **snakemake.params, config=snakemake.config)
