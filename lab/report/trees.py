"""Tree after tree of one recipe: the paper's figures at its own number of networks, and its claims decided again."""

from __future__ import annotations

from matplotlib.figure import Figure

from lab.bookkeeping import results
from lab.report.claims import picked
from lab.report.facts import reads
from lab.report.hierarchy import dots_by_leaves


@reads("trees")
def accuracy_of_trees(run: str) -> Figure:
    """Test accuracy of every node by the number of its leaves, as merged (Hierarchical Re-Basin, Figure 2)."""
    nodes = results.read(run, "trees", "nodes")
    return dots_by_leaves(picked(nodes, {"metric": "accuracy", "mended": "none"}))
