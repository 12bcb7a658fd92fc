"""trace takes several examples, and looks at batches, lengths and resolutions that no example has."""

import pytest
import torch
from torch import nn

from rebasin import Permutation, SpecError, trace

GENERATOR = torch.Generator().manual_seed(0)


def normal(*shape):
    return torch.randn(shape, generator=GENERATOR)


class Places(nn.Module):
    """Attention among channels that takes places and channels for one another: with one place, nothing happens."""

    def __init__(self):
        super().__init__()
        self.into, self.pool, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.AvgPool2d(8), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        hidden = self.pool(self.into(x).relu())
        places = hidden.flatten(2).mT  # (n, places, channels)
        return self.out(hidden + places.reshape(hidden.shape))


def test_the_random_numbers_of_a_gpu_are_left_alone(monkeypatch):
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    state = torch.get_rng_state()
    trace(model, normal(2, 3))
    assert not seeded
    assert torch.equal(torch.get_rng_state(), state)


class LongTexts(nn.Module):
    """A shift that only inputs of more than seven places get, and crowded batches."""

    def __init__(self, crowded=10**6):
        super().__init__()
        self.into, self.shift, self.out = nn.Linear(3, 8), nn.Parameter(normal(8)), nn.Linear(8, 2)
        self.crowded = crowded

    def forward(self, x):
        hidden = self.into(x)
        if x.shape[1] > 7 or len(x) > self.crowded:
            hidden = hidden + self.shift
        return self.out(hidden.relu()).mean(1)


class Stretched(nn.Module):
    """In images that are no squares, each channel has a factor of its own."""

    def __init__(self):
        super().__init__()
        self.into, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 2)

    def forward(self, x):
        hidden = self.into(x)
        if x.shape[2] != x.shape[3]:
            hidden = hidden * torch.linspace(0, 1, 8)[:, None, None]
        return self.out(hidden.mean((2, 3)))


class Leaning(nn.Module):
    """In volumes whose height and width differ, each channel has a factor of its own."""

    def __init__(self):
        super().__init__()
        self.into, self.out = nn.Conv3d(3, 8, 1), nn.Linear(8, 2)

    def forward(self, x):
        hidden = self.into(x)
        if x.shape[3] != x.shape[4]:
            hidden = hidden * torch.linspace(0, 1, 8)[:, None, None, None]
        return self.out(hidden.mean((2, 3, 4)))


class StretchedAndMasked(Stretched):
    def forward(self, x, mask):
        return super().forward(x * mask.unsqueeze(1))


class ByLength(nn.Module):
    """In long inputs, each unit has a decay of its own."""

    def __init__(self):
        super().__init__()
        self.into, self.out = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x):
        hidden = self.into(x)
        return self.out((hidden * torch.arange(1.0, 9) if x.shape[1] > 5 else hidden).tanh())


class Masked(nn.Module):
    """A learned token for what is masked, if a mask is given."""

    def __init__(self):
        super().__init__()
        self.into, self.token, self.out = nn.Linear(3, 8), nn.Parameter(normal(8)), nn.Linear(8, 2)

    def forward(self, x, masked=None):
        x = self.into(x)
        return self.out(x if masked is None else torch.where(masked.unsqueeze(-1), self.token, x))


def is_right(spec, model, *inputs):
    """Whether a model answers as before once all its units are permuted."""
    moved = Permutation.random(spec, generator=torch.Generator().manual_seed(1)).apply(model)
    return torch.allclose(moved(*inputs), model(*inputs), atol=1e-5)


SMALL_AND_LARGE = {
    "places as channels": (Places, (normal(2, 3, 8, 8), normal(2, 3, 16, 16))),
    "a branch on the length": (LongTexts, (normal(2, 4, 3), normal(2, 9, 3))),
    "constants by the length": (ByLength, (normal(2, 4, 3), normal(2, 8, 3))),
    "a branch on what is no square": (Stretched, (normal(2, 3, 16, 16), normal(2, 3, 16, 24))),
    "a branch on what is no cube": (Leaning, (normal(2, 3, 8, 8, 8), normal(2, 3, 8, 12, 8))),
    "a branch on masked images that are no squares": (
        StretchedAndMasked,
        ((normal(2, 3, 16, 16), torch.ones(2, 16, 16)), (normal(2, 3, 16, 24), torch.ones(2, 16, 24))),
    ),
    "a branch on the batch": (lambda: LongTexts(crowded=2), (normal(2, 2, 3), normal(3, 2, 3))),
}


@pytest.mark.parametrize("name", SMALL_AND_LARGE)
def test_a_size_that_needs_another_spec_is_refused_and_right_once_it_is_an_example(name):
    build, (small, large) = SMALL_AND_LARGE[name]
    model = build().eval()
    with pytest.raises(SpecError, match=r"which no example has: give examples of both sizes, trace\(model, \["):
        trace(model, small)
    spec = trace(model, [small, large])
    assert all(is_right(spec, model, *(x if isinstance(x, tuple) else (x,))) for x in (small, large))
    assert [*trace(model, [large, small]).sizes.values()] == [*spec.sizes.values()], "in whichever order"


