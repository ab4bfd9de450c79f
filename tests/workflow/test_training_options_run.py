"""Real run with many training options."""

from PIL import Image
from running import ROOT, Run, executed

from nullbooth.adapters.file import read_adapter


def test_every_option_goes_through_the_workflow(tmp_path):
    """Two processes, two shapes of photographs, a learned word and priors, up to gallery and exports."""
    run, photographs = Run(tmp_path), tmp_path / "photographs"
    photographs.mkdir()
    for path in sorted((ROOT / "resources/subjects/starling/train").glob("*.png")):
        with Image.open(path) as image:
            image.crop((0, 0, 64, 64 - 24 * (path.stem in ("00", "01")))).save(photographs / path.name)
    concept = {"name": "starling", "images": str(photographs), "identifier": "vbk", "class": "star"}
    options = {"buckets": True, "flip": True, "ema": 0.5, "offset_noise": 0.05, "min_snr": 5.0, "caption_dropout": 0.2}
    options |= {"inversion_steps": 3, "gpus": 2, "optimizer": "prodigy", "learning_rate": 1.0}
    methods = [
        {"name": "pictures", "rank": 2, "prior": "images", "train": options},
        {"name": "prediction", "scope": "timestep", "rank": 2, "prior": "prediction", "train": {"buckets": True}},
    ]
    changes = {"concepts": [concept], "methods": methods, "validate": {"every": 2}, "trackers": ["tensorboard"]}
    changes["sample"] = {"class_images": 3}
    jobs = executed("exports", "samples", *run.arguments(**changes))
    assert (jobs["adapter"], jobs["class_images"], jobs["export"], jobs["gallery"]) == (2, 1, 1, 1)
    made = tmp_path / "results/runs/starling/pictures/0"
    tensors, info = read_adapter(made / "adapter.safetensors")
    assert info.identifier == "vbk"
    assert tensors["word.text_encoder"].isfinite().all()
    assert {path.name for path in (made / "lora").glob("[!.]*")} == {
        "README.md", "diffusers.safetensors", "kohya.safetensors", "word.safetensors",
    }  # fmt: skip
    assert "<vbk> star" in (made / "lora/README.md").read_text()
    [log] = (tmp_path / "results/logs/adapters/starling/pictures").rglob("*.log")
    said = log.read_text()
    assert "photographs of 80 x 48 pixels" in said
    assert "photographs of 64 x 64 pixels" in said
    assert said.count("step 4/4") == 1, "by one of the two processes"
    assert list((made / "tensorboard").rglob("*tfevents*"))
