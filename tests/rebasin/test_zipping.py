"""ZipIt! merges what is most alike, within its limits, and as a plain reading of the paper does."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rebasin import Permutation, PermutationSpec
from rebasin.expanding.slots import Slots
from rebasin.merging.zipping import zip_slots


def spec_of(units):
    return PermutationSpec.from_axes({"w": torch.zeros(units)}, {"w": ("units",)})


def drawn_correlations(n, units, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.corrcoef(torch.randn(n * units, 30, generator=generator, dtype=torch.float64))


def sets_of(slots):
    """Which units share a slot: pairs of a model and a unit."""
    index = slots.index["units"]
    return {frozenset(map(tuple, (index == slot).nonzero().tolist())) for slot in range(slots.widths["units"])}


def as_the_paper_has_it(correlations, n, units, left, alpha, beta):
    """A list of slots and a table of similarities, both of which become shorter with each merge."""
    slots = [[(model, unit)] for model in range(n) for unit in range(units)]
    table = np.where(np.eye(n * units, dtype=bool), -np.inf, correlations.numpy())
    may = {model: int((n * units - left) // n * beta + 1e-4) for model in range(n)}
    barred = set()
    while len(slots) > left:
        for model in range(n):
            if may[model] <= 0 and model not in barred:
                barred.add(model)
                for i, j in np.ndindex(table.shape):
                    if slots[i][0][0] == slots[j][0][0] == model:
                        table[i, j] = -np.inf
        i, j = sorted(np.unravel_index(table.argmax(), table.shape))
        assert table[i, j] > -np.inf
        new = [alpha * min(a, b) for a, b in zip(table[i], table[j], strict=True)]
        table[i, :] = table[:, i] = new
        table = np.delete(np.delete(table, j, 0), j, 1)
        if slots[i][0][0] == slots[j][0][0]:
            may[slots[i][0][0]] -= 1
        slots[i] += slots.pop(j)
    return {frozenset(slot) for slot in slots}


@given(
    units=st.integers(1, 12),
    seed=st.integers(0, 99),
    alpha=st.sampled_from([1e-4, 0.3, 1.0]),
    beta=st.sampled_from([0.0, 0.5, 1.0]),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_two_models_are_zipped_as_a_plain_reading_of_the_paper_zips_them(units, seed, alpha, beta, data):
    correlations, merged = drawn_correlations(2, units, seed), data.draw(st.integers(0, units))
    slots = zip_slots(spec_of(units), {"units": correlations}, merged={"units": merged}, alpha=alpha, beta=beta)
    left = 2 * units - merged
    assert slots.widths["units"] == left
    assert sets_of(slots) == as_the_paper_has_it(correlations, 2, units, left, alpha, beta)


@pytest.mark.parametrize("n", [2, 3])
def test_units_of_permuted_copies_meet_their_likes(n):
    answers = torch.randn(8, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    spec = spec_of(8)
    order = Permutation.random(spec, (n,), torch.Generator().manual_seed(1))
    copies = torch.cat([answers[index] for index in order.indices["units"]])
    slots = zip_slots(spec, {"units": torch.corrcoef(copies)}, alpha=1)
    for model, index in enumerate(order.indices["units"]):
        # The same slot for what is the same unit of the first one.
        of_first = slots.index["units"][0][order.indices["units"][0].argsort()]
        assert torch.equal(slots.index["units"][model], of_first[index]), model
    assert slots.owners["units"].all()


def test_without_a_share_for_merges_within_a_model_two_models_are_permuted():
    slots = zip_slots(spec_of(10), {"units": drawn_correlations(2, 10, 0)}, beta=0)
    for of_model in slots.index["units"]:
        assert of_model.sort().values.tolist() == list(range(10))


def test_alike_units_of_one_model_are_merged_as_often_as_beta_allows():
    answers = torch.randn(16, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    answers[4:8] = answers[:4] + 0.01 * answers[8:12]  # four pairs within the first model of eight units
    correlations = {"units": torch.corrcoef(answers)}
    for beta, within in ((0.0, 0), (0.25, 1), (0.5, 2), (1.0, 4)):
        first = zip_slots(spec_of(8), correlations, alpha=0.01, beta=beta).index["units"][0]
        assert 8 - len(first.unique()) == within, beta


def test_three_models_are_zipped_to_the_size_of_one_whatever_is_allowed():
    for seed in range(5):
        for beta in (0.0, 0.3):
            slots = zip_slots(spec_of(7), {"units": drawn_correlations(3, 7, seed)}, beta=beta)
            assert slots.widths == {"units": 7}


def test_no_merge_is_the_ensemble_and_the_correlations_stay_as_they_are():
    correlations = drawn_correlations(2, 5, 0)
    before, spec = correlations.clone(), spec_of(5)
    slots = zip_slots(spec, {"units": correlations}, merged={"units": 0})
    assert torch.equal(slots.index["units"], Slots.apart(spec, 2).index["units"])
    zip_slots(spec, {"units": correlations})
    assert torch.equal(correlations, before)


def test_what_does_not_fit_is_refused():
    spec = spec_of(4)
    with pytest.raises(ValueError, match="no correlations are given for group 'units'"):
        zip_slots(spec, {})
    for wrong in (torch.ones(0, 0), torch.ones(7, 7), torch.ones(8, 4), torch.full((8, 8), torch.nan)):
        with pytest.raises(ValueError, match="group 'units' has 4 units: correlations are finite"):
            zip_slots(spec, {"units": wrong})
    with pytest.raises(ValueError, match="group 'units' has 4 units, of which 5 cannot be merged"):
        zip_slots(spec, {"units": torch.ones(8, 8)}, merged={"units": 5})
    with pytest.raises(ValueError, match="alpha lies above 0 and up to 1, beta between 0 and 1: got 0 and 0.125"):
        zip_slots(spec, {"units": torch.ones(8, 8)}, alpha=0)
