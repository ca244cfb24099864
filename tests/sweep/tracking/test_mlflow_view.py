"""What a person finds of a sweep in MLflow's pages: in a real browser, without any network."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from made_outcomes import make_records

from core.config.trial import ModelConfig
from core.conformer.shape import Shape
from core.report import Report
from sweep.pareto.compute_hours import hours
from sweep.report.architecture import structure
from sweep.report.architecture_heatmap import Panel, draw_front, heatmap_svg
from sweep.report.front_files import write_front
from sweep.tracking import mlflow_view
from sweep.tracking.provenance import Dataset

HERE = {"", "127.0.0.1", "localhost"}
"""An empty host is the page's own data."""


def structure_of(record):
    whole = Shape.of(ModelConfig(size="tiny"), 64)
    share = 1 - record.outcomes[0].flops_sparsity
    blocks = tuple(
        replace(block, ff1=round(share * block.ff1), heads=(index + record.number) % 5)
        for index, block in enumerate(whole.blocks)
    )
    small = replace(whole, width=round(share * whole.width), blocks=blocks)
    return Panel(title=f"trial {record.number}", structure=structure(small, whole))


@pytest.fixture
def tracker_of_eight(folder, opened):
    """A sweep of eight trials, all logged to MLflow with heat maps and front."""
    records = make_records(8)
    tracker = opened(artifacts=lambda record: {"kept.svg": heatmap_svg(structure_of(record))})
    tracker.install_view()
    for record in records:
        tracker.open_trial(replace(record, state="running", outcomes=()))
        reports = [
            Report(stage="tune", step=step, total_steps=700, wer=30 / step, gflops=1.0)
            for step in range(100, 800, 100)
        ]
        tracker.log_reports(record.number, reports)
        tracker.finish_trial(record)
    speech = Dataset(name="demo dev", digest="0123", role="dev", source="demo", profile={})
    tracker.log_datasets([speech], {"corpus.digest": "0123"})
    tracker.log_hours(hours(records, cpus=2, gpus=0))
    files = write_front(records, folder / "front", title="demo")
    others = [folder / "front" / f"kept.{kind}" for kind in ("svg", "png")]
    draw_front([structure_of(record) for record in records[:4]], svg=others[0], png=others[1])
    tracker.log_front(files, records, others)
    tracker.close()
    return tracker


@pytest.mark.long
@pytest.mark.slow
def test_every_page_is_there_in_a_browser_that_asks_nobody_but_this_machine(
    tracker_of_eight, folder, server, browser, tmp_path
):
    base = server(folder / "mlflow.db").start()
    pictures = Path(os.environ.get("SWEEP_PICTURES", tmp_path))
    run = f"{base}/#/experiments/{tracker_of_eight.experiment}/runs/{tracker_of_eight.run_id(7)}"
    front = tracker_of_eight.front_link(base)
    pages = {
        "view": (tracker_of_eight.link(base), "gflops vs. wer", ["Pareto front", "trial 7"]),
        "front": (front, "word error rate", ["Knee: trial", "kept.svg"]),
        "side_by_side": (front.replace("front.html", "kept.svg"), "image ", ["kept.svg"]),
        "parent": (
            front.partition("/artifacts")[0],
            "FLOPs removed",
            ["hypervolume", "demo dev", "hours/wasted"],
        ),
        "curves": (f"{run}/model-metrics", "val/wer", ["val/gflops"]),
        "heat_map": (f"{run}/artifacts/kept.svg", "image ", ["kept.svg"]),
    }

    for name, (url, shows, words) in pages.items():
        whole = url if "workflowType" in url else f"{url}?workflowType=machine_learning"
        page = browser.visit(whole, shows=shows, picture=pictures / f"{name}.png")
        assert page.hosts <= HERE, name
        assert any(asked.startswith(base) for asked in page.urls), name
        for word in words:
            assert word in page.text, name


def test_a_note_too_long_for_mlflow_ends_with_a_whole_line():
    table = "\n".join(f"| {number} | l0 | 0.123 |" for number in range(2000))

    *rows, empty, last = mlflow_view.description(table).splitlines()

    assert len(mlflow_view.description(table)) <= mlflow_view.MAX_NOTE
    assert all(row.endswith("|") for row in rows)
    assert not empty
    assert "front/front.csv" in last
