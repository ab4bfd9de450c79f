"""Groups of prompts that are drawn and measured, and their checks. Imports no torch: the rules use it."""

import re

from nullbooth.errors import SettingsError
from nullbooth.inputs.edits import concerns
from nullbooth.inputs.text import shown

OF_CONCEPT = ("subject", "class")  # drawn for each concept
OTHERS = ("unrelated", "unprotected", "names")  # must not change; increasingly far from the protected prompts
OF_ALL = (*OTHERS, "protected")


def words(prompt: str) -> set[str]:
    """Return the words of a prompt in lower case, without punctuation."""
    return set(re.findall(r"\w+", prompt.casefold()))


def check_groups(prompts: dict[str, list[str]], protected: list[str], source: str, identifiers: list[str]) -> None:
    """Refuse prompts that cannot measure what their group is for. Raises SettingsError.

    prompts: by group. protected: all protected prompts. source: setting or file that they come from.
    """
    known = {word for prompt in protected for word in words(prompt)}
    for group in OTHERS:
        found, where = prompts.get(group, []), f"sample.prompts.{group}"
        if both := sorted(set(found) & set(protected)):
            raise SettingsError(
                f"{where}: {both[0]!r} is also protected ({len(both)} such prompts); drift is measured on prompts that "
                f"are not: remove them here, or from {source}"
            )
        for prompt in found:
            if group == "unprotected" and known.issuperset(words(prompt)):
                raise SettingsError(
                    f"{where}: {shown(prompt)}: all of its words are in protected prompts; move it to the file of "
                    "sample.prompts.unrelated"
                )
            if group == "names" and (named := [word for word in identifiers if concerns(prompt, word)]):
                raise SettingsError(
                    f"{where}: {shown(prompt)}: {named[0]} is the identifier of a concept; remove the prompt, or set "
                    f"{where} to another file or null"
                )
