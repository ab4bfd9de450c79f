"""Rule export_edits: export the edited model as a pipeline folder, and the edits as LoRA files for other tools."""

from pathlib import Path

from nullbooth.adapters.export import export_lora, fuse, keys_of
from nullbooth.adapters.file import read_adapter
from nullbooth.models import loading
from nullbooth.models.precision import pick_device
from nullbooth.storage.atomic import whole
from nullbooth.storage.progress import log_to


def main(out: dict, edit: str, config: dict) -> None:
    device = pick_device("cpu")
    with whole(Path(out["pipeline"]).parent) as folder:
        fuse(loading.load_pipeline(loading.ModelSource.of(config), device), edit, folder)
    _, info = read_adapter(edit)
    with whole(Path(out["lora"]).parent) as folder:
        for keys in keys_of(info):
            export_lora(edit, Path(folder) / f"{keys}.safetensors", keys)


if __name__ == "__main__":
    log_to(snakemake.log[0])
    main(dict(snakemake.output.items()), snakemake.input.edit, snakemake.config)
