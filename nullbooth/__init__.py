"""NullBooth: teach a text-to-image diffusion model a subject, in the null space of what it must not forget."""

__version__ = "0.1.0"
__all__ = ["export_lora", "fuse", "load_adapter"]


def __getattr__(name: str):
    # Late, so that jobs that only need NumPy do not import torch.
    if name in __all__:
        from nullbooth import export, loaded

        return getattr(loaded if name == "load_adapter" else export, name)
    raise AttributeError(f"module 'nullbooth' has no attribute {name!r}")
