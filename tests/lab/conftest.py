"""What the fixtures of a whole file compute is kept in a cache of this run's own, not in the user's."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REBASIN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
