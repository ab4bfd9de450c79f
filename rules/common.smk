"""The workspace, and the cores, GPUs and path variables that only Snakemake knows."""

import copy
import sys

from snakemake.common.configfile import load_configfile
from snakemake.exceptions import WorkflowError
from snakemake.utils import update_config

from nullbooth.errors import SettingsError
from nullbooth.inputs.shipped import shipped
from nullbooth.models import devices
from nullbooth.storage.atomic import writable
from nullbooth.workflow.environment import prepare_environment
from nullbooth.workflow.memory import longer
from nullbooth.workflow.workspace import Workspace, required

prepare_environment()


def warn(message):
    print(f"config: {message}", file=sys.stderr)


# For a module, its `config` replaces `configfile`; let it extend the defaults, as --configfile does.
given = config
if workflow.modifier.skip_configfile:
    given = copy.deepcopy(config)
    update_config(given, load_configfile(shipped("config/config.yaml")))
    update_config(given, config)

# CPUs of jobs that can use many. workflow.cores would raise an error if no number is given.
CPUS = workflow.resource_settings.cores or 1
# Snakemake limits GPUs only if told to: otherwise all GPU jobs of a machine would start at once.
GPUS = devices.count() if "gpu" not in workflow.global_resources else 0
try:
    # Jobs read the workflow again, but need not repeat the checks.
    workspace = Workspace(given, warn if workflow.is_main_process else None)
    if GPUS:
        workspace.check_gpus(GPUS)
        workflow.register_resource("gpu", GPUS)
except (SettingsError, OSError, ValueError) as error:
    sys.exit(f"config: {error}")
config = workspace.config
project, statistics, runs = workspace.project, workspace.statistics, workspace.runs
pictures, edited, stages, pages = workspace.pictures, workspace.edited, workspace.stages, workspace.pages
memory = workspace.memory.at_least
STEPS = project.steps


onstart:  # not in a dry run
    if not writable(config["results"]):
        sys.exit(
            f"config: results: {config['results']} cannot be written to; name another folder, or make it writable"
        )
    if workflow.non_local_exec and "adapter" not in workflow.resource_settings.overwrite_threads:
        warn(
            f"training and drawing request {CPUS} CPUs from the cluster, as many as this machine has; for another "
            "number, copy set-threads from profiles/slurm/config.yaml into your profile"
        )


wildcard_constraints:
    **workspace.wildcards(),


pathvars:
    **workspace.paths(),


def explained(function):
    """Return an input function whose SettingsError is shown without a traceback."""

    def explaining(wildcards):
        try:
            return function(wildcards)
        except SettingsError as error:
            raise WorkflowError(f"config: {error}") from error

    return explaining


def configured(found, lacking):
    """Return an input function that gives no files, or an error if the settings have nothing for the rule."""
    return explained(lambda wildcards: required(found, lacking))


def leak_file(number):
    """Return the file with the leak of the first `number` shards, which decides whether more are protected."""
    return checkpoints.leak.get(number=number).output[0]
