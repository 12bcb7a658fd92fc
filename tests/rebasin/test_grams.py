"""Gram matrices of what layers read: those of the recorded rows, whatever the batches, on a device's memory."""

import pytest
import torch
from networks import NETWORKS, Branches, Chain, drawn, images
from torch import nn
from torch.func import functional_call

from rebasin import trace
from rebasin.fitting.grams import collect
from rebasin.fitting.rows import draw_places, layer_inputs, rows_at
from rebasin.graph import export
from rebasin.weights import take

CONVOLUTIONS = [
    nn.Conv2d(3, 4, 3, padding=1),
    nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(0, 1), dilation=(1, 2)),
    nn.Conv2d(3, 4, 4, padding="same"),
    nn.Conv2d(3, 4, 3, padding="valid", bias=False),
    nn.Conv1d(3, 4, 3, stride=2, padding=1),
    nn.Conv3d(3, 4, 2, padding=1),
    nn.Linear(5, 4),
]


def recorded(model, weights, x):
    """What each linear layer and 1x1 view of each convolution reads, by hooks: rows of all places and images."""
    rows = {}

    def keep(name):
        def hook(module, args):
            value = args[0]
            if isinstance(module, nn.Conv2d):
                value = nn.functional.unfold(value, module.kernel_size, padding=module.padding, stride=module.stride)
                value = value.transpose(1, 2)
            rows.setdefault(f"{name}.weight", []).append(value.reshape(len(x), -1, value.shape[-1]))

        return hook

    hooks = [
        module.register_forward_pre_hook(keep(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    functional_call(model, weights, (x,))
    for hook in hooks:
        hook.remove()
    return {key: torch.cat(values, 1) for key, values in rows.items()}


@pytest.mark.parametrize("layer", CONVOLUTIONS, ids=repr)
def test_rows_times_the_weight_are_what_a_layer_gives(layer):
    layer = layer.double()
    spatial = layer.weight.ndim - 2
    x = torch.randn(2, 6, 5) if spatial == 0 else torch.randn(2, 3, 6, 5, 4)[(..., *[0] * (3 - spatial))]
    x = x.double()
    ((node, value),) = layer_inputs(export(layer, (x,)), dict(layer.state_dict()), (x,))
    places = draw_places(node, value, None, torch.Generator())
    out = rows_at(node, value, places) @ layer.weight.flatten(1).T
    out = out if layer.bias is None else out + layer.bias
    expected = layer(x) if spatial == 0 else layer(x).flatten(2).transpose(1, 2)
    torch.testing.assert_close(out, expected)


def test_drawn_places_are_some_of_each_image_and_depend_on_the_seed():
    layer, x = nn.Conv2d(2, 3, 3), torch.randn(50, 2, 6, 6)
    ((node, value),) = layer_inputs(export(layer, (x,)), dict(layer.state_dict()), (x,))
    places = draw_places(node, value, 3, torch.Generator().manual_seed(0))
    assert places.shape == (50, 3)
    assert set(places.flatten().tolist()) == set(range(16))
    assert all(len(set(row)) == 3 for row in places.tolist())
    every = rows_at(node, value, draw_places(node, value, None, torch.Generator()))
    assert torch.equal(rows_at(node, value, places)[7], every[7, places[7]])
    assert not torch.equal(places, draw_places(node, value, 3, torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("network", [network for name, network in NETWORKS.items() if name != "attention"])
def test_gram_matrices_are_those_of_the_recorded_rows(monkeypatch, network):
    monkeypatch.setattr("rebasin.fitting.grams.PIECE", 50)  # smaller than these matrices, and no divisor of them
    model = network().double().eval()
    spec, models, x = trace(model, images(1)), drawn(model, 2), images(9)
    grams = collect(spec, models, x, model=model, places=None)
    rows = [recorded(model, take(models, m), x) for m in range(2)]
    assert grams.layers.keys() == rows[0].keys()
    for key, layer in grams.layers.items():
        # A layer that nothing with weights comes before reads the same in both.
        assert layer.alike == torch.equal(rows[0][key], rows[1][key])
        readers = rows[:1] if layer.alike else rows
        joint = torch.cat([*(own[key] for own in readers), torch.ones_like(rows[0][key][..., :1])], -1)
        for half in range(2):
            own = joint[half::2].flatten(0, 1)
            torch.testing.assert_close(layer.gram[half], own.T @ own)
            assert int(layer.rows[half]) == len(own)


@pytest.mark.parametrize("network", NETWORKS.values())
def test_streaming_equals_one_shot(network):
    model = network().double().eval()
    spec, models, x = trace(model, images(1)), drawn(model, 3), images(24)
    whole = collect(spec, models, x, model=model, places=None)
    streamed = collect(spec, models, iter([(x[:8], "labels"), (x[8:16],), (x[16:],)]), model=model, places=None)
    assert streamed.images == whole.images == 24
    for key, layer in whole.layers.items():
        torch.testing.assert_close(streamed.layers[key].gram.sum(0), layer.gram.sum(0))
        assert torch.equal(streamed.layers[key].rows, layer.rows)


def test_sampled_places_estimate_the_whole():
    model = Branches().double().eval()
    spec, models, x = trace(model, images(1)), drawn(model, 2), images(2000)
    every, some = (collect(spec, models, x, model=model, places=places) for places in (None, 4))
    for key, layer in every.layers.items():
        expected = layer.gram.sum(0) / layer.rows.sum()
        sampled = some.layers[key].gram.sum(0) / some.layers[key].rows.sum()
        assert some.layers[key].rows.sum() == 2000 * (1 if key == "out.weight" else 4)
        # Four of sixteen places of 2000 images: deviations of about 1 / sqrt(8000).
        assert (sampled - expected).norm() < 0.05 * expected.norm()


def test_float32_models_have_float64_sums():
    model = Chain()
    grams = collect(trace(model, images(1).float()), [model, Chain()], images(40).float())
    assert {layer.gram.dtype for layer in grams.layers.values()} == {torch.float64}
    assert repr(grams).startswith("Grams(2 models, 4 layers, 40 images, ")


def test_bad_input_is_named():
    model = Chain().double()
    spec, models = trace(model, images(1)), drawn(model, 2)
    with pytest.raises(ValueError, match="take 3.*e-05 GiB, more than memory=1e-05.*'1.weight', has 33 columns"):
        collect(spec, models, images(2), model=model, memory=1e-5)
    with pytest.raises(ValueError, match="pass model="):
        collect(spec, models, images(2))
    broken = {key: tensor.clone() for key, tensor in models.items()}
    broken["1.weight"][1] = 1e300
    with pytest.raises(ValueError, match="what '3.weight' reads is not finite"):
        collect(spec, broken, images(20), model=model)
    with pytest.raises(ValueError, match="gave no batches"):
        collect(spec, models, [], model=model)
    with pytest.raises(ValueError, match="refuses this model or input: missing a required argument: 'input'"):
        collect(spec, models, [{"x": images(2)}], model=model)
    with pytest.raises(ValueError, match="the loader's inputs must be one or more, got none"):
        collect(spec, models, images(2)[:0], model=model)
    with pytest.raises(ValueError, match="needs two inputs or more, got 1"):
        collect(spec, models, images(1), model=model)
    with pytest.raises(ValueError, match="the list is empty"):
        collect(spec, [], images(2))
    with pytest.raises(ValueError, match="'3.weight'"):
        collect(spec, [model, nn.Sequential(nn.Flatten(), nn.Linear(32, 5))], images(2))
    with pytest.raises(TypeError, match="collect\\(spec, models, loader\\)"):
        collect(model, models, images(2))
