"""Tables as files of Parquet, as small as they get."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.parquet import write_table


def write_parquet(table: pd.DataFrame, path: Path) -> None:
    """Write a table to a file, for ``pd.read_parquet``.

    Of a column with as many bytes in each row, such as which images each network gets right, the first bytes of all
    rows lie together, then the second ones. What one network gets right others do too, so that this compresses well.
    """
    columns = pa.Table.from_pandas(table, preserve_index=False)
    split = []
    for place, name in enumerate(columns.column_names):
        length = _bytes_in_each(columns[name])
        if length:
            columns = columns.set_column(place, name, columns[name].cast(pa.binary(length)))
            split.append(name)
    whole = [name for name in columns.column_names if name not in split]
    write_table(
        columns, path, compression="brotli", compression_level=11, use_dictionary=whole, use_byte_stream_split=split
    )


def _bytes_in_each(column: pa.ChunkedArray) -> int:
    """How many bytes each row of a column has; 0 if they differ, or are no bytes."""
    if not pa.types.is_binary(column.type):
        return 0
    lengths = pc.unique(pc.binary_length(column)).to_pylist()
    return lengths[0] or 0 if len(lengths) == 1 else 0
