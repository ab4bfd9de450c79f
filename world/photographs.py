"""Write the photographs of the subjects: five for training and five held out, on ten different backgrounds.

Training photographs have captions that name place and background, which would otherwise become part of the subject.
"""

import argparse
import json
from pathlib import Path

from nullbooth.models.pixels import to_pil
from world.scenes import SUBJECTS, photographs

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    for name in SUBJECTS:
        pictures, captions = photographs(name, 10, seed=0)
        for i, picture in enumerate(pictures):
            folder = args.out / name / ("train" if i < 5 else "holdout")
            folder.mkdir(parents=True, exist_ok=True)
            to_pil(picture * 2 - 1).save(folder / f"{i:02d}.png")
        said = [{"file_name": f"{i:02d}.png", "text": f"a photo of {captions[i]}"} for i in range(5)]
        lines = "".join(f"{json.dumps(line)}\n" for line in said)
        (args.out / name / "train" / "metadata.jsonl").write_text(lines)
