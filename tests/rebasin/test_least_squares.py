"""Least squares in closed form: the answer of lstsq on recorded rows, whatever is shared by whom."""

import warnings

import pytest
import torch
from networks import Attention, Branches, Chain, Reused, drawn, images
from torch import nn
from torch.func import functional_call

from rebasin import Permutation, Slots, collect, least_squares, trace
from rebasin.expanding.expansion import expand
from rebasin.expanding.layout import places
from rebasin.weights import take

OBJECTIVES = ["averaged", "stacked"]


def prepared(network, n, count=400, seed=0, **options):
    """The spec of a network, n models of random weights, and their Gram matrices of all places."""
    model = network().double().eval()
    spec, models = trace(model, images(1)), drawn(model, n, seed=seed)
    return model, spec, models, collect(spec, models, images(count), model=model, **{"places": None} | options)


def some_slots(spec, n, shared, seed=0):
    """Slots in which this share of each group's units is common to all models, after a random permutation."""
    generator = torch.Generator().manual_seed(seed)
    permutation = Permutation.random(spec, (n,), generator)
    scores = {group: torch.rand(spec.sizes[group], generator=generator) for group in spec.families}
    return Slots.partial(permutation, {g: round(shared * spec.sizes[g]) for g in spec.families}, scores)


def recorded(model, weights, x):
    """What each linear layer reads and gives, (images, ...), by hooks."""
    seen = {}

    def keep(name):
        def hook(module, args, value):
            seen[name] = args[0], value

        return hook

    hooks = [
        m.register_forward_hook(keep(name)) for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)
    ]
    functional_call(model, weights, (x,))
    for hook in hooks:
        hook.remove()
    return seen


def in_slots(values, index, width):
    """Values (images, units, ...) of permuted models in their slots: the mean over those that share one, 0 of none."""
    total, members = values[0].new_zeros(len(values[0]), width, *values[0].shape[2:]), torch.zeros(width)
    for value, slots in zip(values, index, strict=True):
        total.index_add_(1, slots, value)
        members += torch.bincount(slots, minlength=width)
    return total / members.clamp(min=1).reshape(-1, *[1] * (total.ndim - 2))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("shared", [1.0, 0.5, 0.0])
