"""The models of the package transformers are traced as they are used, by the names of their inputs, and stay right."""

import pytest
import torch
import transformers
from torch import nn

from benchmarks.families import MODELS, WORDS, batch_of
from rebasin import Permutation, collect, interpolate, match, pleas, repair, trace
from rebasin.graph import export, without_cache
from rebasin.tracing.proof import inputs_like


@pytest.mark.filterwarnings("ignore::UserWarning")  # of entries that the example does not reach
@pytest.mark.parametrize("name", MODELS)
def test_a_permuted_model_answers_as_before_to_inputs_it_was_not_traced_with(name):
    options, least = MODELS[name]
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    model = kind(kind.config_class(**options)).eval()
    generator = torch.Generator().manual_seed(0)
    spec = trace(model, batch_of(model, generator))
    state = model.state_dict()
    sizes = {key: tensor.numel() for key, tensor in state.items() if tensor.is_floating_point()}
    moving = sum(size for key, size in sizes.items() if spec.parts[key])
    assert 100 * moving / sum(sizes.values()) >= least
    moved = Permutation.random(spec, generator=generator).apply(model)
    other = batch_of(model, generator)
    with torch.no_grad():
        for before, after in zip(model(**other).values(), moved(**other).values(), strict=True):
            if isinstance(before, torch.Tensor):
                # Single precision, in sums of another order.
                torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4 * float(before.abs().max()))


class Named(nn.Module):
    """Tokens and a scale, by their names, with a cache that it is asked for; what it gives is a dict."""

    class Config:
        use_cache = True

    def __init__(self):
        super().__init__()
        self.table, self.inner, self.out = nn.Embedding(20, 6), nn.Linear(6, 8), nn.Linear(8, 3)
        self.config = Named.Config()

    def forward(self, tokens=None, scale=None):
        hidden = self.inner(self.table(tokens)).relu()
        answers = {"logits": self.out(hidden) * scale.unsqueeze(-1)}
        return {**answers, "cache": hidden} if self.config.use_cache else answers


def test_inputs_go_by_their_names_and_no_cache_is_kept():
    model = Named()
    inputs = {"scale": torch.rand(2, 4), "tokens": torch.zeros(2, 4, dtype=torch.int64)}
    spec = trace(model, inputs)
    assert list(spec.sizes.values()) == [6, 8], "a cache would hold the units of inner in their order"
    assert model.config.use_cache, "the model itself is as it was"


def test_tokens_are_drawn_from_their_whole_vocabulary_and_other_whole_numbers_stay():
    model = without_cache(Named())
    inputs = (torch.zeros(2, 400, dtype=torch.int64), torch.ones(2, 400, dtype=torch.int64))
    program = export(model, dict(zip(("tokens", "scale"), inputs, strict=True)))
    tokens, scale = inputs_like(program, inputs, torch.Generator().manual_seed(0))
    assert set(tokens.flatten().tolist()) == set(range(20))
    assert torch.equal(scale, inputs[1])


@pytest.mark.parametrize(
    ("example", "said"),
    [
        ({"tokens": [[1, 2]]}, "the example: 'tokens' must be a tensor, got list"),
        ((torch.zeros(2, 3), None), "the example: number 1 must be a tensor, got NoneType"),
    ],
)
def test_what_is_no_example_is_named(example, said):
    with pytest.raises(TypeError, match=said):
        trace(Named(), example)


def small_gpt2(seed):
    torch.manual_seed(seed)
    options, _ = MODELS["GPT2LMHeadModel"]
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**options)).eval()
    with torch.no_grad():  # biases as training leaves them: alike, they tell no unit from another
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("similarity", ["inner product", "correlation"])
def test_units_of_gpt2_are_matched_by_what_they_answer(similarity):
    model = small_gpt2(0)
    tokens = {"input_ids": torch.randint(WORDS, (40, 16), generator=torch.Generator().manual_seed(1))}
    spec = trace(model, {"input_ids": tokens["input_ids"][:2]})
    planted = Permutation.random(spec, generator=torch.Generator().manual_seed(2))
    found = match(
        spec, model, planted.apply(model), by="activations", model=model, loader=tokens, similarity=similarity
    )
    for group, index in planted.invert().indices.items():
        assert torch.equal(found.permutation.indices[group], index), group


