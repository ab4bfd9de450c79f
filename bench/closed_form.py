"""Time of one closed-form edit at the sizes of Stable Diffusion 1.5, for to_k and to_v of its 16 cross-attentions: in
NullBooth, by the formula in the paper, and by the solve of AlphaEdit's reference implementation."""

import torch
from common import build_unet, parser, report, side_by_side
from torch import Tensor

from nullbooth.editing.closed_form import edit_map, factors, free_factor
from nullbooth.models.sites import find_sites

L2 = 1e-5


def main(args) -> None:
    torch.manual_seed(0)
    unet = build_unet(args.size)
    weights = [w.weight.double() for name, w in find_sites(unet).items() if name.endswith(("to_k", "to_v"))]
    width = weights[0].shape[1]
    spectrum = torch.logspace(0, -6, width, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64))[0]
    c = (basis * spectrum) @ basis.T
    free = free_factor(c, "energy", 1e-3)
    k1, target = (torch.randn(args.rows, width, dtype=torch.float64) for _ in range(2))
    p, eye = free @ free.T, torch.eye(width, dtype=torch.float64)
    l2 = L2 * float(k1.square().sum())

    def ours() -> list[Tensor]:
        m = edit_map([(k1, target)], free, L2)
        return [w @ m for w in weights]

    def stored() -> list[Tensor]:
        m = edit_map([(k1, target)], free, L2)
        up, _down = factors(m, c + k1.T @ k1 / len(k1))
        return [w @ up for w in weights]

    def printed() -> list[Tensor]:
        return [w @ (target - k1).T @ k1 @ p @ torch.linalg.inv(k1.T @ k1 @ p + l2 * eye) for w in weights]

    def reference() -> list[Tensor]:
        return [torch.linalg.solve(p @ (k1.T @ k1) + l2 * eye, p @ k1.T @ ((target - k1) @ w.T)).T for w in weights]

    functions = {"one map, Cholesky": ours, "the same, as low-rank factors": stored}
    functions |= {"paper's formula, layer by layer": printed, "reference solve, layer by layer": reference}
    differences = {
        name: max((a - b).norm() / a.norm() for a, b in zip(ours(), run(), strict=True))
        for name, run in functions.items()
        if run is not stored
    }
    rows = [
        {"variant": name, "layers": len(weights), "free": free.shape[1], **found, "difference": differences.get(name)}
        for name, found in side_by_side(functions, args.repeats).items()
    ]
    report("closed form", [{k: float(v) if isinstance(v, Tensor) else v for k, v in row.items()} for row in rows], args)


if __name__ == "__main__":
    p = parser(__doc__)
    p.add_argument("--rows", type=int, default=12 * 75, help="rows that an edit changes: 12 templates of 75 tokens")
    main(p.parse_args())
