"""The file that a spec is saved to: JSON, with places that follow a rule written as the rule."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FORMAT, VERSION = "rebasin.PermutationSpec", 1


def write_spec_file(path: str | os.PathLike[str], contents: Mapping[str, Any]) -> None:
    """Write the contents of a spec. An older file stays whole until the new one is."""
    text = json.dumps({"format": FORMAT, "version": VERSION, **contents}, indent=1)
    unfinished = Path(f"{os.fspath(path)}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def read_spec_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The contents that were written. Raises ValueError for a file that is no such one, or of a later version."""
    try:
        contents = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)} is no spec that save wrote: {error}") from error
    if not isinstance(contents, dict) or contents.get("format") != FORMAT:
        raise ValueError(f"{os.fspath(path)} is no spec that save wrote: it does not name the format {FORMAT!r}")
    if contents.get("version") != VERSION:
        raise ValueError(
            f"{os.fspath(path)} has version {contents.get('version')!r} of the format, this package reads {VERSION}: "
            "trace the model again, or install the package that wrote it"
        )
    return contents


def packed(positions: Tensor) -> dict[str, int] | list[list[int]]:
    """Positions (units, copies), or the rule that they follow: so many to a unit and to a copy, from a first one on."""
    units, copies = positions.shape
    first = int(positions[0, 0])
    per_unit = int(positions[1, 0]) - first if units > 1 else 1
    per_copy = int(positions[0, 1]) - first if copies > 1 else 1
    rule = {"first": first, "units": units, "per unit": per_unit, "copies": copies, "per copy": per_copy}
    return rule if torch.equal(unpacked(rule), positions.cpu()) else positions.tolist()


def unpacked(positions: Any) -> Tensor:
    """The positions (units, copies) that were packed."""
    if isinstance(positions, list):
        return torch.tensor(positions, dtype=torch.int64)
    unit = torch.arange(positions["units"]).unsqueeze(-1) * positions["per unit"]
    return positions["first"] + unit + torch.arange(positions["copies"]) * positions["per copy"]
