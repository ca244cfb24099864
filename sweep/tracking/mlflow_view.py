"""A saved view of the trials in MLflow's pages, the links to it, and the sweep's description. Pure.

The view shows the trials as points, WER against GFLOPs. Its format is private to MLflow, checked
with version 3.17.2 (docs/reference/compat.md): an experiment tag holds the state of the page,
compressed. A newer MLflow that does not know it ignores it.
"""

import base64
import json
import time
import zlib
from typing import Any

TAG = "mlflow.sharedViewState."
MAX_NOTE = 8000
"""Characters in a run's description."""

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
    """The value of the experiment's tag `TAG` plus an id, which makes a link with that id work."""
    now = int(time.time() * 1000)
    state = json.dumps(_page(parent)).encode()
    view = {
        "name": f"Pareto front of {name}",
        "createdAt": now,
        "updatedAt": now,
        # MLflow limits the value of an experiment's tag to 20,000 characters, and a plain state
        # would be escaped a second time. The address names this tag by its id: `viewStateShareKey`.
        "state": "deflate;" + base64.b64encode(zlib.compress(state, 9)).decode(),
    }
    return json.dumps(view)


def scatter_link(base_url: str, *, experiment: str, view_id: str) -> str:
    """The address of the saved view."""
    return (
        f"{base_url.rstrip('/')}/#/experiments/{experiment}/runs"
        # Without the last, MLflow 3 opens its pages for chat applications.
        f"?viewStateShareKey={view_id}&compareRunsMode=CHART&workflowType=machine_learning"
    )


def front_link(base_url: str, *, experiment: str, parent: str) -> str:
    """The address of the front's page, an artifact of the sweep's run."""
    return (
        f"{base_url.rstrip('/')}/#/experiments/{experiment}/runs/{parent}"
        "/artifacts/front/front.html?workflowType=machine_learning"
    )


def description(table: str) -> str:
    """The front's table as the sweep's description: whole lines, as many as MLflow stores."""
    # Cut at a line's end, as half a row of a Markdown table would be shown as text:
    # "| 1 |\n| 2 |\n| 3" becomes "| 1 |\n| 2 |".
    end = "\n\nAmong the artifacts: `front/front.html` is the page, `front/front.csv` all points."
    if len(table) + len(end) <= MAX_NOTE:
        return table.rstrip() + end
    return table[: MAX_NOTE - len(end)].rpartition("\n")[0] + end


def _page(parent: str) -> dict[str, Any]:
    """The state of MLflow's page of runs: filter, order, columns and charts."""
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
        # The ids in the second argument are those of the sections above. A scatter reads the last
        # value of a metric, and `wer` and `gflops` are logged once, at a trial's end; a line reads
        # all of `val/wer`.
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
