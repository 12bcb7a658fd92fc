"""Which units move in layers of every kind: attention in all layouts, recurrent layers, rescaled weights, windows."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import rebasin
from rebasin import Permutation, trace
from rebasin.expanding.expanded import kept_whole

WIDTH, HEADS, EACH = 24, 4, 6


def redrawn(model, seed=0):
    """The model in float64, every number of it as training might leave it."""
    generator = torch.Generator().manual_seed(seed)
    model = copy.deepcopy(model).double().eval()
    for tensor in model.state_dict().values():
        fan = tensor[0].numel() if tensor.ndim > 1 else 4
        drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * (2 / fan) ** 0.5
        tensor.copy_(drawn if tensor.ndim > 1 else 0.5 + drawn.abs())
    return model


def traced(model, inputs, others):
    """The spec of a model, which must leave what it computes of other inputs, and other weights, as it is."""
    spec = trace(model, inputs)
    exact, others = redrawn(model), others.double()
    for seed in range(2):
        moved = Permutation.random(spec, generator=torch.Generator().manual_seed(seed)).apply(exact)
        with torch.no_grad():
            torch.testing.assert_close(moved(others), exact(others), rtol=1e-9, atol=1e-9)
    return spec


def sizes(spec):
    """The size of each group, in order; those within blocks as blocks times units."""
    own = [
        f"{spec.sizes[spec.inside[group]]} x {size}" if group in spec.inside else str(size)
        for group, size in spec.sizes.items()
        if not spec.within(group)
    ]
    return sorted(own + [str(spec.sizes[group]) for group in spec.sizes if spec.within(group)])


class Attention(nn.Module):
    """Attention whose queries and keys are turned by their places: rotary positions, in all ways to write them."""

    def __init__(self, style="halves", keys=HEADS, turned=EACH):
        super().__init__()
        self.style, self.keys, self.turned = style, keys, turned
        self.inp, self.q, self.o = nn.Linear(12, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.k, self.v, self.out = nn.Linear(WIDTH, keys * EACH), nn.Linear(WIDTH, keys * EACH), nn.Linear(WIDTH, 5)

    def turn(self, x):
        pairs = torch.arange(self.turned // 2, dtype=x.dtype)
        angles = torch.outer(torch.arange(x.shape[-2], dtype=x.dtype), 10 ** (-pairs / 3))
        x, rest = x[..., : self.turned], x[..., self.turned :]
        if self.style == "complex":
            pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
            turned = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)
        elif self.style == "neighbours":
            angles = angles.repeat_interleave(2, -1)
            across = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
            turned = x * angles.cos() + across * angles.sin()
        else:
            angles = torch.cat([angles, angles], -1)
            first, second = x.chunk(2, -1)
            turned = x * angles.cos() + torch.cat([-second, first], -1) * angles.sin()
        return torch.cat([turned, rest], -1)

    def forward(self, x):
        x = self.inp(x)
        q, k, v = (layer(x).unflatten(-1, (-1, EACH)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        q, k, times = self.turn(q), self.turn(k), HEADS // self.keys
        if self.style == "fused":
            x = x + self.o(F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2))
            return self.out(x)
        k, v = (y[:, :, None].expand(-1, -1, times, -1, -1).reshape(q.shape) for y in (k, v))
        weights = (q @ k.transpose(-1, -2)).softmax(-1)
        return self.out(x + self.o((weights @ v).transpose(1, 2).flatten(2)))


@pytest.mark.parametrize("style", ["halves", "neighbours", "complex"])
def test_heads_with_rotary_positions_move_and_their_pairs_stay_in_order(style):
    torch.manual_seed(0)
    spec = traced(Attention(style), torch.randn(2, 3, 12), torch.randn(3, 5, 12))
    assert sizes(spec) == ["24", "4", "4 x 6"], "the stream, the heads, the values in each"
    (part,) = (part for part in spec.parts["q.weight"] if part.axis == 0)
    assert part.positions.shape == (HEADS, EACH), "a head's queries move as one"


def test_units_that_are_not_turned_are_free_within_their_head():
    spec = traced(Attention(turned=4), torch.randn(2, 3, 12), torch.randn(3, 5, 12))
    assert sizes(spec) == ["24", "4", "4 x 2", "4 x 6"]


@pytest.mark.parametrize("style", ["halves", "fused"])
def test_heads_of_queries_move_with_the_head_of_keys_that_they_share(style):
    spec = traced(Attention(style, keys=2), torch.randn(2, 3, 12), torch.randn(3, 5, 12))
    assert sizes(spec) == ["2", "2 x 6", "24"]
    (part,) = (part for part in spec.parts["q.weight"] if part.axis == 0)
    assert part.positions.shape == (2, 2 * EACH)


class Fused(nn.Module):
    """Queries, keys and values from one layer, in every order that people give its rows."""

    def __init__(self, layout):
        super().__init__()
        self.layout, self.inp, self.qkv = layout, nn.Linear(12, WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.o, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x):
        x = self.inp(x)
        y, (batch, length) = self.qkv(x), x.shape[:2]
        if self.layout == "heads in the batch":
            q, k, v = (t.unflatten(-1, (HEADS, EACH)).transpose(1, 2).flatten(0, 1) for t in y.chunk(3, -1))
        elif self.layout == "each unit's three":
            q, k, v = y.view(batch, length, HEADS, EACH, 3).permute(4, 0, 2, 1, 3)
        elif self.layout == "each head's three":
            q, k, v = y.view(batch, length, HEADS, 3, EACH).permute(3, 0, 2, 1, 4)
        else:
            q, k, v = y.view(batch, length, 3, HEADS, EACH).permute(2, 0, 3, 1, 4)
        z = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        z = z.view(batch, HEADS, length, EACH).transpose(1, 2).flatten(2)
        return self.out(x + self.o(z))


@pytest.mark.parametrize("layout", ["three", "each head's three", "each unit's three", "heads in the batch"])
def test_one_layer_of_queries_keys_and_values_is_followed_in_all_layouts(layout):
    spec = traced(Fused(layout), torch.randn(2, 3, 12), torch.randn(3, 5, 12))
    assert sizes(spec) == ["24", "4", "4 x 6", "4 x 6"]


class SharedKeys(nn.Module):
    """One head of keys and values for all heads of queries, and a table of relative places that they share."""

    def __init__(self):
        super().__init__()
        self.inp, self.q, self.kv = nn.Linear(12, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * EACH)
        self.places, self.o, self.out = nn.Embedding(9, EACH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x):
        x = self.inp(x)
        q = self.q(x).unflatten(-1, (HEADS, EACH)).transpose(1, 2)
        k, v = self.kv(x)[:, None].chunk(2, -1)
        steps = torch.arange(x.shape[1])
        places = self.places(steps[:, None] - steps + 4)
        scores = q @ k.transpose(-1, -2) + torch.einsum("bhqd,qkd->bhqk", q, places)
        return self.out(x + self.o((scores.softmax(-1) @ v).transpose(1, 2).flatten(2)))


def test_where_blocks_cross_those_move_of_which_there_are_more():
    spec = traced(SharedKeys(), torch.randn(2, 3, 12), torch.randn(3, 5, 12))
    assert sizes(spec) == ["24", "6", "6"], "units of queries in all heads alike, with those of keys and places; values"


class Sequence(nn.Module):
    """A recurrent layer between two others."""

    def __init__(self, layer, given):
        super().__init__()
        self.into, self.layer, self.out = nn.Linear(12, 10), layer, nn.Linear(given, 3)

    def forward(self, x):
        return self.out(self.layer(self.into(x).tanh())[0])


@pytest.mark.parametrize(
    ("layer", "given", "expected"),
    [
        (nn.LSTM(10, 7, 2, batch_first=True), 7, ["10", "7", "7"]),
        (nn.LSTM(10, 7, 1, batch_first=True, bidirectional=True), 14, ["10", "7", "7"]),
        (nn.LSTM(10, 7, 1, batch_first=True, proj_size=5), 5, ["10", "5", "7"]),
        (nn.GRU(10, 7, 2, batch_first=True, bidirectional=True), 14, ["10", *["7"] * 4]),
        (nn.RNN(10, 7, 1, nonlinearity="relu", bias=False), 7, ["10", "7"]),
    ],
)
def test_units_of_recurrent_layers_move_with_all_their_gates(layer, given, expected):
    assert sizes(traced(Sequence(layer, given), torch.randn(2, 3, 12), torch.randn(3, 5, 12))) == expected


class Steps(nn.Module):
    """A recurrent layer step by step, from zeros."""

    def __init__(self, cell):
        super().__init__()
        self.into, self.cell, self.out = nn.Linear(12, 10), cell, nn.Linear(7, 3)

    def forward(self, x):
        x, state = self.into(x).tanh(), None
        for step in range(3):
            state = self.cell(x[:, step], state)
        return self.out(state[0] if isinstance(state, tuple) else state)


class WrittenOut(nn.Module):
    """A plain recurrent cell of linear layers."""

    def __init__(self):
        super().__init__()
        self.into, self.again = nn.Linear(10, 7), nn.Linear(7, 7)

    def forward(self, x, state):
        return torch.tanh(self.into(x) + self.again(x.new_zeros(len(x), 7) if state is None else state))


@pytest.mark.parametrize("cell", [nn.LSTMCell(10, 7), nn.GRUCell(10, 7), nn.RNNCell(10, 7), WrittenOut()])
def test_a_first_state_of_zeros_pins_nothing(cell):
    assert sizes(traced(Steps(cell), torch.randn(2, 3, 12), torch.randn(3, 3, 12))) == ["10", "7"]


class Translator(nn.Module):
    """The last states of one recurrent layer are the first ones of another."""

    def __init__(self):
        super().__init__()
        self.one, self.other = nn.LSTM(12, 7, 2, batch_first=True), nn.LSTM(12, 7, 2, batch_first=True)
        self.out = nn.Linear(7, 3)

    def forward(self, x):
        return self.out(self.other(x.flip(1), self.one(x)[1])[0])


def test_states_that_are_passed_on_tie_layers_one_by_one():
    spec = traced(Translator(), torch.randn(2, 3, 12), torch.randn(3, 5, 12))
    assert sizes(spec) == ["7", "7"]
    assert {part.group for part in spec.parts["other.weight_hh_l1"]} == {"one.weight_ih_l1"}


def convolutions(wrap, **options):
    """Two convolutions, each with its weight wrapped, and a linear layer."""
    layers = (wrap(nn.Conv2d(3, 8, 3)), nn.ReLU(), wrap(nn.Conv2d(8, 8, 3, **options)), nn.ReLU())
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 16, 3))


class Standardised(nn.Conv2d):
    """A convolution whose rows are brought to mean 0 and deviation 1."""

    def forward(self, x):
        rows = self.weight.reshape(1, len(self.weight), -1)
        return self._conv_forward(x, F.batch_norm(rows, None, None, training=True).reshape_as(self.weight), self.bias)


def standardised(layer):
    return Standardised(layer.in_channels, layer.out_channels, layer.kernel_size)


@pytest.mark.parametrize(
    ("wrap", "options", "expected"),
    [
        (parametrizations.weight_norm, {}, ["8", "8"]),
        (parametrizations.weight_norm, {"groups": 2}, ["2", "2 x 4", "2 x 4"]),
        (lambda layer: parametrizations.weight_norm(layer, dim=1), {}, ["8", "8"]),
        (lambda layer: parametrizations.weight_norm(layer, dim=1), {"groups": 2}, ["4", "4"]),
        (parametrizations.spectral_norm, {}, ["8", "8"]),
        (standardised, {}, ["8", "8"]),
    ],
)
def test_rescaled_weights_move_as_plain_ones_do(wrap, options, expected):
    images = torch.randn(2, 3, 8, 8)
    assert sizes(traced(convolutions(wrap, **options), images, torch.randn(3, 3, 8, 8))) == expected


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("wrap", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_a_weight_that_is_computed_before_each_call_is_followed_and_the_merge_keeps_it(wrap):
    torch.manual_seed(0)
    a, b = convolutions(wrap), convolutions(wrap)
    images = torch.randn(2, 3, 8, 8)
    a(images), b(images)  # now each has a weight with a history, which torch does not copy
    spec = trace(a.eval(), images)
    assert sizes(spec) == ["8", "8"]
    moved = Permutation.random(spec, generator=torch.Generator().manual_seed(1)).apply(a)
    torch.testing.assert_close(moved(images), a(images))
    merged = rebasin.merge(spec, [a, moved]).model
    torch.testing.assert_close(merged(images), a(images), rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match=r"the computed weight of conv2d in '2': .*remove_parametrizations\("):
        rebasin.repair(merged, merged, [a, b], images)
    with pytest.raises(ValueError, match=r"a layer's weight is computed from it, .*remove_parametrizations\("):
        rebasin.pleas(rebasin.collect(spec, [a, b], images))


def between(part, channels=8):
    """A part between two convolutions."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), part, nn.LazyConv2d(4, 1), Applied(over_places))
    model(torch.randn(2, 3, 8, 8))
    return model


