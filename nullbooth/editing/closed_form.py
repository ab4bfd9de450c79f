"""Closed-form edits of weights in the null space of protected features (AlphaEdit, arXiv 2410.02355, eq. 14).

With the features `K1` of an edit in columns, the residual `R = V1 - W K1`, the features `Kp` of earlier edits and the
projector `P`, the paper gives

    dW = R K1^T P (K1 K1^T P + Kp Kp^T P + l2 I)^-1,

which minimises |(W + dW) K1 - V1|^2 + |dW Kp|^2 + l2 |dW|^2 over `dW = D P`. The inverted matrix is not
symmetric. With `P = F F^T`, where `F: [in, f]` spans the free directions, and `A = K1 K1^T + Kp Kp^T`,

    F^T (A F F^T + l2 I) = (F^T A F + l2 I) F^T,    hence    F^T (A P + l2 I)^-1 = (F^T A F + l2 I)^-1 F^T, and

    dW = R K1^T F G^-1 F^T    with    G = F^T A F + l2 I: [f, f],

where G is symmetric and positive definite: one Cholesky factorisation of the size of the free subspace. This holds for
any F with `P = F F^T`. For the `soft` rule, F consists of the eigenvectors, each times sqrt(rho / (w + rho)), and the
penalty becomes l2 (|dW|^2 + tr(dW C dW^T) / rho), the ridge on retained features of UCE (arXiv 2308.14761).

If the targets are features too, `V1 = W T1`, all layers that read these features share one solution, `dW = W M`:
R = W (T1 - K1 - M K1) is linear in W, so that M is solved once for any number of layers and edits.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from nullbooth.errors import ProjectorError
from nullbooth.statistics.projector import decompose, free_directions, nothing_free


def free_factor(c: Tensor, rule: str, value: float, site: str = "?") -> Tensor:
    """Return `F: [in, f]` float64 with `P = F F^T` for a second moment `c: [in, in]` and a rank rule.

    Raises ProjectorError if a hard rule leaves no direction free.
    """
    w, u = decompose(c.numpy(), site)
    vectors = torch.from_numpy(u).double()
    if rule == "soft":
        return vectors * torch.from_numpy(value / (w + value)).sqrt()
    if (k := free_directions(w, rule, value)) == 0:
        raise ProjectorError(nothing_free(site, rule, value, w))
    return vectors[:, :k]


def solve(k1: Tensor, a: Tensor, free: Tensor, l2: float) -> Tensor:
    """Return `K1^T F G^-1 F^T: [m, in]`; a residual `R: [out, m]` times this is `dW`.

    k1: `[m, in]`, one feature per row; a: `K1 K1^T + Kp Kp^T: [in, in]`; free: `F: [in, f]`; all float64.
    """
    g = free.T @ a @ free
    g.diagonal().add_(l2)
    return torch.cholesky_solve(free.T @ k1.T, torch.linalg.cholesky(g)).T @ free.T


def edit_map(pairs: Iterable[tuple[Tensor, Tensor]], free: Tensor, l2: float, retained: Tensor | None = None) -> Tensor:
    """Return `M: [in, in]` float64 of successive edits: every weight `W` that reads the features becomes `W (I + M)`.

    pairs: for each edit, the features to change and the features to replace them by, `[m, in]` each; free: `F` with
    `P = F F^T`; l2: ridge, relative to the edit's own tr(K1 K1^T), so that it depends neither on the model nor on the
    number of rows; retained: a sum of outer products `[in, in]` that counts like earlier edits (UCE's ridge).
    """
    width = len(free)
    m = torch.zeros(width, width, dtype=torch.float64)
    earlier = torch.zeros_like(m) if retained is None else retained.double().clone()
    for given, wanted in pairs:
        k1, target = given.double(), wanted.double()
        outer = k1.T @ k1
        missing = target - k1 - k1 @ m.T
        m += missing.T @ solve(k1, outer + earlier, free, l2 * float(outer.trace()))
        earlier += outer
    return m


def factors(m: Tensor, c: Tensor, tolerance: float = 1e-2) -> tuple[Tensor, Tensor]:
    """Factor `M` into `[in, r]` and `[r, in]`, with the smallest `r` that misses at most a share `tolerance` of what
    `M` adds to features with second moment `c: [in, in]` (root mean square). Effects on other features are not stored.

    The rows of the second factor are combinations of rows of `M`, so that protected features stay protected.
    """
    w, u = torch.linalg.eigh(m @ c @ m.T)
    missed = w.clamp(min=0).cumsum(0)  # without each eigenvector and those before it
    rank = max(1, int((missed > tolerance**2 * missed[-1]).sum()))
    return u[:, -rank:], u[:, -rank:].T @ m
