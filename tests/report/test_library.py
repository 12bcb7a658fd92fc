"""The library in the book: facts, tables and figure are those of the benchmarks, whichever way they come out."""

import json

import matplotlib.pyplot as plt
import pytest

from lab.report import library


def row(name, seconds, moving):
    return {
        "network": f"torchvision {name}",
        "numbers": 2_000_000,
        "image": [1, 3, 64, 64],
        "groups": 12,
        "groups_of_blocks": 0,
        "groups_within_blocks": 0,
        "share_moving": moving,
        "share_pinned_by_reason": {"an output of the network": 1 - moving},
        "export_seconds": 0.5,
        "trace_seconds": seconds,
    }


def matching(**changes):
    seconds = {"ours": 0.5, "frank-wolfe": 2.0, "textbook": 1.5, "rebasin": 4.0, "sd-meh": 1.0, "floor": 0.4}
    return {
        "median_seconds": seconds,
        "mean_objective": dict.fromkeys(seconds, 700.0),
        "orders": 3,
        "fastest_other": "sd-meh",
        "ours_over_fastest_other": 0.5,
        "ours_minus_other_objective": {"textbook": {"each_order": [0.0, 0.0, 0.0]}},
        "raw": {"objective": {"ours": [700.0, 701.0, 702.0], "frank-wolfe": [701.5] * 3}},
        "batched": {"pairs": 100, "threads": 2, "at_once_over_one_by_one": 0.6},
    } | changes


@pytest.fixture
def benchmarks(tmp_path, monkeypatch):
    """``benchmarks(matching=..., tracing=...)`` puts these figures where the chapter reads them."""
    (tmp_path / "benchmarks").mkdir()
    monkeypatch.setattr(library, "ROOT", tmp_path)
    common = {
        "hardware": {"processor": "Some CPU", "cores": 2, "gpu": None},
        "versions": {"torch": "2.15"},
        "commit": "0123456789abcdef",
    }

    def write(**figures):
        for name, table in figures.items():
            (tmp_path / "benchmarks" / f"{name}.json").write_text(json.dumps(common | table))

    return write


def test_the_slowest_and_the_stiffest_network(benchmarks):
    benchmarks(tracing={"rows": [row("fast", 1.0, 0.999), row("stiff", 2.0, 0.95), row("slow", 9.94, 1.0)]})
    facts = library.tracing()
    assert facts.outcome == "all in time"
    assert facts.values == {
        "n": "3", "late": "0", "in_time": "3", "budget": "10", "slowest": "slow", "slowest_seconds": "9.9",
        "stiffest": "stiff", "least_moving": "95.0",
    }  # fmt: skip


def test_networks_that_take_too_long_are_counted(benchmarks):
    benchmarks(tracing={"rows": [row("fast", 1.0, 1.0), row("slow", 10.1, 1.0), row("slower", 17.0, 1.0)]})
    facts = library.tracing()
    assert facts.outcome == "some late"
    assert (facts.values["late"], facts.values["in_time"], facts.values["slowest"]) == ("2", "1", "slower")


def test_the_tracing_table_has_what_stays_and_why(benchmarks):
    benchmarks(tracing={"rows": [row("resnet18", 1.0, 0.998)]})
    (network,) = library.tracing_table().to_dict("records")
    assert network["network"] == "resnet18" and network["moves (%)"] == "99.800"
    assert network["stays (%), and why"] == "0.200 an output"


def family(model, moving):
    return {
        "model": model,
        "numbers": 5000,
        "groups": 8,
        "share_moving": moving,
        "share_pinned_by_reason": {"an output of the network": 1 - moving},
    }


@pytest.mark.parametrize(("least", "outcome", "nearly_all"), [(0.993, "most move", "2"), (0.98, "few move", "1")])
def test_how_much_of_the_models_of_transformers_moves(benchmarks, least, outcome, nearly_all):
    benchmarks(families={"rows": [family("GPT2", 1.0), family("Bert", 0.364), family("Llama", least)]})
    facts = library.families()
    assert facts.outcome == outcome
    assert facts.values == {
        "n": "3", "nearly_all": nearly_all, "share": "99", "stiffest": "Bert", "least_moving": "36",
    }  # fmt: skip
    first, _, last = library.families_table().to_dict("records")
    assert first["model"] == "GPT2" and first["moves (%)"] == "100.0"
    assert last["model"] == "Bert" and last["stays (%), and why"] == "63.6 an output"


@pytest.mark.parametrize(("over", "outcome"), [(0.5, "faster"), (1.25, "slower")])
def test_speed_beside_the_fastest_other(benchmarks, over, outcome):
    benchmarks(matching=matching(ours_over_fastest_other=over))
    facts = library.speed()
    assert facts.outcome == outcome
    assert facts.values == {"percent": f"{100 * over:.0f}", "fastest": "PyPI's sd-meh"}


@pytest.mark.parametrize(("gap", "outcome", "most"), [(0.0, "none does", "0.0000"), (-0.25, "another does", "0.2500")])
def test_another_that_finds_more(benchmarks, gap, outcome, most):
    benchmarks(matching=matching(ours_minus_other_objective={"textbook": {"each_order": [0.0, gap, 0.0]}}))
    facts = library.objective()
    assert facts.outcome == outcome and facts.values == {"most": most, "orders": "3"}


@pytest.mark.parametrize(("over", "outcome"), [(0.6, "faster"), (1.1, "slower")])
def test_many_pairs_at_once(benchmarks, over, outcome):
    benchmarks(matching=matching(batched={"pairs": 100, "threads": 2, "at_once_over_one_by_one": over}))
    facts = library.batch()
    assert facts.outcome == outcome
    assert facts.values == {"pairs": "100", "threads": "2", "percent": f"{100 * over:.0f}"}


@pytest.mark.parametrize(
    ("reached", "outcome", "better"), [(701.5, "sometimes", "2"), (703.0, "always", "3"), (1.0, "never", "0")]
)
def test_how_often_frank_wolfe_finds_more(benchmarks, reached, outcome, better):
    benchmarks(matching=matching(raw={"objective": {"ours": [700.0, 701.0, 702.0], "frank-wolfe": [reached] * 3}}))
    facts = library.frank_wolfe()
    assert facts.outcome == outcome
    assert facts.values == {"better": better, "orders": "3", "times": "4.0"}


def test_implementations_that_were_timed_stand_in_table_and_figure(benchmarks):
    benchmarks(matching=matching())
    table = library.matching_table().set_index("implementation")
    assert table.loc["the assignments alone", "our weight matching over it"] == "1.25"
    assert table.loc["PyPI's sd-meh", "one pair (ms)"] == "1000" and "PyPI's sd-mecha" not in table.index
    figure = library.matching_seconds()
    assert [bar.get_width() for bar in figure.axes[0].patches] == [4000, 2000, 1500, 1000, 500]
    plt.close(figure)


def test_hardware_versions_and_commit_are_those_of_each_benchmark(benchmarks):
    benchmarks(matching=matching(), tracing={"rows": []}, families={"rows": []})
    first, second, third = library.measured_on().to_dict("records")
    assert (first["benchmark"], second["benchmark"]) == ("tracing", "families")
    assert third["script"] == "benchmarks/matching.py"
    assert first["machine"] == "Some CPU, 2 cores" and first["versions"] == "torch 2.15"
    assert first["commit"] == "0123456789"
