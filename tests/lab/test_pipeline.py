"""The pipeline runs what is stale, skips what is current, resumes what was interrupted, and repeats itself exactly."""

import re
import shutil

import papermill
import pytest
import torch

from lab import merges
from lab.bookkeeping import pipeline, results
from lab.bookkeeping.pipeline import PRESETS, STEPS, load_preset, main, run_steps
from lab.measures import autoattack as reference

TINY = {
    "run": "tiny", "n_models": 8, "tree_leaves": 4, "many_leaves": 4, "epochs": 2, "width": 16, "barrier_points": 3,
    "barrier_images": 100, "barrier_pairs": 2, "condition_models": 8, "condition_widths": [16],
    "condition_epochs": [2], "condition_weight_decays": [0.0], "condition_initials": ["torch"], "repair_images": 100,
    "comparison_sizes": [2, 4], "comparison_test_images": 100, "comparison_recipes": [
        {"recipe": "tiny", "dataset": "digits", "epochs": [2], "models": 4, "width": 16, "batch_size": 64},
    ],
    "barrier_recipes": [
        {"recipe": "tiny", "dataset": "digits", "epochs": [1], "models": 2, "width": 8, "batch_size": 256}
    ], "barrier_test_images": 50,
    "l1_strengths": [0.001], "l2_strengths": [], "penalised_models": 1, "stages": [0, 1, 2], "epsilons": [0.0, 4.0],
    "l2_epsilons": [64.0], "transfer_epsilons": [4.0], "steps": 1, "grid_images": 10, "claim_images": 20,
    "outside_models": 1, "check_images": 5, "gradient_images": 5, "auto_images": 5,
    "planted_trials": 2, "planted_networks": [], "timed_networks": ["mlp"], "timed_repeats": 1,
    "mnist_models": 6, "mnist_width": 16, "mnist_epochs": [1, 2], "mnist_images": 100, "straight_through_epochs": 1,
    "half_models": 4, "half_epochs": 1, "half_sizes": [2, 4],
}  # fmt: skip
TABLES = {
    "train": ["models"],
    "merge": ["nodes"],
    "accuracy": ["images", "nodes", "paths"],
    "conditions": ["conditions"],
    "comparison": ["nodes"],
    "barriers": ["barriers"],
    "attack": ["checks", "clean", "curves", "images", "transfer"],
    "perturbations": ["curves", "images"],
    "regularisation": ["layers", "nodes", "radii"],
    "autoattack": ["nodes"],
    "counterexample": ["barriers", "paths", "regions", "smallest"],
    "mnist": ["barriers", "paths"],
    "planted": ["recovered", "times"],
    "many": ["members", "nodes", "reliability"],
}
COMPARED = ["attack", "perturbations", "regularisation", "autoattack"]


@pytest.fixture(scope="module", autouse=True)
def quick_reference():
    """AutoAttack takes seconds a network; here nothing survives it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "autoattack", lambda *args: torch.zeros(len(args[3]), dtype=torch.bool))
        yield


def use(patch, home):
    """Results and cache in a folder of the test's own."""
    patch.setenv("REBASIN_RESULTS", str(home / "results"))
    patch.setenv("REBASIN_CACHE", str(home / "cache"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder where all steps of a tiny run were made; not to be changed."""
    home = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        use(patch, home)
        run_steps(TINY, STEPS, script=True)
    return home


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty folder for results and cache."""
    use(monkeypatch, tmp_path)
    return tmp_path


@pytest.fixture
def copied(finished, home):
    """A folder with a copy of the tiny run."""
    shutil.copytree(finished / "results", home / "results")
    return home


@pytest.fixture
def executed(monkeypatch):
    """The steps that would be executed; none of them is."""
    steps = []
    monkeypatch.setattr(pipeline, "execute_script", lambda step, chosen: steps.append(step))
    return steps


def tables(home):
    found = {path.stem: path.read_bytes() for path in (home / "results" / "tiny").glob("*.parquet")}
    assert sorted(found) == sorted(f"{step}-{table}" for step, names in TABLES.items() for table in names)
    return found


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["smok"], "there is no preset 'smok': there are cpu, gpu, smoke"),
        (["smoke", "train", "trian"], "unknown step 'trian': there are train, merge, accuracy, conditions"),
        (["cpu", "-p", "epochs", "3"], "results/cpu is for the preset as it is: name a run of your own, -p run NAME"),
        (["smoke", "-p", "epoch", "3"], "unknown parameter 'epoch': the notebooks have architecture, attack_chunk"),
    ],
)
def test_a_wrong_word_is_named_and_nothing_runs(home, executed, arguments, message):
    with pytest.raises(SystemExit, match=re.escape(f"rebasin: {message}")):
        main([*arguments, "--script"])
    assert executed == []
    assert not (home / "results").exists() and not (home / "cache").exists()


def test_a_parameter_given_on_the_command_line_goes_to_the_steps_that_have_it(home, monkeypatch):
    given = {}
    monkeypatch.setattr(pipeline, "execute_script", given.__setitem__)
    main(["smoke", "--script", "-p", "tree_leaves", "4", "-p", "condition_widths", "[16]", "-p", "run", "mine"])
    assert given == {
        "train": {"run": "mine"},
        "merge": {"run": "mine", "tree_leaves": 4},
        "accuracy": {"run": "mine", "tree_leaves": 4},
        **{step: {"run": "mine", "tree_leaves": 4} for step in COMPARED},
        "conditions": {"run": "mine", "condition_widths": [16]},
        **{step: {"run": "mine"} for step in ("planted", "mnist", "many", "barriers", "counterexample", "comparison")},
    }


@pytest.mark.parametrize("value", ["1e-3", "0.001", "1"])
def test_a_number_on_the_command_line_is_a_number_however_it_is_written(home, monkeypatch, value):
    given = {}
    monkeypatch.setattr(pipeline, "execute_script", given.__setitem__)
    main(["smoke", "train", "--script", "-p", "learning_rate", value])
    assert given == {"train": {"run": "smoke", "learning_rate": float(value)}}


def test_the_steps_may_be_named_after_the_parameters(home, executed):
    main(["smoke", "-p", "epochs", "3", "--script", "train"])
    assert executed == ["train"]


@pytest.mark.parametrize("preset", sorted(path.stem for path in PRESETS.glob("*.yaml")))
def test_the_notebooks_have_every_parameter_of_a_preset(preset):
    given = load_preset(preset)
    assert given["run"] == preset
    known = set()
    for step in STEPS:
        declared = results.declared_parameters(step)
        known |= set(declared)
        # Raises for a value of another type than the notebook's own.
        results.begin(step, declared | {name: value for name, value in given.items() if name in declared})
    assert set(given) <= known


def test_a_second_run_has_nothing_to_do(copied, executed, capsys):
    before = times(copied)
    run_steps(TINY, STEPS, script=True)
    assert executed == []
    assert times(copied) == before
    assert capsys.readouterr().out.splitlines() == [
        f"[{number}/{len(STEPS)}] {step}: up to date" for number, step in enumerate(STEPS, 1)
    ]


@pytest.mark.parametrize(
    ("change", "stale"),
    [
        ({"barrier_points": 5}, ["accuracy", "mnist", "barriers"]),
        ({"straight_through_epochs": 2}, ["mnist"]),
        ({"mnist_epochs": [1]}, ["mnist", "many"]),
        ({"half_sizes": [4]}, ["many"]),
        ({"barrier_test_images": 60}, ["barriers"]),
        ({"tree_leaves": 2}, ["merge", "accuracy", *COMPARED]),
        ({"condition_epochs": [1]}, ["conditions"]),
        ({"epochs": 3}, ["train", "merge", "accuracy", *COMPARED, "planted"]),
        ({"epsilons": [0.0, 1.0]}, ["attack"]),
        ({"stages": [0, 1]}, COMPARED[:3]),
        ({"seed": 1}, list(STEPS)),
        ({"run": "other"}, list(STEPS)),
    ],
)
def test_what_a_parameter_makes_stale_runs_again_and_nothing_else(copied, executed, change, stale):
    run_steps(TINY | change, STEPS, script=True)
    assert executed == stale


