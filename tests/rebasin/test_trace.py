"""Tracing: the groups of known architectures, of networks made at random, and what is refused."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from networks import chain_spec
from torch import nn
from torch.func import functional_call
from torchvision import models
from torchvision.models import (
    VGG,
    ConvNeXt,
    DenseNet,
    EfficientNet,
    MaxVit,
    RegNet,
    ResNet,
    ShuffleNetV2,
    SwinTransformer,
    VisionTransformer,
    resnet,
    vgg,
)
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import MBConvConfig
from torchvision.models.regnet import BlockParams

import rebasin
from rebasin.graph import export
from rebasin.permutation import Permutation
from rebasin.spec import SpecError
from rebasin.tracing import trace
from rebasin.tracing.proof import prove, stays
from rebasin.tracing.units import RULES


def with_statistics(model, seed=0):
    """The model in float64, every parameter and buffer as training might leave it: nothing is 0, 1 or alike."""
    generator = torch.Generator().manual_seed(seed)
    model = copy.deepcopy(model).double().eval()
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            fan = tensor.shape[1:].numel() if tensor.ndim > 1 else 4
            drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * (2 / fan) ** 0.5
            tensor.copy_(drawn if tensor.ndim > 1 else 0.5 + drawn.abs())
    return model


def largest_change(model, groups, inputs, seed=1):
    """How far outputs move, of their size, when every group is permuted at random: by state_dict alone."""
    generator = torch.Generator().manual_seed(seed)
    model = with_statistics(model)
    with torch.no_grad():
        before = model(inputs.double())
        moved = Permutation.random(groups, generator=generator).apply(model.state_dict())
        after = functional_call(model, moved, (inputs.double(),))
    return float((after - before).abs().max() / before.abs().max())


def share_pinned(model, groups):
    state = model.state_dict()
    every = sum(tensor.numel() for tensor in state.values() if tensor.is_floating_point())
    moving = sum(state[key].numel() for key, parts in groups.parts.items() if parts)
    return 1 - moving / every


def count(spec):
    """How many groups there are, how many are of blocks, and how many within a block."""
    within = sum(spec.sizes[outer] for outer in spec.inside.values())
    return len(spec.families) + within, len(set(spec.inside.values())), within


def narrow_vgg():
    layers = vgg.make_layers([8, "M", 12, "M", 16, 16, "M", 24, 24, "M"], batch_norm=True)
    model = VGG(layers, num_classes=10, init_weights=False)
    model.classifier = nn.Sequential(nn.Linear(24 * 7 * 7, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 10))
    return model


# torchvision's own, where a width or a number of blocks can be chosen with few: their layers are the same. The side of
# the images, and how many groups there are: in all, those of blocks, and those within a block.
ARCHITECTURES = {
    "resnet18": (32, models.resnet18, (12, 0, 0)),
    "resnet50": (32, lambda: ResNet(resnet.Bottleneck, [2, 1, 1, 1]), (15, 0, 0)),
    "vgg": (32, narrow_vgg, (7, 0, 0)),
    "densenet": (32, lambda: DenseNet(8, (2, 3, 1, 1), 16, num_classes=10), (18, 0, 0)),
    "mobilenet_v2": (
        32,
        lambda: models.MobileNetV2(inverted_residual_setting=[[1, 16, 1, 1], [6, 24, 2, 2]]),
        (6, 0, 0),
    ),
    "mobilenet_v3_small": (32, models.mobilenet_v3_small, (27, 0, 0)),
    "efficientnet": (
        32,
        lambda: EfficientNet([MBConvConfig(1, 3, 1, 8, 8, 1), MBConvConfig(4, 3, 2, 8, 16, 2)], 0.2),
        (8, 0, 0),
    ),
    "convnext": (
        32,
        lambda: ConvNeXt([CNBlockConfig(12, 24, 2), CNBlockConfig(24, None, 2)], num_classes=10),
        (6, 0, 0),
    ),
    "shufflenet_v2": (32, lambda: ShuffleNetV2([2, 2, 2], [8, 16, 32, 64, 64]), (23, 0, 0)),
    "squeezenet1_0": (64, models.squeezenet1_0, (25, 0, 0)),
    "googlenet": (32, lambda: models.googlenet(aux_logits=False, init_weights=False), (57, 0, 0)),
    "regnet_y": (32, lambda: RegNet(BlockParams.from_init_params(4, 16, 12.0, 2.0, 8, se_ratio=0.25)), (48, 4, 36)),
    "vit": (32, lambda: VisionTransformer(32, 8, 3, 4, 24, 40, num_classes=10), (31, 3, 24)),
    "swin": (32, lambda: SwinTransformer([4, 4], 12, [2, 1], [3, 6], [4, 4], num_classes=10), (32, 3, 24)),
    "maxvit": (32, lambda: MaxVit((32, 32), 8, 4, [8, 16], [1, 1], 4, 0.0, num_classes=10), (41, 4, 24)),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_known_architectures_are_traced_whole(name):
    size, build, counted = ARCHITECTURES[name]
    torch.manual_seed(0)
    model, inputs = build().eval(), torch.randn(1, 3, size, size)
    groups = trace(model, inputs)
    assert count(groups) == counted
    assert share_pinned(model, groups) < 0.05
    assert largest_change(model, groups, inputs) < 1e-8


def test_residual_sums_share_a_group_and_statistics_move_with_their_channels():
    groups = trace(ResNet(resnet.BasicBlock, [1, 1, 1, 1]), torch.randn(1, 3, 32, 32))
    of = {key: {part.group for part in parts} for key, parts in groups.parts.items()}
    assert of["bn1.running_var"] == of["layer1.0.bn2.running_mean"] == {"conv1"}
    assert of["layer2.0.downsample.0.weight"] == {"conv1", "layer2.0.conv2"}
    told = {key: why for key, why in groups.pinned.items() if not key.endswith("num_batches_tracked")}
    assert told == {"fc.bias": "an output of the network"}
    assert groups.pinned["bn1.num_batches_tracked"] == "whole numbers"


def test_heads_are_blocks_that_move_whole_and_inside():
    model = VisionTransformer(32, 8, 2, 4, 24, 40, num_classes=5)
    groups = trace(model, torch.randn(1, 3, 32, 32))
    assert count(groups)[1:] == (2, 2 * 2 * 4)
    assert {groups.sizes[outer] for outer in groups.inside.values()} == {4}, "four heads in each of two layers"
    assert {groups.sizes[inner] for inner in groups.inside} == {6}
    key = "encoder.layers.encoder_layer_0.self_attention.in_proj_weight"
    *_, query_and_key, value = sorted(groups.parts[key], key=lambda part: part.positions.max())
    # The second head is the rows 6 to 11 of query, key and value, which stand one below the other.
    assert query_and_key.positions[6:12].T.tolist() == [list(range(6, 12)), list(range(30, 36))]
    assert value.positions[6:12].T.tolist() == [list(range(54, 60))]
    assert largest_change(model, groups, torch.randn(1, 3, 32, 32)) < 1e-10


def test_a_transformer_encoder_in_evaluation():
    layer = nn.TransformerEncoderLayer(24, 4, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 2)
    inputs = torch.randn(2, 5, 24)
    groups = trace(model, inputs)
    assert count(groups)[1:] == (2, 16)
    assert largest_change(model, groups, inputs) < 1e-10


def test_flattening_gives_each_channel_a_run_of_columns():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6, 3))
    groups = trace(model, torch.randn(2, 1, 4, 5))
    assert groups.sizes == {"0": 4}
    (part,) = groups.parts["3.weight"]
    assert part.axis == 1
    assert torch.equal(part.positions, torch.arange(24).reshape(4, 6))


class Shuffled(nn.Module):
    """Two halves, one convolved, concatenated and shuffled, as in ShuffleNetV2; then grouped convolution."""

    def __init__(self):
        super().__init__()
        self.first, self.halved = nn.Conv2d(2, 8, 1), nn.Conv2d(4, 4, 1)
        self.grouped, self.last = nn.Conv2d(8, 12, 3, groups=4), nn.Linear(12, 2)

    def forward(self, x):
        a, b = self.first(x).relu().chunk(2, 1)
        x = torch.cat([a, self.halved(b)], 1)
        x = x.reshape(len(x), 2, 4, *x.shape[2:]).transpose(1, 2).reshape(x.shape)
        return self.last(self.grouped(x).mean([2, 3]))


def test_shuffles_halves_and_grouped_convolutions():
    inputs = torch.randn(2, 2, 5, 5)
    groups = trace(Shuffled(), inputs)
    # A block of the grouped convolution holds one channel of each half: blocks move, channels within do not.
    assert groups.sizes == {"first": 4, "first blocks": 4, "grouped": 3}
    assert groups.inside == {"grouped": "first blocks"}
    assert largest_change(Shuffled(), groups, inputs) < 1e-12


class Reused(nn.Module):
    """One square matrix applied three times ties its rows to its columns."""

    def __init__(self):
        super().__init__()
        self.into, self.again, self.out = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        x = self.into(x)
        for _ in range(3):
            x = self.again(x).tanh()
        return self.out(x)


def test_a_layer_used_three_times_is_one_group_on_both_axes():
    groups = trace(Reused(), torch.randn(4, 3))
    assert groups.sizes == {"into": 6}
    assert {(part.group, part.axis) for part in groups.parts["again.weight"]} == {("into", 0), ("into", 1)}
    assert largest_change(Reused(), groups, torch.randn(4, 3)) < 1e-12


class Tied(nn.Module):
    """Words in and words out by the same matrix, under two names; and a layer for training only."""

    def __init__(self):
        super().__init__()
        self.words, self.mix, self.out = nn.Embedding(7, 6), nn.Linear(6, 6), nn.Linear(6, 7, bias=False)
        self.out.weight = self.words.weight
        self.aside = nn.Linear(6, 2)

    def forward(self, x):
        return self.out(self.mix(self.words(x)).tanh())


def test_a_tensor_of_two_names_moves_under_both_and_what_is_not_used_is_told():
    model, inputs = Tied(), torch.randint(7, (3, 4))
    with pytest.warns(UserWarning, match="'aside.weight': not used with this example"):
        groups = trace(model, inputs)
    # The columns of the one matrix are both what goes into the middle layer and what comes out of it.
    assert groups.sizes == {"mix": 6}
    lies = {key: [(part.group, part.axis) for part in parts] for key, parts in groups.parts.items()}
    assert lies["out.weight"] == lies["words.weight"] == [("mix", 1)]
    assert lies["mix.weight"] == [("mix", 0), ("mix", 1)]
    assert groups.pinned["aside.weight"] == "not used in evaluation"
    moved = Permutation.random(groups, generator=torch.Generator().manual_seed(0)).apply(model.state_dict())
    assert not torch.equal(moved["words.weight"], model.words.weight)
    other = copy.deepcopy(model)
    other.load_state_dict(moved)
    torch.testing.assert_close(other(inputs), model(inputs))


def test_a_tie_through_data_is_one_tensor_too():
    model, inputs = Tied(), torch.randint(7, (3, 4))
    model.out.weight = nn.Parameter(torch.zeros(7, 6))
    model.out.weight.data = model.words.weight.data
    assert len(list(model.parameters())) == 6, "two parameters over one memory"
    with pytest.warns(UserWarning, match="'aside.weight': not used with this example"):
        assert trace(model, inputs).parts["out.weight"] == trace(model, inputs).parts["words.weight"] != ()


class TiedTurned(nn.Module):
    """A decoder's weight is the encoder's, rows for columns, by way of their memory alone."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6, bias=False), nn.Linear(6, 4, bias=False), nn.Linear(4, 2)
        self.b.weight.data = self.a.weight.data.T

    def forward(self, x):
        return self.c(self.b(self.a(x).relu()).relu())


