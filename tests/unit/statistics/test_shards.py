"""Shards of the protected prompts are kept and reused."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullbooth.errors import StoreError
from nullbooth.statistics.leak import leaking, write_leak
from nullbooth.statistics.projector import decompose, projector
from nullbooth.statistics.records import MomentStore
from nullbooth.statistics.shards import choose_shards, cut_shards, enough, kept_shards, partition, shard_identity
from nullbooth.statistics.sums import pool_timesteps, sum_shards
from nullbooth.storage import zarrstore
from nullbooth.storage.digests import digest
from nullbooth.storage.seal import sealed

prompts = st.lists(st.integers(0, 40).map(lambda i: f"prompt {i:02d}"), min_size=1, unique=True)


@given(prompts, st.lists(prompts, max_size=6), st.integers(1, 7))
def test_every_prompt_is_in_one_shard(wanted, kept, size):
    shards = partition(wanted, kept, size)
    assert sorted(p for shard in shards for p in shard) == sorted(wanted)
    assert all(len(shard) <= size or shard in [sorted(k) for k in kept] for shard in shards)


@given(prompts, st.lists(prompts, max_size=6), st.integers(1, 7), st.data())
def test_shards_stay_while_they_are_being_made(wanted, kept, size, data):
    """A job that evaluates the workflow in the middle of a run must find the same shards."""
    shards = partition(wanted, kept, size)
    done = data.draw(st.lists(st.sampled_from(shards), unique_by=tuple))
    assert partition(wanted, [*kept, *done], size) == shards


@given(prompts, prompts, st.integers(1, 7), st.integers(1, 7))
def test_only_added_prompts_form_new_shards(first, added, size, later_size):
    before = partition(first, [], size)
    after = partition(sorted({*first, *added}), before, later_size)
    new = [shard for shard in after if shard not in before]
    assert {p for shard in new for p in shard} == set(added) - set(first)


@given(st.lists(prompts, min_size=2, max_size=6), st.lists(st.integers(1, 7), min_size=6, max_size=6))
def test_returning_to_an_earlier_set_finds_its_shards(sets, sizes):
    kept, first = [], partition(sets[0], [], sizes[0])
    for wanted, size in zip(sets, sizes, strict=False):
        kept += partition(wanted, kept, size)
    assert partition(sets[0], kept, sizes[-1], first) == first


def test_the_order_of_prompts_and_kept_shards_does_not_matter():
    a, b = ["x", "y"], ["y", "z"]
    found = partition(["z", "x", "y"], [a, b], 5)
    assert found == partition(["x", "y", "z"], [b, a], 5)
    assert sorted(found) == [["x", "y"], ["z"]]


def test_similar_prompts_do_not_share_a_shard():
    """The first shard represents all prompts, not the beginning of the alphabet."""
    colors = ("blue", "green", "red", "white")
    wanted = [f"a {color} {thing} {i}" for color in colors for thing in ("ring", "star") for i in range(16)]
    for shard in partition(wanted, [], 32):
        assert all(sum(color in prompt for prompt in shard) >= 3 for color in colors)


@given(prompts, st.integers(1, 7))
def test_shards_are_cut_and_added_in_the_order_of_hashes(wanted, size):
    shards = list(cut_shards({"model": "m"}, wanted, size).values())
    in_order = sorted(wanted, key=digest)
    assert shards == [sorted(in_order[i : i + size]) for i in range(0, len(wanted), size)]
    assert shards == partition(wanted, [], size), "as without prompts_until and without kept shards"


@pytest.mark.parametrize(
    ("leaks", "share", "stops"),
    [([0.5], 0.1, False), ([0.5, 0.4], 0.1, False), ([0.5, 0.4], 0.25, True), ([0.5, 0.6], 0.01, True),
     ([0.9, 0.5, 0.49], 0.05, True), ([0.0, 0.0], 0.05, True)],
)  # fmt: skip
def test_shards_are_added_until_another_one_lowers_the_leak_little(leaks, share, stops):
    assert enough(leaks, share) == stops


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
    put("c", "moments/00.zarr", identity, ["a star"])  # its trajectories were deleted to save space
    (tmp_path / "d" / "trajectory.zarr.partial").mkdir(parents=True)
    assert kept_shards(tmp_path, identity) == {"a": ["a circle"], "c": ["a star"]}
    assert kept_shards(tmp_path / "nowhere", identity) == {}


# --- sums of shards ----------------------------------------------------------------------------------


def write_moments(path, prompts, **changes) -> dict[str, str]:
    """Write a shard's moments at one timestep: prompt i adds i to every entry, and two rows."""
    total = float(sum(int(p.split()[1]) for p in prompts))
    identity = shard_identity({"model": "m"}, prompts)
    features = [{"name": "q", "sites": ["q"], "width": 2, "static": False}]
    attributes = {"features": features, "timestep": 9.0, "timesteps": [9.0], "denoiser": "D", **changes}
    zarrstore.write(path, {"q": np.full(3, total)}, identity, rows={"q": 2 * len(prompts)}, **attributes)
    return identity


