"""The house keeps its floors: who may import whom, no circle, and files that say what they are and fit one sitting."""

import ast
import graphlib
import re
import subprocess
import sys

import pytest

from lab.bookkeeping.code import ROOT

# The floors from above, and which of them each imports from.
MAY_IMPORT = {
    "rebasin": {"rebasin"},
    "lab": {"rebasin", "lab"},
    "lab.measures": {"rebasin", "lab", "lab.measures"},
    "lab.report": {"lab.report"},
}
# What shows results reads them and the names of things, and nothing that could make a number.
REPORT_READS = {f"lab.bookkeeping.{name}" for name in ("code", "pipeline", "results", "vocabulary")} | {"lab.networks"}
REPORT_LACKS = {"torch", "torchvision"}
BENEATH_REBASIN = {"torch", "numpy", "scipy", "tqdm"}

NAMES_THAT_SAY_NOTHING = {"utils", "helpers", "common", "core", "base", "manager", "v2"}
LONGEST = 400


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for folder in ("rebasin", "lab") for path in (ROOT / folder).rglob("*.py")}


def imports(path):
    """The modules that a file imports by their full names, wherever in the file, and whoever they belong to."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relative to itself"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= inner & set(MODULES)
            if not inner <= set(MODULES):
                names.add(node.module)
    return names


GRAPH = {module: imports(path) for module, path in MODULES.items()}


def floor(module):
    return next(name for name in reversed(MAY_IMPORT) if f"{module}.".startswith(f"{name}."))


def is_allowed(module, imported):
    if imported not in MODULES:
        return floor(module) != "lab.report" or imported.partition(".")[0] not in REPORT_LACKS
    return floor(imported) in MAY_IMPORT[floor(module)] or (floor(module) == "lab.report" and imported in REPORT_READS)


def test_a_floor_imports_only_from_those_above_it():
    edges = [(module, imported) for module in GRAPH for imported in GRAPH[module]]
    assert not [f"{module} imports {imported}" for module, imported in edges if not is_allowed(module, imported)]


def test_no_module_imports_itself_by_way_of_others():
    graph = {module: imported & set(MODULES) for module, imported in GRAPH.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_the_library_needs_torch_scipy_and_tqdm_and_nothing_else():
    names = {name.partition(".")[0] for module in MODULES if floor(module) == "rebasin" for name in GRAPH[module]}
    # The package for files on disk is loaded only where one is read or written.
    assert names - set(sys.stdlib_module_names) - {"rebasin", "safetensors"} <= BENEATH_REBASIN
    lazily = "import sys, rebasin; assert 'safetensors' not in sys.modules"
    subprocess.run([sys.executable, "-c", lazily], cwd=ROOT, check=True)


def test_no_test_imports_another():
    tests = list((ROOT / "tests").rglob("test_*.py"))
    names = {"tests", *(path.stem for path in tests)}
    assert not [f"{path.name} imports {name}" for path in tests for name in imports(path) & names]


@pytest.mark.parametrize("folder", ["rebasin", "lab", "tests", "benchmarks", "book", "presets", "notebooks"])
def test_every_name_says_something(folder):
    parts = {part for path in (ROOT / folder).rglob("*") for part in path.relative_to(ROOT).with_suffix("").parts}
    assert not {part for part in parts if NAMES_THAT_SAY_NOTHING & set(part.split("_"))}


def test_a_file_is_read_in_one_sitting():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in MODULES.values()}
    assert not {name: length for name, length in lengths.items() if length > LONGEST}


def test_a_name_given_to_make_is_never_a_command():
    for target, name in (("book", "RUN"), ("reproduce", "PRESET"), ("reproduce", "CLUSTER")):
        command = ["make", "-n", target, f"{name}=a b; touch owned"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert f'"${name}"' in done.stdout and "owned" not in done.stdout


def test_every_package_is_installed_by_its_hash():
    installs = [line for line in (ROOT / "Makefile").read_text().splitlines() if "pip install" in line]
    assert len(installs) == 3
    # The project itself is built by what the lock has.
    assert all("--require-hashes" in line or "--no-deps --no-build-isolation -e ." in line for line in installs)
    lock = (ROOT / "requirements.lock").read_text()
    assert re.search(r"^uv==\S+ \\\n +--hash=sha256:", lock, re.M)
    assert re.search(r"^setuptools==\S+ \\\n +--hash=sha256:", lock, re.M)
