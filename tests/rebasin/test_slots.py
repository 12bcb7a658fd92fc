"""Slots: every kind of merge as a map from units to units of the merge, numbered one way."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Attention, Chain, images

from rebasin import Permutation, PermutationSpec, trace
from rebasin.expanding.slots import Slots

SPEC = PermutationSpec.from_axes({"w": torch.zeros(4, 3)}, {"w": ("rows", "columns")})


def index(rows, columns=((0, 1, 2), (0, 1, 2))):
    return {"rows": torch.tensor(rows), "columns": torch.tensor(columns)}


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4).flatmap(
        lambda n: st.lists(st.lists(st.integers(0, 9), min_size=4, max_size=4), min_size=n, max_size=n)
    )
)
def test_numbering_keeps_who_shares_with_whom_and_sorts_by_owners(rows):
    slots = Slots.from_index(SPEC, index(rows, [(0, 1, 2)] * len(rows)))
    given, numbered = torch.tensor(rows).flatten(), slots.index["rows"].flatten()
    assert torch.equal(given[:, None] == given, numbered[:, None] == numbered)
    assert sorted(set(numbered.tolist())) == list(range(slots.widths["rows"]))
    owners = [tuple(column.nonzero().flatten().tolist()) for column in slots.owners["rows"].T]
    assert owners == sorted(owners, key=lambda models: (-len(models), models))
    first = {owned: [] for owned in owners}
    for slot in dict.fromkeys(numbered.tolist()):  # in the order of first appearance
        first[owners[slot]].append(slot)
    assert all(of_set == sorted(of_set) for of_set in first.values())


def test_a_permutation_shares_every_unit():
    slots = Slots.of_permutation(Permutation.random(SPEC, (3,)))
    assert slots.widths == {"rows": 4, "columns": 3}
    assert slots.owners["rows"].all()
    assert torch.equal(slots.index["rows"], torch.arange(4).expand(3, 4))


def test_apart_shares_none():
    slots = Slots.apart(SPEC, 3)
    assert slots.widths == {"rows": 12, "columns": 9}
    assert torch.equal(slots.owners["columns"].sum(0), torch.ones(9, dtype=torch.int64))
    assert repr(slots) == "Slots(3 models, 2 groups, 7 + 7 + 7 -> 21 units)"


def test_partial_shares_the_units_of_the_best_scores_among_the_aligned_models():
    scores = {"rows": torch.tensor([0.3, 0.9, 0.1, 0.5]), "columns": torch.zeros(3)}
    slots = Slots.partial(Permutation.identity(SPEC, (2,)), {"rows": 2, "columns": 1}, scores)
    assert slots.index["rows"].tolist() == [[2, 0, 3, 1], [4, 0, 5, 1]]
    assert slots.index["columns"].tolist() == [[0, 1, 2], [0, 3, 4]]  # of equal scores, the first
    assert slots.owners["rows"].tolist() == [
        [True, True, True, True, False, False],
        [True, True, False, False, True, True],
    ]


def test_partial_with_nothing_merged_is_apart_and_with_all_merged_the_permutation():
    permutation = Permutation.random(SPEC, (3,), torch.Generator().manual_seed(0))
    scores = {"rows": torch.rand(4), "columns": torch.rand(3)}
    none = Slots.partial(permutation, {"rows": 0, "columns": 0}, scores)
    for group, units in Slots.apart(SPEC, 3).index.items():
        assert torch.equal(none.index[group], units)
    every = Slots.partial(permutation, {"rows": 4}, {})
    for group, units in Slots.of_permutation(permutation).index.items():
        assert torch.equal(every.index[group], units)


def test_units_of_one_model_may_share_a_slot():
    slots = Slots.from_index(SPEC, index([(5, 5, 1, 2), (5, 1, 8, 8)]))
    assert slots.widths["rows"] == 4
    assert slots.index["rows"].tolist() == [[0, 0, 1, 2], [0, 1, 3, 3]]


def test_slots_of_blocks_are_those_of_whole_heads():
    spec = trace(Attention(), images(1).float())
    slots = Slots.apart(spec, 2)
    assert slots.index.keys() == spec.families.keys()
    (heads,) = set(spec.inside.values())
    assert slots.widths[heads] == 6


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rows": torch.zeros(2, 4, dtype=torch.int64)}, "'rows'.*given, the spec has"),
        (index([(0, 1, 2, 3)]), "'columns': slots are int64, \\(1, 3\\), got torch.int64 \\(2, 3\\)"),
        (index([(0, 1, 2), (0, 1, 2)]), "'rows': slots are int64, \\(2, 4\\)"),
        (index([(0.0, 1, 2, 3), (0, 1, 2, 3)]), "'rows': slots are int64"),
        (index([(0, 1, 2, -3), (0, 1, 2, 3)]), "'rows': there is no slot -3"),
    ],
)
def test_bad_maps_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Slots.from_index(SPEC, given)


def test_slots_numbered_otherwise_are_refused():
    with pytest.raises(ValueError, match="'rows': .*Slots.from_index"):
        Slots(SPEC, Permutation.identity(SPEC, (2,)), index([(1, 0, 2, 3), (1, 0, 2, 3)]))


def test_partial_names_what_is_wrong():
    permutation = Permutation.identity(SPEC, (2,))
    with pytest.raises(ValueError, match="'rows' has 4 units, of which 5"):
        Slots.partial(permutation, {"rows": 5}, {})
    with pytest.raises(ValueError, match="'columns' needs a score"):
        Slots.partial(permutation, {"columns": 1}, {"columns": torch.zeros(4)})
    with pytest.raises(ValueError, match="'row' is no group.*rows, columns"):
        Slots.partial(permutation, {"row": 1}, {})
    with pytest.raises(ValueError, match="each of n models"):
        Slots.partial(Permutation.identity(SPEC), {}, {})


def test_a_network_of_one_model_has_its_own_widths():
    spec = trace(Chain(), images(1).float())
    assert Slots.apart(spec, 1).widths == dict(spec.sizes)
