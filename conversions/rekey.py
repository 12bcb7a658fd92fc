"""The tables of the house before it was rebuilt, under its new keys: ``python conversions/rekey.py BEFORE``.

BEFORE is a checkout of the last commit with the old layout, in which the tables of run cpu are current. Each table
keeps its values under the new columns, names and parameters (the conversions of this folder), and takes the new key,
only if
- it was current under the old key, and whole;
- it holds what its old file holds, converted;
- the smoke tables, made from nothing by both, are the same, converted, to the last bit (but for times);
- all claims have the effects and verdicts that they had.
"""

from __future__ import annotations

import datetime
import importlib.util
import json
import sys
import tempfile
from pathlib import Path

import pandas as pd

from lab.bookkeeping import results
from lab.bookkeeping.rekey import TIMES, git, run_in, smoke
from lab.report.claims import decide

HERE = Path(__file__).parent
ASK = """
import json
from rebasin.lab import results
from rebasin.lab.claims import decide
from rebasin.lab.pipeline import STEPS
told = {}
for step in STEPS:
    made = results.provenance("cpu", step)
    key = results.step_key(step, results.declared_parameters(step) | made["parameters"])
    told[step] = results.is_current("cpu", step, key) and made["claims"] == results.claims_digest(step)
def effect_of(c):
    return [float(c.effect.mean), float(c.effect.low), float(c.effect.high), c.effect.n, c.verdict]
effects = [[claim.id, claim.verdict, [effect_of(c) for c in claim.conditions]] for claim in decide("cpu")]
print(json.dumps([told, effects]))
"""


def effect_of(condition) -> list:
    effect = condition.effect
    return [float(effect.mean), float(effect.low), float(effect.high), effect.n, condition.verdict]


def main(before: Path) -> None:
    tables, parameters, names = conversions()
    current, effects = json.loads(run_in(before, "-c", ASK))
    now = [[claim.id, claim.verdict, [effect_of(c) for c in claim.conditions]] for claim in decide("cpu")]
    pairs = zip(effects, json.loads(json.dumps(now)), strict=True)
    faults = [f"claim {old[0]}: {old} became {new}" for old, new in pairs if repr(old) != repr(new)]
    print(f"{len(now)} claims compared, {len(faults)} differ", flush=True)
    root = results.results_folder()
    faults += compare(before / "results" / "cpu", root / "cpu", tables, names)
    with tempfile.TemporaryDirectory() as made:
        print("smoke, before and after ...", flush=True)
        run_in(
            before, "-m", "rebasin.lab.pipeline", "smoke", "--script",
            REBASIN_RESULTS=f"{made}/before", REBASIN_CACHE=f"{made}/cache",
        )  # fmt: skip
        smoke(Path.cwd(), Path(made) / "after")
        faults += compare(Path(made) / "before" / "smoke", Path(made) / "after" / "smoke", tables, names)
    stale = [notebook for notebook, is_current in current.items() if not is_current]
    faults += [f"{notebook} was not current before" for notebook in stale]
    if faults:
        sys.exit("nothing was changed\n" + "\n".join(faults))
    commit = git(before, "rev-parse", "HEAD")
    for old_name in current:
        notebook = names.get(old_name, old_name)
        path = root / "cpu" / f"{notebook}.json"
        made = json.loads(path.read_text())
        converted = parameters.get(old_name, dict)(
            json.loads((before / "results" / "cpu" / f"{old_name}.json").read_text())["parameters"]
        )
        assert made["parameters"] == converted, f"{notebook}: parameters {made['parameters']} are not {converted}"
        key = results.step_key(notebook, results.declared_parameters(notebook) | made["parameters"])
        note = {"from_key": made["key"], "from_commit": commit, "date": datetime.date.today().isoformat()}
        made.pop("converted", None)
        made |= {"key": key, "claims": results.claims_digest(notebook), "rekeyed": [*made.get("rekeyed", []), note]}
        path.write_text(json.dumps(made, indent=1) + "\n")
        print(f"{notebook}: {note['from_key']} -> {key}")


def conversions() -> tuple[dict, dict, dict]:
    """All slices' functions from old tables and old parameters to new ones, and the notebooks that were renamed."""
    tables, parameters, names = {}, {}, {}
    for path in sorted(HERE.glob("*.py")):
        if path.stem in ("apply", "rekey"):
            continue
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for target, part in (
            (tables, module.TABLES),
            (parameters, module.PARAMETERS),
            (names, getattr(module, "NAMES", {})),
        ):
            for key, value in part.items():
                target[key] = chained(target[key], value) if key in target and target is not names else value
    return tables, parameters, names


def chained(first, second):
    return lambda old: second(first(old))


def compare(before: Path, after: Path, tables: dict, names: dict) -> list[str]:
    """What differs between the old tables, converted, and the new ones."""
    faults, rows, same = [], 0, 0
    for path in sorted(before.glob("*.parquet")):
        notebook, _, table = path.stem.partition("-")
        new_path = after / f"{names.get(notebook, notebook)}-{table}.parquet"
        if not new_path.exists():
            faults.append(f"{new_path} is missing")
            continue
        old, new = pd.read_parquet(path), pd.read_parquet(new_path)
        rows += len(old)
        old = tables.get((notebook, table), lambda frame: frame)(old)
        if "metric" in old:
            old, new = (frame[~frame["metric"].isin(TIMES)].reset_index(drop=True) for frame in (old, new))
        if sorted(old.columns) != sorted(new.columns):
            faults.append(f"{path.name}: columns {sorted(set(old.columns) ^ set(new.columns))}")
            continue
        try:
            pd.testing.assert_frame_equal(old[new.columns], new, check_exact=True)
            same += 1
        except AssertionError as error:
            faults.append(f"{path.name}: {str(error).splitlines()[0]}")
    print(
        f"{after}: {rows} rows of {len(list(before.glob('*.parquet')))} tables compared, {same} tables equal",
        flush=True,
    )
    return faults


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