def over_places(x):
    return x.flatten(2).softmax(-1).sum(1)


class Applied(nn.Module):
    """A function of one tensor."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


PARTS = {
    "transposed convolution": (nn.ConvTranspose2d(8, 6, 2, 2), ["4", "6", "8"]),
    "in groups": (nn.ConvTranspose2d(8, 12, 2, 2, groups=2), ["2", "2 x 4", "2 x 6", "4"]),
    "depthwise": (nn.ConvTranspose2d(8, 8, 2, 2, groups=8), ["4", "8"]),
    "a slope of each channel": (nn.PReLU(8), ["4", "8"]),
    "one slope": (nn.PReLU(), ["4", "8"]),
    "upsampled": (nn.Upsample(scale_factor=2, mode="bilinear"), ["4", "8"]),
    "upsampled in other curves": (nn.Upsample(scale_factor=2, mode="bicubic"), ["4", "8"]),
    "pixels from channels": (nn.PixelShuffle(2), ["2", "4"]),
    "channels from pixels": (nn.PixelUnshuffle(2), ["4", "8"]),
    "shuffled": (nn.ChannelShuffle(2), ["4", "8"]),
    "largest": (nn.AdaptiveMaxPool2d(2), ["4", "8"]),
    "zeros beside": (Applied(lambda x: F.pad(x, (0, 0, 0, 0, 2, 3))), ["2", "3", "4", "8"]),
    "mirrored": (Applied(lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect")), ["4", "8"]),
    "windows": (Applied(lambda x: F.fold(F.unfold(x, 2, stride=2), (8, 8), 2, stride=2)), ["4", "8"]),
    "sorted": (Applied(lambda x: x.sort(2)[0]), ["4", "8"]),
    "a running sum": (Applied(lambda x: x.cumsum(-1)), ["4", "8"]),
    "the best": (Applied(lambda x: x.topk(2, -1)[0]), ["4", "8"]),
    "waves": (Applied(lambda x: torch.fft.rfft(x).abs()), ["4", "8"]),
    "repeated": (Applied(lambda x: x.repeat(1, 2, 1, 1)), ["4", "8"]),
    "of length 1": (Applied(lambda x: F.normalize(x, dim=1)), ["4", "8"]),
    "looked up": (Applied(lambda x: x.gather(2, x.new_zeros(1, 1, 1, 8).long().expand(len(x), 8, 1, 8))), ["4", "8"]),
    "a half written over": (Applied(lambda x: x.slice_scatter(x[:, :4].relu(), 1, 0, 4)), ["4", "4", "4"]),
    "in order over the units": (Applied(lambda x: x.sort(1)[0]), ["4", "8"]),
    "over the units": (Applied(lambda x: x.cumsum(1)), ["4"]),
}


@pytest.mark.parametrize("name", PARTS)
def test_operators_pin_only_the_axes_that_they_touch(name):
    part, expected = PARTS[name]
    assert sizes(traced(between(part), torch.randn(2, 3, 8, 8), torch.randn(3, 3, 8, 8))) == expected


class OptionA(nn.Module):
    """The shortcut of ResNet's first paper: fewer places, and channels of zeros beside the others."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1, stride=2)
        self.c, self.out = nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 3)

    def forward(self, x):
        x = self.a(x).relu()
        x = (F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4)) + self.b(x)).relu()
        return self.out((x + self.c(x)).mean((2, 3)))


