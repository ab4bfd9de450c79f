"""Protected prompts in kept shards."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from running import script

from nullbooth import store
from nullbooth.seal import sealed
from nullbooth.shards import choose_shards, kept_shards, partition, shard_identity

prompts = st.lists(st.integers(0, 40).map(lambda i: f"prompt {i:02d}"), min_size=1, unique=True)


@given(prompts, st.lists(prompts, max_size=6), st.integers(1, 7))
def test_every_prompt_is_in_one_shard(wanted, kept, size):
    shards = partition(wanted, kept, size)
    assert sorted(p for shard in shards for p in shard) == sorted(wanted)
    assert all(len(shard) <= size or shard in [sorted(k) for k in kept] for shard in shards)


@given(prompts, st.lists(prompts, max_size=6), st.integers(1, 7), st.data())
def test_shards_stay_while_they_are_being_made(wanted, kept, size, data):
    """A job that reads the workflow again in the middle of a run must see the same shards."""
    shards = partition(wanted, kept, size)
    done = data.draw(st.lists(st.sampled_from(shards), unique_by=tuple))
    assert partition(wanted, [*kept, *done], size) == shards


@given(prompts, prompts, st.integers(1, 7), st.integers(1, 7))
def test_added_prompts_cost_only_themselves(first, added, size, later_size):
    before = partition(first, [], size)
    after = partition(sorted({*first, *added}), before, later_size)
    new = [shard for shard in after if shard not in before]
    assert {p for shard in new for p in shard} == set(added) - set(first)


@given(st.lists(prompts, min_size=2, max_size=6), st.lists(st.integers(1, 7), min_size=6, max_size=6))
def test_back_to_an_earlier_set_finds_its_own_shards(sets, sizes):
    kept, first = [], partition(sets[0], [], sizes[0])
    for wanted, size in zip(sets, sizes, strict=False):
        kept += partition(wanted, kept, size)
    assert partition(sets[0], kept, sizes[-1], first) == first


def test_order_and_kept_order_do_not_matter():
    a, b = ["x", "y"], ["y", "z"]
    assert partition(["z", "x", "y"], [a, b], 5) == partition(["x", "y", "z"], [b, a], 5) == [["x", "y"], ["z"]]


def test_kept_shards_are_those_of_the_same_model_and_sampler(tmp_path):
    identity = {"model": "m", "sampler": "s", "prompts": "all"}

    def put(name, store, made_for, prompts):
        folder = tmp_path / name / store
        folder.mkdir(parents=True)
        attributes = {"identity": shard_identity(made_for, prompts), "prompts": prompts}
        found = {"attributes": sealed(attributes), "zarr_format": 3, "node_type": "group"}
        (folder / "zarr.json").write_text(json.dumps(found))

    put("a", "trajectory.zarr", identity, ["a circle"])
    put("b", "trajectory.zarr", {**identity, "model": "other"}, ["a ring"])
    put("c", "moments/00.zarr", identity, ["a star"])  # its trajectories were deleted to save room
    (tmp_path / "d" / "trajectory.zarr.partial").mkdir(parents=True)
    assert kept_shards(tmp_path, identity) == {"a": ["a circle"], "c": ["a star"]}
    assert kept_shards(tmp_path / "nowhere", identity) == {}


# --- sums of shards ----------------------------------------------------------------------------------


def write_moments(path, prompts, **changes) -> dict[str, str]:
    """A shard's moments at one timestep: prompt i adds i to every entry, and two rows."""
    total = float(sum(int(p.split()[1]) for p in prompts))
    identity = shard_identity({"model": "m"}, prompts)
    attributes = {"features": [{"name": "q"}], "timestep": 9.0, "timesteps": [9.0], "denoiser": "D", **changes}
    store.write(path, {"q": np.full(3, total)}, identity, rows={"q": 2 * len(prompts)}, **attributes)
    return identity


def test_moments_of_shards_add_up(tmp_path):
    shards = [["prompt 1", "prompt 2"], ["prompt 4"], ["prompt 8", "prompt 16"]]
    paths = [str(tmp_path / f"{i}.zarr") for i in range(3)]
    identities = {str(i): write_moments(path, shard) for i, (path, shard) in enumerate(zip(paths, shards, strict=True))}
    script("covariance").main(str(tmp_path / "sum.zarr"), paths, identities, {"model": "m", "prompts": "all"})
    group = store.read(tmp_path / "sum.zarr", {"prompts": "all"})
    assert group["q"][:].tolist() == [31.0] * 3
    assert group.attrs["rows"] == {"q": 10}
    assert group.attrs["shards"] == ["0", "1", "2"]


def test_shards_of_other_timesteps_do_not_add_up(tmp_path):
    paths = [str(tmp_path / f"{i}.zarr") for i in range(2)]
    identities = {"a": write_moments(paths[0], ["prompt 1"])}
    identities["b"] = write_moments(paths[1], ["prompt 2"], timestep=8.0)
    with pytest.raises(store.StoreError, match=r"1\.zarr: its timestep differs? from"):
        script("covariance").main(str(tmp_path / "sum.zarr"), paths, identities, {})


def test_shards_that_a_sum_was_made_of_come_first(tmp_path):
    """Else a larger shard, kept for another set, would leave the prompts beside it to be computed again."""
    identity = {"model": "m"}
    for prompts in (["a", "b"], ["c", "d"], ["b", "c", "d"]):
        name = shard_identity(identity, prompts)["prompts"]
        store.write(tmp_path / name / "trajectory.zarr", {}, shard_identity(identity, prompts), prompts=prompts)
    wanted = ["a", "b", "c", "d"]
    assert list(choose_shards(tmp_path, tmp_path / "no", identity, wanted, 4).values()) == [["a"], ["b", "c", "d"]]
    made_of = [shard_identity(identity, prompts)["prompts"] for prompts in (["a", "b"], ["c", "d"])]
    store.write(tmp_path / "sum.zarr", {}, identity, shards=made_of)
    found = choose_shards(tmp_path, tmp_path / "sum.zarr", identity, wanted, 4)
    assert list(found.values()) == [["a", "b"], ["c", "d"]]
