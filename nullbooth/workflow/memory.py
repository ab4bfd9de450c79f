"""Memory and time that jobs ask for."""

from collections.abc import Callable
from math import isqrt
from typing import Any

from nullbooth.models.identity import model_folder
from nullbooth.planning import shapes_from_headers
from nullbooth.planning.cost import Model, Work
from nullbooth.planning.plan import work_of
from nullbooth.workflow.project import Config, Project

_SIDE = 512  # pixels of a picture, where the model's own resolution is not known


def work(project: Project, methods: dict[str, Config]) -> Work:
    """Return the size of all work, for the cost model."""
    prompts = {group: len(found) for group, found in project.prompts.items()}
    return work_of(project.config, len(project.protected), prompts, methods)


class Memory:
    """Memory of jobs, estimated from the headers of the model's files, if these are on this machine.

    On a cluster jobs have GPUs even where Snakemake itself has none. side: pixels of a picture without `resolution`.
    """

    def __init__(self, project: Project, warn: Callable[[str], None] | None = None):
        config = project.config
        self.estimated: dict[str, int] = {}
        self.side = _SIDE
        place = config["model_config"] or config["model"]
        if folder := model_folder(place, config["revision"], weights=not project.single):
            try:
                shapes = self._shapes(project, folder)
            except (KeyError, TypeError, ValueError, OSError) as error:  # a config.json that lacks what others have
                if warn:
                    warn(
                        f"model: {project.single or folder}: cannot estimate the memory of jobs ({error!r}); they ask "
                        "for as much as small models need"
                    )
            else:
                gpus = int(config["device"] != "cpu")
                self.estimated = shapes_from_headers.memory(shapes, work(project, project.methods), gpus=gpus)
                self.side = isqrt(shapes.pixels)

    @staticmethod
    def _shapes(project: Project, folder: Any) -> Model:
        config = project.config
        return shapes_from_headers.read(
            folder,
            config["protect"]["sites"],
            config["resolution"],
            config["sampler"]["arguments"].get("max_sequence_length"),
            config["variant"],
            project.single,
            config["weights"],
            config["precision"],
        )

    def at_least(self, megabytes: int, rule: str = "") -> Callable[[Any, int], int]:
        """Return a job's memory in MB as a function for Snakemake: the estimate for `rule` (a key of the cost model),
        but no less than `megabytes`; twice as much at each new attempt."""
        return lambda wildcards, attempt: max(megabytes, self.estimated.get(rule, 0)) * 2 ** (attempt - 1)


def longer(minutes: int) -> Callable[[Any, int], int]:
    """Return a job's time limit in minutes as a function for Snakemake; twice as long at each new attempt."""
    return lambda wildcards, attempt: minutes * 2 ** (attempt - 1)
