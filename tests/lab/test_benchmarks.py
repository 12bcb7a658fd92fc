"""The benchmarks: contestants take turns, matchers of one pair agree, and exponents are those of what was measured."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks import bench, contests, matchers, published_many, scaling, turns
from benchmarks.contests import Sizes, plain_pair
from lab.networks.initial import initial_weights
from rebasin import trace, weight_matching

TINY = Sizes(
    width=16, merged_width=8, channels=2, networks=8, pairs=20, images=60, adam_steps=2, attacked=8, trained=512
)


class Residual(nn.Module):
    """A stem, a residual block and a head: a group that lies along many axes, and one inside of the block."""

    def __init__(self):
        super().__init__()
        self.stem, self.into = nn.Linear(5, 8), nn.Linear(8, 6)
        self.out, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.stem(x).relu()
        return self.head((x + self.out(self.into(x).relu())).relu())


@pytest.fixture
def offline(monkeypatch):
    """Nothing can be installed."""
    monkeypatch.setattr(contests, "install_peers", lambda: None)


def test_the_table_has_ours_beside_floor_and_peer(offline, monkeypatch, capsys):
    monkeypatch.setattr(bench, "keep", lambda *_: pytest.fail("a part of the table was kept"))
    rows = {row["what"]: row for row in bench.main(["MLP", "PGD", "universe"], TINY)}
    assert list(rows) == [name for name in bench.CONTESTS if "ResNet" not in name and "trace" not in name]
    for row in rows.values():
        assert row["ours_seconds"] > 0 and row["floor_seconds"] > 0
        # Seconds have six digits: of the smallest floor, some tens of microseconds, they tell a twentieth.
        assert row["ours_over_floor"] == pytest.approx(row["ours_seconds"] / row["floor_seconds"], rel=0.05, abs=0.01)
    peers = {name: row["peer"] for name, row in rows.items()}
    assert peers["match a pair, 3x512 MLP"] == peers["match 100 pairs, 3x512 MLP"] == "not installed"
    assert peers["MergeMany of 8, 3x256 MLP"] == peers["universe of 5, 3x256 MLP"] == "–"
    assert peers["PGD-20 on 8 MLPs"] == peers["PGD-20, every step"] == "foolbox"
    assert peers["train 8 MLPs, stacked"] == "torch, one by one"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("[1/7] match a pair, 3x512 MLP (0 s so far, about ")
    table = lines[lines.index("") + 1 :]
    assert table[0].split("  ")[0] == "what" and len({len(line) for line in table[:8]}) == 1
    assert table[-1].startswith("7 rows in ")


def test_pleas_is_timed_beside_its_floor_and_all_steps_of_adam():
    with contests.pleas_of_two(TINY) as contest:
        (adam,) = contest.peers.values()
        assert contest.ours() > 0 and contest.floor() > 0 and adam() > 0
    assert TINY.adam_steps == 2 and list(contest.peers) == ["400 steps of Adam"]


def test_a_whole_table_is_kept_with_every_run(monkeypatch):
    kept = {}
    monkeypatch.setattr(bench, "keep", lambda script, table: kept.update(table))
    fake = contests.Contest(lambda: 2.0, lambda: 1.0, "products", {"slow": lambda: 8.0, "fast": lambda: 4.0}, rounds=3)
    monkeypatch.setattr(bench, "CONTESTS", {"a contest": (lambda _: nullcontext(fake), 5.0)})
    bench.main()
    (row,) = kept["rows"]
    assert (row["peer"], row["ours_over_peer"], row["ours_over_floor"]) == ("fast", 0.5, 2.0)
    assert row["runs"] == {"ours": [2.0] * 3, "floor": [1.0] * 3, "slow": [8.0] * 3, "fast": [4.0] * 3}
    assert kept["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_contestants_take_turns_and_each_round_begins_with_another():
    calls = []
    contestants = {name: lambda name=name: calls.append(name) or float(len(calls)) for name in "abc"}
    seconds = turns.in_turn(contestants, rounds=3)
    assert "".join(calls) == "abcbcacab"
    assert seconds == {"a": [1.0, 6.0, 8.0], "b": [2.0, 4.0, 9.0], "c": [3.0, 5.0, 7.0]}
    assert turns.medians(seconds) == {"a": 6.0, "b": 4.0, "c": 5.0}


def test_the_textbook_finds_what_ours_finds_in_the_same_order(tmp_path):
    model = Residual()
    spec = trace(model, torch.randn(2, 5))
    a, b = (initial_weights(model, "torch", seed) for seed in (0, 1))
    pair = plain_pair(spec, a, b)
    ours = weight_matching(spec, a, b, seed=3).permutation.indices
    matchers.save(pair, tmp_path / "pair.pt")
    read = matchers.Pair(*torch.load(tmp_path / "pair.pt"))
    assert read.sizes == spec.sizes
    for name in ("textbook", "ours"):
        indices = matchers.MATCHERS[name](read)(3)["indices"]
        assert indices == {group: index.tolist() for group, index in ours.items()}
    assert matchers.MATCHERS["floor"](read)(3)["distinct"] >= len(spec.sizes)


def test_packages_that_cannot_be_had_are_missing_and_not_half_there(tmp_path, monkeypatch):
    monkeypatch.setattr(matchers.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1))
    assert matchers.install_peers() is None and not (tmp_path / "cache" / "peers").exists()


def grown(sizes, power, memory=1.0):
    return [{"networks": n, "seconds": 1e-3 * n**power, "mebibytes": 2 * n**memory} for n in sizes]


def test_an_exponent_is_that_of_the_last_points():
    kind = scaling.Kind("toys", lambda _: None, 4, (1, 3), (2, 2))
    points = grown((1, 2, 4), 0.0) + grown((8, 16, 32), 1.5, 2.0)
    row = scaling.exponent(kind, "networks", points)
    assert (row["time"], row["time_floor"], row["memory"], row["memory_floor"]) == (1.5, 1, 2.0, 2)
    assert row["largest"] == 32 and row["mebibytes"] == 2048


def test_a_point_that_would_take_too_long_ends_the_series(monkeypatch):
    monkeypatch.setattr(scaling, "trained", lambda data, networks, width: networks)
    monkeypatch.setattr(scaling, "MOST", {"seconds": 60, "mebibytes": 1e9})
    taken = {1: 1.0, 2: 8.0, 4: 64.0}  # cubic: the next would take 512
    monkeypatch.setattr(scaling, "peak", lambda work: (2**20, taken[work.args[-1]]))
    kind = scaling.Kind("toys", lambda _: None, 4, (1, 3), (1, 1))
    rows = list(scaling.along(kind, "networks", [(1, 64), (2, 64), (4, 64), (8, 64)], None))
    assert [row["networks"] for row in rows] == [1, 2]
    assert scaling.expected(rows, "networks", 4, "seconds") == pytest.approx(64)


STAND_IN = """
from torch import nn

class PermutationCoordinateDescent:
    def __init__(self, model_a, model_b, example):
        model_b(example)

    def rebasin(self):
        pass

class MergeMany:
    def __init__(self, models, working_model, example):
        self.models = models

    def run(self):
        return self.models[0]
"""


def test_another_program_merges_in_a_process_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "rebasin.py").write_text(STAND_IN)
    monkeypatch.setattr(matchers, "install_peers", lambda: tmp_path)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    generator = torch.Generator().manual_seed(0)
    group = {key: torch.randn(4, *tensor.shape, generator=generator) for key, tensor in model.state_dict().items()}
    merged = published_many.published(group)
    assert merged["many"].keys() == merged["hierarchy"].keys() == group.keys()
    for key, tensor in group.items():
        assert torch.equal(merged["many"][key], tensor[0])
        # Pairs of neighbours are averaged, and then their averages, by a program that leaves all units where they are.
        torch.testing.assert_close(merged["hierarchy"][key], tensor.mean(0))
