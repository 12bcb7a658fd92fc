"""Whatever a public function is given that it cannot take, it says which argument is at fault, and changes nothing."""

import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import rebasin
from rebasin import Permutation, PermutationSpec, Slots
from rebasin.expanding.costs import layer_costs
from rebasin.fitting.alignment import match_grams
from rebasin.fitting.norm_statistics import measure_norms
from rebasin.merging.budget import best_budget, shaped_budget
from rebasin.merging.by_task import repair_by_task
from rebasin.merging.gains import mismatch_gains
from rebasin.merging.zipping import zip_slots

NAN = float("nan")


def net(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).eval()


with torch.random.fork_rng():
    A, B = net(0), net(1)
    X, Y = torch.randn(24, 3), torch.randint(2, (24,))
    NORMED = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)).eval()
SPEC = rebasin.trace(A, X)
OTHER_SPEC = rebasin.trace(NORMED, X)
STATE = A.state_dict()
GRAMS = rebasin.collect(SPEC, [A, B], X)
MERGE = rebasin.pleas(GRAMS)
SLOTS = Slots.of_permutation(Permutation.identity(SPEC, (2,)))


def with_entry(change):
    """Weights of A whose first entry is changed."""
    return {**STATE, "0.weight": change(STATE["0.weight"])}


def as_dtype(dtype):
    return {key: tensor.to(dtype) for key, tensor in STATE.items()}


def with_value(value):
    def change(tensor):
        changed = tensor.clone()
        changed[0, 0] = value
        return changed

    return with_entry(change)


def without(bad, *names):
    return {what: value for what, value in bad.items() if what not in names}


WEIGHTS = {
    "None": None,
    "a number": 3,
    "a text": "weights",
    "an array": np.zeros(3),
    "a tensor": torch.zeros(3),
    "arrays": {key: tensor.numpy() for key, tensor in STATE.items()},
    "a list among them": with_entry(torch.Tensor.tolist),
    "no key": {key: tensor for key, tensor in STATE.items() if key != "0.weight"},
    "another key": {**STATE, "more": X},
    "another shape": with_entry(torch.t),
    "a leading axis alone": with_entry(lambda tensor: torch.stack([tensor, tensor])),
    "NaN": with_value(NAN),
    "infinite": with_value(float("inf")),
    "without values": with_entry(lambda tensor: tensor.to("meta")),
    "sparse": with_entry(torch.Tensor.to_sparse),
    "whole numbers": as_dtype(torch.int8),
    "of 8 bits": as_dtype(torch.float8_e4m3fn),
    "another model": NORMED,
    "none": {},
}
LISTS = {f"a list of {what}": [A, value] for what, value in WEIGHTS.items()} | {"an empty list": []}
SPECS = {"None": None, "a model": A, "a dict": {}, "a text": "spec"}
MODELS = {"None": None, "weights": STATE, "the class": nn.Linear, "a function": torch.relu}
COUNTS = {"negative": -1, "a fraction": 1.5, "a text": "3", "NaN": NAN, "a list": [2], "True": True, "a tensor": X}
FROM_ONE = COUNTS | {"zero": 0}
SEEDS = COUNTS | {"None": None, "huge": 2**70, "a generator": torch.Generator()}
NUMBERS = {"NaN": NAN, "infinite": float("inf"), "a text": "1", "None": None, "a tensor": X, "complex": 1j}
WORDS = {"another word": "best", "None": None, "a list": ["weights"], "a number": 1}
INPUTS = {
    "None": None,
    "a list": [X],
    "an array": X.numpy(),
    "NaN": X * NAN,
    "infinite": X / 0,
    "none": X[:0],
    "double": X.double(),
    "without batch": torch.tensor(1.0),
    "on another device": X.to("meta"),
    "sparse": X.to_sparse(),
}
LOADERS = {f"a list of {what}": [value] for what, value in INPUTS.items() if what != "a list"}
LOADERS |= {"None": None, "a number": 3, "a text": "data", "an empty list": [], "an empty batch": [()], "bytes": [b"x"]}
CORRELATIONS = {"0": torch.eye(12), "2": torch.eye(10)}
TENSORS = {"a list": [[0.0]], "an array": np.eye(12), "NaN": torch.eye(12) * NAN, "another shape": torch.eye(5)}
ENTRIES = {what: {**CORRELATIONS, "0": value} for what, value in TENSORS.items()} | {"none": {}}
MERGED = {"another group": {"typo": 1}, "more than there are": {"0": 7}, "negative": {"0": -1}}
COSTS = layer_costs(SPEC, A, X)
PERMUTATIONS = {"None in place of one": 3, "of another spec": Permutation.identity(OTHER_SPEC), "a dict": SLOTS.index}
OF_MODELS = {"a matching": rebasin.match(SPEC, A, B), "of no model": Permutation.identity(SPEC), "a dict": SLOTS.index}

