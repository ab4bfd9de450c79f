"""Files that come with NullBooth: default settings, schema, prompts, page templates and the embedded model."""

from pathlib import Path

# A checkout has them at its root. The wheel has copies of all but the embedded model (setup.py).
_CHECKOUT = Path(__file__).resolve().parents[2]
_WHEEL = Path(__file__).resolve().parents[1] / "shipped"
HOME = _WHEEL if _WHEEL.is_dir() else _CHECKOUT
# Places that settings may name. Other files of the project are not inputs.
_NAMED = ("config/prompts", "resources")


def shipped(path: str) -> Path:
    """Return the absolute path of a file or folder that comes with NullBooth; `path` is relative to a checkout."""
    return HOME / path


def located(path: str) -> str:
    """Return a path of the settings, made absolute if it names a shipped file and is not in the working directory.

    Relative paths belong to the user's folder. The defaults, and settings copied from them, name files of the project:
    these are found from any folder.
    """
    if Path(path).is_absolute() or Path(path).exists() or not any(Path(path).is_relative_to(name) for name in _NAMED):
        return path
    return str(shipped(path)) if shipped(path).exists() else path
