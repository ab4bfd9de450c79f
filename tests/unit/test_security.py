"""Inputs of users cannot run code, leave their folder or reveal secrets: pickles, code, paths, markup, tokens."""

import ast
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from hostile import SCRIPT, SMILE
from running import ROOT

from nullbooth.adapters.loaded import load_adapter
from nullbooth.errors import InputError
from nullbooth.evaluation.drawing import attention_maps
from nullbooth.evaluation.encoders import load_encoder
from nullbooth.evaluation.gallery import render
from nullbooth.models.files import check_encoder, check_pipeline
from nullbooth.models.loading import ModelSource, load_denoiser, load_pipeline

CPU = torch.device("cpu")


# --- code that comes with a model ----------------------------------------------------------------------


class Trap:
    """An object whose unpickling writes a file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


@pytest.fixture
def mark(tmp_path):
    return tmp_path / "it was run"


@pytest.fixture
def model(tmp_path, pipeline_folder):
    return shutil.copytree(pipeline_folder, tmp_path / "model")


def refusals(folder: Path, *readers) -> list[str]:
    said = []
    for reader in readers:
        with pytest.raises(InputError) as caught:
            reader(folder)
        said.append(str(caught.value))
    return said


def pipeline_of(folder: Path):
    return load_pipeline(ModelSource(str(folder)), CPU)


def denoiser_of(folder: Path):
    return load_denoiser(ModelSource(str(folder)), CPU)


def test_the_trap_works(mark):
    pickle.loads(pickle.dumps(Trap(mark)))
    assert mark.exists()


@pytest.mark.parametrize("suffix", [".bin", ".ckpt", ".pt", ".pth"])
@pytest.mark.parametrize(("part", "stem"), [("unet", "diffusion_pytorch_model"), ("text_encoder", "pytorch_model")])
def test_pickled_weights_are_never_opened(model, mark, part, stem, suffix):
    for name in (stem, "model"):
        (model / part / f"{name}{suffix}").write_bytes(pickle.dumps(Trap(mark)))
    check_pipeline(model)
    pipeline_of(model), denoiser_of(model)  # reads the safetensors beside them
    for path in (model / part).glob("*.safetensors"):
        path.unlink()
    readers = (check_pipeline, pipeline_of, denoiser_of) if part == "unet" else (check_pipeline, pipeline_of)
    for said in refusals(model, *readers):
        assert part in said
    assert not mark.exists()


def test_a_pickled_encoder_or_adapter_is_never_opened(tmp_path, mark, pipeline):
    encoder = shutil.copytree(ROOT / "resources/evaluators/dino", tmp_path / "dino")
    (encoder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(mark)))
    load_encoder(str(encoder))
    (encoder / "model.safetensors").unlink()
    refusals(encoder, lambda p: check_encoder(p, "evaluate.dino"), lambda p: load_encoder(str(p)))
    refusals(encoder / "pytorch_model.bin", lambda p: load_adapter(pipeline, p))
    assert not mark.exists()


CLASSES = "class {}:\n    pass\n    @classmethod\n    def from_pretrained(cls, *a, **k): return cls()\n"


@pytest.mark.parametrize(
    ("place", "change"),
    [
        ("evil.py", {"_class_name": ["evil", "Evil"]}),
        ("unet/evil.py", {"unet": ["evil", "Evil"]}),
        ("scheduler/evil.py", {"scheduler": ["evil", "Evil"]}),
    ],
)
def test_code_in_a_models_folder_is_not_run(model, mark, place, change):
    (model / place).write_text(f"import os\nos.mkdir({str(mark)!r})\n{CLASSES.format('Evil')}")
    index = model / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), **change}))
    for said in refusals(model, check_pipeline, pipeline_of, denoiser_of):
        assert "a model with code of its own is not run" in said
    assert not mark.exists()


def test_code_of_an_encoder_is_not_run(tmp_path, mark):
    folder = shutil.copytree(ROOT / "resources/evaluators/clip", tmp_path / "clip")
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n{CLASSES.format('Evil')}")
    for name, kinds in (
        ("tokenizer_config.json", {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}),
        ("config.json", {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"}),
    ):
        said = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**said, "auto_map": kinds}))
        load_encoder(str(folder))  # its type is known, so that its code is not needed
        assert not mark.exists()
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": kinds}))
    refusals(folder, lambda p: check_encoder(p, "evaluate.clip"), lambda p: load_encoder(str(p)))
    assert not mark.exists()


# --- the project's own code ----------------------------------------------------------------------------

FORBIDDEN = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "telnetlib"}
SOURCES = [p for folder in ("nullbooth", "workflow/scripts", "world", "bench") for p in (ROOT / folder).rglob("*.py")]


def keyword(call: ast.Call, name: str) -> object:
    """Return the value of a constant keyword of a call, or None."""
    found = [k.value for k in call.keywords if k.arg == name]
    return found[0].value if found and isinstance(found[0], ast.Constant) else None


def faults(source: str) -> list[str]:
    """Return calls and imports that could run the content of a file."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            found += [name for name in names if name.split(".")[0] in FORBIDDEN]
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name.rpartition(".")[2] in ("extract", "extractall", "unpack_archive"):  # members may leave their folder
            found.append(name)
        if name in ("eval", "exec", "compile", "yaml.load", "yaml.unsafe_load", "torch.hub.load", "os.system"):
            found.append(name)
        if name == "torch.load" and keyword(node, "weights_only") is not True:
            found.append("torch.load")
        if keyword(node, "allow_pickle") or keyword(node, "trust_remote_code") or keyword(node, "shell"):
            found.append(name)
        weights = name.endswith("from_pretrained") and not re.search("okenizer|AutoConfig", name)
        if weights and keyword(node, "use_safetensors") is not True:
            found.append(name)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_no_source_can_run_what_a_file_says(path):
    found = faults(path.read_text())
    if path.is_relative_to(ROOT / "world"):  # training of the embedded model only reads its own files
        found = [name for name in found if not name.endswith("from_pretrained")]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "torch.load('x')",
        "import pickle",
        "np.load('x', allow_pickle=True)",
        "AutoModel.from_pretrained('x', use_safetensors=True, trust_remote_code=True)",
        "UNet.from_pretrained('x')",
        "yaml.load(x)",
        "zipfile.ZipFile(x).extractall(y)",
    ],
)
def test_the_search_finds_what_it_looks_for(line):
    assert faults(line) != []