# Each function, good arguments, and of each argument what is bad.
PAIR = {"spec": SPEC, "a": A, "b": B}
BAD_PAIR = {"spec": SPECS, "a": WEIGHTS, "b": WEIGHTS}
MANY = {"spec": SPEC, "models": [A, B]}
BAD_MANY = {"spec": SPECS, "models": LISTS | WEIGHTS}
BATCHES = [(X, Y)]
FUNCTIONS = {
    "match": (rebasin.match, PAIR, BAD_PAIR | {"by": WORDS}),
    "weight_matching": (
        rebasin.weight_matching,
        PAIR,
        BAD_PAIR | {"seed": SEEDS, "max_sweeps": COUNTS, "chunk": FROM_ONE, "start": PERMUTATIONS},
    ),
    "frank_wolfe_matching": (
        rebasin.frank_wolfe_matching,
        PAIR,
        BAD_PAIR | {"max_sweeps": COUNTS, "tolerance": NUMBERS | {"negative": -1.0}, "chunk": FROM_ONE},
    ),
    "activation_matching": (
        rebasin.activation_matching,
        {**PAIR, "model": A, "loader": X},
        BAD_PAIR | {"model": MODELS, "loader": LOADERS, "similarity": WORDS},
    ),
    "straight_through_matching": (
        rebasin.straight_through_matching,
        {**PAIR, "model": A, "loader": BATCHES},
        BAD_PAIR
        | {
            "model": MODELS,
            "epochs": FROM_ONE,
            "learning_rate": NUMBERS | {"zero": 0.0},
            "seed": SEEDS,
            "chunk": FROM_ONE,
        }
        | {
            "loss": {"None": None, "a text": "loss"},
            "loader": LOADERS | {"no targets": [X], "targets of text": [(X, "y")]},
        },
    ),
    "inner_product": (
        rebasin.inner_product,
        PAIR,
        {name: without(bad, "NaN", "infinite", "without values") for name, bad in BAD_PAIR.items()},
    ),
    "mean_inner_product": (rebasin.mean_inner_product, MANY, BAD_MANY),
    "merge": (rebasin.merge, MANY, BAD_MANY | {"by": WORDS, "mend": {"a text": "repair"}, "mend_at": WORDS}),
    "merge_mean": (rebasin.merge_mean, MANY, BAD_MANY),
    "merge_many": (rebasin.merge_many, MANY, BAD_MANY | {"seed": SEEDS, "max_rounds": COUNTS}),
    "merge_hierarchical": (
        rebasin.merge_hierarchical,
        MANY,
        BAD_MANY
        | {"seed": SEEDS, "shuffle": {"None": None, "a text": "no"}, "chunk": FROM_ONE, "mend": {"a number": 3}},
    ),
    "interpolate": (
        rebasin.interpolate,
        {"a": STATE, "b": B.state_dict(), "weight": 0.5},
        {"a": without(WEIGHTS, "infinite", "without values"), "weight": NUMBERS},
    ),
    "repair": (
        rebasin.repair,
        {"model": A, "merged": A, "parents": [A, B], "inputs": X},
        {"model": MODELS, "merged": WEIGHTS, "parents": LISTS, "inputs": INPUTS},
    ),
    "reset_norms": (
        rebasin.reset_norms,
        {"model": NORMED, "weights": NORMED, "inputs": X},
        {"model": MODELS, "weights": {"None": None, "another model": A, "none": {}}, "inputs": INPUTS},
    ),
    "mender": (
        rebasin.mender,
        {"model": A, "inputs": X},
        {"model": MODELS, "inputs": {"None": None, "a list": [X], "one": X[:1]}},
    ),
    "collect": (
        rebasin.collect,
        {**MANY, "loader": X},
        BAD_MANY
        | {"loader": LOADERS, "model": without(MODELS, "None")}
        | {"places": FROM_ONE, "memory": NUMBERS | {"zero": 0.0}, "seed": SEEDS},
    ),
    "pleas": (
        rebasin.pleas,
        {"grams": GRAMS},
        {
            "grams": SPECS,
            "size": NUMBERS | {"small": 0.5, "large": 2.5},
            "by": WORDS,
            "objective": WORDS,
            "heads": WORDS,
        }
        | {"permutation": {"a text": "identity", "of one model": Permutation.identity(SPEC)}},
    ),
    "fit_slots": (
        rebasin.fit_slots,
        {"grams": GRAMS, "slots": SLOTS},
        {"grams": SPECS, "slots": SPECS, "objective": WORDS, "heads": WORDS},
    ),
    "least_squares": (
        rebasin.least_squares,
        {"grams": GRAMS, "slots": SLOTS},
        {"grams": SPECS, "slots": SPECS, "objective": WORDS, "heads": WORDS},
    ),
    "refit": (
        rebasin.refit,
        {"merge": SLOTS, "models": [A, B], "inputs": X},
        {
            "merge": SPECS,
            "models": LISTS,
            "inputs": INPUTS,
            "model": without(MODELS, "None"),
            "places": FROM_ONE,
            "seed": SEEDS,
        },
    ),
    "Slots": (
        Slots,
        {"spec": SPEC, "permutation": SLOTS.permutation, "index": SLOTS.index},
        {
            "spec": SPECS,
            "permutation": OF_MODELS | {"of another spec": Permutation.identity(OTHER_SPEC, (2,))},
            "index": {"lists": {group: units.tolist() for group, units in SLOTS.index.items()}, "none": {}},
        },
    ),
    "Slots.of_permutation": (Slots.of_permutation, {"permutation": SLOTS.permutation}, {"permutation": OF_MODELS}),
    "Slots.apart": (Slots.apart, {"spec": SPEC, "n": 2}, {"spec": SPECS, "n": FROM_ONE}),
    "Slots.partial": (
        Slots.partial,
        {"permutation": SLOTS.permutation, "merged": {"0": 3}, "scores": {"0": torch.zeros(6)}},
        {"permutation": OF_MODELS, "merged": MERGED, "scores": {"none": {}}},
    ),
    "zip_slots": (
        zip_slots,
        {"spec": SPEC, "correlations": CORRELATIONS},
        {"spec": SPECS, "correlations": ENTRIES, "merged": MERGED},
    ),
    "match_grams": (
        match_grams,
        {"grams": GRAMS},
        {"grams": SPECS, "similarity": WORDS | {"misspelt": "corelation"}},
    ),
    "best_budget": (
        best_budget,
        {"spec": SPEC, "costs": COSTS, "gains": {"0": torch.zeros(7)}, "size": 1.5},
        {
            "spec": SPECS,
            "costs": {"none": []},
            "gains": {"none": {}, "lists": {"0": [0.0] * 7}, "another group": {"typo": torch.zeros(7)}},
            "size": NUMBERS | {"small": 0.5, "large": 2.5},
            "n": FROM_ONE,
            "by": WORDS,
        },
    ),
    "shaped_budget": (
        shaped_budget,
        {"spec": SPEC, "costs": COSTS, "shape": "prefix", "size": 1.5},
        {"spec": SPECS, "costs": {"none": []}, "shape": WORDS, "size": NUMBERS | {"small": 0.5}, "n": FROM_ONE},
    ),
    "mismatch_gains": (
        mismatch_gains,
        {"mismatch": {"0": torch.zeros(6)}},
        {"mismatch": {"lists": {"0": [0.0]}, "negative": {"0": torch.full((6,), -1.0)}}},
    ),
    "repair_by_task": (
        repair_by_task,
        {"model": A, "merged": A, "parents": [A, B], "inputs": [X, X]},
        {
            "model": MODELS,
            "merged": WEIGHTS,
            "parents": LISTS | {"one without an axis": A},
            "inputs": {"a tensor": X, "of one task": [X], "None": None},
        },
    ),
    "measure_norms": (
        measure_norms,
        {"model": NORMED, "loader": X},
        {"model": {"without weights": nn.ReLU()}, "loader": LOADERS},
    ),
    "solve_assignment": (
        rebasin.solve_assignment,
        {"scores": torch.eye(3)},
        {
            "scores": {
                "None": None,
                "a list": [[1.0]],
                "not square": X,
                "NaN": torch.eye(3) * NAN,
                "an array": np.eye(3),
            }
            | {
                "complex": torch.eye(3) * 1j,
                "without values": torch.eye(3).to("meta"),
                "sparse": torch.eye(3).to_sparse(),
            }
        },
    ),
    "trace": (
        rebasin.trace,
        {"model": A, "example": X},
        {
            "model": MODELS,
            "example": {
                "None": None,
                "an empty list": [],
                "a list of text": ["x"],
                "another width": torch.ones(2, 7),
                "a text": "x",
            }
            | {"an array": X.numpy(), "without values": X.to("meta"), "sparse": X.to_sparse()},
        },
    ),
    "mean": (
        rebasin.mean,
        {"weights": {"w": X}},
        {
            "weights": {"None": None, "a text": "w", "arrays": {"w": X.numpy()}, "no axis": {"w": torch.tensor(1.0)}},
            "axis": COUNTS | {"too many": 5},
        },
    ),
    "Permutation": (
        Permutation,
        {"spec": SPEC, "indices": Permutation.identity(SPEC).indices},
        {
            "spec": SPECS,
            "indices": {
                "None": None,
                "none": {},
                "lists": {"0": [0], "2": [0]},
                "floats": {"0": X, "2": X},
                "twice": {"0": torch.zeros(6, dtype=torch.int64), "2": torch.arange(5)},
                "other axes": {"0": torch.arange(6).repeat(2, 1), "2": torch.arange(5).repeat(3, 1)},
            },
        },
    ),
    "Permutation.apply": (
        Permutation.identity(SPEC).apply,
        {"models": A},
        {"models": WEIGHTS},
    ),
    "Permutation.compose": (
        Permutation.identity(SPEC).compose,
        {"first": Permutation.identity(SPEC)},
        {"first": PERMUTATIONS},
    ),
    "PermutationSpec.from_axes": (
        PermutationSpec.from_axes,
        {"state": {"w": X}, "axes": {"w": ("h", None)}},
        {
            "state": {"None": None, "an array": {"w": X.numpy()}, "another": {"v": X}, "empty": {"w": X[:0]}},
            "axes": {
                "None": None,
                "a text": {"w": "hi"},
                "too many": {"w": ("h", None, None)},
                "numbers": {"w": (1, None)},
            },
            "statistics": {"a text": "w", "another": ["mean"]},
        },
    ),
}
CASES = [
    pytest.param(function, good, argument, value, id=f"{name} {argument} {what}")
    for name, (function, good, bad) in FUNCTIONS.items()
    for argument, values in bad.items()
    for what, value in values.items()
]


