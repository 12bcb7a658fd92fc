"""The library's chapter says what the benchmarks measured, whichever way they come out."""

import json

import pytest

from lab.report import library_chapter


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
    monkeypatch.setattr(library_chapter, "ROOT", tmp_path)
    common = {
        "hardware": {"processor": "Some CPU", "cores": 2, "gpu": None},
        "versions": {"torch": "2.15"},
        "commit": "0123456789abcdef",
    }

    def write(**figures):
        for name, table in figures.items():
            (tmp_path / "benchmarks" / f"{name}.json").write_text(json.dumps(common | table))

    return write


def test_the_slowest_and_the_stiffest_network_are_told(benchmarks):
    benchmarks(tracing={"rows": [row("fast", 1.0, 0.999), row("stiff", 2.0, 0.95), row("slow", 9.94, 1.0)]})
    assert library_chapter.tracing_finding() == (
        "All 3 networks tried are traced and proved, each within 10 seconds (the slowest, slow, in 9.9). At least "
        "95.0 % of the numbers in each belong to units that move (stiff)."
    )


def test_networks_that_take_too_long_are_counted(benchmarks):
    benchmarks(tracing={"rows": [row("fast", 1.0, 1.0), row("slow", 10.1, 1.0), row("slower", 17.0, 1.0)]})
    assert "all but 2 within 10 seconds (the slowest, slower, in 17.0)" in library_chapter.tracing_finding()


def test_the_tracing_table_tells_what_stays_and_why(benchmarks):
    benchmarks(tracing={"rows": [row("resnet18", 1.0, 0.998)]})
    text = library_chapter.tracing_table().data
    assert "<td>resnet18</td>" in text and "<td>99.800</td>" in text and "<td>0.200 an output</td>" in text


def test_speed_and_objective_beside_the_others(benchmarks):
    benchmarks(matching=matching())
    assert library_chapter.matching_finding() == (
        "A pair of 3x512 MLPs is matched in 50 % of the time of the fastest other implementation (PyPI's sd-meh), and "
        "in the same visiting order none finds more. 100 pairs at once, on 2 threads, take 60 % of the time that they "
        "take one after another on one. Frank-Wolfe "
        "matching takes 4.0 times as long, and finds more than weight matching does in 2 of the 3 visiting orders."
    )
    text = library_chapter.matching_table().data
    assert "the assignments alone (floor)" in text and "<td>1.25</td>" in text and "sd-mecha" not in text


def test_another_that_finds_more_is_told(benchmarks):
    benchmarks(matching=matching(ours_minus_other_objective={"textbook": {"each_order": [0.0, -0.25, 0.0]}}))
    assert "in the same visiting order one finds 0.2500 more" in library_chapter.matching_finding()


def test_hardware_versions_and_commit_stand_below(benchmarks):
    benchmarks(matching=matching())
    text = library_chapter.below("matching").data
    assert "Some CPU, 2 cores · torch 2.15 · commit 0123456789 · benchmarks/matching.py" in text
