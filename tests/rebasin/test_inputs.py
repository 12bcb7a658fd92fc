"""Inputs are what a model takes: one tensor, several in a tuple, or a dict by their names, in its own number format."""

import re

import pytest
import torch
import transformers
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

import rebasin
from rebasin.fitting.norm_statistics import measure_norms
from rebasin.matching.straight_through import straight_through_matching
from rebasin.merging.by_task import repair_by_task
from rebasin.weights import weights_of


class Cast(nn.Module):
    """Weights of half precision behind a first line that casts the images."""

    def __init__(self):
        super().__init__()
        self.into, self.norm, self.out = nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)

    def forward(self, x):
        return self.out(self.norm(self.into(x.to(self.into.weight.dtype))).relu())


class Two(nn.Module):
    """Two inputs, and a scale for each entry of the second."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(3, 8), nn.Linear(5, 8), nn.BatchNorm1d(8)
        self.inner, self.out = nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x, context=None):
        hidden = self.norm(self.first(x) + self.second(context)).relu()
        return {"logits": self.out(self.inner(hidden).relu())}


def two_models(kind):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind().eval(), kind().eval()


def test_a_model_that_casts_its_inputs_is_taken_in_its_own_format_everywhere():
    a, b = (model.bfloat16() for model in two_models(Cast))
    images, labels = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2
    spec = rebasin.trace(a, images[:2])
    moved = rebasin.Permutation.random(spec, generator=torch.Generator().manual_seed(0)).apply(a)
    match = rebasin.match(spec, a, moved, by="activations", model=a, loader=images)
    assert torch.equal(match.apply(moved).into.weight, a.into.weight)
    straight_through_matching(spec, a, b, model=a, loader=[(images, labels)])
    merge = rebasin.merge(spec, [a, b], mend=rebasin.mender(a, images))
    grams = rebasin.collect(spec, [a, b], images)
    fitted = rebasin.refit(rebasin.pleas(grams), grams, images)
    for model in (merge.model, rebasin.reset_norms(a, a, images), fitted.model, measure_norms(a, images)):
        outputs = model(images)
        assert outputs.dtype == torch.bfloat16 and outputs.isfinite().all()


@pytest.mark.parametrize("by", ["activations", "straight-through", "repair", "collect"])
def test_inputs_that_a_model_cannot_be_computed_for_are_told_with_the_operator(by):
    a, b = two_models(lambda: nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)))
    spec, images = rebasin.trace(a, torch.ones(2, 3)), torch.randn(10, 3).double()
    calls = {
        "activations": lambda: rebasin.match(spec, a, b, by=by, model=a, loader=images),
        "straight-through": lambda: rebasin.match(spec, a, b, by=by, model=a, loader=[(images, torch.ones(10))]),
        "repair": lambda: rebasin.repair(a, a, [a, b], images),
        "collect": lambda: rebasin.collect(spec, [a, b], images),
    }
    told = "the model cannot be computed for the loader's inputs" if by == "straight-through" else "the operator linear"
    with pytest.raises(ValueError, match=f"{told}.*(dtype|scalar type)"):
        calls[by]()


def test_running_out_of_memory_is_not_taken_for_a_wrong_input():
    class Full(nn.Module):
        def forward(self, x):
            raise torch.OutOfMemoryError("full")

    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    spec = rebasin.trace(model, torch.ones(2, 3))
    model.append(Full())
    batches = [(torch.ones(4, 3), torch.ones(4))]
    with pytest.raises(torch.OutOfMemoryError):
        straight_through_matching(spec, model, model, model=model, loader=batches)


def test_a_tuple_of_tensors_is_refused_as_a_loader_as_it_may_mean_two_things():
    a, b = two_models(Two)
    inputs = torch.randn(40, 3), torch.randn(40, 5)
    spec = rebasin.trace(a, inputs)
    assert rebasin.collect(spec, [a, b], [(inputs,)]).images == 40
    told = re.escape("the loader is a tuple of tensors, which may be batches or the inputs of one: make it a list")
    with pytest.raises(TypeError, match=told):
        rebasin.collect(spec, [a, b], inputs)
    with pytest.raises(TypeError, match=told):
        rebasin.match(spec, a, b, by="activations", model=a, loader=inputs)
    with pytest.raises(TypeError, match=told):
        measure_norms(a, inputs)


def test_an_empty_tuple_has_no_batches():
    a, b = two_models(Two)
    spec = rebasin.trace(a, (torch.randn(2, 3), torch.randn(2, 5)))
    with pytest.raises(ValueError, match="the loader gave no batches"):
        rebasin.collect(spec, [a, b], ())


def test_several_epochs_need_a_loader_that_can_be_read_again():
    a, b = two_models(lambda: nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)))
    spec, batches = rebasin.trace(a, torch.ones(2, 3)), [(torch.randn(10, 3), torch.arange(10) % 2)]
    assert straight_through_matching(spec, a, b, model=a, loader=iter(batches)).sweeps == 1
    assert straight_through_matching(spec, a, b, model=a, loader=batches, epochs=2).sweeps == 2
    with pytest.raises(ValueError, match="epochs=2 reads the loader more than once, which it cannot be: make a list"):
        straight_through_matching(spec, a, b, model=a, loader=iter(batches), epochs=2)


class Stream(IterableDataset):
    """Data without a length."""

    def __iter__(self):
        return iter(torch.ones(7, 3))


def test_a_data_loader_without_a_length_is_read():
    a, b = two_models(lambda: nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)))
    spec = rebasin.trace(a, torch.ones(2, 3))
    assert rebasin.collect(spec, [a, b], DataLoader(Stream(), batch_size=2)).images == 7


@pytest.mark.parametrize("named", [False, True])
def test_two_inputs_go_through_every_way_of_merging(named):
    """The same numbers whichever way the two are given, and as for a model that takes both side by side."""
    a, b = two_models(Two)
    generator = torch.Generator().manual_seed(0)
    x, context = torch.randn(60, 3, generator=generator), torch.randn(60, 5, generator=generator)
    inputs = {"context": context, "x": x} if named else (x, context)
    spec = rebasin.trace(a, {"x": x[:2], "context": context[:2]})

    class Joined(Two):
        def forward(self, both):
            return super().forward(both[:, :3], both[:, 3:])["logits"]

    joined = Joined().eval()
    both = torch.cat([x, context], 1)
    weights = [weights_of(a), weights_of(b)]
    plain = rebasin.match(spec, *weights, by="activations", model=joined, loader=both)
    match = rebasin.match(spec, *weights, by="activations", model=a, loader=[(inputs, torch.zeros(60))])
    for group, index in plain.permutation.indices.items():
        assert torch.equal(match.permutation.indices[group], index)

    labels = torch.arange(60) % 2
    options = {"learning_rate": 0.1, "epochs": 3}
    plain = straight_through_matching(spec, *weights, model=joined, loader=[(both, labels)], **options)
    loss = lambda outputs, y: nn.functional.cross_entropy(outputs["logits"], y)  # noqa: E731
    match = straight_through_matching(spec, *weights, model=a, loader=[(inputs, labels)], loss=loss, **options)
    torch.testing.assert_close(match.maximised_by_sweep, plain.maximised_by_sweep)

    plain = rebasin.merge(spec, weights, mend=rebasin.mender(joined, both)).weights
    mended = rebasin.merge(spec, weights, mend=rebasin.mender(a, inputs)).weights
    by_task = repair_by_task(a, mended, weights, [inputs, inputs])
    for key, tensor in repair_by_task(joined, mended, weights, [both, both])[1].items():
        torch.testing.assert_close(mended[key], plain[key], msg=key)
        torch.testing.assert_close(by_task[1][key], tensor, msg=key)

    grams = rebasin.collect(spec, [a, b], [(inputs, labels)])
    of_joined = rebasin.collect(spec, weights, both, model=joined)
    for key, layer in of_joined.layers.items():
        torch.testing.assert_close(grams.layers[key].gram, layer.gram, rtol=1e-5, atol=1e-4, msg=key)
    fitted = rebasin.refit(rebasin.pleas(grams, size=1.5), grams, inputs)
    arguments = ((), inputs) if named else (inputs, {})
    merged = fitted(*arguments[0], **arguments[1])["logits"]
    assert merged.shape == (60, 2) and merged.isfinite().all()
    apart = rebasin.fit_slots(grams, rebasin.Slots.apart(spec, 2))(*arguments[0], **arguments[1])["logits"]
    expected = (a(x, context)["logits"] + b(x, context)["logits"]) / 2
    # Running statistics are measured anew, so that the ensemble is one of two networks with these.
    again = [rebasin.reset_norms(a, model, inputs)(x, context)["logits"] for model in (a, b)]
    assert expected.shape == apart.shape
    torch.testing.assert_close(apart, sum(again) / 2, rtol=0, atol=0.05)


def named_pair():
    """Two models, a batch of two inputs by name, and what PLeaS makes of them."""
    a, b = two_models(Two)
    generator = torch.Generator().manual_seed(0)
    batch = {"context": torch.randn(60, 5, generator=generator), "x": torch.randn(60, 3, generator=generator)}
    spec = rebasin.trace(a, {name: x[:2] for name, x in batch.items()})
    return rebasin.pleas(rebasin.collect(spec, [a, b], batch)), batch


def test_a_merge_of_several_named_inputs_runs_from_its_file(tmp_path):
    merge, batch = named_pair()
    merge.save(tmp_path / "merge.pt2")
    saved = torch.export.load(tmp_path / "merge.pt2").module()
    few = {name: x[:7] for name, x in batch.items()}
    torch.testing.assert_close(saved(**few)["logits"], merge(**few)["logits"])


def test_a_merge_refuses_other_inputs_than_it_was_made_for():
    merge, batch = named_pair()
    x, context = batch["x"], batch["context"]
    takes = "the merge takes context=, x=, as its example did, and is given "
    for inputs, named, given in (
        ((x, context), {}, "2 inputs without a name"),
        ((x,), {"context": context}, "1 input without a name, context="),
        ((), {"x": x}, "x="),
        ((), {**batch, "mask": x}, "context=, x=, mask="),
        ((), {}, "nothing"),
    ):
        with pytest.raises(TypeError, match=f"^{takes}{given}$"):
            merge(*inputs, **named)
    plain = rebasin.pleas(rebasin.collect(merge.slots.spec, two_models(Two), [((x, context), None)]))
    with pytest.raises(TypeError, match="the merge takes 2 inputs without a name, .* is given context=, x="):
        plain(**batch)


LLAMA = transformers.LlamaConfig(
    vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
)
BERT = transformers.BertConfig(
    vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
)
VIT = transformers.ViTConfig(
    hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
)


@pytest.fixture(scope="module", params=["LlamaForCausalLM", "BertForSequenceClassification", "ViTModel"])
def pair(request):
    """Two models of the package transformers, a batch for them, and the spec."""
    config = {"LlamaForCausalLM": LLAMA, "BertForSequenceClassification": BERT, "ViTModel": VIT}[request.param]
    kind = getattr(transformers, request.param)
    a, b = two_models(lambda: kind(config))
    generator = torch.Generator().manual_seed(0)
    if request.param == "ViTModel":
        batch = {"pixel_values": torch.randn(12, 3, 8, 8, generator=generator)}
    else:
        tokens = torch.randint(32, (12, 6), generator=generator)
        batch = {"attention_mask": torch.ones_like(tokens), "input_ids": tokens}
        batch["attention_mask"][1, 4:] = 0
    return a, b, batch, rebasin.trace(a, {name: x[:2] for name, x in batch.items()})


def outputs_of(model, batch):
    return next(x for x in model(**batch).values() if isinstance(x, torch.Tensor))


@pytest.mark.filterwarnings("ignore:.*rows of data")
def test_models_of_transformers_are_matched_and_fitted_on_batches_by_name(pair):
    a, b, batch, spec = pair
    moved = rebasin.Permutation.random(spec, generator=torch.Generator().manual_seed(0)).apply(a)
    match = rebasin.match(spec, a, moved, by="activations", model=a, loader=[batch, batch], similarity="correlation")
    with torch.no_grad():
        torch.testing.assert_close(outputs_of(match.apply(moved), batch), outputs_of(a, batch))
        for key, tensor in match.apply(moved).state_dict().items():
            assert torch.equal(tensor, a.state_dict()[key]), key

    def loss(outputs, y):
        return next(iter(outputs.values())).square().mean() + 0 * y.sum()

    learned = straight_through_matching(spec, a, b, model=a, loader=[(batch, torch.ones(2))], loss=loss)
    assert learned.maximised_by_sweep[-1] > -torch.inf
    grams = rebasin.collect(spec, [a, b], batch)
    merge = rebasin.fit_slots(grams, rebasin.Slots.of_permutation(rebasin.Permutation.identity(spec, (2,))))
    with torch.no_grad():
        assert outputs_of(merge, batch).shape == outputs_of(a, batch).shape


@pytest.mark.parametrize(
    ("inputs", "error", "said"),
    [
        ([torch.ones(2, 3)], TypeError, "the inputs must be a tensor, or a tuple of the tensors that the model takes"),
        ({"x": [1.0]}, TypeError, "the inputs: 'x' must be a tensor, got list"),
        ({}, ValueError, "the inputs are none: the dict is empty"),
        ((), ValueError, "the inputs are none: the tuple is empty"),
        ((torch.ones(2, 3), torch.ones(3, 5)), ValueError, "the inputs: number 0 has 2 entries, .* number 1 3"),
        ({"x": torch.ones(2, 3), "context": torch.tensor(1.0)}, ValueError, "'context' must have a batch axis"),
        ({"x": torch.ones(2, 3), "context": torch.ones(2, 5) / 0}, ValueError, "'context' hold NaN or infinite"),
        ({"x": torch.ones(2, 3), "y": torch.ones(2, 5)}, ValueError, "torch.export refuses this model or input"),
        ({"x": torch.ones(2, 3), "context": torch.ones(2, 5).to("meta")}, ValueError, "'context' are on meta"),
    ],
)
def test_inputs_that_cannot_be_taken_are_named(inputs, error, said):
    a, b = two_models(Two)
    with pytest.raises(error, match=said):
        rebasin.repair(a, a, [a, b], inputs)