def test_tensors_that_share_memory_in_another_layout_stay():
    spec = trace(TiedTurned(), torch.randn(3, 4))
    reason = "shares its memory with another layout, or with what is not saved"
    assert spec.pinned["a.weight"] == spec.pinned["b.weight"] == reason and not spec.sizes


class Waves(nn.Module):
    """Complex weights between real ones."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(3, 6), nn.Linear(6, 5), nn.Linear(5, 2)
        self.turn = nn.Parameter(torch.randn(6, 6, dtype=torch.complex64))

    def forward(self, x):
        x = torch.einsum("nk,km->nm", self.a(x).to(self.turn.dtype), self.turn)
        return self.out(self.b(x.real).tanh())


def test_complex_weights_move_and_are_averaged():
    torch.manual_seed(0)
    model, inputs = Waves(), torch.randn(4, 3)
    spec = trace(model, inputs)
    assert spec.sizes == {"turn": 6, "turn axis 1": 6, "b": 5}
    moved = Permutation.random(spec, generator=torch.Generator().manual_seed(1)).apply(model)
    torch.testing.assert_close(moved(inputs), model(inputs))
    for by in ("weights", "frank-wolfe"):
        found = rebasin.match(spec, model, moved, by=by)
        assert torch.equal(found.apply(moved).turn, model.turn), by
        torch.testing.assert_close(found.objective, rebasin.inner_product(spec, model, model))
    assert torch.equal(rebasin.interpolate(model, moved, 1.0).turn, moved.turn)
    torch.testing.assert_close(rebasin.merge(spec, [model, moved], by="many").model(inputs), model(inputs))
    middle = (model.turn + moved.turn) / 2
    torch.testing.assert_close(rebasin.merge(spec, [model, moved], by="mean").model.turn, middle)


class Conflicting(nn.Module):
    """One matrix both inside of the network and at its end, where its rows are the outputs."""

    def __init__(self):
        super().__init__()
        self.into, self.inner, self.last = nn.Linear(3, 5), nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False)
        self.last.weight = self.inner.weight

    def forward(self, x):
        return self.last(self.inner(self.into(x).relu()).relu())


def test_shared_weights_that_demand_opposite_things_stay_with_the_reason():
    spec = trace(Conflicting(), torch.randn(2, 3))
    assert not spec.sizes
    # The rows are outputs; what comes out of them goes into the columns, which therefore stay too, and so on down.
    assert set(spec.pinned) == {"into.weight", "into.bias", "inner.weight", "last.weight"}
    assert set(spec.pinned.values()) == {"an output of the network"}


class Converted(nn.Module):
    """A change of number format, which the exported graph guards by an assertion that gives nothing."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.b(self.a(x).to(torch.float32).relu().to(x.dtype))


