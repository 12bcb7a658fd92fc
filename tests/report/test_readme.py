"""What the README and the book tell people to type does what they say."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("page", ["README.md", "book/reproduce.md"])
def test_the_example_runs_as_it_stands(page):
    torch.manual_seed(0)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
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