def assert_clear(call, arguments):
    """The call raises from this package's own code, what it says is a sentence, and nothing given was changed."""
    given = [*A.state_dict().values(), *B.state_dict().values(), X]
    before = [tensor.clone() for tensor in given]
    with pytest.raises((TypeError, ValueError)) as raised:
        call(**arguments)
    error = raised.value
    last = traceback.extract_tb(error.__traceback__)[-1]
    assert Path(rebasin.__file__).parent in Path(last.filename).parents, f"raised by {last.filename}: {error!r}"
    assert type(error) in (TypeError, ValueError, rebasin.SpecError) and " " in str(error)
    assert all(map(torch.equal, given, before))
    return str(error)


@pytest.mark.parametrize(("function", "good", "argument", "value"), CASES)
def test_what_cannot_be_taken_is_refused_by_name(function, good, argument, value):
    assert_clear(function, {**good, argument: value})


@pytest.mark.parametrize(
    ("mended", "said"),
    [
        (lambda merged: {}, "'0.weight' is in the merge and not in the other model"),
        (lambda merged: {**merged, "more": X}, "'more' is in what mend gives and not in the other model"),
        (lambda merged: None, "what mend gives: a module, a dict of tensors or a list of them is needed"),
        (lambda merged: {key: tensor * NAN for key, tensor in merged.items()}, "'0.weight' holds NaN"),
        (lambda merged: {key: tensor.double() for key, tensor in merged.items()}, "what mend gives is torch.float64"),
    ],
)
@pytest.mark.parametrize("mend_at", ["end", "every stage"])
def test_a_mending_that_gives_something_else_is_named(mended, said, mend_at):
    call = {**MANY, "mend": lambda merged, parents: mended(merged), "mend_at": mend_at}
    assert said in assert_clear(rebasin.merge, call)