def test_the_weights_are_those_of_lstsq_on_the_recorded_rows(monkeypatch, objective, n, shared):
    monkeypatch.setattr("rebasin.fitting.least_squares.STRENGTHS", (0.0,))  # no ridge: there are rows enough
    model, spec, models, grams = prepared(Chain, n)
    slots = some_slots(spec, n, shared)
    weights, fits = least_squares(grams, slots, objective=objective)
    moved = slots.permutation.apply(models)
    seen = [recorded(model, take(moved, m), images(400)) for m in range(n)]
    index, owners = slots.index, slots.owners
    reads = [seen[m]["3"][0] for m in range(n)], [seen[m]["3"][1] for m in range(n)]
    for slot in range(slots.widths["3"]):
        own = owners["3"][:, slot]
        allowed = owners["1"][own].any(0)
        if objective == "averaged":
            x = in_slots(reads[0], index["1"], slots.widths["1"])
            y = in_slots(reads[1], index["3"], slots.widths["3"])[:, slot]
        else:
            of_owners = [m for m in range(n) if own[m]]
            # What some of the owners have in a slot counts for the others, since the merge reads all slots at once.
            scale = len(of_owners) / owners["1"][own].sum(0).clamp(min=1)
            x = torch.cat([in_slots([reads[0][m]], index["1"][[m]], slots.widths["1"]) for m in of_owners]) * scale
            y = torch.cat([in_slots([reads[1][m]], index["3"][[m]], slots.widths["3"])[:, slot] for m in of_owners])
        x = torch.cat([x[:, allowed], torch.ones(len(x), 1)], 1)
        expected = torch.linalg.lstsq(x, y.unsqueeze(-1)).solution.squeeze(-1)
        # The normal equations square the condition of the rows, here about 100.
        torch.testing.assert_close(weights["3.weight"][slot, allowed], expected[:-1], rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(weights["3.bias"][slot], expected[-1], rtol=1e-8, atol=1e-8)
        assert not weights["3.weight"][slot, ~allowed].any()
    if shared:  # otherwise the start leaves nothing, and nothing changes it
        assert fits["3.weight"].strength == 0


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_first_layer_gives_the_mean_of_its_slots_units_or_of_its_models(monkeypatch, objective):
    """Two units of one model share a slot with one of another: all read the same, so that the answer is known."""
    monkeypatch.setattr("rebasin.fitting.least_squares.STRENGTHS", (0.0,))
    _, spec, models, grams = prepared(Chain, 2)
    assert [key for key, layer in grams.layers.items() if layer.alike] == ["1.weight"]
    index = {group: torch.arange(units).repeat(2, 1) for group, units in spec.sizes.items()}
    index["1"][0] = (index["1"][0] - 1).clamp(min=0)  # units 0 and 1 of the first model, and unit 0 of the second
    weights, fits = least_squares(grams, Slots.from_index(spec, index), objective=objective)
    (first, second, *_), (other, *_) = models["1.weight"]
    expected = (first + second + other) / 3 if objective == "averaged" else ((first + second) / 2 + other) / 2
    torch.testing.assert_close(weights["1.weight"][0], expected, rtol=1e-8, atol=1e-8)
    assert (fits["1.weight"].strength == float("inf")) == (objective == "averaged")


@pytest.mark.parametrize("shared", [1.0, 0.4])
@pytest.mark.parametrize("layer", ["residual", "side", "grouped"])
def test_no_small_change_of_a_convolution_leaves_less(monkeypatch, layer, shared):
    monkeypatch.setattr("rebasin.fitting.least_squares.STRENGTHS", (0.0,))
    model, spec, models, grams = prepared(Branches, 2)
    slots = some_slots(spec, 2, shared)
    weights, fits = least_squares(grams, slots)
    moved = slots.permutation.apply(models)
    seen = [recorded(model, take(moved, m), images(400))[layer] for m in range(2)]
    key, module = f"{layer}.weight", model.get_submodule(layer)
    x = in_slots([x for x, _ in seen], *places(slots, key, 1))
    y = in_slots([y for _, y in seen], *places(slots, key, 0))
    weight = weights[key].clone().requires_grad_()
    bias = weights[f"{layer}.bias"].clone().requires_grad_() if module.bias is not None else None
    groups = x.shape[1] // weight.shape[1]
    loss = (nn.functional.conv2d(x, weight, bias, 1, module.padding, 1, groups) - y).square().sum()
    loss.backward()
    structural = weights[key] == 0
    assert structural.any() == (shared < 1 and layer in ("residual", "side"))
    scale = (y.square().sum() * x.square().sum()).sqrt()
    assert weight.grad[~structural].abs().max() < 1e-9 * scale
    assert bias is None or bias.grad.abs().max() < 1e-9 * scale
    start = expand(slots, models, grams.program)[key]
    assert not torch.allclose(start, weights[key], rtol=1e-3)
    assert 0 < fits[key].after < fits[key].before


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("strength", [1e-6, 1.0])
@pytest.mark.parametrize("network", [Chain, Branches, Attention, Reused])
def test_permuted_copies_of_a_model_merge_into_it_whatever_the_ridge(monkeypatch, network, strength, objective):
    monkeypatch.setattr("rebasin.fitting.least_squares.STRENGTHS", (strength,))
    model = network().double().eval()
    spec, single = trace(model, images(1)), drawn(model, 1)
    permutation = Permutation.random(spec, (3,), torch.Generator().manual_seed(0))
    models = permutation.apply({key: tensor.expand(3, *tensor.shape[1:]) for key, tensor in single.items()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ten images are fewer than the unknowns, which does not matter here
        weights, _ = least_squares(
            collect(spec, models, images(10), model=model),
            Slots.of_permutation(permutation.invert()),
            objective=objective,
        )
    for key, tensor in single.items():
        torch.testing.assert_close(weights[key], tensor[0], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_all_apart_is_fitted_already(objective):
    _, spec, models, grams = prepared(Branches, 2)
    slots = Slots.apart(spec, 2)
    weights, fits = least_squares(grams, slots, objective=objective)
    start = expand(slots, models, grams.program)
    # Stacked, the outputs of one model are not the mean of both: their biases differ.
    for key in grams.layers if objective == "averaged" else ["residual.weight", "side.weight", "grouped.weight"]:
        torch.testing.assert_close(weights[key], start[key], rtol=1e-6, atol=1e-8)
        assert fits[key].after < 1e-12


def test_heads_side_by_side_are_fitted_each_to_its_own():
    model, spec, models, grams = prepared(Chain, 2)
    slots = some_slots(spec, 2, 0.5)
    weights, fits = least_squares(grams, slots, heads="side by side")
    assert weights["7.weight"].shape == (6, slots.widths["5"])
    assert not weights["7.weight"][:3, slots.owners["5"][1] & ~slots.owners["5"][0]].any()
    assert fits["7.weight"].after < fits["7.weight"].before


def test_units_that_are_dead_constant_or_collinear_leave_the_weights_finite():
    model = Chain().double().eval()
    spec, models = trace(model, images(1)), drawn(model, 2)
    models["1.bias"][:, 0] = -1e3  # dead
    models["1.weight"][:, 1], models["1.bias"][:, 1] = 0, 1.0  # constant
    models["1.weight"][:, 2] = 2 * models["1.weight"][:, 3]
    models["1.bias"][:, 2] = 2 * models["1.bias"][:, 3]  # collinear
    grams = collect(spec, models, images(300), model=model)
    slots = Slots.of_permutation(Permutation.identity(spec, (2,)))
    weights, fits = least_squares(grams, slots)
    start = expand(slots, models, grams.program)
    assert all(tensor.isfinite().all() for tensor in weights.values())
    torch.testing.assert_close(weights["3.weight"][:, 0], start["3.weight"][:, 0])  # what no data tell stays
    assert fits["3.weight"].strength < float("inf")
    assert fits["3.weight"].after < 0.9 * fits["3.weight"].before


def test_the_record_is_what_is_left_on_the_images_held_back():
    model, spec, models, grams = prepared(Chain, 2)
    slots = some_slots(spec, 2, 1.0)
    _, fits = least_squares(grams, slots)
    start = expand(slots, models, grams.program)
    moved = slots.permutation.apply(models)
    seen = [recorded(model, take(moved, m), images(400)[1::2])["3"] for m in range(2)]
    x, y = (seen[0][at] + seen[1][at] for at in range(2))
    left = nn.functional.linear(x / 2, start["3.weight"], start["3.bias"]) - y / 2
    assert fits["3.weight"].before == pytest.approx(float(left.square().sum() / (y / 2).square().sum()))
    assert (fits["3.weight"].rows, fits["3.weight"].unknowns) == (200, 13)


def test_noise_with_little_data_is_not_fitted():
    """With fewer rows than unknowns a fit of the data without a ridge would be useless on the images held back."""
    model = Chain().double().eval()
    spec, models = trace(model, images(1)), drawn(model, 2)
    grams = collect(spec, models, images(24), model=model)
    with pytest.warns(UserWarning, match="'3.weight' has 13 unknowns.* and 12 rows.* 27 images or more"):
        _, fits = least_squares(grams, Slots.of_permutation(Permutation.identity(spec, (2,))))
    assert all(fit.after <= fit.before for fit in fits.values())


def test_models_in_float32_are_fitted_as_well_as_in_float64():
    _, spec, models, grams = prepared(Branches, 2)
    slots = some_slots(spec, 2, 1.0)
    exact, _ = least_squares(grams, slots)
    single = {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in models.items()}
    grams = collect(spec, single, images(400).float(), model=Branches().eval(), places=None)
    weights, _ = least_squares(grams, slots)
    for key in grams.layers:
        assert weights[key].dtype == torch.float32
        torch.testing.assert_close(weights[key].double(), exact[key], rtol=1e-2, atol=1e-3)


def test_bad_input_is_named():
    _, spec, _, grams = prepared(Chain, 2, count=4)
    with pytest.raises(ValueError, match="'averaged' or 'stacked', not 'mean'"):
        least_squares(grams, Slots.apart(spec, 2), objective="mean")
    with pytest.raises(ValueError, match="not of the 2 models"):
        least_squares(grams, Slots.apart(spec, 3))


def test_nothing_given_is_modified():
    _, spec, models, grams = prepared(Chain, 2, count=100)
    before = {key: tensor.clone() for key, tensor in models.items()}
    sums = {key: layer.gram.clone() for key, layer in grams.layers.items()}
    least_squares(grams, some_slots(spec, 2, 0.5))
    torch.testing.assert_close(models, before, rtol=0, atol=0)
    assert all(torch.equal(layer.gram, sums[key]) for key, layer in grams.layers.items())
