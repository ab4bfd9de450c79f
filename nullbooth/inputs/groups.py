"""Groups of prompts that are drawn and measured, and what each may hold. Imports no torch: the workflow reads it."""

import re

from nullbooth.errors import SettingsError
from nullbooth.inputs.edits import concerns
from nullbooth.inputs.text import shown

OF_CONCEPT = ("subject", "class")  # prompts that each concept has its own of
OTHERS = ("unrelated", "unprotected", "names")  # to stay as the base model draws them; ever farther from the protected
OF_ALL = (*OTHERS, "protected")


def words(prompt: str) -> set[str]:
    """The words of a prompt, without marks and capitals."""
    return set(re.findall(r"\w+", prompt.casefold()))


def check_groups(prompts: dict[str, list[str]], protected: list[str], source: str, identifiers: list[str]) -> None:
    """Refuse prompts that are not what their group is there to measure.

    prompts: by group; protected: all protected prompts, which `source` names. Raises SettingsError.
    """
    known = {word for prompt in protected for word in words(prompt)}
    for group in OTHERS:
        found, where = prompts.get(group, []), f"sample.prompts.{group}"
        if both := sorted(set(found) & set(protected)):
            raise SettingsError(
                f"{where}: {both[0]!r} is also protected ({len(both)} such prompts); drift is measured on prompts that "
                f"are not: take them out of it, or out of {source}"
            )
        for prompt in found:
            if group == "unprotected" and known.issuperset(words(prompt)):
                raise SettingsError(
                    f"{where}: {shown(prompt)}: each of its words stands in a protected prompt; move it to the file of "
                    "sample.prompts.unrelated"
                )
            if group == "names" and (named := [word for word in identifiers if concerns(prompt, word)]):
                raise SettingsError(
                    f"{where}: {shown(prompt)}: {named[0]} is the identifier of a concept; remove the prompt, or set "
                    f"{where} to another file or null"
                )
