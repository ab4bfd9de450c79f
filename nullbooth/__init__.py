"""Teach a text-to-image diffusion model a subject, in the null space of the features of protected prompts."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for editors; __getattr__ imports them at first use
    from nullbooth.adapters.export import export_lora, fuse
    from nullbooth.adapters.file import AdapterInfo
    from nullbooth.adapters.loaded import LoadedAdapter, load_adapter
    from nullbooth.errors import InputError, ProjectorError, SettingsError, StoreError

__version__ = "0.1.0"
__all__ = [
    "AdapterInfo",
    "InputError",
    "LoadedAdapter",
    "ProjectorError",
    "SettingsError",
    "StoreError",
    "export_lora",
    "fuse",
    "load_adapter",
]
_HOMES = {
    "AdapterInfo": "adapters.file",
    "LoadedAdapter": "adapters.loaded",
    "export_lora": "adapters.export",
    "fuse": "adapters.export",
    "load_adapter": "adapters.loaded",
}


def __getattr__(name: str) -> object:
    # Imported at first use, so that jobs that only need NumPy do not import torch.
    if name in __all__:
        return getattr(import_module(f"nullbooth.{_HOMES.get(name, 'errors')}"), name)
    raise AttributeError(f"module 'nullbooth' has no attribute {name!r}")