def test_a_change_of_number_format_pins_nothing():
    assert trace(Converted(), torch.randn(4, 3)).sizes == {"a": 6}


class RootMeanSquare(nn.Module):
    """A norm that is computed in float32 whatever comes in."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        wide = x.to(torch.float32)
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


class Decoder(nn.Module):
    """A layer of a language model of today: norms, angles and softmax in float32, a mask of the least float."""

    def __init__(self, width=8, heads=2, words=11, longest=9):
        super().__init__()
        self.heads, self.each = heads, width // heads
        self.words, self.out = nn.Embedding(words, width), nn.Linear(width, words, bias=False)
        self.before, self.between, self.after = (RootMeanSquare(width) for _ in range(3))
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up, self.down = nn.Linear(width, 6), nn.Linear(width, 6), nn.Linear(6, width)
        self.register_buffer("mask", torch.full((longest, longest), -torch.inf).triu(1), persistent=False)

    def turned(self, x):
        places, pairs = (torch.arange(n, dtype=torch.float32) for n in (x.shape[-2], self.each // 2))
        angles = torch.outer(places, 10 ** (-pairs / len(pairs)))
        angles = torch.cat([angles, angles], -1)
        a, b = x.chunk(2, -1)
        return x * angles.cos().to(x.dtype) + torch.cat([-b, a], -1) * angles.sin().to(x.dtype)

    def forward(self, words):
        x = self.words(words)
        y = self.before(x)
        q, k, v = (f(y).unflatten(-1, (self.heads, self.each)).transpose(1, 2) for f in (self.q, self.k, self.v))
        scores = self.turned(q) @ self.turned(k).mT + self.mask[: words.shape[1], : words.shape[1]]
        scores = scores.masked_fill(words[:, None, None] == 0, torch.finfo(scores.dtype).min)
        x = x + self.o((scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v).transpose(1, 2).flatten(2))
        y = self.between(x)
        x = x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))
        return self.out(self.after(x)).float()


@pytest.mark.parametrize("number_format", [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_computed_in_float32_on_the_way_is_proved_in_float64(number_format):
    torch.manual_seed(0)
    model = Decoder().to(number_format)
    spec = trace(model, torch.tensor([[3, 1, 4, 1, 5, 0]]))
    assert {part.group for part in spec.parts["words.weight"]} == {spec.parts["o.weight"][0].group}
    assert sorted(spec.sizes.values()) == [2, 4, 6, 8], "heads, the values in each, the hidden units, the stream"
    exact = with_statistics(model)
    words = torch.tensor([[2, 7, 1, 8, 2, 8, 1, 8], [10, 9, 3, 3, 1, 0, 0, 0]])
    moved = Permutation.random(spec, generator=torch.Generator().manual_seed(0)).apply(exact)
    assert moved.words.weight.ne(exact.words.weight).any()
    torch.testing.assert_close(moved(words), exact(words), rtol=1e-5, atol=1e-5)  # it rounds to float32 itself


class NarrowOnly(nn.Module):
    """An operator that knows no float64."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(16, 32), nn.Linear(16, 4)

    def forward(self, x):
        x = self.a(x)
        return self.b(torch.nn.functional.grouped_mm(x.bfloat16()[None], x.bfloat16().mT[None]).float()[0, :, :16])


