"""What networks get right of each image, counted over the blocks of leaves that a comparison is about."""

from __future__ import annotations

import numpy as np
import pandas as pd

from lab.bookkeeping.vocabulary import KIND


def counts_by_block(images: pd.DataFrame, block: int) -> pd.DataFrame:
    """For each kind of nodes and each block of so many leaves, how many of the block's nodes get each image right.

    ``images`` has a row for each node, with the bits ``correct`` of so many ``images``. The rows that are returned have
    counts in their place, a byte for each image, ``out_of`` how many nodes; ``node`` is the first of them, and other
    columns are those of its row. So a comparison over blocks finds what it needs, in an eighth of the rows for leaves.
    Raises ValueError for nodes of more leaves than a block.
    """
    if (images["n_leaves"] > block).any():
        raise ValueError(f"nodes of {images['n_leaves'].max()} leaves are larger than blocks of {block}")
    rows = []
    for _, nodes in images.groupby([*KIND, images["node"] * images["n_leaves"] // block], sort=False):
        first = nodes.loc[nodes["node"].idxmin()]
        # (nodes, images), one byte for each bit.
        right = [np.unpackbits(np.frombuffer(bits, np.uint8), count=first["images"]) for bits in nodes["correct"]]
        counts = np.sum(right, axis=0, dtype=np.uint8)
        rows.append({**first, "correct": counts.tobytes(), "out_of": len(nodes)})
    return pd.DataFrame(rows)
