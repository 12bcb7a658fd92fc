"""The merged network of any size: what it computes, costs, refuses and becomes on disk."""

import subprocess
import sys

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from networks import NETWORKS, drawn, images
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from rebasin import Permutation, SpecError, refit, trace
from rebasin.expanding import split_layers
from rebasin.expanding.expanded import expand_network, kept_whole
from rebasin.expanding.expansion import expand
from rebasin.expanding.rewriting import BECOMES
from rebasin.expanding.slots import Slots
from rebasin.graph import export
from rebasin.tracing.rules import sums
from rebasin.tracing.units import RULES


class Plain(nn.Module):
    """Linear layers of any widths."""

    def __init__(self, a=6, b=5, c=4):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(32, a), nn.Linear(a, b), nn.Linear(b, c)
        self.out = nn.Linear(c, 3)

    def forward(self, x):
        return self.out(self.third(self.second(self.first(x.flatten(1)).relu()).tanh()).relu())


class Flattened(nn.Module):
    """Convolutions, then their values flattened, a place's channels side by side or a channel's places."""

    last = False

    def __init__(self, a=4, b=5, c=6):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, a, 3, padding=1), nn.Conv2d(a, b, 3, padding=1)
        self.hidden, self.out = nn.Linear(4 * b, c), nn.Linear(c, 3)

    def forward(self, x):
        x = nn.functional.max_pool2d(self.second(self.first(x).relu()).relu(), 2)
        x = x.permute(0, 2, 3, 1) if self.last else x
        return self.out(self.hidden(x.flatten(1)).relu())


class FlattenedLast(Flattened):
    last = True


class Residual(nn.Module):
    """A residual stream of channels with batch norms."""

    def __init__(self, stream=4, inner=5):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, stream, 3, padding=1, bias=False), nn.BatchNorm2d(stream)
        self.up, self.norm1 = nn.Conv2d(stream, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner)
        self.down, self.norm2 = nn.Conv2d(inner, stream, 3, padding=1, bias=False), nn.BatchNorm2d(stream)
        self.out = nn.Linear(stream, 3)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        x = (x + self.norm2(self.down(self.norm1(self.up(x)).relu()))).relu()
        return self.out(x.mean((2, 3)))


class Dense(nn.Module):
    """Each convolution reads all values so far, concatenated; so does a depthwise one."""

    def __init__(self, a=4, b=3, c=5):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, a, 3, padding=1), nn.Conv2d(a, b, 3, padding=1)
        self.third = nn.Conv2d(a + b, c, 3, padding=1)
        self.norm = nn.BatchNorm2d(a + b + c)
        self.each = nn.Conv2d(a + b + c, a + b + c, 3, padding=1, groups=a + b + c)
        self.out = nn.Linear(a + b + c, 3)

    def forward(self, x):
        x = self.first(x).relu()
        x = torch.cat([x, self.second(x).relu()], 1)
        x = torch.cat([x, self.third(x).relu()], 1)
        return self.out(self.each(self.norm(x)).relu().mean((2, 3)))


class Normed(nn.Module):
    """A norm of every kind that goes over units, on a residual stream."""

    def __init__(self, norm):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 6, 1), norm
        self.up, self.down, self.out = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = self.stem(x)
        y = self.norm(x) if isinstance(self.norm, nn.GroupNorm) else self.norm(x.movedim(1, -1)).movedim(-1, 1)
        x = x.movedim(1, -1) + self.down(self.up(y.movedim(1, -1)).relu())
        return self.out(x.mean((1, 2)))