def test_an_operator_without_float64_is_named_with_its_line():
    with pytest.raises(ValueError, match=r"the operator _?grouped_mm cannot be computed in float64, called at .*\.py:"):
        trace(NarrowOnly(), torch.randn(16, 16))


class Strange(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 6), nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.c(self.b(self.a(x).logcumsumexp(-1)).relu())


def test_what_cannot_be_followed_is_pinned_with_its_reason():
    groups = trace(Strange(), torch.randn(4, 3))
    assert groups.sizes == {"b": 5}
    assert groups.pinned["a.weight"] == groups.pinned["a.bias"] == "the operator logcumsumexp is not followed"


class Picky(nn.Module):
    """Adds one of its channels to all of them, and scales them by a ramp."""

    def __init__(self, ramp):
        super().__init__()
        self.a, self.b, self.ramp = nn.Linear(3, 6), nn.Linear(6, 2), ramp

    def forward(self, x):
        x = self.a(x)
        return self.b(x * torch.linspace(0, 1, 6, dtype=x.dtype) if self.ramp else x + x[:, :1])


def test_units_that_are_told_apart_stay():
    assert trace(Picky(ramp=False), torch.randn(4, 3)).sizes == {"a": 5}
    groups = trace(Picky(ramp=True), torch.randn(4, 3))
    assert not groups.sizes and "stays" in groups.pinned["a.weight"]


def test_a_wrong_spec_does_not_pass_the_proof():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6, 3)).eval()
    inputs = (torch.randn(2, 1, 4, 5, dtype=torch.float64),)
    program = export(model.double(), inputs)
    groups = trace(model, inputs[0])
    prove(groups, program, inputs)
    forgotten = replace(groups, parts=groups.parts | {"1.running_var": ()})
    (part,) = groups.parts["4.weight"]
    scattered = replace(part, positions=torch.arange(24).reshape(6, 4).T)
    for wrong in (forgotten, replace(groups, parts=groups.parts | {"4.weight": (scattered,)})):
        with pytest.raises(SpecError, match="permuting '0' changes what the network computes"):
            prove(wrong, program, inputs)


class BesideLargeNumbers(nn.Module):
    """Outputs of ordinary size next to huge ones."""

    def __init__(self, beside):
        super().__init__()
        self.into, self.out, self.beside = nn.Linear(3, 6), nn.Linear(6, 10), beside

    def forward(self, x):
        x = self.out(self.into(x).relu())
        if self.beside == "a time stamp":
            return torch.cat([x, torch.full_like(x, 1.7e9)], 1)
        return x.masked_fill(torch.arange(10) > 1, self.beside)


BESIDE = [-1e9, torch.finfo(torch.float32).min, torch.finfo(torch.float64).min, -torch.inf, "a time stamp"]


@pytest.mark.parametrize("beside", BESIDE)
def test_a_huge_output_hides_no_other(beside):
    model, inputs = BesideLargeNumbers(beside).double(), torch.randn(2, 3, dtype=torch.float64)
    spec = trace(model, inputs)
    assert spec.sizes == {"into": 6}
    forgotten = replace(spec, parts=spec.parts | {"into.bias": ()})
    with pytest.raises(SpecError, match="permuting 'into' changes what the network computes"):
        prove(forgotten, export(model, (inputs,)), (inputs,))


