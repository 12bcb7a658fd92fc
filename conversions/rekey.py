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
RENAMED = ("matcher", "mended", "subset", "n_leaves", "first", "second", "stage")  # new columns of old content
MACHINE = ("threads",)  # where it was run
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
    tables, parameters, names, added = conversions()
    current, effects = json.loads(run_in(before, "-c", ASK))
    now = [[claim.id, claim.verdict, [effect_of(c) for c in claim.conditions]] for claim in decide("cpu")]
    pairs = zip(effects, json.loads(json.dumps(now)), strict=True)
    faults = [f"claim {old[0]}: {old} became {new}" for old, new in pairs if repr(old) != repr(new)]
    print(f"{len(now)} claims compared, {len(faults)} differ", flush=True)
    root = results.results_folder()
    faults += compare(before / "results" / "cpu", root / "cpu", tables, names, added, True)
    with tempfile.TemporaryDirectory() as made:
        print("smoke, before and after ...", flush=True)
        run_in(
            before, "-m", "rebasin.lab.pipeline", "smoke", "--script",
            REBASIN_RESULTS=f"{made}/before", REBASIN_CACHE=f"{made}/cache",
            OMP_NUM_THREADS="1", ATEN_CPU_CAPABILITY="avx2",
        )  # fmt: skip
        smoke(Path.cwd(), Path(made) / "after")
        # Conversions that read the committed run's own paths only rename columns here.
        renames = dict.fromkeys((("mnist", "paths"), *added), with_matcher)
        faults += compare(
            Path(made) / "before" / "smoke", Path(made) / "after" / "smoke", tables | renames, names, added, False
        )
    stale = [notebook for notebook, is_current in current.items() if not is_current]
    faults += [f"{notebook} was not current before" for notebook in stale]
    if faults:
        sys.exit("nothing was changed\n" + "\n".join(faults))
    commit = git(before, "rev-parse", "HEAD")
    for old_name in current:
        notebook = names.get(old_name, old_name)
        path = root / "cpu" / f"{notebook}.json"
        made = json.loads(path.read_text())
        converted = parameters.get(notebook, dict)(
            json.loads((before / "results" / "cpu" / f"{old_name}.json").read_text())["parameters"]
        )
        assert made["parameters"] == converted, f"{notebook}: parameters {made['parameters']} are not {converted}"
        key = results.step_key(notebook, results.declared_parameters(notebook) | made["parameters"])
        note = {"from_key": made["key"], "from_commit": commit, "date": datetime.date.today().isoformat()}
        made.pop("converted", None)
        made |= {"key": key, "claims": results.claims_digest(notebook), "rekeyed": [*made.get("rekeyed", []), note]}
        path.write_text(json.dumps(made, indent=1) + "\n")
        print(f"{notebook}: {note['from_key']} -> {key}")


def conversions() -> tuple[dict, dict, dict, set]:
    """All slices' functions from old tables and old parameters to new ones, and the notebooks that were renamed."""
    tables, parameters, names, added = {}, {}, {}, set()
    for path in sorted(HERE.glob("*.py")):
        if path.stem in ("apply", "rekey"):
            continue
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        added |= getattr(module, "ADDED", set())
        for target, part in (
            (tables, module.TABLES),
            (parameters, module.PARAMETERS),
            (names, getattr(module, "NAMES", {})),
        ):
            target |= part
    return tables, parameters, names, added


def with_matcher(old: pd.DataFrame) -> pd.DataFrame:
    return old.rename(columns={"algorithm": "matcher"}).replace({"matcher": {"naive": "none"}})


def compare(before: Path, after: Path, tables: dict, names: dict, added: set, committed: bool) -> list[str]:
    """What differs between the old tables, converted, and the new ones: every old row must be among the new ones.

    Of a table that is not in ``added`` there are no others. Columns that a conversion fills in from the parameters of
    the committed run are compared for that run alone.
    """
    faults, rows, same = [], 0, 0
    for path in sorted(before.glob("*.parquet")):
        notebook, _, table = path.stem.partition("-")
        new_path = after / f"{names.get(notebook, notebook)}-{table}.parquet"
        if not new_path.exists():
            faults.append(f"{new_path} is missing")
            continue
        raw, new = pd.read_parquet(path), pd.read_parquet(new_path)
        key = names.get(notebook, notebook), table
        old = tables.get(key, lambda frame: frame)(raw)
        if "metric" in old:
            old, new = (frame[~frame["metric"].isin(TIMES)] for frame in (old, new))
        columns = list(old.columns) if committed else [c for c in old if c in raw or c in RENAMED]
        columns = [column for column in columns if column not in MACHINE]
        if lost := [column for column in columns if column not in new]:
            faults.append(f"{path.name}: columns {lost} are missing")
            continue
        rows += len(old)
        found = old[columns].merge(new[columns].assign(_there=1), how="left", on=columns)["_there"].notna()
        if not found.all() or len(found) != len(old):
            faults.append(f"{path.name}: {int((~found).sum())} of {len(old)} rows are not among the new ones")
        elif len(old) != len(new) and (committed or key not in added):
            faults.append(f"{path.name}: {len(old)} rows became {len(new)}")
        else:
            same += 1
    count = len(list(before.glob("*.parquet")))
    print(f"{after}: {rows} old rows of {count} tables looked for, those of {same} tables are all there", flush=True)
    return faults


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