def test_several_examples_keep_what_all_of_them_allow():
    model = LongTexts().eval()
    long, both = trace(model, normal(1, 9, 3)), trace(model, [normal(1, 4, 3), normal(1, 9, 3)])
    assert [*long.sizes.values()] == [*both.sizes.values()] == [8]
    assert both.parts["shift"] and "shift" not in both.pinned
    places = Places().eval()
    assert trace(places, [normal(1, 3, 8, 8), normal(1, 3, 16, 16)]).sizes == {}


def test_examples_may_differ_in_what_they_are_given():
    """No warning of the token: pytest makes errors of those."""
    model, x = Masked().eval(), normal(2, 4, 3)
    masked = torch.tensor([[True, False, True, False], [False, True, False, True]])
    spec = trace(model, [{"x": x}, {"masked": masked, "x": x}])
    assert spec.parts["token"] and is_right(spec, model, x) and is_right(spec, model, x, masked)
    assert trace(model, [(x,), (x, masked)]) == spec


def test_the_proof_says_what_it_has_seen():
    images = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images.append(nn.Linear(8, 2))
    seen, unseen = trace(images, normal(2, 3, 6, 10)).proof
    batches, heights = (
        ["(2, 3, 6, 10)", "(3, 3, 6, 10)", "(9, 3, 6, 3)"],
        ["(1, 3, 12, 10)", "(1, 3, 3, 10)", "(1, 3, 7, 10)"],
    )
    widths = ["(1, 3, 6, 20)", "(1, 3, 6, 5)", "(1, 3, 6, 3)"]
    assert seen == "proved on inputs of " + "; ".join([*batches[:2], *heights, *widths, batches[2]])
    assert unseen == "not on other sizes in place of 3: none that was tried could be computed"
    (seen,) = trace(Masked(), {"x": normal(1, 4, 3), "masked": torch.ones(1, 4, dtype=torch.bool)}).proof[:1]
    assert seen == (
        "proved on inputs of x (1, 4, 3), masked (1, 4); x (2, 4, 3), masked (2, 4); x (1, 8, 3), masked (1, 8); "
        "x (1, 2, 3), masked (1, 2); x (1, 5, 3), masked (1, 5); x (5, 4, 3), masked (5, 4)"
    )


def test_a_batch_of_many_is_tried_where_inputs_are_small_or_can_be_made_so():
    fixed = nn.Sequential(nn.Flatten(), nn.Linear(128 * 128, 8), nn.ReLU(), nn.Linear(8, 2))
    assert trace(fixed, normal(1, 1, 128, 128)).proof[0].endswith("of (1, 1, 128, 128); (2, 1, 128, 128)")
    smaller = nn.Sequential(nn.Flatten(), nn.Linear(128 * 127, 8), nn.ReLU(), nn.Linear(8, 2))
    assert trace(smaller, normal(1, 1, 128, 127)).proof[0].endswith("(2, 1, 128, 127); (5, 1, 128, 127)")
    pooled = nn.Sequential(nn.AdaptiveAvgPool1d(4), nn.Flatten(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    assert trace(pooled, normal(1, 2, 128 * 128)).proof[0].endswith("(5, 2, 8191)")


def test_a_large_size_is_halved_and_one_that_two_axes_have_by_chance_is_changed_alone():
    large = nn.Sequential(nn.Conv1d(2, 8, 3), nn.ReLU(), nn.Conv1d(8, 2, 3))
    assert "(1, 2, 64)" in trace(large, normal(1, 2, 128)).proof[0]
    words = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2))
    assert "(1, 10, 5)" in trace(words, normal(1, 5, 5)).proof[0]


