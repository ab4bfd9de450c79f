"""Memory that jobs request from a cluster."""

import re

from running import ROOT, snakemake

# Rules that do the work of another rule with other prompts.
LIKE = {
    "edit": "trajectory",
    "measure_edits": "evaluate",
    "export_edits": "base_images",
    "subject_moments": "heldout_moments",
    "joined_projector": "projector",
    "together": "tuned_images",
}


def test_every_rule_asks_for_the_memory_of_its_own_kind_of_job():
    asked = {}
    for path in (ROOT / "rules").glob("*.smk"):
        rule = None
        pattern = r'^(?:rule|checkpoint|use rule \w+ as) (\w+)(?::| with:)|memory\(\d+, "(\w+)"\)'
        for found, kind in re.findall(pattern, path.read_text(), re.MULTILINE):
            rule = found or rule
            if kind:
                asked[rule] = kind
    assert asked == {rule: LIKE.get(rule, rule) for rule in asked}
    assert len(asked) > 15


def test_jobs_ask_for_the_memory_of_their_model(tmp_path):
    """At least the memory of the rule, and twice as much at the next attempt."""
    for name in ("config", "nullbooth", "profiles", "resources", "rules", "workflow"):
        (tmp_path / name).symlink_to(ROOT / name)
    asking = """
for least, attempt in ((1, 1), (1, 2), (10**6, 1)):
    print("asked", memory(least, "adapter")(None, attempt), file=sys.stderr)
"""
    (tmp_path / "Snakefile").write_text((ROOT / "Snakefile").read_text() + asking)
    done = snakemake("--dry-run", "--configfile", "config/minimal.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    once, twice, least = map(int, re.findall(r"^asked (\d+)$", done.stderr, re.MULTILINE))
    assert once > 300
    assert (twice, least) == (2 * once, 10**6)