class WrittenOut(nn.Module):
    """Attention written out, of heads that are a number in the code, after a packed projection."""

    def __init__(self):
        super().__init__()
        self.patches, self.place = nn.Conv2d(2, 6, 2, 2), nn.Parameter(torch.zeros(5, 6))
        self.token = nn.Parameter(torch.zeros(1, 1, 6))
        self.packed, self.back = nn.Linear(6, 3 * 2 * 4), nn.Linear(8, 6)
        self.norm, self.out = nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x):
        x = self.patches(x).flatten(2).mT
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
        q, k, v = self.packed(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        attended = (q @ k.mT * 4**-0.5).softmax(-1) @ v
        x = x + self.back(attended.transpose(1, 2).reshape(x.shape[0], -1, 8))
        return self.out(self.norm(x)[:, 0])


class Gated(nn.Module):
    """Halves of one layer that are multiplied, and two outputs."""

    def __init__(self):
        super().__init__()
        self.both, self.a, self.b = nn.Linear(32, 10), nn.Linear(5, 3), nn.Linear(5, 2)

    def forward(self, x):
        x, gate = self.both(x.flatten(1)).chunk(2, -1)
        x = x.relu() * gate.sigmoid()
        return {"a": self.a(x), "b": self.b(x)}


class Fixed(nn.Module):
    """Begins with constants that are no weights, as a normalisation does."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.full((2, 1, 1), 0.1), persistent=False)
        self.register_buffer("mixed", torch.linspace(-1, 1, 32 * 5).reshape(32, 5), persistent=False)
        self.into, self.out = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(self.into((x - self.mean).flatten(1) @ self.mixed).relu())


OWN = (Plain, Flattened, FlattenedLast, Residual, Dense, WrittenOut, Gated, Fixed)
ALL = {network.__name__: network for network in OWN}
ALL |= NETWORKS
ALL |= {
    "layer norm": lambda: Normed(nn.LayerNorm(6)),
    "rms norm": lambda: Normed(nn.RMSNorm(6)),
    "group norm of one": lambda: Normed(nn.GroupNorm(1, 6)),
    "group norm": lambda: Normed(nn.GroupNorm(3, 6)),
}
SPECS = {}


def network(name):
    """A network of tests in float64, and its spec."""
    if name not in SPECS:
        torch.manual_seed(0)
        model = ALL[name]().double().eval()
        SPECS[name] = model, trace(model, images(1))
    return SPECS[name]


def outputs(model, weights, x):
    """What each of the models (n, ...) gives, each a list of its outputs."""
    n = len(next(iter(weights.values())))
    every = [functional_call(model, {key: tensor[m] for key, tensor in weights.items()}, (x,)) for m in range(n)]
    return [list(given.values()) if isinstance(given, dict) else [given] for given in every]


def as_list(given):
    return list(given.values()) if isinstance(given, dict) else [given]


# What becomes of heads depends on the last layer and on the outputs alone.
HEADS = [(name, 3, "side by side") for name in ALL] + [(name, 2, "shared") for name in ("Flattened", "Dense", "Gated")]


@torch.no_grad()
@pytest.mark.parametrize("name, n, heads", HEADS)
def test_with_nothing_shared_it_is_the_ensemble(name, n, heads):
    model, spec = network(name)
    weights = drawn(model, n)
    merge = expand_network(Slots.apart(spec, n), model, weights, example=images(1), heads=heads)
    x = images(5, seed=1)
    for output, *of_models in zip(as_list(merge(x)), *outputs(model, weights, x), strict=True):
        expected = sum(of_models) / n if heads == "shared" else torch.cat(of_models, -1)
        # Sums of some 100 products of float64 in another order.
        torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("name", ALL)
def test_models_that_are_one_but_for_a_permutation_merge_to_it_however_much_is_shared(name):
    model, spec = network(name)
    generator = torch.Generator().manual_seed(0)
    permutation = Permutation.random(spec, (3,), generator)
    one = drawn(model)
    models = permutation.invert().apply(one)
    x = images(4, seed=1)
    scores = {group: torch.rand(spec.sizes[group], generator=generator) for group in spec.families}
    for shared in (0.5, 1):
        merged = {group: round(shared * spec.sizes[group]) for group in spec.families}
        merge = expand_network(Slots.partial(permutation, merged, scores), model, models, example=images(1))
        assert (merge.size == 1) == (shared == 1)
        for output, expected in zip(as_list(merge(x)), as_list(functional_call(model, one, (x,))), strict=True):
            torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)


def some_slots(spec, n):
    """Slots of any kind, in which units of one model may share a slot too."""
    maps = {}
    for group in spec.families:
        size = spec.sizes[group]
        maps[group] = st.lists(st.integers(0, n * size - 1), min_size=n * size, max_size=n * size)
    index = st.fixed_dictionaries(maps)
    return index.map(
        lambda chosen: Slots.from_index(spec, {g: torch.tensor(i).reshape(n, -1) for g, i in chosen.items()})
    )


WIDE = {
    "Plain": lambda w: Plain(w["first"], w["second"], w["third"]),
    "Flattened": lambda w: Flattened(w["first"], w["second"], w["hidden"]),
    "FlattenedLast": lambda w: FlattenedLast(w["first"], w["second"], w["hidden"]),
    "Residual": lambda w: Residual(w["stem"], w["up"]),
    "Dense": lambda w: Dense(w["first"], w["second"], w["third"]),
}


@torch.no_grad()
@pytest.mark.parametrize("name", WIDE)
@given(st.data())
@settings(max_examples=2, phases=[Phase.generate])
def test_any_slots_give_what_the_dense_network_of_their_widths_gives(name, data):
    model, spec = network(name)
    n = data.draw(st.integers(2, 3))
    slots = data.draw(some_slots(spec, n))
    weights = drawn(model, n)
    dense = expand(slots, weights, export(model, (images(1),), RULES))
    wide = WIDE[name](slots.widths).double().eval()
    wide.load_state_dict(dense)
    merge = expand_network(slots, model, weights, example=images(1))
    x = images(3, seed=2)
    torch.testing.assert_close(merge(x), wide(x), rtol=1e-10, atol=1e-10)
    for key, tensor in merge.weights.items():
        assert torch.equal(tensor, dense[key])
    assert merge.macs == counted(merge, x) and merge.macs_dense == counted(wide, x)
    assert merge.macs_parent == counted(model, x)


def counted(model, x):
    """The multiply-adds for one input of linear layers and convolutions, by torch's own counter."""
    with FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops() / 2 / len(x)


@given(st.data())
@settings(max_examples=2, phases=[Phase.generate])
def test_its_cost_is_that_of_the_pairs_of_slots_with_a_common_owner(data):
    model, spec = network("Flattened")
    slots = data.draw(some_slots(spec, 2))
    merge = expand_network(slots, model, drawn(model, 2), example=images(1))
    owners = {group: owned.double() for group, owned in slots.owners.items()}
    every = torch.ones(2, 1, dtype=torch.float64)

    def pairs(out, reads):
        return int((out.T @ reads > 0).sum())

    first, second, hidden = owners["first"], owners["second"], owners["hidden"]
    # Places times the elements of a kernel, or of a channel's share of the columns after pooling to 2 x 2.
    convolved = 16 * 9 * (2 * pairs(first, every) + pairs(second, first))
    assert merge.macs == convolved + 4 * pairs(hidden, second) + 3 * pairs(every, hidden)
    weights = 9 * (2 * pairs(first, every) + pairs(second, first)) + 4 * pairs(hidden, second) + 3 * hidden.shape[1]
    assert merge.parameters_count == weights + first.shape[1] + second.shape[1] + hidden.shape[1] + 3


@torch.no_grad()
@pytest.mark.parametrize("name", ["FlattenedLast", "WrittenOut", "layer norm"])
def test_slices_that_are_looked_up_by_number_are_those_that_are_cut_out(name, monkeypatch):
    model, spec = network(name)
    slots, weights, x = half_shared(spec, 3), drawn(model, 3), images(3, seed=1)
    cut = expand_network(slots, model, weights, example=images(1))
    monkeypatch.setattr(split_layers, "MOST_SLICES", 1)
    looked_up = expand_network(slots, model, weights, example=images(1))
    torch.testing.assert_close(cut(x), looked_up(x), rtol=1e-12, atol=1e-12)
    assert looked_up.macs == cut.macs


class OwnersNorm(nn.Module):
    """A LayerNorm of each model's own units, taken apart and put together again, unit by unit."""

    def __init__(self, index, weight, bias):
        super().__init__()
        self.index, self.weight, self.bias = index, weight, bias

    def forward(self, x):
        total, count = torch.zeros_like(x), torch.zeros_like(x)
        for own in self.index:
            normed = nn.functional.layer_norm(x[..., own], [len(own)])
            slots = own.unique()
            of_slot = torch.stack([normed[..., (own == slot).nonzero()[0, 0]] for slot in slots], -1)
            total[..., slots] += of_slot
            count[..., slots] += 1
        return total / count * self.weight + self.bias


@torch.no_grad()
@given(st.data())
@settings(max_examples=2, phases=[Phase.generate])
def test_a_layer_norm_goes_over_each_models_own_slots(data):
    model, spec = network("layer norm")
    n = data.draw(st.integers(2, 3))
    slots = data.draw(some_slots(spec, n))
    weights = drawn(model, n)
    dense = expand(slots, weights, export(model, (images(1),), RULES))
    wide = Normed(OwnersNorm(slots.index["stem"], dense["norm.weight"], dense["norm.bias"]))
    stream, inner = slots.widths["stem"], slots.widths["up"]
    wide.stem, wide.out = nn.Conv2d(2, stream, 1), nn.Linear(stream, 3)
    wide.up, wide.down = nn.Linear(stream, inner), nn.Linear(inner, stream)
    wide.double().load_state_dict({key: tensor for key, tensor in dense.items() if "norm" not in key})
    x = images(3, seed=2)
    merge = expand_network(slots, model, weights, example=images(1))
    torch.testing.assert_close(merge(x), wide(x), rtol=1e-10, atol=1e-10)


def half_shared(spec, n=2):
    """Half of the units of each group shared, whole blocks where it is one of blocks."""
    generator = torch.Generator().manual_seed(0)
    scores = {group: torch.rand(spec.sizes[group], generator=generator) for group in spec.families}
    return Slots.partial(
        Permutation.random(spec, (n,), generator), {group: spec.sizes[group] // 2 for group in scores}, scores
    )


def test_saved_networks_run_in_a_fresh_process_without_this_package(tmp_path):
    x, expected = images(5, seed=1), {}
    for name in ("Dense", "WrittenOut", "Gated"):
        model, spec = network(name)
        merge = expand_network(half_shared(spec), model, drawn(model, 2), example=images(1))
        merge.save(tmp_path / f"{name}.pt2")
        expected[name] = as_list(merge(x))
    torch.save(x, tmp_path / "x.pt")
    script = (
        "import sys, torch\n"
        "x = torch.load('x.pt')\n"
        f"given = {{name: torch.export.load(name + '.pt2').module()(x) for name in {list(expected)}}}\n"
        "assert not any(name.split('.')[0] == 'rebasin' for name in sys.modules)\n"
        "torch.save(given, 'given.pt')\n"
    )
    # -I: neither the folder nor PYTHONPATH is looked at.
    subprocess.run([sys.executable, "-I", "-W", "ignore", "-c", script], cwd=tmp_path, check=True, timeout=240)
    for name, of_fresh_process in torch.load(tmp_path / "given.pt").items():
        for output, own in zip(as_list(of_fresh_process), expected[name], strict=True):
            torch.testing.assert_close(output, own.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["Residual", "WrittenOut"])
def test_it_trains_and_its_zero_blocks_stay_zero(name):
    model, spec = network(name)
    slots = half_shared(spec)
    merge = expand_network(slots, model, drawn(model, 2), example=images(1))
    x, goal = images(6, seed=1), torch.tensor([0, 1, 2, 0, 1, 2])
    optimiser = torch.optim.Adam(merge.parameters(), lr=0.01)
    losses = []
    for _ in range(5):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(merge(x), goal)
        loss.backward()
        assert all(parameter.grad is not None for parameter in merge.parameters())
        optimiser.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    again = expand_network(slots, model, drawn(model, 2), example=images(1)).with_weights(merge.weights)
    torch.testing.assert_close(again(x), merge(x))


@torch.no_grad()
@pytest.mark.parametrize("name", ["Plain", "FlattenedLast", "Residual", "Dense", "layer norm", "branches"])
def test_it_can_be_traced_and_permuted_again(name):
    model, spec = network(name)
    merge = expand_network(half_shared(spec), model, drawn(model, 2), example=images(1))
    x = images(3, seed=1)
    again = trace(merge, x)
    # Of each group, the units of both models, of the first and of the second may change places among themselves.
    assert len(again.sizes) >= 3 * len(spec.families) - 2
    moved = Permutation.random(again, generator=torch.Generator().manual_seed(1)).apply(merge)
    torch.testing.assert_close(moved(x), merge(x), rtol=1e-10, atol=1e-10)


def test_other_weights_are_taken_in_the_shapes_of_the_merge_and_refused_where_it_has_no_block():
    model, spec = network("Plain")
    merge = expand_network(half_shared(spec), model, drawn(model, 2), example=images(1))
    doubled = {key: 2 * tensor for key, tensor in merge.weights.items()}
    x = images(2)
    before = merge(x)
    other = merge.with_weights(doubled)
    assert torch.equal(other.weights["second.weight"], doubled["second.weight"])
    assert torch.equal(merge(x), before) and not torch.equal(other(x), before)
    with pytest.raises(ValueError, match="'second.weight' has 9 weights between units of different models"):
        # 3 of 5 second units and 3 of 6 first units are left to each model: 3 x 3 pairs, here those of model 1 and 0.
        stray = doubled["second.weight"].clone()
        stray[-3:, 3:6] = 1
        merge.with_weights(doubled | {"second.weight": stray})
    with pytest.raises(ValueError, match=r"'out.bias' has shape \(3,\) in the merge, given is none"):
        merge.with_weights({key: tensor for key, tensor in doubled.items() if key != "out.bias"})


def test_whole_numbers_and_statistics_are_kept():
    model, spec = network("Residual")
    weights = drawn(model, 2)
    merge = expand_network(half_shared(spec), model, weights, example=images(1))
    assert merge.weights.keys() == weights.keys()
    assert merge.weights["norm.num_batches_tracked"] == 0
    assert not any("running" in name for name, _ in merge.named_parameters())


class OneHead(nn.Module):
    """Attention of one head: queries and keys are compared unit by unit."""

    def __init__(self, **_):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(4, width) for width in (6, 6, 5, 3))
        self.out = nn.Linear(5, 3)

    def forward(self, x):
        x = x[:, 0]
        return self.out((self.query(x) @ self.key(x).mT).softmax(-1) @ self.value(x)).mean(1)


class Mixed(nn.Module):
    """Something that mixes the units of a hidden layer in the way that is asked for."""

    def __init__(self, mix):
        super().__init__()
        self.a, self.b, self.mix = nn.Linear(32, 8), nn.Linear(8, 3), mix

    def forward(self, x):
        return self.b(self.mix(self.a(x.flatten(1))))


MIXES = {
    "softmax weighs its units against one another": lambda x: x.softmax(-1),
    "mean takes its units together": lambda x: x - x.mean(-1, keepdim=True),
    "mean takes its units together ": lambda x: x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt(),
    "var takes its units together": lambda x: x / x.var(-1, keepdim=True),
}


@pytest.mark.parametrize("reason", MIXES)
def test_what_mixes_the_units_of_a_group_keeps_it_whole(reason):
    model = Mixed(MIXES[reason]).double()
    spec = trace(model, images(1))
    with pytest.raises(ValueError, match=f"group 'a' cannot be split, since {reason.strip()}: merge it whole"):
        expand_network(Slots.apart(spec, 2), model, drawn(model, 2), example=images(1))
    whole = Slots.of_permutation(Permutation.identity(spec, (2,)))
    assert expand_network(whole, model, drawn(model, 2), example=images(1)).size == 1
    assert kept_whole(spec, model, images(1)) == {"a": f"since {reason.strip()}"}


@torch.no_grad()
def test_only_the_groups_that_cannot_be_split_are_kept_whole():
    model = OneHead().double()
    spec = trace(model, images(1))
    assert kept_whole(spec, model, images(1)) == {"query": "since matmul sums over its units"}
    index = {group: torch.arange(2 * spec.sizes[group]).reshape(2, -1) for group in spec.families}
    index["query"] = torch.arange(6).expand(2, -1)
    slots = Slots.from_index(spec, index)
    weights = drawn(model, 2)
    weights["query.weight"][1], weights["query.bias"][1] = weights["query.weight"][0], weights["query.bias"][0]
    weights["key.weight"][1], weights["key.bias"][1] = weights["key.weight"][0], weights["key.bias"][0]
    x = images(3, seed=1)
    (a,), (b,) = outputs(model, weights, x)
    merge = expand_network(slots, model, weights, example=images(1))
    torch.testing.assert_close(merge(x), (a + b) / 2, rtol=1e-10, atol=1e-10)


def test_the_proof_finds_a_norm_that_goes_over_the_units_of_all_models(monkeypatch):
    def over_all(merge, node, x, shape, *tensors):
        return merge.copied(node, [x, [merge.axis(x, -1).size], *tensors])

    model, spec = network("layer norm")
    monkeypatch.setitem(BECOMES, sums.normed, over_all)
    with pytest.raises(SpecError, match="computes something else: merge 'stem' whole"):
        expand_network(half_shared(spec), model, drawn(model, 2), example=images(1))


class InHalf(Mixed):
    """Says in its code what number format its numbers have."""

    def forward(self, x):
        return self.b(self.a(x.flatten(1).to(self.a.weight.dtype)).relu())


@torch.no_grad()
def test_it_has_the_number_format_of_the_models():
    for model in (InHalf(None), Fixed()):
        weights = {key: tensor.float() for key, tensor in drawn(model, 2).items()}
        x = images(3).float()
        merge = expand_network(Slots.apart(trace(model, x), 2), model, weights, example=x)
        (a,), (b,) = outputs(model, weights, x)
        assert merge(x).dtype == torch.float32
        torch.testing.assert_close(merge(x), (a + b) / 2)


@torch.no_grad()
def test_what_is_held_in_place_is_averaged():
    model = Mixed(lambda x: x.cumsum(-1)).double()
    model.b = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    spec = trace(model, images(1))
    assert spec.sizes == {"b.0": 5}
    weights = drawn(model, 2)
    merge = expand_network(Slots.apart(spec, 2), model, weights, example=images(1))
    assert torch.equal(merge.weights["a.weight"], weights["a.weight"].mean(0))
    hidden = (images(2).flatten(1) @ weights["a.weight"].mean(0).T + weights["a.bias"].mean(0)).cumsum(-1)
    every = outputs(model.b, {key[2:]: tensor for key, tensor in weights.items() if key[0] == "b"}, hidden)
    torch.testing.assert_close(merge(images(2)), (every[0][0] + every[1][0]) / 2, rtol=1e-10, atol=1e-10)


def test_bad_input_is_told():
    model, spec = network("Plain")
    weights, slots = drawn(model, 2), Slots.apart(spec, 2)
    with pytest.raises(TypeError, match="expand_network"):
        expand_network(slots, weights, model, example=images(1))
    with pytest.raises(ValueError, match="heads is 'shared' or 'side by side', not 'both'"):
        expand_network(slots, model, weights, example=images(1), heads="both")
    with pytest.raises(ValueError, match="slots are of 2 models, the weights have leading axes"):
        expand_network(slots, model, drawn(model, 3), example=images(1))
    other, other_spec = network("Flattened")
    with pytest.raises(ValueError, match="another spec than that of the model"):
        expand_network(Slots.apart(other_spec, 2), model, drawn(other, 2), example=images(1))


class AsksForItsLength(Mixed):
    """Takes ``len(x)``, which torch.export turns into a number."""

    def forward(self, x):
        return self.b(self.a(x.reshape(len(x), 32)).relu())


def test_a_batch_size_that_torch_export_fixed_is_told():
    model = AsksForItsLength(None).double()
    merge = expand_network(Slots.apart(trace(model, images(1)), 2), model, drawn(model, 2), example=images(4))
    assert merge(images(4)).shape == (4, 3)
    with pytest.raises(ValueError, match=r"fixed the batch size to 4, got 5: where the model has len\(x\)"):
        merge(images(5))
    slots = Slots.of_permutation(Permutation.identity(merge.slots.spec, (2,)))
    with pytest.raises(ValueError, match="^torch.export fixed the batch size to 2, got 50: .* write x.shape.0.$"):
        refit(slots, drawn(model, 2), images(50), model=model)


class Autoencoder(nn.Module):
    """Its output is its input, corrected: a residual stream that nothing but the input holds."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x):
        return x + self.b(self.a(x).relu())


def test_heads_cannot_stand_side_by_side_without_outputs_of_their_own():
    model = Autoencoder().double()
    spec = trace(model, images(1))
    weights = drawn(model, 2)
    with pytest.raises(ValueError, match="heads cannot stand side by side: the output 'add' has no units of its own"):
        expand_network(Slots.apart(spec, 2), model, weights, example=images(1), heads="side by side")
    merge = expand_network(Slots.apart(spec, 2), model, weights, example=images(1))
    x = images(3, seed=1)
    (a,), (b,) = outputs(model, weights, x)
    torch.testing.assert_close(merge(x), (a + b) / 2, rtol=1e-10, atol=1e-10)
