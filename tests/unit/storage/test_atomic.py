"""Files and folders are complete or absent, whatever happens to their writer, and errors name them."""

import errno
import json
import os
from contextlib import nullcontext
from unittest import mock

import damage
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from nullbooth.adapters.file import AdapterInfo, read_adapter, write_adapter
from nullbooth.evaluation import drawing, figures
from nullbooth.evaluation.comparison import read_runs
from nullbooth.learning.checkpoints import FORMAT as CHECKPOINT
from nullbooth.storage import atomic, zarrstore
from nullbooth.storage.atomic import read_json, whole, write_text
from nullbooth.storage.pictures import read_drawn
from nullbooth.storage.tensorfile import checksum, load_tensors, save_tensors

INFO = AdapterInfo("pooled", 4, (1.0,), "UNet2DConditionModel", "abc", "a sks dog", "energy: 0.001")


def names(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def content(path) -> dict[str, bytes]:
    """Return the content of a file, or of all files in a folder."""
    files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    return {str(p.relative_to(path)): p.read_bytes() for p in files}


# --- complete or absent ------------------------------------------------------------------------------


def test_a_file_appears_only_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with whole(path) as partial:
        partial.write_text("half")
        assert not path.exists()
        assert partial.suffix == ".txt"
    assert path.read_text() == "half"
    assert names(path.parent) == ["a.txt"]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o007, 0o660)])
def test_tensor_files_get_the_permissions_of_the_umask(tmp_path, mask, mode):
    """The safetensors package makes files readable for their owner only."""
    before = os.umask(mask)
    try:
        save_tensors(tmp_path / "a.safetensors", {"a": torch.ones(3)}, {"format": "f"})
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == mode


def test_a_folder_replaces_an_older_one(tmp_path):
    path = tmp_path / "pictures"
    for name in ("a", "b"):
        with whole(path) as partial:
            partial.mkdir()
            (partial / name).write_text(name)
    assert names(path) == ["b"]
    assert names(tmp_path) == ["pictures"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_an_older_file_survives_a_failure(tmp_path, error):
    write_text(tmp_path / "a.txt", "good")
    with pytest.raises(type(error)), whole(tmp_path / "a.txt") as partial:
        partial.write_text("bad")
        raise error
    assert (tmp_path / "a.txt").read_text() == "good"
    assert names(tmp_path) == ["a.txt"]


def test_the_next_writer_removes_leftovers_of_a_killed_one(tmp_path):
    def work() -> None:
        with whole(tmp_path / "a.zarr") as partial:
            partial.mkdir()
            (partial / "half").write_text("half")
            damage.die()

    for other in ("a.partial-notes.zarr", "a.partial-12345678.txt", "b.partial-12345678.zarr"):
        (tmp_path / other).write_text("of someone else")
    mine = names(tmp_path)
    assert damage.killed(work)
    assert len(names(tmp_path)) == 4
    write_text(tmp_path / "a.zarr", "whole")
    assert names(tmp_path) == sorted(["a.zarr", *mine])


def test_a_folder_being_replaced_is_never_incomplete(tmp_path, monkeypatch):
    """The new folder is complete under its name before the older one, renamed, is removed."""
    path = tmp_path / "a"
    with whole(path) as partial:
        partial.mkdir()

    def work() -> None:
        monkeypatch.setattr(atomic, "_remove", damage.die)
        with whole(path) as partial:
            partial.mkdir()
            (partial / "new").touch()

    assert damage.killed(work)
    assert names(path) == ["new"]


def test_two_writers_of_one_file_do_not_mix(tmp_path):
    """Happens after a kill of Snakemake, whose jobs survive while the next run starts the same ones."""
    path = tmp_path / "a"
    with pytest.raises(FileNotFoundError), whole(path) as first:
        first.mkdir()
        (first / "of the first").touch()
        with whole(path) as second:
            second.mkdir()
            (second / "of the second").touch()
    assert names(path) == ["of the second"]
    assert names(tmp_path) == ["a"]


def test_a_file_is_synced_before_it_is_renamed(tmp_path, monkeypatch):
    """A network file system may report a full disk only on sync."""
    write_text(tmp_path / "a.txt", "good")

    def fsync(_descriptor: int) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match=r"quota exceeded: free some space and run the same command again: .*a\.txt'"):
        write_text(tmp_path / "a.txt", "lost")
    assert (tmp_path / "a.txt").read_text() == "good"
    assert names(tmp_path) == ["a.txt"]