def test_of_many_entries_few_that_hardly_vary_by_chance_are_no_false_alarm():
    generator = torch.Generator().manual_seed(0)
    old, other, noise = torch.randn(3, 200_000, generator=generator, dtype=torch.float64)
    rounded = old + 1e-12 * noise  # of sums in another order, deep in a network
    assert ((rounded - old).abs() > 1e-8 * (old - other).abs() + 1e-13 * old.abs()).any(), "there are such entries"
    assert stays(rounded, old, other)
    assert not stays(old + 1e-6 * noise, old, other)
    few = torch.where(torch.arange(200_000) == 7, old + 1e-6, old)
    assert not stays(few, old, other), "one entry that moves is one too many"


class CutToLength(nn.Module):
    """Learned positions and a bias of each head, both cut to the length of the input."""

    def __init__(self, longest=9, width=8):
        super().__init__()
        self.words, self.out = nn.Embedding(11, width), nn.Linear(width, 11)
        self.places = nn.Parameter(torch.zeros(1, longest, width))
        self.biases = nn.Parameter(torch.zeros(2, longest, longest))
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, words):
        length = words.shape[1]
        x = self.words(words) + self.places[:, :length]
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.mT + self.biases[:, :length, :length]).softmax(-1)
        return self.out(x + self.mix((weights @ v).transpose(1, 2).flatten(2)))


@pytest.mark.parametrize("length", [5, 9])
def test_places_beyond_the_example_stay_as_those_that_it_has(length):
    torch.manual_seed(0)
    model = CutToLength()
    spec = trace(model, torch.randint(11, (1, length)))
    assert {(part.group, part.axis) for part in spec.parts["places"]} == {("mix", 2)}
    assert {part.axis for part in spec.parts["biases"]} == {0}, "heads move, places do not"
    told = {key: why for key, why in spec.pinned.items() if "slices" in why}
    assert told == (
        {
            "places": "4 of 9 slices along axis 1: not reached by the example",
            "biases": "4 of 9 slices along axis 1 and 4 of 9 slices along axis 2: not reached by the example",
        }
        if length == 5
        else {}
    )
    exact, words = with_statistics(model), torch.randint(11, (2, 9))
    moved = Permutation.random(spec, generator=torch.Generator().manual_seed(0)).apply(exact)
    assert moved.words.weight.ne(exact.words.weight).any()
    torch.testing.assert_close(moved(words), exact(words))


class Slim(nn.Module):
    """Computes with the first of its units only, as many as it is told."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.units = nn.Linear(3, 8), nn.Linear(8, 7), nn.Linear(7, 2), 5

    def forward(self, x):
        x = nn.functional.linear(x, self.a.weight[: self.units], self.a.bias[: self.units]).relu()
        return self.c(nn.functional.linear(x, self.b.weight[:, : self.units], self.b.bias).relu())


def test_units_that_the_example_does_not_reach_stay_and_are_named():
    torch.manual_seed(0)
    model, inputs = Slim(), torch.randn(4, 3)
    with pytest.warns(UserWarning, match="does not reach 3 of 8 slices of 'a.weight' along axis 0, 3 of 8 .* 1 more"):
        spec = trace(model, inputs)
    assert spec.sizes == {"a": 5, "b": 7}
    model.units = 7
    assert largest_change(model, spec, inputs) < 1e-12


class OnDemand(nn.Module):
    """A token and a second head that are used if they are asked for."""

    def __init__(self, stray):
        super().__init__()
        self.into, self.out, self.second = nn.Linear(3, 6), nn.Linear(6, 2), nn.Linear(6, 4)
        self.token, self.stray = nn.Parameter(torch.zeros(1, 1, 6)), nn.Linear(5, 4, bias=False)
        if stray:
            del self.token, self.second

    def forward(self, x, asked=None):
        x = self.into(x)
        return self.out(x) if asked is None else self.second(torch.where(asked, self.token, x))


def test_what_is_not_used_and_may_belong_to_what_moves_is_named():
    inputs, asked = torch.randn(2, 4, 3), torch.rand(2, 4, 1) > 0.5
    with pytest.warns(UserWarning, match="'token', 'second.weight': not used with this example.* of 'into.weight'"):
        assert trace(OnDemand(stray=False), inputs).pinned["token"] == "not used in evaluation"
    with pytest.warns(UserWarning, match="'out.weight': not used with this example"):
        assert trace(OnDemand(stray=False), (inputs, asked)).parts["token"]
    assert trace(OnDemand(stray=True), inputs).pinned["stray.weight"] == "not used in evaluation"


class LargerOnDemand(nn.Module):
    """Two streams, and entries that are used on demand: over flattened places, for two uses, over both streams."""

    def __init__(self, **layers):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(3, 8), nn.Linear(3, 6), nn.Linear(14, 2)
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.out(torch.cat([self.a(x), self.b(x)], -1).relu())


@pytest.mark.parametrize(
    ("unused", "named"),
    [
        ({"head": nn.Linear(8 * 5, 3)}, "'head.weight'"),
        ({"scale_and_shift": nn.Linear(3, 2 * 8)}, "'scale_and_shift.weight'"),
        ({"token": nn.Parameter(torch.zeros(14))}, "'token'"),
    ],
)
def test_what_is_not_used_and_may_belong_to_several_of_what_moves_is_named(unused, named):
    with pytest.warns(UserWarning, match=f"{named}.*: not used with this example.* or several times as long"):
        trace(LargerOnDemand(**unused), torch.randn(2, 3))
    trace(LargerOnDemand(stray=nn.Linear(5, 7)), torch.randn(2, 3))


@pytest.mark.filterwarnings("ignore")  # torch would rather have it exported
def test_a_scripted_model_is_refused():
    with pytest.raises(ValueError, match="give the module from before torch.jit.script"):
        trace(torch.jit.trace(nn.Linear(3, 2), torch.ones(1, 3)), torch.ones(1, 3))


class BySign(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_a_branch_on_values_is_told_with_what_to_do():
    with pytest.raises(ValueError, match="The model branches on a tensor's values: torch.where takes both"):
        trace(nn.Sequential(nn.Linear(3, 4), BySign(), nn.Linear(4, 2)), torch.randn(2, 3))


class InPlace(nn.Module):
    """Writes into its tensors: where nothing else reads them, and into half of one that is read whole."""

    def __init__(self, half):
        super().__init__()
        self.a, self.b, self.c, self.half = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2), half

    def forward(self, x):
        x = self.a(x)
        x = self.b(x.relu_().add_(x))
        (x[:, :3] if self.half else x).relu_()
        return self.c(x)


@pytest.mark.parametrize("half, sizes", [(False, {"a": 6, "b": 6}), (True, {"a": 6, "b": 3, "b 2": 3})])
def test_what_is_written_in_place_is_as_in_the_model(half, sizes):
    model, inputs = InPlace(half), torch.randn(4, 3)
    groups = trace(model, inputs)
    assert groups.sizes == sizes
    assert largest_change(model, groups, inputs) < 1e-12
    graph = export(model, (inputs,)).graph
    assert not any(node.op == "call_function" and node.target._schema.is_mutable for node in graph.nodes)


class NarrowInPlace(nn.Module):
    """Adds wide numbers into narrow ones, which stay narrow; the function would widen them."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 6), nn.Linear(3, 6)

    def forward(self, x):
        return self.a(x).to(torch.float32).add_(self.b(x).to(torch.float64))


