"""Copy trained models to the folder where they are used, with weights rounded to float16, which halves their size."""

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trained", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    shutil.copytree(args.trained, args.out, dirs_exist_ok=True)
    for path in args.out.rglob("*model*.safetensors"):
        save_file({k: v.to(torch.float16).contiguous() for k, v in load_file(path).items()}, path, {"format": "pt"})
