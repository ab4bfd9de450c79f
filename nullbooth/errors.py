"""Errors that name what is wrong, where, and how to fix it. All are ValueErrors."""


class InputError(ValueError):
    """Something from outside cannot be used; the message names the file or key, the value and the mend."""


class SettingsError(InputError):
    """The config does not fit its schema."""


class StoreError(ValueError):
    """A store is missing, broken, or was made from something else."""


class ProjectorError(ValueError):
    """The moments of a site do not give a usable projector."""