def test_zeros_beside_channels_are_units_that_can_be_split_only_with_what_they_meet():
    model, images = OptionA().eval(), torch.randn(2, 3, 8, 8)
    spec = traced(model, images, torch.randn(3, 3, 8, 8))
    assert sizes(spec) == ["4", "4", "8"]
    assert set(kept_whole(spec, model, images).values()) == {"since pad adds slices to its units"}
    steps, inputs = Steps(WrittenOut()).eval(), torch.randn(2, 3, 12)
    whole = kept_whole(trace(steps, inputs), steps, inputs)
    assert "since linear reads a constant of its size" in whole.values()


class Selective(nn.Module):
    """Two convolutions, weighed against each other channel by channel."""

    def __init__(self):
        super().__init__()
        self.stem, self.paths = nn.Conv2d(3, 8, 3), nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(2))
        self.squeeze, self.weigh, self.out = nn.Linear(8, 4), nn.Linear(4, 16), nn.Linear(8, 3)

    def forward(self, x):
        x = self.stem(x).relu()
        paths = torch.stack([path(x).relu() for path in self.paths], 1)
        scores = self.weigh(self.squeeze(paths.sum(1).mean((2, 3))).relu())
        return self.out((paths * scores.view(-1, 2, 8, 1, 1).softmax(1)).sum(1).mean((2, 3)))