# --- full disk ---------------------------------------------------------------------------------------


def write_store(path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    zarrstore.write(
        path, {name: rng.normal(size=(8, 4096)) for name in "ab"}, {"model": "m"}, chunk_rows={"a": 1, "b": 1}
    )


def write_an_adapter(path, seed: int) -> None:
    write_adapter(path, {"a.delta": torch.full((256, 256), float(seed))}, INFO)


def write_checkpoint(path, seed: int) -> None:
    save_tensors(path, {"done": torch.full((256, 256), float(seed))}, {"format": CHECKPOINT})


def write_pictures(path, seed: int) -> None:
    """Write the output of the script, with a model that draws noise."""
    noise = torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, (4, 3, 128, 128)))
    sampling = {"precision": "fp32", "resolution": None, "per_prompt": 1, "seed": 0}
    config = {"device": "cpu", "model": "m", "sample": {"batch": 1}}
    sampler = {"scheduler": None, "options": {}, "arguments": {}, "steps": 1, "guidance": 1.0}
    with mock.patch.multiple(drawing, load_tuned=lambda *_: None, sample=lambda *_, **__: noise):
        drawing.draw_prompts(path, [], {"class": ["a", "b", "c", "d"]}, sampler, sampling, {"model": "m"}, config)


def write_json(path, seed: int) -> None:
    write_text(path, json.dumps([seed] * 100_000))