def test_moments_of_shards_add_up(tmp_path):
    shards = [["prompt 1", "prompt 2"], ["prompt 4"], ["prompt 8", "prompt 16"]]
    paths = [str(tmp_path / f"{i}.zarr") for i in range(3)]
    identities = {str(i): write_moments(path, shard) for i, (path, shard) in enumerate(zip(paths, shards, strict=True))}
    sum_shards(str(tmp_path / "sum.zarr"), paths, identities, {"model": "m", "prompts": "all"})
    group = zarrstore.read(tmp_path / "sum.zarr", {"prompts": "all"})
    assert group["q"][:].tolist() == [31.0] * 3
    assert group.attrs["rows"] == {"q": 10}
    assert group.attrs["shards"] == ["0", "1", "2"]


def test_shards_of_other_timesteps_do_not_add_up(tmp_path):
    paths = [str(tmp_path / f"{i}.zarr") for i in range(2)]
    identities = {"a": write_moments(paths[0], ["prompt 1"])}
    identities["b"] = write_moments(paths[1], ["prompt 2"], timestep=8.0)
    with pytest.raises(StoreError, match=r"1\.zarr: its timestep differs? from"):
        sum_shards(str(tmp_path / "sum.zarr"), paths, identities, {})


def test_shards_of_an_existing_sum_come_first(tmp_path):
    """Otherwise the prompts next to a larger shard, kept for another set, would be computed again."""
    identity = {"model": "m"}
    for prompts in (["a", "b"], ["c", "d"], ["b", "c", "d"]):
        name = shard_identity(identity, prompts)["prompts"]
        zarrstore.write(tmp_path / name / "trajectory.zarr", {}, shard_identity(identity, prompts), prompts=prompts)
    wanted = ["a", "b", "c", "d"]
    found = choose_shards(tmp_path, tmp_path / "no", identity, wanted, 4)
    assert sorted(found.values()) == [["a"], ["b", "c", "d"]]
    made_of = [shard_identity(identity, prompts)["prompts"] for prompts in (["a", "b"], ["c", "d"])]
    zarrstore.write(tmp_path / "sum.zarr", {}, identity, shards=made_of)
    found = choose_shards(tmp_path, tmp_path / "sum.zarr", identity, wanted, 4)
    assert sorted(found.values()) == [["a", "b"], ["c", "d"]]


def test_pooled_moments_give_each_timestep_the_same_weight(tmp_path):
    rng = np.random.default_rng(0)
    rows = {"q": [rng.normal(size=(n, WIDTH)) for n in (10, 90, 3)], "prompt": [rng.normal(size=(7, WIDTH))]}
    write_steps(tmp_path, rows, {"model": "m"})
    pool_timesteps(str(tmp_path / "pooled.zarr"), [str(tmp_path / f"0{i}.zarr") for i in range(3)], {"model": "m"})
    found = MomentStore(tmp_path / "pooled.zarr", {"model": "m"})
    assert found.timestep is None
    for name, xs in rows.items():
        expected = np.mean([x.T @ x / len(x) for x in xs], 0)
        np.testing.assert_allclose(found.second_moment(name), expected, rtol=1e-12)
        assert found.weight(name) == len(xs[0])


