"""What the README and the book tell people to type does what they say."""

import re
from pathlib import Path

import pytest
import torch
from torch.func import functional_call

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("page", ["README.md", "book/reproduce.md"])
def test_the_example_runs_as_it_stands(page):
    torch.manual_seed(0)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    names: dict = {}
    exec(code, names)
    if page == "README.md":
        b, moved = names["b"].eval(), names["found"].permutation.apply(names["b"].state_dict())
        images = names["images"][:4]
        before, after = b(images), functional_call(b, moved, (images,))
        # Float32 sums of up to 4608 products, in another order, through 18 layers.
        torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)
        assert all(torch.equal(tensor, names["merged"][key]) for key, tensor in names["a"].state_dict().items())
        assert names["found"].objective > names["found"].history[0]
