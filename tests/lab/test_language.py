"""Texts as data, a language model on them, and transformers whose LayerNorm is rewritten: all the same function."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from lab import texts
from lab.data import load
from lab.images import as_read
from lab.measures.paths import evaluate_path
from lab.networks import build
from lab.networks.rewritten import RMSNorm, without_layer_norm
from lab.outputs import evaluate, outputs
from lab.training.recipe import Recipe
from lab.training.stack import start, train_epoch
from lab.training.train import train
from rebasin.tracing import trace

EXACT = {"rtol": 1e-11, "atol": 1e-11}  # a few hundred sums of float64


@pytest.fixture(scope="module")
def text():
    return load("text")


@pytest.fixture(scope="module")
def few(text):
    """The data set with 96 pieces to train on and 40 to test on."""
    return replace(text, train=text.train.sample(96), test=text.test.sample(40))


def redrawn(model, count, seed=0):
    """Weights (count, ...) of a model in float64, those of its norms far from one and zero."""
    generator = torch.Generator().manual_seed(seed)
    return {
        key: 0.3 * torch.randn(count, *tensor.shape, generator=generator, dtype=torch.float64) + ("norm" in key)
        for key, tensor in model.state_dict().items()
    }


def test_characters_are_numbers_and_what_is_not_printed_is_left_out():
    assert texts.as_numbers(" ~\n\té!").tolist() == [0, 94, 95, 1]


def test_pieces_follow_one_another_and_each_character_is_answered_by_the_next():
    pieces, following = texts.windows(np.arange(200))
    assert pieces.shape == following.shape == (3, 64)
    assert torch.equal(pieces.flatten(), torch.arange(192)) and torch.equal(following, pieces + 1)


def test_the_text_is_torchs_documentation_and_its_end_is_kept_for_tests(text):
    assert len(text.train.labels) > 5 * len(text.test.labels) > 1000
    assert text.train.images.dtype == torch.int64 and text.classes == 96
    whole = texts.as_numbers(texts.documentation())
    assert "torch." in texts.documentation()
    assert torch.equal(text.train.images[:2].flatten(), torch.from_numpy(whole[:128]))
    # A test piece begins in the last tenth, where no training piece reaches.
    assert int(0.9 * len(whole)) >= 64 * len(text.train.labels)
    assert text.fingerprint == load("text").fingerprint


def test_a_torch_that_keeps_its_documentation_elsewhere_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(RuntimeError, match="has no file _torch_docs.py, which the data set 'text' is made of"):
        texts.documentation()


def test_characters_reach_a_network_as_they_are_and_pixels_as_shares():
    assert as_read(torch.tensor([0, 95])).tolist() == [0, 95]
    assert as_read(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [0.0, 1.0]


def test_an_architecture_and_a_data_set_that_do_not_fit_are_named(text):
    for architecture, data, message in (
        ("language", load("digits"), "architecture 'language' reads texts, and data set 'digits' holds images"),
        ("vit2", text, "architecture 'vit2' reads images, and data set 'text' holds texts"),
    ):
        with pytest.raises(ValueError, match=message):
            build(architecture, data, 16)
    with pytest.raises(ValueError, match=re.escape("must be a multiple of its 4 heads, got 18")):
        build("language", text, 18)


def test_a_language_model_knows_nothing_of_what_comes_after(few):
    model = build("language", few, 16)
    weights = {key: tensor[0].float() for key, tensor in redrawn(model, 1).items()}
    pieces = few.train.images[:3]
    changed = pieces.clone()
    changed[:, 40:] = (changed[:, 40:] + 1) % 96
    before, after = (functional_call(model, weights, (x,)) for x in (pieces, changed))
    assert before.shape == (3, 96, 64)
    torch.testing.assert_close(after[..., :40], before[..., :40])
    assert ((after - before)[..., 40:].abs().amax((0, 1)) > 1e-3).all()


def test_loss_and_accuracy_of_texts_are_those_of_plain_passes(few):
    model = build("language", few, 16)
    weights = {key: tensor.float() for key, tensor in redrawn(model, 2).items()}
    reached = evaluate(model, weights, few.test, "cpu", 2, batch=7)
    logits = outputs(model, weights, few.test.images, "cpu")
    assert reached.loss.shape == reached.correct.shape == (2, 40, 64) and logits.shape == (2, 40, 96, 64)
    for number in range(2):
        alone = functional_call(model, {key: tensor[number] for key, tensor in weights.items()}, (few.test.images,))
        expected = cross_entropy(alone.transpose(1, 2).flatten(0, 1), few.test.labels.flatten())
        assert reached.loss[number].mean().item() == pytest.approx(expected.item(), rel=1e-5)
        shares = (alone.argmax(1) == few.test.labels).float().mean().item()
        assert reached.correct[number].float().mean().item() == pytest.approx(shares)
    lams = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    accuracy, loss = evaluate_path(model, weights, weights, lams, few.test, "cpu", 2)
    assert accuracy.shape == loss.shape == (2, 3)
    torch.testing.assert_close(loss[:, 1], reached.loss.double().mean((1, 2)), rtol=1e-5, atol=1e-5)


def test_a_stack_of_language_models_takes_the_steps_that_each_would_take_alone(few):
    model, recipe = build("language", few, 8), Recipe("language", 8, 32, 1e-2)
    data = few.train.images, few.train.labels
    weights, optimiser = start(model, recipe, (0, 1), "cpu")
    for _ in train_epoch(model, recipe, weights, optimiser, *data, (0, 1), 0):
        pass
    for number in (0, 1):
        alone, optimiser = start(model, recipe, (number,), "cpu")
        for _ in train_epoch(model, recipe, alone, optimiser, *data, (number,), 0):
            pass
        for key, tensor in alone.items():
            # Adam divides by the size of a gradient, which is rounding alone for a bias that the softmax ignores.
            if not key.endswith("key.bias"):
                torch.testing.assert_close(weights[key][number], tensor[0], rtol=1e-3, atol=1e-4)


def test_a_language_model_learns_which_characters_are_frequent(few):
    loss = train(Recipe("language", 16, 32, 1e-2), few, 1, (8,), "cpu").loss[0]
    assert loss[0] > 3.5 and loss[-1] < 3.2, "ln 96 is 4.6"


@pytest.mark.parametrize(("architecture", "data"), [("vit2", "digits"), ("vit", "digits"), ("language", "text")])
def test_without_layer_norm_it_is_the_same_function_and_its_stream_has_no_mean(architecture, data):
    data = load(data)
    model = build(architecture, data, 16).double()
    weights = redrawn(model, 2)
    lean, moved = without_layer_norm(model, weights)
    assert any(isinstance(module, RMSNorm) for module in lean.modules())
    assert moved.keys() == lean.state_dict().keys() and not any("norm" in key for key in moved)
    x = data.example.double() if data.example.is_floating_point() else data.example
    stream = []
    lean.blocks.register_forward_hook(lambda _module, _inputs, value: stream.append(value))
    for number in range(2):
        before, after = (
            functional_call(network, {key: tensor[number] for key, tensor in own.items()}, (x,))
            for network, own in ((model, weights), (lean, moved))
        )
        torch.testing.assert_close(after, before, **EXACT)
        assert stream[-1].mean(-1).abs().max() < 1e-11 < stream[-1].abs().max()


@pytest.mark.parametrize(("architecture", "data"), [("vit2", "digits"), ("language", "text")])
def test_all_units_of_a_small_transformer_can_change_places(architecture, data):
    data = load(data)
    model = build(architecture, data, 16)
    for form in (model, without_layer_norm(model, redrawn(model, 1))[0]):
        spec = trace(form, data.example)
        assert set(spec.pinned) == {"layer.bias"}
        assert sorted(spec.sizes.values()) == [4, 4, 4, 4, 4, 4, 16, 64, 64], "heads, inside them, stream, hidden units"