def test_what_is_written_in_place_keeps_its_number_format():
    model, inputs = NarrowInPlace().double(), torch.randn(4, 3, dtype=torch.float64)
    (output,) = export(model, (inputs,)).module()(inputs).unsqueeze(0)
    assert output.dtype == model(inputs).dtype == torch.float32
    assert torch.equal(output, model(inputs))


class Logarithm(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.b(self.a(x.log()).relu())


def test_a_network_whose_outputs_are_not_finite_proves_nothing():
    with pytest.raises(ValueError, match="nothing can be proved: for random weights and inputs, the outputs are not"):
        trace(Logarithm(), torch.rand(4, 3))


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_models_and_inputs_that_cannot_be_exported():
    with pytest.raises(ValueError, match="torch.export refuses this model or input: .*data-dependent"):
        trace(Branching(), torch.randn(3))
    with pytest.raises(ValueError, match="torch.export refuses this model or input: .*must have same reduction dim"):
        trace(nn.Linear(4, 2), torch.randn(3, 5))


class Unclear(nn.Module):
    """Parts of a network in which what is computed, or how much, depends on values."""

    def __init__(self, part):
        super().__init__()
        self.a, self.b, self.part = nn.Linear(3, 6), nn.Linear(6, 2), part

    def forward(self, x):
        return self.part(self, self.a(x))


def either(model, x):
    return torch.cond(x.sum() > 0, lambda x: x.relu(), lambda x: x.tanh(), (x,))[:, :2]


def those_above_zero(model, x):
    return model.b(x[x[:, 0] > 0]).mean(0)


def as_many_as_are_above_zero(model, x):
    return model.b(x[: int((x[:, 0] > 0).sum())]).sum(0)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (either, "the operator cond runs a graph of its own, called at .*: choose between branches in Python"),
        (those_above_zero, "the operator index gives depends on values, called at .*: weigh by a mask"),
        (as_many_as_are_above_zero, "torch.export refuses .*data-dependent.*, called at .*"),
    ],
)
def test_what_depends_on_values_is_refused_with_its_line(part, message):
    with pytest.raises(ValueError, match=message) as refused:
        trace(Unclear(part), torch.randn(4, 3))
    assert f"called at {__file__}:" in str(refused.value)


def careless(relations, shape, x):
    return x.labels[3]


def test_a_rule_that_fails_is_named(monkeypatch):
    monkeypatch.setitem(RULES, "erfinv", careless)
    model = nn.Sequential(nn.Linear(3, 6), Applied(torch.erfinv), nn.Linear(6, 2))
    with pytest.raises(ValueError, match="the rule of the operator erfinv fails, called at .*: IndexError.*Write one"):
        trace(model, torch.randn(4, 3))


