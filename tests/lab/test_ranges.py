"""A parameter out of its range, or of a text that a page cannot show, is refused before anything runs."""

import math
import re

import pytest

from lab.bookkeeping import results
from lab.bookkeeping.pipeline import PRESETS, STEPS, load_preset
from lab.bookkeeping.ranges import BOUND, comments
from lab.bookkeeping.results import begin, check_values, completed, declared_parameters

WRONG = [
    ("accuracy", "barrier_images", -1, "must be at least 1: got -1"),
    ("accuracy", "barrier_pairs", 0, "must be at least 1: got 0"),
    ("accuracy", "barrier_points", 2, "must be at least 3: got 2"),
    ("accuracy", "image_leaves", -1, "must be at least 1: got -1"),
    ("accuracy", "merge_chunk", 0, "must be at least 1: got 0"),
    ("accuracy", "merges", {"many": [2, 1]}, "must be at least 2: got 1"),
    ("accuracy", "merges", {"many": [2, 2]}, "has 2 twice: "),
    ("attack", "epsilons", [], "must have one or more entries: got []"),
    ("attack", "epsilons", [0.0, -4.0], "must be at least 0: got -4.0"),
    ("attack", "epsilons", [0.0, math.inf], "must hold finite numbers: got inf"),
    ("attack", "penalties", {"l1": [-0.1]}, "must be at least 0: got -0.1"),
    ("attack", "stages", [0, 1, 1], "has 1 twice: [0, 1, 1]"),
    ("attack", "steps", 0, "must be at least 1: got 0"),
    ("autoattack", "auto_epsilon", 0, "must be above 0: got 0"),
    ("autoattack", "auto_epsilon", math.nan, "must hold finite numbers: got nan"),
    ("barriers", "barrier_recipes", [], "must have one or more entries: got []"),
    ("barriers", "barrier_recipes", [{"recipe": "<script>"}], "may not hold '<', '>' or '&': got '<script>'"),
    ("barriers", "barrier_test_images", 0, "must be at least 1: got 0"),
    ("barriers", "seed", -1, "must be at least 0: got -1"),
    ("barriers", "seed", 2**70, "must be at most 4294967295: got 1180591620717411303424"),
    ("conditions", "varied", {"width": []}, "must have one or more entries: got {'width': []"),
    ("conditions", "varied", {"width": [16, 16]}, "has 16 twice: "),
    ("train", "run", "/some/where", "run must be a plain folder name"),
    ("train", "run", "", "run must be a plain folder name"),
]


@pytest.mark.parametrize(("notebook", "name", "value", "message"), WRONG)
def test_a_value_out_of_its_range_is_refused(notebook, name, value, message):
    declared = declared_parameters(notebook)
    with pytest.raises(ValueError, match=re.escape(message)):
        begin(notebook, declared | {name: completed(declared, {name: value})[name]})


@pytest.mark.parametrize("notebook", STEPS)
def test_every_number_has_its_range_beside_it_and_every_preset_keeps_it(notebook):
    declared = declared_parameters(notebook)
    said = comments(results._parameters_cell(notebook))
    numbers = [name for name, value in declared.items() if isinstance(value, int | float)]
    assert all(BOUND.search(said[name]) for name in numbers), numbers
    for preset in PRESETS.glob("*.yaml"):
        given = load_preset(preset.stem)
        check_values(notebook, completed(declared, {name: given[name] for name in given if name in declared}))


def test_a_value_that_is_no_plain_one_is_named():
    injected = {"In": ["# Parameters\nsteps = float('nan')\n"]}
    with pytest.raises(ValueError, match=re.escape("parameter 'steps' is no plain value: float('nan')")):
        begin("attack", declared_parameters("attack") | injected)


def test_a_text_that_is_no_yaml_is_named():
    with pytest.raises(ValueError, match=re.escape("'{epochs: [1' is no YAML: while parsing a flow sequence")):
        completed(declared_parameters("train"), {"networks": "{epochs: [1"})
