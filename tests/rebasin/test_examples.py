"""The examples in docstrings run, and give what they show."""

import doctest
import importlib
import inspect
import pkgutil

import pytest
import torch
from torch import nn

import rebasin

MODULES = [rebasin.__name__, *(module.name for module in pkgutil.walk_packages(rebasin.__path__, "rebasin."))]
EXAMPLES = [
    example
    for name in MODULES
    for example in doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(name), name)
    if example.examples
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_an_example_gives_what_it_shows(example, tmp_path):
    torch.manual_seed(0)
    example.globs.update(torch=torch, nn=nn, rebasin=rebasin, folder=tmp_path)
    assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example).failed == 0


def test_every_public_function_has_an_example_that_runs():
    functions = [getattr(rebasin, name) for name in rebasin.__all__]
    functions = [function for function in functions if inspect.isfunction(function)]
    assert len(functions) > 15
    run = {example.name for example in EXAMPLES}
    assert [f.__name__ for f in functions if f"{f.__module__}.{f.__qualname__}" not in run] == []
