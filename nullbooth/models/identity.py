"""Identities of models, by the content of their files or their commit on the Hub; caching relies on them."""

import re
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from nullbooth.errors import InputError
from nullbooth.models.files import DENOISERS, loaded_files, shapes_of
from nullbooth.models.parts import encoder_files
from nullbooth.storage.digests import digest, place_of, remembered_digests, remembering

CONFIGS = (".json", ".txt", ".model")  # of configs and tokenizers


def single_identity(file: Path, configs: str, revision: str | None = None) -> str:
    """Return the identity of a single-file model and its configs and tokenizers: `hash+hash` or `hash+id@commit`."""
    return f"{remembered_digests([file])[0][:16]}+{model_identity(configs, revision, 'model_config', weights=False)}"


def known_configs(file: Path) -> str:
    """Return the Hub id of the configs and tokenizers that diffusers uses for a file, by its weights' names and shapes.

    The result is cached, because diffusers takes seconds to import. Raises InputError if diffusers knows none.
    """
    with remembering() as known:
        if (place := f"{place_of(file)}:diffusers {version('diffusers')}") not in known:
            from diffusers.loaders.single_file_utils import fetch_diffusers_config

            weights = {name: SimpleNamespace(shape=shape) for name, shape in shapes_of(file).items()}
            try:
                fetch: Any = fetch_diffusers_config
                known[place] = fetch(weights)["pretrained_model_name_or_path"]
            except (LookupError, NameError, TypeError, ValueError) as error:
                raise InputError(
                    f"model: {file}: diffusers does not know this model ({error}); set model_config"
                ) from error
    return known[place]


def model_identity(
    model: str,
    revision: str | None = None,
    key: str = "model",
    index: str = "model_index.json",
    variant: str | None = None,
    weights: bool = True,
) -> str:
    """Return the hash of the files of a local model that are loaded, or `id@commit` of a Hub model.

    key: setting that names the model. index: model_index.json of a pipeline, or config.json of an evaluator. variant:
    of a pipeline's weights. weights: include their files. A file's hash is cached by path, size, modification and
    change time. Raises FileNotFoundError if a local folder lacks the model or a file, and InputError (`loaded_files`).
    """
    folder = Path(model)
    if not folder.exists():
        if model.startswith((".", "/", "~")) or model.count("/") != 1:
            raise FileNotFoundError(f"{key}: {model!r} is neither a folder nor a Hub id (owner/name)")
        return f"{model}@{hub_commit(model, revision, key, index)}"
    if not (folder / index).is_file():
        kind = "diffusers pipeline" if index == "model_index.json" else "transformers model"
        raise FileNotFoundError(f"{key}: {folder} has no {index}; give the folder of a {kind}")
    paths = loaded_files(folder, variant, weights) if index == "model_index.json" else list(encoder_files(folder))
    names = [path.relative_to(folder).as_posix() for path in paths]
    return digest(dict(zip(names, remembered_digests(paths), strict=True)))


def model_folder(model: str, commit: str | None, weights: bool = True) -> Path | None:
    """Return the folder of a local pipeline (commit None) or of a Hub pipeline in the Hub's cache; None if it has no
    weights, or configs if not `weights`, there."""
    if commit is None:
        return Path(model)
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(model, "model_index.json", revision=commit)
    folder = Path(path).parent if isinstance(path, str) else None
    wanted = "*.safetensors" if weights else "config.json"
    found = folder and [path for name in DENOISERS for path in (folder / name).glob(wanted)]
    return folder if found else None


def hub_commit(model: str, revision: str | None, key: str, index: str) -> str:
    """Return the commit of a Hub model, from the Hub's cache if it is there, so that jobs without network agree.

    Raises FileNotFoundError if it is not in the cache and cannot be downloaded.
    """
    if revision and re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    return hub_file(model, revision, key, index).parent.name


def hub_file(model: str, revision: str | None, key: str, name: str) -> Path:
    """Return a file of a Hub model in the Hub's cache, in the folder of its commit; download it if it is missing.

    Raises FileNotFoundError if it cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        try:
            path = hf_hub_download(model, name, revision=revision, local_files_only=True)
        except LocalEntryNotFoundError:
            path = hf_hub_download(model, name, revision=revision)
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).strip().partition(".")[0]
        raise FileNotFoundError(
            f"{key}: {model!r}, revision {revision or 'main'}: not a folder, not in the Hub's cache, and not available "
            f"from the Hub ({reason}); download it first, or give the folder of a model"
        ) from error
    return Path(path)
