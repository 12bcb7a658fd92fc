"""Rules of operators: what moves, and that it computes the same on other inputs."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rebasin import Permutation, trace

GENERATOR = torch.Generator().manual_seed(0)


def normal(*shape):
    return torch.randn(shape, generator=GENERATOR)


class Applied(nn.Module):
    """A function of a model, which has the layers that are named, and its input."""

    def __init__(self, function, **layers):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *inputs):
        return self.function(self, *inputs)


def sizes_of(model, inputs, others=None):
    """The sizes of a model's groups, which must leave what it computes of other inputs as it is, in float64."""
    spec = trace(model.eval(), inputs)
    exact = copy.deepcopy(model).double()
    others = inputs if others is None else others
    others = [x.double() if x.is_floating_point() else x for x in (others if isinstance(others, tuple) else (others,))]
    for seed in range(2):
        moved = Permutation.random(spec, generator=torch.Generator().manual_seed(seed)).apply(exact)
        torch.testing.assert_close(moved(*others), exact(*others), rtol=1e-9, atol=1e-9)
    return sorted(spec.sizes.values())


def mixed_scores(model, x):
    batch, length, _ = x.shape
    q, k, v = (layer(x).view(batch, length, 2, 4).transpose(1, 2) for layer in (model.q, model.k, model.v))
    scores = (q @ k.mT).reshape(batch * 2, 1, length, length)
    scores = model.mix(scores).view(batch, 2, length, length)
    return model.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_heads_in_the_batch_of_a_convolution_move(kind):
    layers = {"q": nn.Linear(3, 8), "k": nn.Linear(3, 8), "v": nn.Linear(3, 8), "out": nn.Linear(8, 2)}
    model = Applied(mixed_scores, **layers, mix=kind(1, 1, 3, padding=1))
    assert sizes_of(model, normal(2, 5, 3), normal(3, 6, 3)) == [2, 4, 4]


NORMS = {
    "in groups, one for each head": (lambda x: F.group_norm(x, 2), [2, 4]),
    "in groups of two heads": (lambda x: F.group_norm(x.repeat(1, 2, 1), 2).chunk(2, 1)[0], []),
    "in one group": (lambda x: F.group_norm(x, 1), [8]),
    "each head by itself": (lambda x: F.instance_norm(x), [2, 4]),
}


@pytest.mark.parametrize("name", NORMS)
def test_heads_that_are_normalised_keep_their_units(name):
    norm, expected = NORMS[name]
    model = Applied(lambda m, x: m.out(norm(m.a(x).view(-1, 2, 4)).flatten(1).relu()), a=nn.Linear(3, 8))
    model.out = nn.Linear(8, 2)
    assert sizes_of(model, normal(2, 3), normal(3, 3)) == expected


def test_frames_that_hold_units_twice_are_told_apart_by_how_often():
    model = Applied(lambda m, x: m.out(m.a(x).relu().view(len(x), -1, 12)), a=nn.Linear(3, 8), out=nn.Linear(12, 2))
    assert sizes_of(model, normal(2, 3, 3), normal(4, 6, 3)) == [4]


def test_a_grouped_weight_of_which_a_part_is_used_elsewhere_stays():
    def function(model, x):
        grouped = model.out(model.b(model.a(x).relu()).relu().mean(-1))
        return grouped + F.linear(model.c(x.mean(-1)).relu(), model.b.weight[:, :, 0]).sum(1, keepdim=True)

    layers = {"a": nn.Conv1d(3, 8, 1), "b": nn.Conv1d(8, 8, 1, groups=4), "c": nn.Linear(3, 2), "out": nn.Linear(8, 2)}
    model = Applied(function, **layers)
    assert sizes_of(model, normal(2, 3, 6), normal(3, 3, 6)) == [2, 2, 2, 2]
    assert "used in another way too" in trace(model, normal(2, 3, 6)).pinned["a.weight"]


