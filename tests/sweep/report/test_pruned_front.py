"""The page of `prune --audio`: what it draws, and that nothing in it is run."""

import pytest

from sweep.report.pruned_front import write_pruned_front

MODEL = {
    "folder": "",
    "flops_sparsity": 0.0,
    "params_sparsity": 0.0,
    "params": 1_450_000,
    "gflops": 1.17,
    "latency_ms": 30.0,
    "latency_busy": False,
    "kl": 0.0,
    "words_changed": 0.0,
    "wer": None,
}


def table(axis, counts, kl, units=12):
    return {"axis": axis, "kind": "inner", "units": units, "counts": counts, "kl": kl}


TABLES = [
    table("width", [4, 8], [0.5, 2.0]),
    table("blocks.0.ff1.inner", [3, 6, 9, 12], [0.1, 0.2, 0.3, 0.4]),
    table("blocks.1.attention.head", [1, 2], [0.5, 0.7], units=2),
    table("blocks.1.ff2.inner", [1], [0.0]),
]


def values(**models):
    small = MODEL | {"folder": "removed-50", "flops_sparsity": 0.5, "gflops": 0.6} | models
    return {
        "calibration_seconds": 300.0,
        "held_out_seconds": 75.0,
        "test": None,
        "models": [MODEL, small],
        "sensitivity": TABLES,
    }


@pytest.mark.parametrize("words_changed", [0.0, 0.5])
def test_the_page_has_all_models_and_is_alone(words_changed, tmp_path):
    write_pruned_front(values(words_changed=words_changed), tmp_path, title="teacher")

    page = (tmp_path / "front.html").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"front.html", "front.png", "front.svg"}
    assert "removed-50" in page
    assert page.count("<svg") == 2
    assert "$" not in page
    assert 'http-equiv="Content-Security-Policy" content="default-src \'none\'' in page


def test_a_latency_of_a_busy_machine_is_marked(tmp_path):
    write_pruned_front(values(latency_busy=True), tmp_path, title="teacher")

    assert (tmp_path / "front.html").read_text().count("30.0 (busy)") == 1


def test_a_name_cannot_command_the_page(tmp_path):
    write_pruned_front(
        values(folder="<script>alert(1)</script>"), tmp_path, title="<img src=x onerror=alert(1)>"
    )

    page = (tmp_path / "front.html").read_text()
    assert "<script" not in page
    assert "<img" not in page