def test_layers_of_gpt2_are_repaired():
    parents = [small_gpt2(0), small_gpt2(1)]
    batch = {"input_ids": torch.randint(WORDS, (40, 16), generator=torch.Generator().manual_seed(1))}
    middle = interpolate(*parents, 0.5)
    repaired = repair(middle, middle, parents, batch)

    def deviations(model):
        seen = []
        blocks = model.transformer.h
        hooks = [
            layer.register_forward_hook(lambda module, inputs, given: seen.append(given.flatten(0, 1).std(0)))
            for block in blocks
            for layer in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj)
        ]
        with torch.no_grad():
            model(**batch)
        for hook in hooks:
            hook.remove()
        return torch.cat(seen)

    goal = (deviations(parents[0]) + deviations(parents[1])) / 2
    torch.testing.assert_close(deviations(repaired), goal, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(deviations(middle), goal, rtol=0.05)


def test_least_squares_of_gpt2_are_refused_by_the_name_of_a_layer():
    models = [small_gpt2(0), small_gpt2(1)]
    batch = {"input_ids": torch.randint(WORDS, (40, 16), generator=torch.Generator().manual_seed(1))}
    spec = trace(models[0], batch)
    with pytest.raises(
        ValueError, match="'transformer.h.0.attn.c_attn.weight' is multiplied outside of a linear layer"
    ):
        pleas(collect(spec, models, batch))


def test_inputs_may_be_keywords():
    torch.manual_seed(0)
    model, batch = Named(), {"tokens": torch.zeros(2, 4, dtype=torch.int64), "scale": torch.rand(2, 4)}
    assert trace(model, **batch) == trace(model, batch)
    with pytest.raises(TypeError, match="an input, or inputs by their names, and not both"):
        trace(model, batch, scale=batch["scale"])
    with pytest.raises(TypeError, match="needs an example"):
        trace(model)
    with pytest.raises(TypeError, match="'scale' must be a tensor, got NoneType: leave out what is None"):
        trace(model, tokens=batch["tokens"], scale=None)


def test_a_loss_that_cannot_take_what_the_model_gives_is_told():
    torch.manual_seed(0)
    a, b = Named(), Named()
    batch = {"tokens": torch.zeros(2, 4, dtype=torch.int64), "scale": torch.rand(2, 4)}
    told = "the loss cannot take what the model gives, which is of type dict: .* Give another one, as loss=lambda"
    with pytest.raises(TypeError, match=told):
        match(trace(a, batch), a, b, by="straight-through", model=a, loader=[(batch, torch.zeros(2, 4).long())])


class Experts(nn.Module):
    """Rows that go through the matrices of experts, as the package multiplies them where torch cannot."""

    def __init__(self):
        super().__init__()
        self.into, self.first, self.second = nn.Linear(3, 8), nn.Parameter(torch.randn(2, 8, 6)), nn.Linear(6, 2)

    def forward(self, x):
        ends = torch.tensor([3, len(x)], dtype=torch.int32)
        return self.second(torch.ops.transformers.grouped_mm_fallback(self.into(x).relu(), self.first, ends).relu())


def test_what_experts_read_and_give_moves_alike_in_all_of_them():
    torch.manual_seed(0)
    model = Experts()
    spec, x = trace(model, torch.randn(5, 3)), torch.randn(5, 3)
    assert sorted(spec.sizes.values()) == [6, 8]
    assert {part.axis for part in spec.parts["first"]} == {1, 2}, "experts stay"
    moved = Permutation.random(spec, generator=torch.Generator().manual_seed(0)).apply(model)
    torch.testing.assert_close(moved(x), model(x))