class Chosen(nn.Module):
    """A convolution whose weight is a sum of several, by what the image says."""

    def __init__(self, groups):
        super().__init__()
        self.a, self.weights = nn.Conv2d(3, 8, 3), nn.Parameter(torch.randn(3, 8, 8 // groups, 3, 3))
        self.gate, self.out, self.groups = nn.Linear(8, 3), nn.Linear(8, 3), groups

    def forward(self, x):
        x = self.a(x).relu()
        share = self.gate(x.mean((0, 2, 3))).softmax(-1)
        weight = (share[:, None, None, None, None] * self.weights).sum(0)
        return self.out(F.conv2d(x, weight, groups=self.groups).mean((2, 3)))


class PerImage(nn.Module):
    """The same, for each image by itself: images stand side by side as blocks of channels."""

    def __init__(self):
        super().__init__()
        self.a, self.weights = nn.Conv2d(3, 8, 3), nn.Parameter(torch.randn(3, 8 * 8 * 9))
        self.gate, self.out = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x):
        x = self.a(x).relu()
        weight = (self.gate(x.mean((2, 3))).sigmoid() @ self.weights).view(-1, 8, 3, 3)
        y = F.conv2d(x.flatten(0, 1)[None], weight, groups=len(x))
        return self.out(y.view(len(x), 8, *y.shape[2:]).mean((2, 3)))


class Clipped(nn.Module):
    """Bounds of each unit, learned."""

    def __init__(self):
        super().__init__()
        self.a, self.out = nn.Conv2d(3, 8, 1), nn.Linear(8, 3)
        self.low, self.high = nn.Parameter(torch.rand(8, 1, 1)), nn.Parameter(torch.rand(8, 1, 1))

    def forward(self, x):
        x = self.a(x)
        return self.out((x.clamp(self.low, self.high) + x.clamp(min=self.low)).mean((2, 3)))


class Numbered(nn.Module):
    """Units that are taken for the numbers of rows."""

    def __init__(self):
        super().__init__()
        self.a, self.table, self.row = nn.Conv2d(3, 8, 1), nn.Embedding(5, 4), nn.Parameter(torch.rand(5))
        self.out, self.other = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x):
        numbers = (self.a(x).mean((2, 3)).sigmoid() * 4.99).floor().long()
        return self.out(self.table(numbers).sum(-1)) + self.other(self.row[numbers])