class Applied(nn.Module):
    """A function of one tensor."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Grid(nn.Module):
    """Weighs by a grid of its own, which is float32 whatever the weights are."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.weight = nn.Linear(3, 6), nn.Linear(6, 2), nn.Parameter(torch.zeros(4, 6))

    def forward(self, x):
        grid = torch.linspace(0, 1, 4, dtype=torch.float32)
        return self.b(self.a(x) * (grid[None] @ self.weight))


def test_a_model_that_cannot_be_cast_is_traced_in_its_own_number_format():
    assert trace(Grid(), torch.randn(4, 3)).sizes == {"a": 6}


def test_an_empty_vector_is_passed_over_by_a_concatenation():
    model = nn.Sequential(nn.Linear(3, 6), Applied(lambda x: torch.cat([x.new_zeros(0), x], -1)), nn.Linear(6, 2))
    assert trace(model, torch.randn(4, 3)).sizes == {"0": 6}


class WithNothing(nn.Module):
    """A layer of no units beside another."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.nothing = nn.Linear(3, 6), nn.Linear(6, 2), nn.Parameter(torch.zeros(0, 3))

    def forward(self, x):
        return self.b(torch.cat([self.a(x), nn.functional.linear(x, self.nothing)], -1))


def test_a_layer_without_units_is_traced():
    spec = trace(WithNothing(), torch.randn(4, 3))
    assert spec.sizes == {"a": 6} and not spec.parts["nothing"]
    assert largest_change(WithNothing(), spec, torch.randn(4, 3)) < 1e-12


def test_a_model_that_renames_its_entries_is_refused():
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    model.register_state_dict_post_hook(lambda module, state, *_: state.update({"own": state.pop("0.weight")}))
    with pytest.raises(ValueError, match=r"the model uses '0.weight', and its state_dict\(\) has no such entry"):
        trace(model, torch.randn(4, 3))


class Random(nn.Module):
    """A network put together from random steps, on (batch, channels, side, side) and then on vectors."""

    def __init__(self, steps, heads):
        super().__init__()
        self.steps, self.heads = steps, heads
        self.layers = nn.ModuleDict()
        width = 4
        self.layers["stem"] = nn.Conv2d(2, width, 3, padding=1)
        for number, (step, _) in enumerate(steps):
            name = str(number)
            if step in ("residual", "reused", "plain"):
                self.layers[name] = nn.Conv2d(width, width, 3, padding=1)
            elif step == "grouped":
                self.layers[name] = nn.Conv2d(width, width, 3, padding=1, groups=2)
            elif step == "depthwise":
                self.layers[name] = nn.Conv2d(width, width, 3, padding=1, groups=width)
            elif step == "norm":
                self.layers[name] = nn.BatchNorm2d(width)
            elif step == "dense":
                self.layers[name] = nn.Conv2d(width, 2, 1)
                width += 2
            elif step == "gate":
                self.layers[name] = nn.Linear(width, width)
            elif step == "table":  # longer than what is used of it
                self.layers[name] = nn.Embedding(5, width)
        self.layers["flat"] = nn.Linear(width * 9, 4 * heads)
        self.layers["qkv"], self.layers["mix"] = nn.Linear(4 * heads, 12 * heads), nn.Linear(4 * heads, 4 * heads)
        self.layers["out"] = nn.Linear(4 * heads, 3)

    def forward(self, x):
        x = self.layers["stem"](x)
        for number, (step, flag) in enumerate(self.steps):
            layer = dict(self.layers).get(str(number))
            if step == "residual":
                x = x + layer(x.relu())
            elif step == "reused":
                x = layer(layer(x).relu())
            elif step in ("plain", "grouped", "depthwise", "norm"):
                x = layer(x) if flag else layer(x).relu()
            elif step == "dense":
                new = layer(x).relu()
                x = torch.cat([x, new] if flag else [new, x], 1)
            elif step == "gate":
                x = x * layer(x.mean([2, 3])).sigmoid()[:, :, None, None]
            elif step == "split":
                a, b = x.chunk(2, 1)
                x = torch.cat([b, a] if flag else [a.relu(), b], 1)
            elif step == "table":
                x = x + layer.weight[:3, :, None].permute(1, 2, 0)  # (channels, 1, side)
            elif step == "cast":
                x = x.float().sigmoid().to(x.dtype) if flag else x.to(torch.float32).relu().type_as(x)
            elif step == "mask":
                outside = torch.ones(3, 3, dtype=torch.bool).triu(1)
                x = x.masked_fill(outside, 0.0) if flag else x.where(outside, x.relu())
        x = self.layers["flat"](x.flatten(1))
        x = torch.stack([x, x.roll(1, 0)], 1)  # two tokens
        qkv = self.layers["qkv"](x).unflatten(-1, (3, self.heads, 4)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        weights = (q @ k.transpose(-1, -2)).softmax(-1)
        x = x + self.layers["mix"]((weights @ v).transpose(1, 2).flatten(2))
        return self.layers["out"](x.mean(1))


STEPS = st.sampled_from(
    ["plain", "residual", "reused", "grouped", "depthwise", "norm", "dense", "gate", "split", "table", "cast", "mask"]
)


class RandomHeads(nn.Module):
    """Attention put together at random: grouped heads, rotary pairs, a causal mask, a table of positions cut short."""

    def __init__(self, shared, per_group, rotary, masked, cut):
        super().__init__()
        self.heads, self.shared, self.rotary, self.masked, self.cut = shared * per_group, shared, rotary, masked, cut
        self.into, self.norm = nn.Linear(3, 8), nn.LayerNorm(8)
        self.q, self.k, self.v = (nn.Linear(8, 4 * count) for count in (self.heads, shared, shared))
        self.mix, self.out = nn.Linear(4 * self.heads, 8), nn.Linear(8, 2)
        self.positions = nn.Embedding(9, 8)

    def forward(self, x):
        length = x.shape[1]
        x = self.into(x)
        if self.cut:
            x = x + self.positions.weight[:length]
        hidden = self.norm(x)
        q = self.q(hidden).unflatten(-1, (self.heads, 4)).transpose(1, 2)
        k, v = (layer(hidden).unflatten(-1, (self.shared, 4)).transpose(1, 2) for layer in (self.k, self.v))
        if self.rotary:
            angle = torch.arange(length)[:, None].float() / torch.tensor([1.0, 10.0])
            turn = torch.cat([angle, angle], -1)
            q, k = (y * turn.cos().to(y.dtype) + _turned(y) * turn.sin().to(y.dtype) for y in (q, k))
        k, v = (y.repeat_interleave(self.heads // self.shared, 1) for y in (k, v))
        scores = (q @ k.mT).float()
        if self.masked:
            scores = scores.masked_fill(
                torch.ones(length, length, dtype=torch.bool).triu(1), torch.finfo(torch.float32).min
            )
        weights = scores.softmax(-1).to(v.dtype)
        x = x + self.mix((weights @ v).transpose(1, 2).flatten(2))
        return self.out(x)


def _turned(y):
    a, b = y.chunk(2, -1)
    return torch.cat([-b, a], -1)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of positions that are cut, or not used
@given(st.integers(1, 3), st.integers(2, 3), st.booleans(), st.booleans(), st.booleans(), st.integers(0, 99))
@settings(max_examples=8, phases=[Phase.generate])
def test_attention_made_at_random_computes_the_same_after_permutation(shared, per_group, rotary, masked, cut, seed):
    torch.manual_seed(seed)
    model, inputs = RandomHeads(shared, per_group, rotary, masked, cut), torch.randn(2, 6, 3)
    groups = trace(model, inputs)
    assert largest_change(model, groups, inputs, seed) < 1e-6, "softmax is in single precision"
    assert groups.parts["mix.weight"] and groups.parts["norm.weight"]
    # Heads that share keys move with them, and the values within them among themselves.
    assert {part.group for part in groups.parts["v.weight"]} & set(groups.sizes)


@given(st.lists(st.tuples(STEPS, st.booleans()), max_size=5), st.integers(1, 3), st.integers(0, 99))
@settings(max_examples=15, phases=[Phase.generate])  # an export takes a second, shrinking would take minutes
def test_networks_made_at_random_compute_the_same_after_permutation(steps, heads, seed):
    torch.manual_seed(seed)
    model = Random(steps, heads)
    inputs = torch.randn(3, 2, 3, 3)
    groups = trace(model, inputs)
    assert groups.sizes
    assert largest_change(model, groups, inputs, seed) < 1e-8
    # The residual stream of the tokens and the units within heads are free whatever came before.
    assert 4 * heads in groups.sizes.values()
    within = {part.group for part in groups.parts["layers.qkv.weight"]} & set(groups.inside)
    assert len(within) == (2 if heads > 1 else 0)


@given(st.lists(st.integers(1, 6), min_size=2, max_size=5), st.booleans())
@settings(max_examples=10)
def test_a_plain_chain_is_traced_to_what_is_written_by_hand(widths, bias):
    layers = [nn.Linear(i, o, bias=bias) for i, o in zip(widths[:-1], widths[1:], strict=True)]
    model = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))
    traced, written = trace(model, torch.randn(2, widths[0])), chain_spec(model)
    # One unit alone can change places with no other: tracing calls that no group.
    assert traced.sizes == {group: size for group, size in written.sizes.items() if size > 1}
    for key, parts in written.parts.items():
        assert traced.parts[key] == tuple(part for part in parts if written.sizes[part.group] > 1)


@pytest.mark.parametrize("name", ["shuffled", "attention"])
def test_permutations_of_blocks_and_within_them_obey_the_laws_of_a_group(name):
    torch.manual_seed(0)
    attention = nn.TransformerEncoderLayer(8, 2, 6, batch_first=True)
    model, inputs = (Shuffled(), torch.randn(2, 2, 5, 5)) if name == "shuffled" else (attention, torch.randn(2, 5, 8))
    spec = trace(model, inputs)
    generator = torch.Generator().manual_seed(0)
    p, q = (Permutation.random(spec, (3,), generator) for _ in range(2))
    weights = model.state_dict()
    stacked = p.compose(q).apply(weights)
    for key, tensor in p.apply(q.apply(weights)).items():
        assert torch.equal(stacked[key], tensor)
    for key, tensor in p.invert().apply(p.apply(weights)).items():
        assert torch.equal(tensor, weights[key].expand_as(tensor))
    identity = Permutation.identity(spec, (3,)).indices
    assert all(torch.equal(index, identity[group]) for group, index in p.compose(p.invert()).indices.items())
