"""One-time: the committed tables under the library's names of methods, and with plans for parameters.

``python conversions/plans.py BEFORE SMOKE_BEFORE SMOKE_AFTER``: a checkout in which the tables of results/cpu are
current, and the smoke tables that it and the code as it is made. What it does to a table is first done to the smoke
tables of before: unless they are then those of after, value by value, nothing is written. Times are left out.
"""

import datetime
import json
import sys
from pathlib import Path

import pandas as pd

from lab.bookkeeping import rekey, results
from lab.bookkeeping.cache import write_together
from lab.bookkeeping.pipeline import STEPS, load_preset
from lab.measures.paths import path_barriers
from lab.training.plan import read_networks

METHODS = {"tree": "hierarchy", "merge_many": "many", "naive": "mean"}
MATCHERS = {"tree": "weights", "naive": "none"}
COMPARED = ("attack", "perturbations", "regularisation", "autoattack")
MNIST = ("dataset", "architecture", "width", "models", "epochs", "batch_size", "learning_rate")


def converted(notebook: str, old: dict, new: dict, tables: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The tables of a notebook in their new form, from parameters before and now."""
    done = {}
    for name, table in tables.items():
        table = table.copy()
        if notebook == "accuracy" and name == "paths":
            table["algorithm"] = table["algorithm"].map(MATCHERS)
            table = table.rename(columns={"algorithm": "matcher"})
        elif "algorithm" in table:
            table["algorithm"] = table["algorithm"].replace(METHODS)
        if "check" in table:
            table.loc[table["check"] == "logits / 16", ["check", "setting"]] = ["divided logits", 16.0]
        if notebook in COMPARED:
            table["weight_decay"] = old["weight_decay"]
        if notebook == "train":
            table["epochs"] = old["epochs"]
        done[name] = table
    if notebook == "accuracy":
        barriers = path_barriers(done["paths"])
        stage = barriers["n_leaves"].map(lambda n_leaves: n_leaves.bit_length() - 1)
        networks = read_networks(new["networks"])
        done["barriers"] = barriers.assign(stage=stage, **networks.setting)
        done["barriers"] = done["barriers"].assign(**networks.columns(networks.epochs[-1]))
    return done


def old_names(new: dict) -> dict:
    """What the parameters were called before: the same values."""
    given = {}
    for plan, names in (
        ("networks", {"n_models": "models"}),
        ("condition_networks", {"condition_models": "models", "condition_epochs": "epochs"}),
        ("mnist_networks", {f"mnist_{name}": name for name in MNIST}),
        ("half_networks", {"half_models": "models", "half_epochs": "epochs"}),
    ):  # fmt: skip
        if plan in new:
            entries = new[plan]
            given |= {"seed": entries["seed"], "chunk": entries["chunk"]}
            given |= {name: entries[key] for name, key in names.items()}
            if plan in ("networks", "condition_networks"):
                given |= {key: value for key, value in entries.items() if key not in ("models", "epochs")}
    for plan in ("networks", "half_networks"):
        if plan in new:
            (epochs,) = new[plan]["epochs"]
            given |= {"epochs" if plan == "networks" else "half_epochs": epochs}
    if "varied" in new:
        given |= {f"condition_{key}s": values for key, values in new["varied"].items()}
    if "merges" in new:
        given |= {"tree_leaves": max(new["merges"]["hierarchy"]), "many_leaves": max(new["merges"]["many"])}
    if "penalties" in new:
        given |= {"l1_strengths": new["penalties"]["l1"], "l2_strengths": new["penalties"]["l2"]}
    return given


def parameters(notebook: str, preset: str, old: dict) -> dict:
    """The parameters of a notebook as they are now. Refuses unless they say what the old ones say."""
    declared = results.declared_parameters(notebook)
    chosen = {key: value for key, value in load_preset(preset).items() if key in declared}
    new = results.completed(declared, chosen)
    new |= {key: value for key, value in old.items() if key in new and not isinstance(new[key], dict)}
    known = old_names(new) | new
    # AutoAttack takes nothing of these any more, and never did but to build what it left out.
    unused = (
        {"l1_strengths", "l2_strengths", "penalised_models", "repair_images"} if notebook == "autoattack" else set()
    )
    for key, value in old.items():
        if key not in unused and known[key] != value:
            sys.exit(f"{notebook}: {key} was {value!r}, and would be {known[key]!r}")
    return new


def rows(table: pd.DataFrame) -> pd.DataFrame:
    """A table without times, whatever the order of its rows and columns."""
    if "metric" in table:
        table = table[~table["metric"].isin(rekey.TIMES)]
    table = table[sorted(table)]
    return table.sort_values(list(table)).reset_index(drop=True)


def made_by(folder: Path, notebook: str) -> tuple[dict, dict[str, pd.DataFrame]]:
    """The provenance and the tables that a notebook left in a folder."""
    made = json.loads((folder / f"{notebook}.json").read_text())
    return made, {name: pd.read_parquet(folder / f"{notebook}-{name}.parquet") for name in made["tables"]}


def main() -> None:
    before, smoke_before, smoke_after = (Path(argument).resolve() for argument in sys.argv[1:])
    compared = 0
    for notebook in STEPS:
        old, tables = made_by(smoke_before / "smoke", notebook)
        _, after = made_by(smoke_after / "smoke", notebook)
        mine = converted(notebook, old["parameters"], parameters(notebook, "smoke", old["parameters"]), tables)
        if set(mine) != set(after):
            sys.exit(f"{notebook} has the tables {sorted(after)}, and would have {sorted(mine)}")
        for name in after:
            pd.testing.assert_frame_equal(
                rows(mine[name]), rows(after[name]), check_exact=True, obj=f"{notebook}-{name}"
            )
            compared += len(after[name])
    print(f"smoke: {compared} rows of {len(STEPS)} notebooks are what they were")
    commit = rekey.git(before, "rev-parse", "HEAD")
    current = json.loads(rekey.run_in(before, "-c", rekey.ASK, "cpu"))
    for notebook in STEPS:
        if not current[notebook]:
            sys.exit(f"{notebook} was not current in {before}")
        folder = results.results_folder() / "cpu"
        made, tables = made_by(folder, notebook)
        new = parameters(notebook, "cpu", made["parameters"])
        tables = converted(notebook, made["parameters"], new, tables)
        note = {"from_key": made["key"], "from_commit": commit, "date": datetime.date.today().isoformat()}
        made |= {"parameters": new, "key": results.step_key(notebook, new), "claims": results.claims_digest(notebook)}
        made |= {"rekeyed": [*made.get("rekeyed", []), note], "tables": {}}
        writers = {}
        for name, table in tables.items():
            path = folder / f"{notebook}-{name}.parquet"
            table.to_parquet(path, index=False)
            made["tables"][name] = results._digest(path)
        writers[folder / f"{notebook}.json"] = lambda path, made=made: path.write_text(
            json.dumps(made, indent=1) + "\n"
        )
        write_together(writers)
        print(f"{notebook}: {sum(map(len, tables.values()))} rows of {len(tables)} tables, key {made['key']}")


if __name__ == "__main__":
    main()
