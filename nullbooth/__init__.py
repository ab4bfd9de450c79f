"""NullBooth: teach a text-to-image diffusion model a subject, in the null space of what it must not forget."""

from importlib import import_module

__version__ = "0.1.0"
_HOMES = {
    "InputError": "errors",
    "ProjectorError": "errors",
    "SettingsError": "errors",
    "StoreError": "errors",
    "export_lora": "export",
    "fuse": "export",
    "load_adapter": "loaded",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    # Late, so that jobs that only need NumPy do not import torch.
    if name in _HOMES:
        return getattr(import_module(f"nullbooth.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'nullbooth' has no attribute {name!r}")
