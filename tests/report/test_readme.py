"""What the README and the book tell people to type does what they say."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock

import rebasin

ROOT = Path(__file__).resolve().parents[2]


def blocks(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@pytest.mark.parametrize("page", ["README.md", "book/reproduce.md"])
def test_the_example_runs_as_it_stands(page):
    torch.manual_seed(0)
    code = blocks(page)[0]
    names: dict = {}
    exec(code, names)
    if page == "README.md":
        a, b, merge, images = (names[name] for name in ("a", "b", "merge", "images"))
        _, moved = merge.permutation.apply([a, b])
        before, after = b.eval()(images[:4]), moved.eval()(images[:4])
        # Float32 sums of up to 4608 products, in another order, through 18 layers.
        torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)
        assert type(merge.model) is type(a) and merge.model.training and a.training
        assert not torch.equal(merge.model.conv1.weight, a.conv1.weight)
        (matching,) = (stage.matching for stage in merge.stages)
        assert matching.objective > matching.objective_by_sweep[:, 0]
    else:
        assert type(names["merged"]) is type(names["networks"][0])


def test_two_language_models_merge_as_the_readme_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict = {"torch": torch, "rebasin": rebasin}
    exec(blocks("README.md")[2], names)
    a, b, batch, merge = (names[name] for name in ("a", "b", "batch", "merge"))
    _, moved = merge.permutation.apply([a, b])
    with torch.no_grad():
        torch.testing.assert_close(moved.eval()(**batch).logits, b.eval()(**batch).logits, rtol=1e-4, atol=1e-5)
        loaded = type(a).from_pretrained(tmp_path / "merged")
        torch.testing.assert_close(loaded(**batch).logits, merge.model.eval()(**batch).logits)
    (matching,) = (stage.matching for stage in merge.stages)
    assert matching.objective > matching.objective_by_sweep[:, 0]
    assert a.config.use_cache, "the model keeps its cache"


def narrow():
    """A network of ResNet18's blocks that is merged in seconds, where two ResNet18 take ten minutes."""
    first = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()
    shortcut = nn.Sequential(nn.Conv2d(4, 8, 1, 2, bias=False), nn.BatchNorm2d(8))
    body = BasicBlock(4, 4), BasicBlock(4, 8, 2, shortcut), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*first, *body, nn.Linear(8, 10))


def test_the_readme_merges_at_any_size(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # it saves a file
    torch.manual_seed(0)
    a, b, images = narrow(), narrow(), torch.randn(200, 3, 8, 8)
    names = {"rebasin": rebasin, "a": a, "b": b, "images": images, "spec": rebasin.trace(a, images[:2])}
    exec(blocks("README.md")[1], names)
    merged = names["merged"]
    assert 1 < merged.model.size <= 1.2
    again = torch.export.load(str(tmp_path / "merged.pt2")).module()
    # Float32 sums of some dozen products, through six layers.
    torch.testing.assert_close(again(images[:7]), merged(images[:7]), rtol=1e-4, atol=1e-5)
