"""The front of `prune --audio` as a picture and a page, with the sensitivity of each part."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sweep.report.chart_data import BLUE
from sweep.report.sensitivity_page import draw_sensitivity
from sweep.report.static_chart import STYLE, svg_element, svg_text, write_chart_page
from sweep.templates import render_html, safe_html

TEMPLATES = Path(__file__).parent / "templates"


def write_pruned_front(values: Mapping[str, Any], folder: Path, *, title: str) -> None:
    """Write `front.svg`, `front.png` and `front.html`, all or none.

    Args:
        values: contents of `front.json`.
        folder: of the results.
        title: of the page and the picture.
    """
    models, sensitivity = values["models"], values["sensitivity"]
    figure = draw_models(models, title)
    page = {
        "title": title,
        "values": values,
        # The page has a heading of its own.
        "front_svg": safe_html(svg_element(svg_text(draw_models(models)))),
        "sensitivity_svg": safe_html(svg_element(svg_text(draw_sensitivity(sensitivity)))),
    }
    html = render_html(TEMPLATES, "pruned_front.html.j2", page)
    write_chart_page(folder, "front", figure, html)


def draw_models(models: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """Draw changed words over remaining GFLOPs; the first model is the unpruned one."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 5.0), layout="constrained")
        axes = figure.add_subplot()
        if title:
            figure.suptitle(title, x=0.012, ha="left", fontsize=14, fontweight="bold")
        x = [model["gflops"] for model in models]
        has_wer = all(model["wer"] is not None for model in models)
        y = [100 * model["wer" if has_wer else "words_changed"] for model in models]
        axes.plot(x, y, color=BLUE, marker="o", linewidth=1.5)
        for model, left, top in zip(models, x, y, strict=True):
            removed = f"{100 * model['flops_sparsity']:.0f} % removed"
            axes.annotate(
                removed if model["folder"] else "unpruned",
                (left, top),
                xytext=(6, 8),
                textcoords="offset points",
                fontsize=9,
                color="#333333",
            )
        axes.set_xlabel("GFLOPs an utterance")
        label = "WER (%)" if has_wer else "words changed on held-out speech (%)"
        axes.set_ylabel(label)
        axes.set_xlim(0, 1.18 * max(x))
        axes.set_ylim(-0.02 * max(1.0, *y), 1.2 * max(1.0, *y))
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.grid(color="#EEEEEE")
    return figure