@given(
    key=st.sampled_from(list(STATE)),
    leading=st.lists(st.integers(1, 3), max_size=2),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float64, torch.complex64, torch.int32, torch.bool]),
)
@settings(max_examples=40, deadline=None)
def test_an_entry_that_differs_from_the_others_is_named(key, leading, dtype):
    changed = {name: tensor.expand(*leading, *tensor.shape) for name, tensor in STATE.items()}
    good = dict(changed)
    changed[key] = changed[key].to(dtype)
    for function in (rebasin.weight_matching, rebasin.frank_wolfe_matching):
        assert repr(key) in assert_clear(function, {"spec": SPEC, "a": good, "b": changed})
    changed[key] = STATE[key].expand(4, *leading, *STATE[key].shape)
    assert repr(key) in assert_clear(rebasin.weight_matching, {"spec": SPEC, "a": changed, "b": changed})


def test_what_apply_gives_shares_no_memory_with_what_it_was_given():
    weights = {key: tensor.clone() for key, tensor in STATE.items()}
    for permutation in (Permutation.identity(SPEC), Permutation.identity(SPEC, (2,))):
        for tensor in permutation.apply(weights).values():
            tensor.zero_()
    assert all(torch.equal(weights[key], STATE[key]) for key in STATE)


@pytest.mark.parametrize("match", [rebasin.weight_matching, rebasin.frank_wolfe_matching])
@pytest.mark.parametrize("scale", [1e-4, 300.0])
def test_a_planted_permutation_of_half_numbers_is_found_whatever_their_size(match, scale):
    generator = torch.Generator().manual_seed(0)
    a = {key: (torch.randn(tensor.shape, generator=generator) * scale).half() for key, tensor in STATE.items()}
    planted = Permutation.random(SPEC, generator=generator)
    back = match(SPEC, a, planted.apply(a)).apply(planted.apply(a))
    assert all(torch.equal(back[key], a[key]) for key in a)
    assert back["0.weight"].dtype == torch.float16