DIAGONALS = {
    "of the first and the third": ((-1, 2, 4, 2), {"dim1": 1, "dim2": 3}, [4]),
    "of the last two": ((-1, 4, 2, 2), {"dim1": -2, "dim2": -1}, [4]),
    "of the batch and the units": ((-1, 4, 4), {}, []),
}


@pytest.mark.parametrize("name", DIAGONALS)
def test_a_diagonal_pins_the_axes_that_it_is_of(name):
    shape, axes, expected = DIAGONALS[name]

    def function(model, x):
        return model.out(torch.diagonal(model.a(x).view(shape), **axes).reshape(-1, model.out.in_features))

    model = Applied(function, a=nn.Linear(3, 16), out=nn.Linear(8 if axes else 4, 2))
    assert sizes_of(model, normal(4, 3)) == expected


FUNCTIONS = {
    "lgamma": (lambda x: torch.lgamma(x.abs() + 1), [8]),
    "digamma": (lambda x: torch.digamma(x.abs() + 1), [8]),
    "erfinv": (lambda x: torch.erfinv(x.tanh() * 0.9), [8]),
    "asinh": (torch.asinh, [8]),
    "atanh": (lambda x: torch.atanh(x.tanh() * 0.9), [8]),
    "angle": (lambda x: torch.angle(torch.complex(x, 2 * x)), [8]),
    "copysign": (lambda x: torch.copysign(x, x.sin()), [8]),
    "heaviside": (lambda x: torch.heaviside(x, x.cos()), [8]),
    "bucketize": (lambda x: torch.bucketize(x, x.new_tensor([-0.5, 0.0, 0.5])) * x, [8]),
    "both": (lambda x: x * ((x > 0) & (x < 1)), [8]),
    "either": (lambda x: x * ((x > 1) | (x < 0)), [8]),
    "nanmean": (lambda x: x * x.nanmean(-1, keepdim=True), [8]),
    "aminmax": (lambda x: x - x.aminmax(dim=-1, keepdim=True)[0], [8]),
    "empty_like": (lambda x: torch.empty_like(x).copy_(x), [8]),
    "new_empty": (lambda x: x.new_empty(x.shape).fill_(2.0) * x, [8]),
    "cdist": (lambda x: torch.cdist(x, 2 * x).sum(-1, keepdim=True) * x, [8]),
    "a constant by its place": (lambda x: torch.copysign(x, torch.linspace(-1, 1, 8).to(x)), []),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_between_layers_leave_units_free(name):
    function, expected = FUNCTIONS[name]
    model = Applied(lambda m, x: m.out(function(m.a(x))), a=nn.Linear(3, 8), out=nn.Linear(8, 2))
    assert sizes_of(model, normal(4, 3), normal(5, 3)) == expected


MESSAGES = {
    "added": lambda zeros, to, sent: zeros.index_add(0, to, sent),
    "put": lambda zeros, to, sent: zeros.index_put((to,), sent, accumulate=True),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_messages_between_nodes_keep_their_units(name):
    def function(model, x, edges):
        x = model.a(x).relu()
        return model.out(MESSAGES[name](torch.zeros_like(x), edges[1], model.b(x)[edges[0]]) + x)

    model = Applied(function, a=nn.Linear(3, 8), b=nn.Linear(8, 8), out=nn.Linear(8, 2))
    nodes, edges = normal(4, 3), torch.tensor([[0, 1, 2, 3, 1], [1, 2, 3, 0, 0]])
    assert sizes_of(model, (nodes, edges), (nodes, edges.flip(0))) == [8]


def memory_of_products(model, x):
    """A matrix of zeros at first, to which keys times values are added step by step, and which queries read."""
    q, k, v = model.q(x), model.k(x), model.v(x)
    state, read = x.new_zeros(len(x), 8, 6), []
    for step in range(2):
        read.append((q[:, step, :, None] * state).sum(1) + (q[:, step, None] @ state)[:, 0])
        state = state + k[:, step, :, None] * v[:, step, None]
    return model.out(torch.stack(read, 1) + v[:, :2])


def test_a_first_state_of_zeros_that_is_multiplied_pins_nothing():
    layers = {"q": nn.Linear(3, 8), "k": nn.Linear(3, 8), "v": nn.Linear(3, 6), "out": nn.Linear(6, 2)}
    assert sizes_of(Applied(memory_of_products, **layers), normal(2, 4, 3), normal(3, 4, 3)) == [6, 8]


def linear_attention(model, x):
    q, k, v = (layer(x).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (model.q, model.k, model.v))
    q, k = F.elu(q) + 1, F.elu(k) + 1
    read = q @ (k.mT @ v) / (q * k.sum(2, keepdim=True)).sum(-1, keepdim=True)
    return model.out(read.transpose(1, 2).flatten(2))


def gated_memory(model, x):
    """Keys times values, of two heads, decayed unit by unit of the keys."""
    q, k, v = (layer(x).unflatten(-1, (2, 4)) for layer in (model.q, model.k, model.v))
    state = (k[..., None] * v[..., None, :] * model.decay(x).sigmoid().unflatten(-1, (2, 4))[..., None]).cumsum(1)
    return model.out((q[..., None] * state).sum(-2).flatten(2))


@pytest.mark.parametrize(("function", "expected"), [(linear_attention, [2, 4]), (gated_memory, [2, 4])])
def test_blocks_that_overlap_in_part_keep_the_units_of_one(function, expected):
    layers = {name: nn.Linear(3, 8) for name in ("q", "k", "v", "decay")}
    if function is linear_attention:
        del layers["decay"]
    model = Applied(function, **layers, out=nn.Linear(8, 2))
    assert sizes_of(model, normal(2, 5, 3), normal(3, 7, 3)) == expected


COMPOSITES = {
    "clip": lambda x: torch.clip(x, -1, 1),
    "cosine_similarity": lambda x: x * F.cosine_similarity(x, x.sin(), dim=-1)[:, None],
    "float_power": lambda x: torch.float_power(x.abs() + 1, 1.5),
}


@pytest.mark.parametrize("name", COMPOSITES)
def test_operators_that_are_names_for_others_are_followed(name):
    model = Applied(lambda m, x: m.out(COMPOSITES[name](m.a(x)).to(x.dtype)), a=nn.Linear(3, 8), out=nn.Linear(8, 2))
    assert sizes_of(model, normal(4, 3), normal(5, 3)) == [8]


RANKED = {
    "the largest": (lambda x: x * torch.max(x, 1, keepdim=True)[0], [8]),
    "the largest, without its axis": (lambda x: x + torch.min(x, 1)[0][:, None], [8]),
    "the winners": (lambda x: x * (x >= x.topk(3, -1)[0][:, -1:]), [8]),
    "the third": (lambda x: x * (x >= x.kthvalue(3, -1, True)[0]), [8]),
    "all, in order": (lambda x: x * (x.sort(1, descending=True)[0][:, :2]).sum(1, keepdim=True), [8]),
    "all, in a stable order": (lambda x: x * x.sort(dim=1, stable=True)[0][:, 1:2], [8]),
    "heads by their largest": (lambda x: (x.view(-1, 2, 4) * x.view(-1, 2, 4).max(2, True)[0]).flatten(1), [2, 4]),
    "where it stands": (lambda x: x * torch.max(x, 1, keepdim=True)[1], []),
    "where they stand": (lambda x: x.sort(1)[1].to(x.dtype) * x, []),
}


@pytest.mark.parametrize("name", RANKED)
def test_values_by_their_rank_leave_units_free_as_long_as_their_places_are_not_used(name):
    function, expected = RANKED[name]
    model = Applied(lambda m, x: m.out(function(m.a(x))), a=nn.Linear(3, 8), out=nn.Linear(8, 2))
    assert sizes_of(model, normal(4, 3), normal(5, 3)) == expected


def turned_heads(model, x):
    """Heads scaled alike, whose halves are turned into one another, as with norms of queries and rotary positions."""
    heads = model.a(x).view(-1, 3, 4) * model.scale.weight[0]
    first, second = heads.chunk(2, -1)
    return model.out((heads + torch.cat([-second, first], -1)).flatten(1))


def test_the_halves_of_a_head_and_the_head_of_both_are_one_block():
    model = Applied(turned_heads, a=nn.Linear(3, 12), scale=nn.Linear(4, 1, bias=False), out=nn.Linear(12, 2))
    assert sizes_of(model, normal(2, 3), normal(5, 3)) == [2, 3]


def whitened(invert):
    def whiten(model, x):
        hidden = model.into(x)
        covariance = hidden.mT @ hidden + torch.eye(8, dtype=x.dtype)
        return model.out(invert(hidden, covariance))

    return whiten


WHITENED = {
    "by the inverse": (lambda hidden, covariance: hidden @ torch.linalg.inv(covariance), [8]),
    "by another name of it": (lambda hidden, covariance: hidden @ covariance.inverse(), [8]),
    # The factor is a triangle, which no other order of the units keeps.
    "by a triangular factor": (lambda hidden, covariance: hidden @ torch.linalg.cholesky(covariance), []),
    "by a solution": (lambda hidden, covariance: torch.linalg.solve(covariance, hidden.mT).mT, []),
}


@pytest.mark.parametrize("name", WHITENED)
def test_units_that_are_whitened_move_where_their_order_does_not_count(name):
    invert, sizes = WHITENED[name]
    model = Applied(whitened(invert), into=nn.Linear(3, 8), out=nn.Linear(8, 2))
    assert sizes_of(model, normal(4, 3), normal(5, 3)) == sizes


IDENTITIES = {
    "added to a product": (lambda hidden, eye: hidden @ (hidden.mT @ hidden + eye), [8]),
    "by itself": (lambda hidden, eye: hidden @ eye, [8]),
    "by its first row, which tells the first unit apart": (lambda hidden, eye: hidden + eye[0], [7]),
    "beside columns that stay": (lambda hidden, eye: hidden @ (eye + torch.arange(8.0, dtype=hidden.dtype)), []),
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_rows_and_columns_of_the_identity_move_together(name):
    function, sizes = IDENTITIES[name]
    layers = {"into": nn.Linear(3, 8), "out": nn.Linear(8, 2)}

    def computed(model, x):
        return model.out(function(model.into(x), torch.eye(8, dtype=x.dtype)))

    assert sizes_of(Applied(computed, **layers), normal(4, 3), normal(5, 3)) == sizes


def test_an_identity_that_is_no_square_stays():
    def computed(model, x):
        return model.out(model.into(x) @ torch.eye(8, 6, dtype=x.dtype))

    assert sizes_of(Applied(computed, into=nn.Linear(3, 8), out=nn.Linear(6, 2)), normal(4, 3)) == []


FILTERS = {  # how many filters there are, what is made of them, and what moves
    "expanded": (1, lambda filters: filters.expand(8, 1, 3, 3), [8]),
    "repeated": (1, lambda filters: filters.repeat(8, 1, 1, 1), [8]),
    "one of its own for each": (8, lambda filters: filters * 1.0, [8]),
    "two in turn, which may change places": (2, lambda filters: filters.repeat(4, 1, 1, 1), [2]),
    "twice for each channel": (1, lambda filters: filters.expand(16, 1, 3, 3), []),
}


@pytest.mark.parametrize("name", FILTERS)
def test_channels_that_one_filter_blurs_move(name):
    count, spread, sizes = FILTERS[name]

    def blurred(model, x):
        hidden = model.into(x).relu()
        return F.conv2d(hidden, spread(model.filters), groups=8, padding=1).mean((2, 3)) @ model.last

    filters = nn.Parameter(normal(count, 1, 3, 3))
    last = nn.Parameter(normal(len(spread(filters)), 2))
    model = Applied(blurred, into=nn.Conv2d(3, 8, 1), filters=filters, last=last)
    assert sizes_of(model, normal(2, 3, 6, 6)) == sizes