# --- leak of held-out prompts -------------------------------------------------------------------------

WIDTH, TIMESTEPS = 12, [9.0, 5.0, 1.0]


def write_steps(folder, rows: dict[str, list[np.ndarray]], identity: dict) -> None:
    """Write the moments of one shard, a store per timestep, from rows `[n, WIDTH]` by feature; `prompt` is static."""
    for step, timestep in enumerate(TIMESTEPS):
        here = {name: x[step] for name, x in rows.items() if step < len(x)}
        features = [{"name": name, "sites": [name, "v"][: 2 if name == "prompt" else 1], "width": WIDTH,
                     "static": name == "prompt"} for name in here]  # fmt: skip
        zarrstore.write(
            folder / f"{step:02d}.zarr",
            {name: zarrstore.pack_symmetric(x.T @ x) for name, x in here.items()},
            identity,
            rows={name: len(x) for name, x in here.items()}, features=features, timestep=timestep, timesteps=TIMESTEPS,
            denoiser="D",
        )  # fmt: skip


@pytest.mark.parametrize("rule", [{"energy": 0.05}, {"fraction": 0.5}, {"soft": 0.3}], ids=str)
def test_the_leak_equals_that_of_the_moments_of_all_rows_together(tmp_path, rule):
    """Moments of shards of different sizes are pooled and averaged; the reference uses all rows at once."""
    rng, [(kind, value)] = np.random.default_rng(0), rule.items()

    def draw(n: int) -> dict[str, list[np.ndarray]]:
        moving = [rng.normal(size=(4 * n, WIDTH)) * np.arange(WIDTH) for _ in TIMESTEPS]
        return {"q": moving, "prompt": [rng.normal(size=(2 * n, WIDTH)) ** 3]}

    shards, other, paths, identities = [draw(3), draw(5)], draw(2), [], {}
    for i, rows in enumerate(shards):
        identities[str(i)] = {"model": "m", "prompts": str(i)}
        write_steps(tmp_path / str(i), rows, identities[str(i)])
        steps = [str(tmp_path / str(i) / f"{step:02d}.zarr") for step in range(3)]
        pool_timesteps(str(tmp_path / str(i) / "pooled.zarr"), steps, identities[str(i)])
        paths.append(str(tmp_path / str(i) / "pooled.zarr"))
    arrays = {f"{s:02d}:{name}": x for name, xs in other.items() for s, x in enumerate(xs)}
    packed = {name: zarrstore.pack_symmetric(x.T @ x) for name, x in arrays.items()}
    counts = {name: len(x) for name, x in arrays.items()}
    zarrstore.write(tmp_path / "other.zarr", packed, {"model": "o"}, rows=counts, features=[], timesteps=TIMESTEPS)
    out = tmp_path / "leak.json"
    for k in (1, 2):
        first = dict(list(identities.items())[:k])
        said = {"shards": first, "prompts": 3, "rule": rule, "others": {"model": "o"}}
        write_leak(str(out), paths[:k], str(tmp_path / "other.zarr"), **said)
        found, expected = json.loads(out.read_text()), {}
        for name in ("q", "prompt"):
            heaps = [np.concatenate(xs) for xs in zip(*(rows[name] for rows in shards[:k]), strict=True)]
            c, h = (np.mean([x.T @ x / len(x) for x in xs], 0) for xs in (heaps, other[name]))
            p = projector(*decompose(c), kind, value).dense()
            expected[name] = np.trace(p @ h @ p) / np.trace(h)
            assert found["features"][name]["leak"] == pytest.approx(expected[name], rel=1e-4)
        assert found["leak"] == pytest.approx((expected["q"] + 2 * expected["prompt"]) / 3, rel=1e-4), "by sites"
        assert found["shards"] == k


def test_nothing_leaks_without_free_directions(tmp_path):
    assert leaking(np.eye(WIDTH), np.eye(WIDTH), {"fraction": 0.01}, "q") == 0
    assert leaking(np.eye(WIDTH), np.eye(WIDTH), {"fraction": 0.5}, "q") == pytest.approx(0.5)
