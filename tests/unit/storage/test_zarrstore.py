"""Stores are complete or absent, and refuse readers that expect another identity."""

import json
import re

import damage
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nullbooth.errors import StoreError
from nullbooth.storage import zarrstore

IDENTITY = {"model": "abc", "prompts": "123"}


class Unreadable:
    """An array whose data cannot be read, so that writing it fails halfway."""

    def __array__(self, dtype=None, copy=None):
        raise KeyboardInterrupt


@given(st.dictionaries(st.sampled_from(["a", "b.c:values", "mid_block.attn2.to_out.0:vectors"]),
    hnp.arrays(st.sampled_from([np.float32, np.float64, np.int64]), hnp.array_shapes(max_dims=3, max_side=5),
    elements=st.integers(-1000, 1000)), min_size=1))  # fmt: skip
def test_arrays_and_attributes_are_read_as_written(tmp_path_factory, arrays):
    path = tmp_path_factory.mktemp("store") / "a.zarr"
    zarrstore.write(path, arrays, IDENTITY)
    group = zarrstore.read(path, IDENTITY)
    assert set(group) == set(arrays)
    for name, array in arrays.items():
        assert group[name].dtype == array.dtype
        np.testing.assert_array_equal(group[name][:], array)


def test_attributes_contain_identity_and_versions(tmp_path):
    features = [{"name": "a", "sites": ["a", "b"], "static": True}]
    zarrstore.write(tmp_path / "a.zarr", {"x": [1.5, 2.5]}, IDENTITY, features=features, timestep=None, rows={"x": 7})
    attrs = zarrstore.read(str(tmp_path / "a.zarr")).attrs
    assert attrs["identity"] == IDENTITY
    assert attrs["features"] == features
    assert attrs["timestep"] is None
    assert attrs["rows"] == {"x": 7}
    assert attrs["versions"]["zarr"] == zarr.__version__
    assert set(attrs["versions"]) == {"numpy", "zarr", "torch", "diffusers"}


def test_arrays_are_chunked_and_compressed_in_zarr_3(tmp_path):
    array = np.zeros((8, 1000, 500), np.float32)  # 2 MB per row
    zarrstore.write(tmp_path / "a.zarr", {"whole": array, "rows": array}, IDENTITY, chunk_rows={"rows": 1})
    group = zarrstore.read(tmp_path / "a.zarr")
    assert group.metadata.zarr_format == 3
    assert group["rows"].chunks == (1, 1000, 500)
    assert group["whole"].chunks == (4, 1000, 500)  # as many rows as fit in 8 MiB
    assert group["whole"].compressors
    size = sum(p.stat().st_size for p in (tmp_path / "a.zarr").rglob("*") if p.is_file())
    assert size < array.nbytes / 10
    assert len(list((tmp_path / "a.zarr" / "rows" / "c").rglob("0/0"))) <= 8


@pytest.mark.parametrize("shape", [(0,), (0, 4), (3, 0)])
def test_empty_arrays_are_stored(tmp_path, shape):
    zarrstore.write(tmp_path / "a.zarr", {"x": np.zeros(shape, np.float32)}, IDENTITY)
    assert zarrstore.read(tmp_path / "a.zarr")["x"].shape == shape


@pytest.mark.parametrize(
    ("expected", "key", "found"),
    [
        ({"model": "xyz"}, "model", "abc"),
        ({"model": "abc", "prompts": "9"}, "prompts", "123"),
        ({"sampler": "s"}, "sampler", None),
    ],
)
def test_another_identity_is_refused_with_its_key(tmp_path, expected, key, found):
    zarrstore.write(tmp_path / "a.zarr", {"x": [1.0]}, IDENTITY)
    message = (
        rf"a\.zarr: made for {key} {re.escape(repr(found))}, but this run has {expected[key]!r}.*run its rule again"
    )
    with pytest.raises(StoreError, match=message):
        zarrstore.read(tmp_path / "a.zarr", expected)


def test_a_reader_may_check_only_some_keys_of_the_identity(tmp_path):
    zarrstore.write(tmp_path / "a.zarr", {"x": [1.0]}, IDENTITY)
    assert "x" in zarrstore.read(tmp_path / "a.zarr", {"model": "abc"})


