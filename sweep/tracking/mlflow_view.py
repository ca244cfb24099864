"""What a person finds of a sweep in MLflow's pages, and under which links. Pure.

The saved view shows the trials as points, WER against GFLOPs. Its format is MLflow's own and
undocumented (3.17): an experiment tag holds the state of the page, compressed. A newer MLflow that
does not know it ignores it.
"""

import base64
import json
import time
import zlib
from typing import Any

TAG = "mlflow.sharedViewState."
MAX_NOTE = 8000
"""Letters in a run's description."""

COLUMNS = (
    "metrics.`wer`",
    "metrics.`gflops`",
    "metrics.`params`",
    "metrics.`latency_ms`",
    "metrics.`flops_sparsity`",
    "params.`pruning.method`",
    "params.`pruning.target_sparsity`",
    "tags.`state`",
)


def pareto_view(parent: str, *, name: str) -> str:
    """The tag's value: what `TAG` plus an id must hold for a link with that id to open the view."""
    now = int(time.time() * 1000)
    state = json.dumps(_page(parent)).encode()
    view = {
        "name": f"Pareto front of {name}",
        "createdAt": now,
        "updatedAt": now,
        "state": "deflate;" + base64.b64encode(zlib.compress(state, 9)).decode(),
    }
    return json.dumps(view)


def scatter_link(base_url: str, *, experiment: str, view_id: str) -> str:
    """Opens the saved view."""
    return (
        f"{base_url.rstrip('/')}/#/experiments/{experiment}/runs"
        # Without the last, MLflow 3 opens its pages for chat applications.
        f"?viewStateShareKey={view_id}&compareRunsMode=CHART&workflowType=machine_learning"
    )


def front_link(base_url: str, *, experiment: str, parent: str) -> str:
    """Opens the front's page, an artifact of the sweep's run."""
    return (
        f"{base_url.rstrip('/')}/#/experiments/{experiment}/runs/{parent}"
        "/artifacts/front/front.html?workflowType=machine_learning"
    )


def note(table: str) -> str:
    """The front's table as the sweep's description: whole lines, as many as MLflow takes."""
    told = "\n\nMore among the artifacts: `front/front.html` is the page, `front/front.csv` all."
    if len(table) + len(told) <= MAX_NOTE:
        return table.rstrip() + told
    return table[: MAX_NOTE - len(told)].rpartition("\n")[0] + told


def _page(parent: str) -> dict[str, Any]:
    """The state of MLflow's page of runs: which runs, sorted how, drawn how."""
    return {
        "searchFilter": f"tags.`mlflow.parentRunId` = '{parent}'",
        "orderByKey": "metrics.`wer`",
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": list(COLUMNS),
        "runsHiddenMode": "SHOW_ALL",
        "runListHidden": False,
        "viewMaximized": False,
        "hideEmptyCharts": True,
        "isAccordionReordered": True,  # else MLflow sorts the sections by name
        "autoRefreshEnabled": True,
        "compareRunSections": [
            _section("front", "Pareto front", columns=1, height=460),
            _section("size", "Size and latency", columns=2, height=360),
            _section("curves", "Learning curves", columns=2, height=360),
        ],
        "compareRunCharts": [
            _scatter("pareto", "front", "gflops", "wer"),
            _scatter("params", "size", "params", "wer"),
            _scatter("latency", "size", "latency_ms", "wer"),
            _line("wer", "curves", "val/wer"),
            _line("gflops", "curves", "val/gflops"),
        ],
    }


def _section(uuid: str, title: str, *, columns: int, height: int) -> dict[str, Any]:
    return {
        "uuid": uuid,
        "name": title,
        "columns": columns,
        "cardHeight": height,
        "display": True,
        "isReordered": True,
        "deleted": False,
        "isGenerated": False,
    }


def _chart(uuid: str, section: str, kind: str) -> dict[str, Any]:
    return {
        "uuid": uuid,
        "type": kind,
        "metricSectionId": section,
        "runsCountToCompare": 100,
        "deleted": False,
        "isGenerated": False,
    }


def _scatter(uuid: str, section: str, x: str, y: str) -> dict[str, Any]:
    return _chart(uuid, section, "SCATTER") | {
        "xaxis": {"key": x, "type": "METRIC"},
        "yaxis": {"key": y, "type": "METRIC"},
    }


def _line(uuid: str, section: str, metric: str) -> dict[str, Any]:
    return _chart(uuid, section, "LINE") | {
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "lineSmoothness": 0,
        "xAxisKey": "step",
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "yAxisKey": "metric",
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }
