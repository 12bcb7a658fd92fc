"""The pipeline runs what is stale, skips what is current, resumes what was interrupted, and repeats itself exactly."""

import os
import platform
import re
import shutil
import signal
import subprocess
import sys

import nbformat
import papermill
import psutil
import pytest
import torch

from lab import merges
from lab.bookkeeping import pipeline, results
from lab.bookkeeping.notebook import execute
from lab.bookkeeping.pipeline import PRESETS, STEPS, load_preset, main, preset_steps, run_steps

TINY = {
    "run": "tiny", "networks": {"epochs": [2], "width": 16},
    "merges": {"hierarchy": [2, 4], "many": [2, 4], "mean": [2, 4]}, "barrier_points": 3,
    "barrier_images": 100, "barrier_pairs": 2, "condition_networks": {"epochs": [2]},
    "varied": {"width": [16], "initial": ["torch"], "weight_decay": [0.0]}, "repair_images": 100,
    "trees": 1, "attacked_images": 10, "attack_steps": 1, "halved_images": 20, "halving_networks": 2,
    "variant_networks": {"width": 16, "models": 4, "epochs": [1]},
    "variants": [{"variant": "printed", "sizes": [4], "rounds": [1, 2], "orders": [0]}],
    "comparison_sizes": [2, 4], "comparison_test_images": 100, "comparison_recipes": [
        {"recipe": "tiny", "dataset": "digits", "epochs": [2], "models": 4, "width": 16, "batch_size": 64},
    ],
    "barrier_recipes": [
        {"recipe": "tiny", "section": "width", "dataset": "digits", "epochs": [1], "models": 2, "width": 8,
         "batch_size": 256}
    ], "barrier_test_images": 50,
    "transformer_points": 3, "transformer_test_images": 20, "transformer_matching_images": 20,
    "transformer_straight_through_batch_size": 20, "transformer_recipes": [
        {"recipe": "tiny", "dataset": "digits", "architecture": "vit2", "epochs": [1], "models": 2, "width": 8,
         "batch_size": 256},
        {"recipe": "tiny text", "dataset": "text", "architecture": "language", "epochs": [1], "models": 2, "width": 4,
         "batch_size": 1024},
    ],
    "penalties": {"l1": [0.001], "l2": []}, "penalised_models": 1, "stages": [0, 1, 2], "epsilons": [0.0, 4.0],
    "l2_epsilons": [64.0], "transfer_epsilons": [4.0], "steps": 1, "grid_images": 10, "claim_images": 20,
    "outside_models": 1, "check_images": 5, "gradient_images": 5, "auto_images": 5,
    "planted_models": 2, "planted_trials": 2, "planted_networks": [], "timed_networks": ["mlp"], "timed_repeats": 1,
    "mnist_networks": {"width": 16, "epochs": [1, 2]}, "mnist_images": 100, "straight_through_epochs": 1,
    "half_networks": {"width": 16, "models": 4, "epochs": [1]}, "half_sizes": [2, 4],
    "plane_points": 3, "plane_line_points": 3, "plane_images": 50, "plane_networks": [
        {"recipe": "tiny", "dataset": "digits", "epochs": [1], "models": 2, "width": 8, "batch_size": 256},
    ],
    "picture_networks": {"width": 8, "epochs": [1]}, "picture_epsilons": [32], "picture_steps": 1,
    "arena_settings": [
        {"setting": "tiny", "images": 100, "test_images": 50, "methods": {"mean": [1.0], "pleas": [1.0]},
         "networks": {"dataset": "digits", "architecture": "mlp1", "width": 8, "models": 2, "epochs": [1]}}
    ],
}  # fmt: skip
TABLES = {
    "train": ["models"],
    "merge": ["nodes"],
    "accuracy": ["barriers", "images", "nodes", "paths"],
    "conditions": ["conditions"],
    "comparison": ["nodes"],
    "trees": ["attacked", "images", "nodes", "perturbed"],
    "variants": ["nodes"],
    "barriers": ["barriers"],
    "transformers": ["barriers", "lines"],
    "attack": ["checks", "clean", "curves", "images", "transfer"],
    "perturbations": ["curves", "images"],
    "regularisation": ["layers", "nodes", "radii"],
    "autoattack": ["nodes"],
    "counterexample": ["barriers", "paths", "regions", "smallest"],
    "mnist": ["barriers", "paths"],
    "plane": ["corners", "grid", "lines"],
    "planted": ["recovered", "times"],
    "many": ["members", "nodes", "reliability"],
    "arena": ["attacks", "entries", "times"],
    "pictures": ["attacks", "images", "scores"],
}
COMPARED = ["attack", "perturbations", "regularisation", "autoattack"]


def use(patch, home):
    """Results, cache and executed copies in a folder of the test's own."""
    patch.setenv("REBASIN_RESULTS", str(home / "results"))
    patch.setenv("REBASIN_CACHE", str(home / "cache"))
    patch.setattr(pipeline, "ROOT", home)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder where all steps of a tiny run were made, two at once; not to be changed."""
    home = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        use(patch, home)
        run_steps(TINY, at_once=2)
    return home


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty folder for results, cache and executed copies."""
    use(monkeypatch, tmp_path)
    return tmp_path


@pytest.fixture
def copied(finished, home):
    """A folder with a copy of the tiny run."""
    shutil.copytree(finished / "results", home / "results")
    return home


@pytest.fixture
def given(monkeypatch):
    """The parameters of the steps that would be executed, in order; none of them is."""
    steps = {}
    run = "run_jobs"
    monkeypatch.setattr(pipeline, run, lambda jobs, *_: steps.update({job.notebook: job.parameters for job in jobs}))
    return steps


def tables(home):
    return {path.stem: path.read_bytes() for path in (home / "results" / "tiny").glob("*.parquet")}


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["smok"], "there is no preset 'smok': there are cpu, gpu, paper, smoke"),
        (["smoke", "train", "trian"], "unknown step 'trian': there are train, merge, accuracy, trees, conditions"),
        (["cpu", "-p", "steps", "3"], "results/cpu is for the preset as it is: name a run of your own, -p run NAME"),
        (["smoke", "-p", "run", "cpu"], "results/cpu is for the preset as it is: name a run of your own, -p run NAME"),
        (["cpu", "-p", "run", "gpu"], "results/gpu is for the preset as it is: name a run of your own, -p run NAME"),
        (
            ["smoke", "-p", "run", "/some/where"],
            "run must be a plain folder name, of letters, digits, '_', '.' and '-'",
        ),
        (["smoke", "-p", "run", ""], "run must be a plain folder name, of letters, digits, '_', '.' and '-': got ''"),
        (["smoke", "-p", "steps", "[1"], "'[1' is no YAML: while parsing a flow sequence"),
        (["smoke", "-p", "barrier_images", "-1"], "parameter 'barrier_images' must be at least 1: got -1"),
        (
            ["smoke", "-p", "seed", str(2**70)],
            "parameter 'seed' must be at most 4294967295: got 118059",
        ),
        (["smoke", "-p", "network", "3"], "unknown parameter 'network': the notebooks have arena_epsilons, arena"),
    ],
)
def test_a_wrong_word_is_named_and_nothing_runs(home, given, arguments, message):
    with pytest.raises(SystemExit, match=re.escape(f"rebasin: {message}")):
        main(arguments)
    assert given == {}
    assert not (home / "results").exists() and not (home / "cache").exists()


def test_a_parameter_given_on_the_command_line_goes_to_the_steps_that_have_it(home, given):
    main(["smoke", "-p", "merges", "{hierarchy: [2, 4]}", "-p", "varied", "{width: [16]}", "-p", "run", "mine"])
    merges = {"run": "mine", "merges": {"hierarchy": [2, 4]}}
    assert given == {
        "train": {"run": "mine"},
        **dict.fromkeys(("merge", "accuracy", "trees", *COMPARED), merges),
        "conditions": {"run": "mine", "varied": {"width": [16]}},
        **{step: {"run": "mine"} for step in ("planted", "mnist", "many", "barriers", "counterexample", "comparison")},
        **{step: {"run": "mine"} for step in ("arena", "plane", "pictures", "variants", "transformers")},
    }


@pytest.mark.parametrize("value", ["1e-3", "0.001", "1"])
def test_a_number_on_the_command_line_is_a_number_however_it_is_written(home, given, value):
    main(["smoke", "autoattack", "-p", "auto_epsilon", value])
    assert given == {"autoattack": {"run": "smoke", "auto_epsilon": float(value)}}


@pytest.mark.parametrize("name", ["2024", "2024-11-24", "on", "1e3"])
def test_a_run_has_the_name_that_was_written(home, given, name):
    main(["smoke", "train", "-p", "run", name])
    assert given == {"train": {"run": name}}


@pytest.mark.parametrize("text", ["", "[]", "words", "{threads: 1}", "run: 3", "run: [1"])
def test_a_preset_that_is_none_is_named(home, given, monkeypatch, text):
    (home / "own.yaml").write_text(text)
    monkeypatch.setattr(pipeline, "PRESETS", home)
    with pytest.raises(SystemExit, match="^rebasin: .*(is no preset|is no YAML)"):
        main(["own"])
    assert given == {}


def test_a_run_begins_by_taking_away_what_killed_ones_left(home, given):
    leftovers = [home / "cache" / "snapshot" / ".a.pt.0123456789ab", home / "results" / "x" / ".a.json.0123456789ab"]
    for path in leftovers:
        path.parent.mkdir(parents=True)
        path.write_text("half")
        os.utime(path, (0, 0))
    run_steps(TINY, ["train"])
    assert not any(path.exists() for path in leftovers)


@pytest.mark.parametrize("entry", [1, None, "a"])
def test_an_entry_of_a_plan_that_is_no_dict_is_named(home, entry):
    for notebook, name in (("barriers", "barrier_recipes"), ("arena", "arena_settings")):
        with pytest.raises(ValueError, match=f"{re.escape(repr(entry))}$"):
            execute(notebook, {"run": "mine", name: [entry]})


def test_the_steps_may_be_named_after_the_parameters(home, given):
    main(["smoke", "-p", "networks", "{epochs: [3]}", "train"])
    assert list(given) == ["train"]


@pytest.mark.parametrize("preset", sorted(path.stem for path in PRESETS.glob("*.yaml")))
def test_the_notebooks_have_every_parameter_of_a_preset(preset):
    given = load_preset(preset)
    assert given["run"] == preset
    known = set()
    for step in STEPS:
        declared = results.declared_parameters(step)
        known |= set(declared)
        # Raises for a value of another type than the notebook's own.
        results.completed(declared, {name: value for name, value in given.items() if name in declared})
    assert set(given) <= known


def test_a_preset_runs_the_notebooks_that_it_is_for_and_each_notebook_has_a_large_one():
    assert list(preset_steps("smoke")) == list(STEPS) and list(preset_steps("paper")) == ["trees"]
    assert {*preset_steps("cpu"), *preset_steps("paper")} == set(STEPS)
    assert "trees" not in preset_steps("cpu") and preset_steps("cpu") == preset_steps("gpu")
    for preset in ("cpu", "paper", "gpu"):
        assert "notebooks" not in load_preset(preset) and load_preset("cpu")["steps"] == 20


def test_only_its_notebooks_are_run(home, given, monkeypatch):
    monkeypatch.setattr(pipeline, "PRESETS", home)
    (home / "smoke.yaml").write_text("{run: smoke, notebooks: [train, merge]}")
    main(["smoke"])
    assert sorted(given) == ["merge", "train"]


def test_a_second_run_has_nothing_to_do(copied, given, capsys):
    before = times(copied)
    run_steps(TINY)
    assert given == {}
    assert times(copied) == before
    assert capsys.readouterr().out.splitlines() == [
        f"[{number}/{len(STEPS)}] {step}: up to date" for number, step in enumerate(STEPS, 1)
    ]


@pytest.mark.parametrize(
    ("change", "stale"),
    [
        ({"barrier_points": 5}, ["accuracy", "mnist", "barriers"]),
        ({"straight_through_epochs": 2}, ["mnist"]),
        ({"mnist_networks": {"epochs": [1]}}, ["mnist", "many"]),
        ({"plane_points": 4}, ["plane"]),
        ({"half_sizes": [4]}, ["many"]),
        ({"arena_settings": [TINY["arena_settings"][0] | {"images": 90}]}, ["arena"]),
        ({"barrier_test_images": 60}, ["barriers"]),
        ({"merges": {"hierarchy": [2]}}, ["merge", "accuracy", "trees", *COMPARED]),
        ({"trees": 2}, ["trees"]),
        ({"varied": {"width": [8]}}, ["conditions"]),
        ({"variants": []}, ["variants"]),
        ({"networks": {"epochs": [3]}}, ["train", "merge", "accuracy", "trees", *COMPARED, "planted"]),
        ({"epsilons": [0.0, 1.0]}, ["attack"]),
        ({"stages": [0, 1]}, COMPARED[:3]),
        ({"transformer_test_images": 10}, ["transformers"]),
        ({"seed": 1}, ["barriers", "transformers", "counterexample", "comparison", "plane"]),
        ({"run": "other"}, list(STEPS)),
    ],
)
def test_what_a_parameter_makes_stale_runs_again_and_nothing_else(copied, given, change, stale):
    run_steps(TINY | change)
    assert set(given) == set(stale)


def test_a_step_that_lost_a_table_runs_again(copied, given):
    (copied / "results" / "tiny" / "accuracy-paths.parquet").unlink()
    run_steps(TINY)
    assert list(given) == ["accuracy"]


def test_only_the_steps_asked_for_are_run_and_in_their_order(home, given):
    run_steps(TINY, ["conditions", "merge"])
    assert list(given) == ["conditions", "merge"]


def test_notebooks_that_run_again_one_by_one_give_identical_tables(finished, home):
    """Other tests compare those of train, merge and accuracy; the stored outputs of all are compared, too."""
    assert tables(finished).keys() == {f"{step}-{table}" for step, names in TABLES.items() for table in names}
    again = ["planted", "barriers", "counterexample", "regularisation", "arena"]
    run_steps(TINY, again, at_once=1)
    # Times are measured anew, and nothing else differs.
    measured_anew = {"planted-times", "arena-times"}
    wanted = {name: table for name, table in tables(finished).items() if name.partition("-")[0] in again}
    found = tables(home)
    assert found.keys() == wanted.keys()
    assert all(found[name] == wanted[name] for name in wanted.keys() - measured_anew)


def test_a_stale_step_writes_the_tables_of_its_new_parameters(copied):
    run_steps(TINY | {"barrier_points": 5}, ["train", "accuracy"])
    assert results.read("tiny", "accuracy", "paths")["lam"].nunique() == 5
    assert results.provenance("tiny", "accuracy")["parameters"]["barrier_points"] == 5


