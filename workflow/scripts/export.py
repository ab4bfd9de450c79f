"""Rule export: export an adapter as LoRA files for other tools, with a model card."""

from pathlib import Path

from nullbooth.adapters.export import export_lora, export_word, keys_of, write_card
from nullbooth.adapters.file import read_adapter
from nullbooth.storage.atomic import whole
from nullbooth.storage.progress import log_to


def main(out: str, adapter: str, model: str, configs: str | None = None, revision: str | None = None) -> None:
    _, info = read_adapter(adapter)
    files = {keys: f"{keys}.safetensors" for keys in keys_of(info)}
    with whole(out) as folder:
        folder.mkdir()
        for keys, name in files.items():
            export_lora(adapter, folder / name, keys)
        export_word(adapter, folder / "word.safetensors")
        write_card(adapter, folder / "README.md", model, files, configs, revision)
    print(f"{Path(out)}: {', '.join(files.values())}")


if __name__ == "__main__":
    log_to(snakemake.log[0])
    main(str(Path(snakemake.output.lora).parent), snakemake.input.adapter, **snakemake.params)
