"""Tables read as they were written, and which images networks get right takes little room."""

import numpy as np
import pandas as pd
import pytest

from lab.bookkeeping.parquet import write_parquet

TABLES = {
    "bytes of one length": {"node": [0, 1], "correct": [b"ab", b"cd"]},
    "bytes of several lengths": {"correct": [b"ab", b"c"]},
    "empty bytes": {"correct": [b"", b""]},
    "bytes that are missing": {"correct": [b"ab", None]},
    "no bytes": {"name": ["a", "b"], "value": [0.5, float("nan")], "count": [1, 2], "yes": [True, False]},
    "no rows": {"node": np.zeros(0, int), "correct": np.zeros(0, object)},
    "no columns": {},
}


@pytest.mark.parametrize("columns", TABLES.values(), ids=TABLES)
def test_a_table_reads_as_it_was_written(tmp_path, columns):
    table = pd.DataFrame(columns)
    write_parquet(table, tmp_path / "new.parquet")
    table.to_parquet(tmp_path / "plain.parquet", index=False)
    read, plain = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("new", "plain"))
    pd.testing.assert_frame_equal(read, plain)
    assert [list(map(type, read[name])) for name in read] == [list(map(type, plain[name])) for name in plain]


def test_what_networks_get_right_alike_takes_less_room_than_by_pandas(tmp_path):
    rng = np.random.default_rng(0)
    right = rng.random((200, 2000)) < rng.beta(0.5, 0.5, 2000)  # most images are easy, or hard
    table = pd.DataFrame({"correct": [bits.tobytes() for bits in np.packbits(right, axis=1)]})
    write_parquet(table, tmp_path / "new.parquet")
    table.to_parquet(tmp_path / "plain.parquet", index=False)
    new, plain = ((tmp_path / f"{name}.parquet").stat().st_size for name in ("new", "plain"))
    assert new < 0.8 * plain