WRITERS = {
    "00.zarr": (write_store, lambda p: zarrstore.read(p)["b"][:]),
    "adapter.safetensors": (write_an_adapter, read_adapter),
    "000002.safetensors": (write_checkpoint, lambda p: load_tensors(p, CHECKPOINT, "a checkpoint", "delete it")),
    "images": (write_pictures, read_drawn),
    "metrics.json": (write_json, read_json),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(
    ("without_room", "message"),
    [(damage.full_disk, "No space left on device: free some space"), (damage.limited_files, "File too large")],
)
def test_a_full_disk_is_reported_with_the_file_and_nothing_is_lost(tmp_path, name, without_room, message):
    write, read = WRITERS[name]
    disk = tmp_path / "disk"
    disk.mkdir()
    with damage.mounted(disk, "-osize=4m") if without_room is damage.full_disk else nullcontext():
        write(disk / name, 0)
        before = content(disk / name)
        with without_room(disk, 48 << 10 if without_room is damage.full_disk else 16 << 10):
            with pytest.raises(OSError, match=f"{message}.*{name}"):
                write(disk / name, 1)
            with pytest.raises(OSError, match=f"{message}.*other-{name}"):
                write(disk / f"other-{name}", 1)
        assert names(disk) == [name]
        assert content(disk / name) == before
        read(disk / name)
        write(disk / name, 1)  # the disk has free space again
        assert content(disk / name) != before


# --- damage ------------------------------------------------------------------------------------------


def broken_somewhere(path):
    """Yield for each of several damages: the file truncated, or one bit flipped, restored after each."""
    whole_content = path.read_bytes()
    places = [*range(0, len(whole_content), max(1, len(whole_content) // 60)), len(whole_content) - 1]
    for place in [None, *places]:
        if place is None:
            damage.truncate(path)
        else:
            damage.flip_bit(path, place)
        yield place
        path.write_bytes(whole_content)


def noticed(read, path, good) -> None:
    """Check that reading raises an error that names the file, or (damaged white space) returns what was written."""
    try:
        found = read(path)
    except ValueError as error:
        assert path.name in str(error)
        assert "delete" in str(error) or "expected 'nullbooth" in str(error)
    else:
        assert found == good


def tensors_of(read):
    def found(path):
        tensors, rest = read(path)
        return {name: (str(t.dtype), t.tolist()) for name, t in tensors.items()}, rest

    return found


SAVED = {
    "adapter.safetensors": (write_an_adapter, tensors_of(read_adapter)),
    "000002.safetensors": (write_checkpoint, tensors_of(WRITERS["000002.safetensors"][1])),
}


@pytest.mark.parametrize("name", SAVED)
def test_a_damaged_safetensors_file_is_refused_with_its_name(tmp_path, name):
    write, read = SAVED[name]
    write(tmp_path / name, 1)
    good, seen = read(tmp_path / name), 0
    for _ in broken_somewhere(tmp_path / name):
        noticed(read, tmp_path / name, good)
        seen += 1
    assert seen > 60


def test_a_safetensors_file_without_checksum_is_refused(tmp_path):
    save_tensors(tmp_path / "a.safetensors", {"a": torch.ones(3)}, {"format": "f"})
    tensors, metadata = load_tensors(tmp_path / "a.safetensors", "f", "a file", "mend")
    assert metadata == {"format": "f"}
    save_file(tensors, tmp_path / "a.safetensors", metadata)
    with pytest.raises(ValueError, match=r"a\.safetensors: broken.*checksum None; mend"):
        load_tensors(tmp_path / "a.safetensors", "f", "a file", "mend")


def test_checksums_depend_on_names_types_and_shapes():
    x = torch.arange(6, dtype=torch.float32)
    found = [
        checksum(tensors, metadata)
        for tensors, metadata in [
            ({"a": x}, {}), ({"b": x}, {}), ({"a": x.reshape(2, 3)}, {}), ({"a": x.view(torch.int32)}, {}),
            ({"a": x}, {"b": "c"}), ({"a": x.bfloat16()}, {}), ({"a": x[0]}, {}), ({"a": x[:0]}, {}), ({}, {}),
        ]
    ]  # fmt: skip
    assert len(set(found)) == len(found)
    assert checksum({"a": x.flip(0).flip(0), "b": x}, {}) == checksum({"b": x, "a": x}, {})


def test_damaged_pictures_are_refused_with_their_names(tmp_path):
    folder = tmp_path / "images"
    write_pictures(folder, 0)
    path = folder / "class-001.png"
    Image.new("RGB", (64, 64), "red").save(path)  # a plain picture: loading alone notices little damage
    good, refused = content_of_pictures(folder), 0
    for place in broken_somewhere(path):
        try:
            assert content_of_pictures(folder) == good, place
        except ValueError as error:
            refused += 1
            assert str(error).startswith(f"{path}: missing or damaged")
            assert f"delete {folder} and run the same command again" in str(error)
    assert refused > 60
    path.unlink()
    with pytest.raises(ValueError, match=r"class-001\.png: missing or damaged"):
        read_drawn(folder)


def content_of_pictures(folder) -> list[bytes]:
    return [Image.open(folder / entry["file"]).tobytes() for entry in read_drawn(folder)["images"]]


def test_truncated_json_is_refused_with_its_name(tmp_path):
    for file in ("images/images.json", "runs/dog/ours/0/metrics.json"):
        write_json(tmp_path / file, 1)
        damage.truncate(tmp_path / file)
    with pytest.raises(ValueError, match=r"images/images\.json: broken .*; delete .*images and run the same command"):
        read_drawn(tmp_path / "images")
    with pytest.raises(ValueError, match=r"dog/ours/0/metrics\.json: broken .*; delete it and run the same command"):
        read_runs(tmp_path, "ours", ["dog"], [0])


def test_plots_are_complete_or_absent(tmp_path):
    figure = figures.heat_map(np.ones((2, 3)), ["a", "b"], [1.0, 2.0, 3.0], "label")
    with damage.limited_files(tmp_path, 1 << 10), pytest.raises(OSError, match=r"File too large.*a\.svg"):
        figures.save(figure, tmp_path / "a.svg")
    assert names(tmp_path) == []
