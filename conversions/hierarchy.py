"""``mended`` in place of ``repair`` and of mendings by other names; ``where`` is called ``comparison``.

Before ``python conversions/apply.py hierarchy`` the files of a run were renamed: where.json and where-nodes.parquet.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

MENDED = {"none": "none", "end": "repair", "every stage": "repair every stage"}


def conditions(old: pd.DataFrame) -> pd.DataFrame:
    """``repair``, true or false, becomes ``mended``; ``stage`` is that of the leaves or of nodes of eight."""
    new = old.drop(columns="repair")
    new["mended"] = old["repair"].map({False: "none", True: "repair"})
    new["stage"] = old["n_leaves"].map({1: 0, 8: 3})
    return new


def comparison(old: pd.DataFrame) -> pd.DataFrame:
    """Mendings get the names of the vocabulary."""
    return old.assign(mended=old["mended"].map(MENDED))


def renamed(parameters: dict[str, Any]) -> dict[str, Any]:
    """``where_recipes`` becomes ``comparison_recipes``, and so on."""
    return {name.replace("where_", "comparison_"): value for name, value in parameters.items()}


TABLES = {("conditions", "conditions"): conditions, ("comparison", "nodes"): comparison}
PARAMETERS = {"comparison": renamed}
NAMES = {"where": "comparison"}  # notebooks that were renamed
