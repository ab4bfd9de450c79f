"""What an adapter does inside: how much it changes the output of each protected layer, at each timestep."""

import re

import numpy as np
from numpy.typing import NDArray


def output_change(weight: NDArray, change: NDArray, moment: NDArray) -> float:
    """Relative change of a layer's output, root mean square over the features that a moment was taken of.

    sqrt(tr(D C D^T) / tr(W C W^T)) for weight `W: [out, in]`, its change `D: [out, in]` and the uncentred second
    moment `C: [in, in]`, since E|D x|^2 = tr(D C D^T): no feature needs to be run through the layer again.
    """
    changed, before = (((m @ moment) * m).sum() for m in (change, weight))
    return float(np.sqrt(max(0.0, changed) / before))


def relative_norm(weight: NDArray, change: NDArray) -> float:
    """Frobenius norm of a change beside that of the weight."""
    return float(np.linalg.norm(change) / np.linalg.norm(weight))


def short_name(site: str) -> str:
    """A site's name without what all sites share: `down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_q` is
    `down 0.1 to_q`; a second transformer block in a row keeps its number."""
    name = site.replace("attentions.", "")
    name = re.sub(r"(?<=\d)\.transformer_blocks(\.0)?(?=\.)|\.attn\d*(?=\.)", "", name)
    return re.sub(r"_blocks?\.|\.(?=to_)", " ", name)
