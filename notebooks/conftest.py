"""``pytest --nbval`` of cells with the tag ``nearly``, whose last digits depend on the processor: see ``settled``."""

from __future__ import annotations

from typing import Any

from nbval.plugin import IPyNbCell

from lab.report.stored import settled

exactly = IPyNbCell.compare_outputs


def compare_outputs(cell: IPyNbCell, outputs: list[Any], stored: list[Any], skip_compare: Any = None) -> bool:
    """nbval's own comparison, after numbers that are near enough were settled where a cell has the tag."""
    if "nearly" in cell.cell.metadata.get("tags", []):
        for output, kept in zip(outputs, stored, strict=False):  # of outputs too many, or too few, nbval tells
            for kind in output.get("data", {}).keys() & kept.get("data", {}).keys():
                output["data"][kind] = settled(output["data"][kind], kept["data"][kind])
    return exactly(cell, outputs, stored, skip_compare)


IPyNbCell.compare_outputs = compare_outputs
