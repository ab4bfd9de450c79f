"""Errors whose messages say what is wrong, where, and how to fix it. All are ValueErrors."""


class InputError(ValueError):
    """A user's input cannot be used. The message names the file or key and the value, and gives a hint."""


class SettingsError(InputError):
    """The config does not fit its schema."""


class StoreError(ValueError):
    """A store is missing, broken, or made from other inputs."""


class ProjectorError(ValueError):
    """The second moment of a feature gives no usable projector."""