def test_a_missing_array_is_refused(tmp_path):
    zarrstore.write(tmp_path / "a.zarr", {"x": [1.0], "y": [2.0]}, IDENTITY)
    (tmp_path / "a.zarr" / "y" / "zarr.json").unlink()
    with pytest.raises(StoreError, match=r"a\.zarr: incomplete, y/zarr\.json is missing"):
        zarrstore.read(tmp_path / "a.zarr", IDENTITY)


def all_of(path) -> dict[str, list]:
    """Open a store and return its arrays and attributes."""
    group = zarrstore.read(path, IDENTITY)
    return {name: group[name][:].tolist() for name in group.attrs["arrays"]} | {"attributes": dict(group.attrs)}


ROWS = np.arange(12.0).reshape(4, 3)
FILES = ["zarr.json", "x/zarr.json", "x/c/0/0", "x/c/3/0", "y/c/0"]


def small_store(path) -> dict[str, list]:
    zarrstore.write(path, {"x": ROWS, "y": np.arange(3)}, IDENTITY, chunk_rows={"x": 1}, timestep=7.5)
    return all_of(path)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_noticed_and_the_store_named(tmp_path, name):
    good, path = small_store(tmp_path / "a.zarr"), tmp_path / "a.zarr" / name
    content, refused = path.read_bytes(), 0
    for place in range(0, len(content), max(1, len(content) // 40)):
        damage.flip_bit(path, place)
        try:
            assert all_of(tmp_path / "a.zarr") == good  # damaged white space in zarr.json
        except ValueError as error:
            refused += 1
            assert str(error).startswith(str(tmp_path / "a.zarr"))
            assert "delete" in str(error)
        path.write_bytes(content)
    assert refused > 10
    if name != "zarr.json":
        assert refused == len(range(0, len(content), max(1, len(content) // 40)))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", [damage.truncate, lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
def test_a_truncated_or_missing_file_is_noticed_and_named(tmp_path, name, harm):
    """Zarr alone would read a missing chunk as zeros."""
    small_store(tmp_path / "a.zarr")
    harm(tmp_path / "a.zarr" / name)
    with pytest.raises(ValueError, match=rf"a\.zarr.*{'' if name == 'zarr.json' else name}"):
        all_of(tmp_path / "a.zarr")


def test_a_chunk_that_goes_missing_while_a_store_is_open_is_noticed(tmp_path):
    small_store(tmp_path / "a.zarr")
    group = zarrstore.read(tmp_path / "a.zarr")
    (tmp_path / "a.zarr/x/c/3/0").unlink()
    assert group["x"][:3].tolist() == ROWS[:3].tolist()
    with pytest.raises(StoreError, match=r"a\.zarr: x/c/3/0 does not match its checksum"):
        group["x"][3]


def test_a_chunk_of_another_store_is_noticed(tmp_path):
    """Chunks of zeros are not written; if one exists, it belongs to another store."""
    zarrstore.write(tmp_path / "zeros.zarr", {"x": np.zeros((4, 3))}, IDENTITY)
    small_store(tmp_path / "a.zarr")
    assert zarrstore.read(tmp_path / "zeros.zarr")["x"][:].sum() == 0
    (tmp_path / "zeros.zarr/x/c/0").mkdir(parents=True)
    (tmp_path / "a.zarr/x/c/0/0").rename(tmp_path / "zeros.zarr/x/c/0/0")
    with pytest.raises(StoreError, match=r"zeros\.zarr: x/c/0/0 does not match its checksum"):
        zarrstore.read(tmp_path / "zeros.zarr")["x"][:]


def test_a_store_of_an_earlier_version_is_refused(tmp_path):
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=3)
    group.attrs.update({"identity": IDENTITY, "versions": {}, "arrays": []})
    with pytest.raises(StoreError, match=r"a\.zarr/zarr\.json: damaged, or not written by this version"):
        zarrstore.read(tmp_path / "a.zarr", IDENTITY)


def test_a_zarr_store_of_another_program_is_refused(tmp_path):
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=3)
    group.create_array("x", data=np.ones(3))
    with pytest.raises(StoreError, match=r"a\.zarr"):
        zarrstore.read(tmp_path / "a.zarr", IDENTITY)


def test_a_missing_store_is_refused(tmp_path):
    (tmp_path / "empty.zarr").mkdir()
    for name in ("none.zarr", "empty.zarr"):
        with pytest.raises(StoreError, match=f"{name}: there is no Zarr store here"):
            zarrstore.read(tmp_path / name)


def test_a_half_written_store_is_invisible(tmp_path):
    path = tmp_path / "a.zarr"
    with pytest.raises(KeyboardInterrupt):
        zarrstore.write(path, {"x": [1.0], "y": Unreadable()}, IDENTITY)
    assert not path.exists()
    with pytest.raises(StoreError, match="no Zarr store"):
        zarrstore.read(path)
    zarrstore.write(path, {"x": [2.0]}, IDENTITY)  # leftovers do no harm
    assert list(zarrstore.read(path)) == ["x"]
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


class Deadly:
    """An array that kills the process that writes it."""

    __array__ = damage.die


def test_an_older_store_survives_a_killed_writer(tmp_path):
    path = tmp_path / "a.zarr"
    zarrstore.write(path, {"x": [1.0]}, IDENTITY)
    assert damage.killed(lambda: zarrstore.write(path, {"x": [2.0], "y": Deadly()}, IDENTITY))
    assert len(list(tmp_path.iterdir())) == 2
    assert zarrstore.read(path, IDENTITY)["x"][:].tolist() == [1.0]
    zarrstore.write(path, {"x": [3.0]}, IDENTITY)
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


class Overtaken:
    """An array of an orphaned writer: before it finishes, the next run writes the same store."""

    def __init__(self, path):
        self.path = path

    def __array__(self, dtype=None, copy=None):
        zarrstore.write(self.path, {"x": ROWS, "y": ROWS}, IDENTITY)
        return ROWS + 1


def test_two_writers_of_one_store_do_not_mix(tmp_path):
    path = tmp_path / "a.zarr"
    with pytest.raises((StoreError, FileNotFoundError), match=r"a\.zarr: another process removed x/"):
        zarrstore.write(path, {"x": ROWS + 1, "y": Overtaken(path)}, IDENTITY)
    assert zarrstore.read(path, IDENTITY)["x"][:].tolist() == ROWS.tolist()
    assert zarrstore.read(path, IDENTITY)["y"][:].tolist() == ROWS.tolist()
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


def test_an_older_store_survives_a_failed_rewrite(tmp_path):
    path = tmp_path / "a.zarr"
    zarrstore.write(path, {"x": [1.0]}, IDENTITY)
    with pytest.raises(KeyboardInterrupt):
        zarrstore.write(path, {"x": Unreadable()}, IDENTITY)
    assert zarrstore.read(path, IDENTITY)["x"][:].tolist() == [1.0]
    zarrstore.write(path, {"z": [3.0]}, {"model": "new"})
    assert list(zarrstore.read(path, {"model": "new"})) == ["z"]


def test_nothing_is_pickled(tmp_path):
    with pytest.raises((TypeError, ValueError)):
        zarrstore.write(tmp_path / "a.zarr", {"x": np.array([{"a": 1}], object)}, IDENTITY)
    zarrstore.write(tmp_path / "a.zarr", {"x": np.ones((4, 4))}, IDENTITY)
    metadata = json.loads((tmp_path / "a.zarr" / "x" / "zarr.json").read_text())
    assert metadata["data_type"] == "float64"


@given(st.integers(1, 12), st.integers(0, 1000), st.sampled_from([np.float32, np.float64]))
def test_packing_keeps_a_symmetric_matrix(n, seed, dtype):
    x = np.random.default_rng(seed).normal(size=(n + 2, n)).astype(dtype)
    c = x.T @ x
    c = np.triu(c) + np.triu(c, 1).T
    packed = zarrstore.pack_symmetric(c)
    assert packed.shape == (n * (n + 1) // 2,)
    assert packed.dtype == dtype
    np.testing.assert_array_equal(zarrstore.unpack_symmetric(packed), c)


def test_packed_sizes_are_recognised_up_to_large_matrices():
    for n in (1, 2, 3, 320, 1279, 1280, 2048):
        packed = np.zeros(n * (n + 1) // 2, np.float32)
        assert zarrstore.unpack_symmetric(packed).shape == (n, n)
