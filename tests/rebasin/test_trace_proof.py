"""What the proof of a spec looks at: other masks and whole numbers, and it refuses specs that fail there."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rebasin import Permutation, SpecError, trace
from rebasin.graph import export
from rebasin.tracing.proof import prove
from rebasin.tracing.units import RULES

GENERATOR = torch.Generator().manual_seed(0)


def normal(*shape):
    return torch.randn(shape, generator=GENERATOR)


def is_right(spec, model, *inputs):
    """Whether a model answers as before once all its units are permuted."""
    moved = Permutation.random(spec, generator=torch.Generator().manual_seed(1)).apply(model)
    return torch.allclose(moved(*inputs), model(*inputs), atol=1e-5)


def prove_without(spec, key, model, inputs):
    """Prove a spec that leaves an entry in place, in float64."""
    wide = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    prove(replace(spec, parts=spec.parts | {key: ()}), export(model.double(), wide, RULES), wide)


class Latents(nn.Module):
    """Learned latents read the input, and then, if asked, one another in their order."""

    def __init__(self):
        super().__init__()
        self.latents, self.into, self.out = nn.Parameter(normal(6, 8)), nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x, asked):
        x = self.into(x)
        read = F.scaled_dot_product_attention(self.latents.expand(len(x), -1, -1), x, x)
        ordered = F.scaled_dot_product_attention(read, read, read, is_causal=True)
        return self.out(read + ordered * asked[:, None, None]).square().sum(1)


@pytest.mark.parametrize("asked", [0, 1])
def test_places_stay_that_a_causal_mask_tells_apart(asked):
    model, x = Latents().eval(), normal(2, 5, 3)
    spec = trace(model, (x, torch.full((2,), asked)))
    assert {(part.group, part.axis) for part in spec.parts["latents"]} == {("into", 1)}
    assert is_right(spec, model, x, torch.tensor([1, 2]))


class Shifted(nn.Module):
    """A shift of what is chosen: by a mask, or by a number of each place."""

    def __init__(self):
        super().__init__()
        self.into, self.shift, self.out = nn.Linear(3, 8), nn.Parameter(normal(8)), nn.Linear(8, 2)

    def forward(self, x, chosen):
        weight = chosen[:, :1] if chosen.dtype == torch.bool else (chosen[:, :1] == 2)
        return self.out((self.into(x) + self.shift * weight).relu())


@pytest.mark.parametrize("chosen", [torch.zeros(4, 2).bool(), torch.tensor([[0, 1], [1, 2], [0, 1], [1, 2]])])
def test_a_spec_that_fails_for_other_masks_or_numbers_is_refused(chosen):
    model, x = Shifted(), normal(4, 3)
    spec = trace(model, (x, chosen))
    assert spec.parts["shift"]
    with pytest.raises(SpecError, match="for masks or whole numbers other than the example's: its spec is wrong"):
        prove_without(spec, "shift", model, (x, chosen))


class Padded(nn.Module):
    """Attention to what is not padding: to nothing, if all is."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, n) for n in (8, 8, 8, 2))

    def forward(self, x, padding):
        scores = self.q(x) @ self.k(x).mT
        scores = scores.masked_fill(padding[:, None], -torch.inf)
        return self.out(scores.softmax(-1) @ self.v(x))


def test_masks_that_a_model_does_not_take_are_passed_over():
    padding = torch.zeros(40, 2, dtype=torch.bool)  # drawn anew, some row of 40 is padding alone
    spec = trace(Padded(), (normal(40, 2, 8), padding))
    assert sorted(spec.sizes.values()) == [8, 8]


class Sines(nn.Module):
    """So many layers of sines, as implicit representations have, which amplify rounding; and an output beside them."""

    def __init__(self, layers, marked=False):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2 if number == 0 else 16, 16) for number in range(layers))
        self.out, self.marked = nn.Linear(16, 1), marked

    def forward(self, x):
        first = self.layers[0](x)
        for layer in self.layers:
            x = torch.sin(30 * layer(x))
        return self.out(x + 1e-3 * torch.arange(16.0) * first if self.marked else x)


def test_a_network_that_amplifies_rounding_is_proved_and_one_that_gives_nothing_else_is_refused():
    model = Sines(7)
    spec = trace(model, normal(4, 2))
    assert [*spec.sizes.values()] == [16] * 7
    told = (
        "nothing can be proved: for random weights an output is nothing but rounding, as the mean of what was centred"
    )
    with pytest.raises(ValueError, match=told):
        trace(Sines(14), normal(4, 2))


class OnLength(nn.Module):
    """In long inputs each unit has a factor of its own, and what is given hides it: mostly zeros, or large numbers."""

    def __init__(self, given):
        super().__init__()
        self.a, self.b, self.o, self.given = nn.Linear(3, 8), nn.Linear(3, 4), nn.Linear(8, 16), given

    def forward(self, x):
        hidden = self.a(x)
        if x.shape[1] > 6:
            hidden = hidden * torch.linspace(0.5, 1, 8)
        return self.given(self.o(hidden.relu()), self.b(x))


def two_of_all(scores, _):
    best, places = scores.topk(2, -1)
    return torch.zeros_like(scores).scatter(-1, places, best.softmax(-1))


HIDING = {
    "two of sixteen gates": two_of_all,
    "an output that is padded": lambda scores, _: F.pad(scores, (0, 40)),
    "large numbers beside it": lambda scores, others: torch.cat([scores, 1e9 * others], -1),
}


@pytest.mark.parametrize("name", HIDING)
def test_zeros_and_large_outputs_do_not_hide_a_wrong_spec(name):
    torch.manual_seed(0)
    model = OnLength(HIDING[name])
    with pytest.raises(SpecError, match="which no example has"):
        trace(model, normal(2, 4, 3))
    assert "a" not in trace(model, normal(2, 9, 3)).sizes


def test_amplified_rounding_does_not_hide_a_wrong_spec():
    model = Sines(7)
    right = trace(model, normal(4, 2))
    program = export(Sines(7, marked=True).eval(), normal(4, 2))
    with pytest.raises(SpecError, match="permuting 'layers.0' changes what the network computes"):
        prove(right, program, normal(4, 2))
