"""The profile for clusters names all rules of the workflow that it has to name, and no others."""

import yaml
from running import CORES, ROOT, rules

FILE = ROOT / "profiles/slurm/config.yaml"
PROFILE = yaml.safe_load(FILE.read_text())
RULES = {rule.name: rule.resources for rule in rules()}


def asking(resource: str) -> set[str]:
    """Return the rules that request a resource."""
    return {name for name, resources in RULES.items() if resource in resources}


def test_every_rule_that_takes_all_cpus_has_a_number_of_its_own():
    """By default, they take as many CPUs as the login node has."""
    wide = {name for name, resources in RULES.items() if resources["_cores"] == CORES}
    assert len(wide) > 8
    assert wide <= PROFILE["set-threads"].keys() <= RULES.keys()


def test_rules_that_share_a_job_take_turns():
    """Otherwise a job of ten members would request the sum of their memory if the login node has many cores."""
    assert PROFILE["groups"].keys() == asking("turn")
    assert PROFILE["group-components"].keys() <= set(PROFILE["groups"].values())
    assert PROFILE["resources"] == {"gpu": 1, "turn": 1}
    assert set(PROFILE["set-resource-scopes"].values()) == {"local"}


def test_the_example_for_a_kind_of_gpu_names_all_rules_that_take_one():
    shown = FILE.read_text().partition("# set-resources:\n")[2].partition("\n\n")[0]
    named = yaml.safe_load("\n".join(line.removeprefix("#") for line in shown.splitlines()))
    assert len(named) > 10
    assert named.keys() == asking("gpu")


def test_the_example_of_partitions_is_read_by_the_plugin(tmp_path):
    from snakemake_executor_plugin_slurm.partitions import read_partition_file

    assert PROFILE["slurm-partition-config"] == "profiles/slurm/partitions.yaml"
    text = (ROOT / PROFILE["slurm-partition-config"]).read_text()
    assert read_partition_file(ROOT / PROFILE["slurm-partition-config"]) == [], "by default those of the cluster"
    (tmp_path / "mine.yaml").write_text(text.replace("partitions: {}", "partitions:").replace("\n#  ", "\n "))
    cpus, gpus = read_partition_file(tmp_path / "mine.yaml")
    assert (cpus.limits.max_gpu, gpus.limits.max_gpu, cpus.limits.max_runtime) == (0, 8, 24 * 60)
