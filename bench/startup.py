"""Time that the many small jobs of the workflow take from starting Python to being ready.

Each variant is a new process; variants take turns. The first round, which fills the file cache, is not counted. The
model is the embedded one in resources/tinyworld.
"""

import subprocess
import sys

from common import ROOT, TINYWORLD, parser, report, side_by_side

MODEL = TINYWORLD.relative_to(ROOT).as_posix()
CPU = "import torch; from nullbooth.models import loading; cpu = torch.device('cpu')"
VARIANTS = {
    "import numpy": "import numpy",
    "projector and pool jobs": "from nullbooth.statistics import projector; from nullbooth.storage import zarrstore",
    "import torch": "import torch",
    "denoiser loaded": f"{CPU}; loading.load_denoiser(loading.ModelSource('{MODEL}'), cpu)",
    "pipeline loaded": f"{CPU}; loading.load_pipeline(loading.ModelSource('{MODEL}'), cpu)",
}


def start(code: str) -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{code}\n{done.stderr}")


def main(args) -> None:
    times = side_by_side({name: lambda code=code: start(code) for name, code in VARIANTS.items()}, args.repeats)
    report("startup", [{"variant": name, **row} for name, row in times.items()], args)


if __name__ == "__main__":
    main(parser(__doc__, sizes=()).parse_args())