def test_an_interrupted_run_resumes_without_training_or_merging_again(finished, home, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(merges, "merge", interrupted)
        execute("merge", {name: TINY[name] for name in TINY if name in results.declared_parameters("merge")})
    kept = times(home / "cache")
    assert kept and not (home / "results").exists()
    run_steps(TINY, ["train", "merge", "accuracy"])
    after = times(home / "cache")
    assert len(after) > len(kept) and {path: after[path] for path in kept} == kept
    for name in ("train-models", "merge-nodes", "accuracy-paths"):
        path = f"results/tiny/{name}.parquet"
        assert (home / path).read_bytes() == (finished / path).read_bytes()


def test_a_notebook_runs_alone_and_builds_the_models_it_misses(finished, home):
    run_steps(TINY, ["accuracy"])
    for name in TABLES["accuracy"]:
        path = f"results/tiny/accuracy-{name}.parquet"
        assert (home / path).read_bytes() == (finished / path).read_bytes()


def test_a_notebook_kernel_gives_the_tables_that_the_pipeline_gives(finished, home):
    chosen = {name: TINY[name] for name in TINY if name in results.declared_parameters("train")}
    notebook = results.NOTEBOOKS / "train.ipynb"
    papermill.execute_notebook(notebook, home / "executed.ipynb", chosen, progress_bar=False, log_output=False)
    path = "results/tiny/train-models.parquet"
    assert (home / path).read_bytes() == (finished / path).read_bytes()


def test_every_step_leaves_a_copy_that_tells_its_parameters_and_what_it_showed(finished):
    folder = finished / "_build" / "runs" / "tiny"
    assert {path.stem for path in folder.glob("*.ipynb")} == set(STEPS)
    copy = nbformat.read(folder / "train.ipynb", as_version=4)
    nbformat.validate(copy)
    injected = [cell for cell in copy.cells if "injected-parameters" in cell.metadata.get("tags", [])]
    assert "networks = {'epochs': [2], 'width': 16}" in injected[0].source.splitlines()
    assert any("text/html" in output.data for cell in copy.cells for output in cell.get("outputs", []))


def test_what_builds_on_another_comes_after_it():
    assert all(STEPS.index(notebook) > STEPS.index(before) for notebook, before in pipeline.BUILDS_ON.items())


def test_how_long_it_may_take_is_what_it_took_last_time(finished, copied):
    took = results.provenance("tiny", "conditions")["wall_seconds"]
    assert pipeline.expected_seconds("conditions", "tiny") == took
    assert pipeline.expected_seconds("conditions", "never run") == pipeline.FIRST_TIME["conditions"]


@pytest.mark.parametrize(("cores", "threads", "at_once"), [(2, 1, 2), (2, 2, 1), (16, 2, 8), (1, 2, 1), (16, None, 1)])
def test_as_many_go_side_by_side_as_there_are_cores_for(monkeypatch, cores, threads, at_once):
    monkeypatch.setattr(pipeline.os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert pipeline.notebooks_at_once(threads) == at_once


def test_threads_are_the_runners_and_no_notebooks_parameter():
    assert pipeline.preset_threads("smoke") == 1
    assert pipeline.preset_threads("cpu") == 2, "with as many the tables of results/cpu were made"
    assert "threads" not in load_preset("cpu")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have one kind of instructions")
def test_torch_computes_with_the_instructions_that_every_x86_machine_has():
    assert torch.backends.cpu.get_cpu_capability() in ("AVX2", "DEFAULT")


def test_the_steps_are_the_notebooks_of_the_book_in_their_order():
    pages = re.findall(r"file: notebooks/(\w+)", (pipeline.PRESETS.parent / "_toc.yml").read_text())
    assert list(STEPS) == pages


# A library that is interrupted while it is loaded, and one that takes the interruption for a fault of its own.
LOADING = """
import runpy, signal, sys

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "pandas":
            try:
                signal.raise_signal(signal.SIGINT)
            except BaseException as error:
                raise ImportError("pandas is broken") from error

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Slow())
sys.argv = ["pipeline", "smoke", "train"]
runpy.run_module("lab.bookkeeping.pipeline", run_name="__main__", alter_sys=True)
"""


def test_interrupted_while_libraries_are_loaded_it_ends_with_one_line(home):
    done = subprocess.run([sys.executable, "-c", LOADING], capture_output=True, text=True)
    assert done.stderr == "rebasin: interrupted; the same command goes on from here\n"
    assert done.returncode == 130


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.parametrize("at_once", ["1", "2"])
def test_ending_the_pipeline_ends_its_notebooks(home, number, at_once):
    command = [sys.executable, "-m", "lab.bookkeeping.pipeline", "smoke", "conditions", "train"]
    command += ["-p", "run", "ended", "-j", at_once]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # What runs in the background begins with Ctrl-C ignored, and hands that on.
    with subprocess.Popen(command, **pipes, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) as process:
        while not process.stdout.readline().endswith("conditions ...\n"):
            pass
        started = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        _, complaint = process.communicate(timeout=60)
    assert process.returncode == (-number if number == signal.SIGKILL else 130)
    if number != signal.SIGKILL:
        assert complaint == "rebasin: interrupted; the same command goes on from here\n"
    gone, alive = psutil.wait_procs(started, timeout=10)
    assert len(gone) >= 2 and not alive
    assert not list((home / "results").rglob("conditions*")), "nothing half done"