def test_tokens_stay_within_their_vocabulary_and_other_whole_numbers_are_repeated():
    class Text(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.places, self.out = nn.Embedding(9, 8), nn.Embedding(12, 8), nn.Linear(8, 2)

        def forward(self, tokens, masked):
            x = self.table(tokens) + self.places(torch.arange(tokens.shape[1]))
            return self.out(x.relu()) * masked.unsqueeze(-1)

    tokens, masked = torch.randint(9, (2, 6)), torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    assert "(1, 12), (1, 12)" in trace(Text(), (tokens, masked)).proof[0]
    longer = [torch.cat([x, x[:, :1]], 1) for x in (tokens, masked)]
    spec = trace(Text(), tuple(longer))
    assert "(1, 3), (1, 3)" in spec.proof[0], "of 14 places there are but 12: half as many are tried then"


def test_what_is_computed_in_float32_or_kept_from_other_weights_is_no_false_alarm():
    class Kept(nn.Module):
        """A softmax in float32, half numbers on the way, and a bias that is kept in evaluation."""

        def __init__(self):
            super().__init__()
            self.into, self.out, self.bias = nn.Linear(3, 8), nn.Linear(8, 2), nn.Parameter(normal(8))
            self.kept = {}

        def forward(self, x):
            bias = self.kept.setdefault(x.device, self.bias * 2)
            return self.out((self.into(x) + bias).softmax(-1, dtype=torch.float32).half().to(x.dtype))

    spec = trace(Kept().eval(), normal(2, 4, 3))
    assert list(spec.sizes.values()) == [8] and "(1, 8, 3)" in spec.proof[0]


class Measured(nn.Module):
    """Reads through a plain float32 matrix, which a float64 input does not multiply, and sums up long inputs."""

    def __init__(self):
        super().__init__()
        self.into, self.out, self.plain = nn.Linear(4, 6), nn.Linear(6, 2), torch.linspace(-1, 1, 12).view(3, 4)

    def forward(self, x):
        hidden = self.into(x @ self.plain).relu()
        return self.out(hidden.cumsum(-1) if x.shape[1] > 7 else hidden)


def test_a_plain_tensor_in_float32_keeps_no_size_from_being_tried():
    model = Measured()
    with pytest.raises(SpecError, match=r"for inputs of \(1, 12, 3\), which no example has"):
        trace(model, normal(2, 6, 3))
    assert not trace(model, [normal(2, 6, 3), normal(2, 9, 3)]).sizes


class Branching(nn.Module):
    """Sums up its units, one after another, for inputs of some sizes."""

    def __init__(self, sums_up):
        super().__init__()
        self.into, self.out, self.sums_up = nn.Linear(3, 8), nn.Linear(8, 2), sums_up

    def forward(self, x):
        hidden = self.into(x)
        return self.out(hidden.cumsum(-1) if self.sums_up(x) else hidden.relu())


BRANCHES = {
    "odd": (lambda x: x.shape[1] % 2, r"\(1, 3, 3\)"),
    "even": (lambda x: x.shape[1] % 2 == 0, r"\(1, 14, 3\)"),
    "short": (lambda x: x.shape[1] < 4, r"\(1, 3, 3\)"),
    "half": (lambda x: 4 <= x.shape[1] < 6, r"\(1, 4, 3\)"),
    "long": (lambda x: x.shape[1] > 12, r"\(1, 16, 3\)"),
    "crowded": (lambda x: len(x) >= 8, r"\(9, 3, 3\)"),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_branches_on_sizes_of_many_kinds_are_seen(name):
    sums_up, inputs = BRANCHES[name]
    with pytest.raises(SpecError, match=f"for inputs of {inputs}, which no example has"):
        trace(Branching(sums_up), normal(2, 7 if name == "even" else 8, 3))


class Grown(nn.Module):
    """A table of 16 places, cut to the input or made anew for longer ones."""

    def __init__(self, kept):
        super().__init__()
        self.into, self.out = nn.Linear(3, 8), nn.Linear(8, 2)
        self.register_buffer("places", self.made(16), persistent=kept)

    def made(self, length):
        return torch.sin(torch.arange(length)[None, :, None] * torch.linspace(0.1, 2, 8))

    def forward(self, x):
        places = self.places if x.shape[1] <= 16 else self.made(x.shape[1])
        return self.out(torch.relu(self.into(x) + places[:, : x.shape[1]]))


def test_an_input_that_is_longer_than_a_table_is_tried():
    with pytest.raises(SpecError, match=r"for inputs of \(1, 17, 3\), which no example has"):
        trace(Grown(kept=True), normal(2, 5, 3))
    spec = trace(Grown(kept=False), normal(2, 5, 3))
    assert "(1, 17, 3)" in spec.proof[0] and not spec.sizes, "a table that is not saved stays"


class Exported(nn.Module):
    """Computes something else while it is exported, or nothing at all otherwise."""

    def __init__(self, otherwise):
        super().__init__()
        self.into, self.out, self.otherwise = nn.Linear(3, 8), nn.Linear(8, 2), otherwise

    def forward(self, x):
        hidden = self.into(x)
        return self.out(hidden if torch.compiler.is_exporting() else self.otherwise(hidden))


def narrow_only(x):
    raise RuntimeError("there is no float64 here")


def test_a_model_that_its_graph_does_not_show_is_refused():
    with pytest.raises(SpecError, match="computes of the example itself, though not what its graph does"):
        trace(Exported(lambda x: x.cumsum(-1)), normal(2, 3))


def test_a_model_that_cannot_be_computed_beside_its_graph_is_told():
    with pytest.warns(UserWarning, match="proved on the graph of the example alone, since the model itself cannot be"):
        spec = trace(Exported(narrow_only), normal(2, 3))
    assert spec.sizes == {"into": 8}
    assert (
        spec.proof[1] == "not on another batch size, other sizes in place of 3: none that was tried could be computed"
    )


def test_no_examples_are_named():
    with pytest.raises(ValueError, match="no example is given: the list is empty"):
        trace(Masked(), [])
    with pytest.raises(TypeError, match="the example must be a tensor, got str"):
        trace(Masked(), ["words"])
