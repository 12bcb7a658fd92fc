"""What several files' fixtures share. What they compute is kept in a cache of this run's own, not in the user's."""

import sys

import pytest

from lab.data import load


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("cache"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REBASIN_CACHE", folder)
        yield folder


@pytest.fixture(scope="session")
def digits():
    return load("digits", held_out=200)


@pytest.fixture
def shallow_vit(monkeypatch):
    """Transformers of two blocks, which are all alike, and not of six."""
    monkeypatch.setattr(sys.modules["lab.networks.vit"], "DEPTH", 2)