def test_a_step_that_lost_a_table_runs_again(copied, executed):
    (copied / "results" / "tiny" / "accuracy-paths.parquet").unlink()
    run_steps(TINY, STEPS, script=True)
    assert executed == ["accuracy"]


def test_only_the_steps_asked_for_are_run_and_in_their_order(home, executed):
    run_steps(TINY, ["conditions", "merge"], script=True)
    assert executed == ["conditions", "merge"]


def test_running_everything_twice_gives_identical_tables(finished, home):
    run_steps(TINY, STEPS, script=True)
    # Times are measured anew, and nothing else differs.
    assert {**tables(home), "planted-times": b""} == {**tables(finished), "planted-times": b""}


def test_a_stale_step_writes_the_tables_of_its_new_parameters(copied):
    run_steps(TINY | {"barrier_points": 5}, STEPS, script=True)
    assert results.read("tiny", "accuracy", "paths")["lam"].nunique() == 5
    assert results.provenance("tiny", "accuracy")["parameters"]["barrier_points"] == 5


def test_an_interrupted_run_resumes_without_training_or_merging_again(finished, home, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(merges, "merge_many", interrupted)
        run_steps(TINY, STEPS, script=True)
    assert {path.name for path in (home / "results" / "tiny").glob("*.json")} == {"train.json"}
    kept = times(home / "cache") | times(home / "results")
    trained = [path for path in kept if path.parent.parent.name == "models"]
    merged = [path for path in kept if path.parent.name == "merges"]
    assert len(trained) == 8 and len(merged) == 2, "eight models, and the hierarchy's nodes of two and of four"
    monkeypatch.setattr(merges, "merge_hierarchical", interrupted)
    run_steps(TINY, ["train", "merge", "accuracy"], script=True)
    after = times(home / "cache") | times(home / "results")
    assert {path: after[path] for path in kept} == kept
    for name in ("train-models", "merge-nodes", "accuracy-paths"):
        path = f"results/tiny/{name}.parquet"
        assert (home / path).read_bytes() == (finished / path).read_bytes()


def test_a_notebook_runs_alone_and_builds_the_models_it_misses(finished, home):
    run_steps(TINY, ["accuracy"], script=True)
    for name in TABLES["accuracy"]:
        path = f"results/tiny/accuracy-{name}.parquet"
        assert (home / path).read_bytes() == (finished / path).read_bytes()


def test_a_script_refuses_what_its_notebook_does_not_have(home):
    with pytest.raises(ValueError, match="unknown parameter 'widht' of notebooks/train.ipynb: did you mean 'width'"):
        pipeline.execute_script("train", {"widht": 16})
    assert not (home / "results").exists()


def test_a_notebook_kernel_gives_the_tables_that_a_script_gives(finished, home, monkeypatch):
    monkeypatch.setattr(pipeline, "ROOT", home)  # where the executed copy is kept
    run_steps(TINY, ["train"])
    path = "results/tiny/train-models.parquet"
    assert (home / path).read_bytes() == (finished / path).read_bytes()
    assert (home / "_build" / "runs" / "tiny" / "train.ipynb").exists()


def test_papermill_refuses_a_parameter_that_the_notebook_does_not_have(home):
    notebook = results.NOTEBOOKS / "train.ipynb"
    given = {"run": "tiny", "n_modles": 2, "epochs": 1, "width": 8}
    message = "unknown parameter 'n_modles' of notebooks/train.ipynb: did you mean 'n_models'?"
    with pytest.raises(papermill.PapermillExecutionError, match=re.escape(message)):
        papermill.execute_notebook(notebook, home / "executed.ipynb", given, progress_bar=False, log_output=False)
    assert not (home / "results").exists() and not (home / "cache").exists()