class Bilinear(nn.Module):
    """Pairs of units, each with a weight."""

    def __init__(self):
        super().__init__()
        self.a, self.pairs, self.out = nn.Conv2d(3, 8, 1), nn.Bilinear(8, 8, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = self.a(x).relu()
        return self.out(self.pairs(x.mean((2, 3)), x.amax((2, 3))).relu())


class TwoRows(nn.Module):
    """Channels in groups, shuffled, and added to what they came from, as in the first ShuffleNet."""

    def __init__(self):
        super().__init__()
        self.stem, self.out = nn.Conv2d(3, 8, 1), nn.Linear(8, 3)
        self.a, self.b = nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 8, 1, groups=2)

    def forward(self, x):
        x = self.stem(x)
        y = self.a(x).relu()
        y = self.b(y.view(len(x), 2, 4, *x.shape[2:]).transpose(1, 2).flatten(1, 2))
        return self.out((x + y).relu().mean((2, 3)))


class Gates(nn.Module):
    """A gate of two sums: of two layers, by weights along the axis that tells them apart."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.gate, self.out = (nn.Linear(3, n) for n in (8, 8, 16, 4))
        self.out = nn.Linear(8, 3)

    def forward(self, x):
        x = x.mean((2, 3))
        paths, gate = torch.stack([self.a(x), self.b(x)], -2), self.gate(x).unflatten(-1, (2, 8))
        return self.out((paths * gate.softmax(-2)).sum(-2) + paths.sum(-2) * gate.sum(-2))


class Turned(nn.Module):
    """Units that are added to themselves in the order of a matrix that is turned: three and three in a circle."""

    def __init__(self):
        super().__init__()
        self.a, self.out = nn.Linear(3, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.a(x.mean((2, 3)))
        return self.out((x + x.view(-1, 2, 4).mT.reshape(-1, 8)).relu())


ONCE_REFUSED = {
    "selective kernels": (Selective, ["4", "8", "8"]),
    "dynamic convolution": (lambda: Chosen(1), ["3", "8", "8"]),
    "dynamic convolution in groups": (lambda: Chosen(2), ["3", "4", "4"]),
    "dynamic convolution of each image": (PerImage, ["3"]),
    "learned clips": (Clipped, ["8"]),
    "units as numbers": (Numbered, ["4", "8"]),
    "bilinear": (Bilinear, ["6", "8"]),
    "tied blocks": (TwoRows, ["2", "2", "2", "2", "4", "4"]),
    "a gate of two sums": (Gates, ["8"]),
    "slices in circles": (Turned, ["2"]),
}


@pytest.mark.parametrize("name", ONCE_REFUSED)
def test_networks_whose_specs_were_wrong_are_traced(name):
    build, expected = ONCE_REFUSED[name]
    torch.manual_seed(0)
    assert sizes(traced(build(), torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8))) == expected


class Reused(nn.Module):
    """A grouped convolution whose weight is used in another way too."""

    def __init__(self, use):
        super().__init__()
        self.a, self.b, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, groups=2, bias=False), nn.Linear(8, 3)
        self.use = use

    def forward(self, x):
        return self.out(self.use(self.a(x).relu(), self.b.weight).mean((2, 3)))


@pytest.mark.parametrize(
    ("use", "expected"),
    [
        (lambda x, w: F.conv2d(x, w, groups=2) * w.sum((1, 2, 3))[:, None, None], ["2", "2 x 4", "2 x 4"]),
        (lambda x, w: F.conv2d(x, w.abs(), groups=2), ["2", "2 x 4", "2 x 4"]),
        (lambda x, w: F.conv2d(x, w, groups=2) * w.sum((0, 2, 3)).repeat(2)[:, None, None], []),
        (lambda x, w: F.conv2d(x, w.softmax(0), groups=2), ["4", "4"]),
    ],
)
def test_the_columns_of_a_grouped_convolution_are_those_of_its_blocks(use, expected):
    assert sizes(traced(Reused(use), torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4))) == expected


class Written(nn.Module):
    """Slices written into a tensor of zeros or into others, as people do."""

    def __init__(self, write):
        super().__init__()
        self.a, self.b, self.out, self.write = nn.Linear(12, 8), nn.Linear(12, 8), nn.Linear(8, 3), write

    def forward(self, x):
        return self.out(self.write(self.a(x), self.b(x)).relu())


def shifted(a, b):
    moved = torch.zeros_like(a)
    moved[:, :-1, :2], moved[:, 1:, 2:4], moved[:, :, 4:] = a[:, 1:, :2], b[:, :-1, 2:4], a[:, :, 4:]
    return moved


WRITTEN = {
    "shifted in time": (shifted, ["2", "2", "4"]),
    "one slice": (lambda a, b: a.select_scatter(b[..., 0], -1, 3), ["3", "4"]),
    "beside numbers": (lambda a, b: torch.cat([a[..., :3], torch.full_like(a[..., :5], 3.0)], -1) + b, ["3", "5"]),
    "backwards": (lambda a, b: a + a.flip(-1) + b, ["4"]),
    "on by one": (lambda a, b: a + a.roll(1, -1) + b, []),
    "by rank": (lambda a, b: b.gather(-1, a.argsort(-1)), []),
    "two ways": (
        lambda a, b: (a.unflatten(-1, (2, 4)).softmax(-1) + a.unflatten(-1, (2, 4)).softmax(-2)).flatten(-2) + b,
        ["4"],
    ),
    "four factors": (lambda a, b: torch.einsum("bti,bsi,bsj,bj->btj", a, b, b, a[:, 0]), ["8"]),
}


@pytest.mark.filterwarnings("ignore:the example does not reach")
@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_into_parts_of_a_tensor_is_followed(name):
    write, expected = WRITTEN[name]
    assert sizes(traced(Written(write), torch.randn(2, 6, 12), torch.randn(2, 6, 12))) == expected


def test_a_grouped_convolution_used_twice_is_tied_to_itself():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, groups=2), nn.Linear(8, 3)

        def forward(self, x):
            return self.out(self.b(self.b(self.a(x).relu()).relu()).mean((2, 3)))

    spec = traced(Twice(), torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4))
    assert sizes(spec) == ["2", "2 x 4"]