# --- paths ---------------------------------------------------------------------------------------------


def test_maps_of_words_with_path_characters_stay_in_their_folder(tmp_path, pipeline):
    words = ["../../x", "a/b", "a-b", "..", "moon"]
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    pipeline.tokenizer.model_max_length = tiny.TOKENS
    wanted = [{"prompt": word, "seed": 0} for word in words[:-1]]

    def draw(entries):
        prompts = [entry["prompt"] for entry in entries]
        return pipeline(prompts, num_inference_steps=1, output_type="pt").images

    shown = attention_maps(folder, pipeline, wanted, words, draw)
    assert {entry["word"] for entry in shown} >= {"a/b", "a-b", ".."}
    assert "moon" not in {entry["word"] for entry in shown}, "it is in no prompt"
    assert len({entry["file"] for entry in shown}) == len(shown)
    assert all(re.fullmatch(r"attention-\d+-\d+\.png", entry["file"]) for entry in shown)
    assert sorted(tmp_path.rglob("*")) == sorted([*before, *(folder / entry["file"] for entry in shown)])


# --- pages and logs ------------------------------------------------------------------------------------


def test_the_comparison_escapes_what_it_shows(tmp_path):
    number = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 2}
    equal = {**number, "ratio": 1.0, "ratio_low": 1.0, "ratio_high": 1.0, "reached": 1.0}
    pictures = [{"file": "a/b.png", "prompt": SCRIPT}]
    row = {"curve": SCRIPT, "equal": equal, "pictures": pictures, "step_seconds": 1.0, "train_seconds": 1.0}
    row |= dict.fromkeys(("fidelity", "drift", "drift_protected", "pres", "colors_right"), number)
    row |= dict.fromkeys(("drift_class", "drift_unprotected", "drift_names", "names_likeness"), number)
    row |= {"subject_seconds": 0.0, "model_seconds": None, "scale": 0.5}
    about = {"reference": SCRIPT, "target": 0.5, "seeds": 1, "steps": 2, "small": False, "scales": [0.5, 1.0]}
    about |= {"most_gap": 0.1, "unprotected": True, "names": True}
    template = ROOT / "workflow/report/comparison.html.j2"
    out = tmp_path / "index.html"
    render(template, out, table=[row], base=pictures, about=about, concepts=[SCRIPT], plot="<svg></svg>")
    page = out.read_text()
    assert "<script>alert" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;&#34;&#39;&amp;") >= 6
    assert "<svg></svg>" in page


def test_logs_take_any_text_whatever_the_terminal(tmp_path):
    code = f"from nullbooth.storage.progress import log_to; log_to('log'); print({SMILE!r}, '\\ud800')"
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environ, check=True)
    assert (tmp_path / "log").read_text(encoding="utf-8") == f"{SMILE} \\ud800\n"
