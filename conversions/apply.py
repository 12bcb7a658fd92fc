"""Write committed tables in their new columns, values untouched: ``python conversions/apply.py SLICE``.

``conversions/SLICE.py`` has ``TABLES``: for each (notebook, table) a function from the old frame to the new one, and
``PARAMETERS``: for each notebook a function from the old parameters to the new ones (both may be empty); it may have
``ADDED``, the (notebook, table) whose function puts rows below the old ones. Each run that is committed is converted in
place, once: a notebook whose provenance says ``converted`` is left alone.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from lab.bookkeeping.results import REFERENCE, _digest, results_folder


def main(slice_name: str) -> None:
    spec = importlib.util.spec_from_file_location(slice_name, Path(__file__).parent / f"{slice_name}.py")
    conversion = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conversion)
    notebooks = {notebook for notebook, _ in conversion.TABLES} | set(conversion.PARAMETERS)
    for run in REFERENCE:
        for notebook in sorted(notebooks):
            path = results_folder() / run / f"{notebook}.json"
            if not path.exists():
                continue
            made = json.loads(path.read_text())
            if slice_name in made.get("converted", []):
                continue
            for (owner, table), convert in conversion.TABLES.items():
                file = results_folder() / run / f"{notebook}-{table}.parquet"
                if owner == notebook and file.exists():
                    old = pd.read_parquet(file)
                    new = convert(old)
                    may_grow = (owner, table) in getattr(conversion, "ADDED", ())
                    assert len(new) == len(old) or (may_grow and len(new) > len(old)), f"{file.name} has lost rows"
                    if "value" in old and "value" in new:
                        converted = new["value"].iloc[: len(old)]
                        same = np.array_equal(np.sort(old["value"]), np.sort(converted), equal_nan=True)
                        assert same, f"{file.name} has other values"
                    new.to_parquet(file, index=False)
                    made["tables"][table] = _digest(file)
            made["parameters"] = conversion.PARAMETERS.get(notebook, dict)(made["parameters"])
            made["converted"] = [*made.get("converted", []), slice_name]
            path.write_text(json.dumps(made, indent=1) + "\n")
            print(f"converted {run}/{notebook}")


if __name__ == "__main__":
    main(sys.argv[1])
