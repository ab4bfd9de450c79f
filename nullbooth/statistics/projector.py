"""Projectors onto the null space of protected features. NumPy only, because its many jobs must start fast.

C = U diag(w) U^T with ascending eigenvalues w. A rank rule calls the eigenvectors of the smallest ones free directions:
P = U_free U_free^T (AlphaEdit, arXiv 2410.02355, section 3.2).
"""

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nullbooth.errors import ProjectorError

RULES = ("energy", "absolute", "relative", "fraction", "soft")


def decompose(c: NDArray, site: str = "?") -> tuple[NDArray, NDArray]:
    """Return the eigenvalues `[n]` float64 of `c: [n, n]`, ascending and clipped at 0, and its eigenvectors `[n, n]`
    float32 in columns.

    Raises ProjectorError on NaN or infinite entries, asymmetry, and eigenvalues more negative than rounding explains.
    """
    c = np.asarray(c, dtype=np.float64)
    if not np.isfinite(c).all():
        raise ProjectorError(f"{site}: second moment has NaN or infinite entries")
    scale = np.abs(c).max(initial=0.0)
    if not np.allclose(c, c.T, rtol=0, atol=1e-6 * scale):
        raise ProjectorError(f"{site}: second moment is not symmetric")
    w, u = np.linalg.eigh((c + c.T) / 2)
    if w[0] < -1e-5 * max(w[-1], 0.0) - np.finfo(np.float64).tiny:
        raise ProjectorError(f"{site}: second moment has a negative eigenvalue, {w[0]:.3g} (largest {w[-1]:.3g})")
    return w.clip(min=0.0), u.astype(np.float32)


def free_directions(w: NDArray, rule: str, value: float, of: NDArray | None = None) -> int:
    """Number of the ascending eigenvalues `w: [n]` that a hard rank rule calls free.

    of: eigenvalues that `energy` and `relative` refer to (default: `w`). Pass those of the protected prompts alone when
    subjects were added: the free space can then only shrink, and neither prompts nor subjects leak more than `value`
    allowed before. Raises ValueError for an unknown rule.
    """
    of = w if of is None else of
    match rule:
        case "energy":
            return int(np.searchsorted(np.cumsum(w), value * of.sum(), side="right"))
        case "absolute":
            return int((w < value).sum())
        case "relative":
            return int((w < value * of[-1]).sum())
        case "fraction":
            return int(value * len(w) + 1e-6)
    raise ValueError(f"unknown rank rule {rule!r}; use one of {', '.join(RULES)}")


def free_share(w: NDArray, rule: str, value: float, of: NDArray | None = None) -> float:
    """Share of the directions with eigenvalues `w: [n]` that a rank rule leaves free; for `soft`, their mean weight."""
    if rule == "soft":
        return float((value / (w + value)).mean())
    return free_directions(w, rule, value, of) / len(w)


@dataclass(frozen=True)
class Projector:
    """A projector `P = V diag(g) V^T` or, if `complement`, `I - V diag(g) V^T`; whichever needs fewer columns.

    `basis: [n, k]` float32 holds V; `gain: [k]` float32 holds g, all ones except under the soft rule.
    """

    basis: NDArray
    gain: NDArray
    complement: bool
    free: float  # trace of P: number of free directions, or the sum of weights under the soft rule

    def apply(self, a: NDArray) -> NDArray:
        """Return `a P: [..., n]` for `a: [..., n]`."""
        inner = (a @ self.basis * self.gain) @ self.basis.T
        return a - inner if self.complement else inner

    def dense(self) -> NDArray:
        """Return `P: [n, n]` float32."""
        return self.apply(np.eye(len(self.basis), dtype=self.basis.dtype))


def leak(p: Projector, c: NDArray) -> float:
    """Share of the energy of features with second moment `c: [n, n]` that passes a projector,
    tr(P C P) / tr(C); under a hard rule this equals tr(P C) / tr(C)."""
    return float(np.trace(p.apply(p.apply(c))) / np.trace(c))


def projector(w: NDArray, u: NDArray, rule: str, value: float, site: str = "?", of: NDArray | None = None) -> Projector:
    """Return the projector of eigenvalues `w: [n]` and eigenvectors `u: [n, n]` under a rank rule.

    of: as in `free_directions`. Raises ProjectorError if no direction is free; warns if all are.
    """
    n = len(w)
    if rule == "soft":
        gain = value / (w + value)
        if gain.sum() < 1e-3:
            raise ProjectorError(nothing_free(site, rule, value, w))
        return Projector(u, gain.astype(np.float32), False, float(gain.sum()))
    k = free_directions(w, rule, value, of)
    if k == 0:
        raise ProjectorError(nothing_free(site, rule, value, w))
    if k == n:
        warnings.warn(
            f"{site}: rule {rule}: {value} leaves all {n} directions free: nothing is protected", stacklevel=2
        )
    if k <= n - k:
        return Projector(u[:, :k].copy(), np.ones(k, np.float32), False, float(k))
    return Projector(u[:, k:].copy(), np.ones(n - k, np.float32), True, float(k))


def nothing_free(site: str, rule: str, value: float, w: NDArray) -> str:
    """Error message for a site with eigenvalues `w: [n]` at which a rank rule leaves no direction free."""
    quantiles = ", ".join(f"{q:.3g}" for q in np.quantile(w, (0, 0.25, 0.5, 0.75, 1)))
    return (
        f"{site}: no free direction under the rule {rule}: {value}; its {len(w)} eigenvalues have quartiles "
        f"{quantiles}. Raise the value (protect.rule, or `rule` of the method or of edit), protect fewer prompts, or "
        "leave the site out (protect.sites)"
    )
