"""The front as page, picture and table, with real plotly, matplotlib and a real browser."""

import csv
import html
import io
import json
import re
import xml.etree.ElementTree as ET

import pytest
from made_outcomes import make_outcome, make_records
from rich.console import Console

from sweep.cli.output.tables import front_as_lines
from sweep.ledger.records import TrialRecord
from sweep.pareto import front
from sweep.pareto.front import Point
from sweep.report import chart_data
from sweep.report.front_files import COLUMNS, csv_text, front_table, rows, teacher_wer, write_front

# Hovers over every point as a mouse would, and notes what the page says of it, and what it loads.
PROBE = """<pre id="told"></pre><script>
const refused = [];
document.addEventListener("securitypolicyviolation", event => refused.push(event.blockedURI));
addEventListener("load", async () => {
  const chart = document.getElementById("chart"), texts = [];
  for (const [curve, trace] of chart.data.entries()) {
    if (trace.hoverinfo === "skip") continue;
    for (let point = 0; point < chart.calcdata[curve].length; point++) {
      Plotly.Fx.hover(chart, [{curveNumber: curve, pointNumber: point}]);
      await new Promise(resolve => setTimeout(resolve, 100));  // plotly hovers at leisure
      texts.push(document.querySelector(".hoverlayer").textContent);
    }
  }
  const loaded = performance.getEntriesByType("resource").map(entry => entry.name);
  document.getElementById("told").textContent = JSON.stringify({texts, loaded, refused});
});
</script></body>"""


@pytest.fixture
def probe(browse, tmp_path):
    """What the page of these records says when every point is hovered over."""

    def told(records, **words):
        page = write_front(records, tmp_path, title="demo", **words).html
        page.write_text(page.read_text("utf-8").replace("</body>", PROBE), "utf-8")
        elements = browse(page.as_uri())
        return json.loads(html.unescape(re.search(r'<pre id="told">(.*?)</pre>', elements)[1]))

    return told


@pytest.mark.slow
def test_the_page_tells_of_each_point_under_the_mouse(probe):
    records = make_records(24, seed=3)

    texts = probe(records, teacher_wer=0.0365)["texts"]

    for record in records:
        outcome = record.outcomes[0]
        (text,) = [t for t in texts if f"trial {record.number} (" in t]
        for words in (
            f"({outcome.method})",
            f"WER: {100 * outcome.wer:.2f} %",
            f"interval {100 * outcome.wer_low:.2f} to {100 * outcome.wer_high:.2f}",
            f"{100 * outcome.flops_sparsity:.1f} % removed",
            f"{100 * outcome.params_sparsity:.1f} % removed",
            f"latency: {outcome.latency_ms:.1f} ms",
            f"target: {100 * outcome.target_sparsity:.1f} %",
            "distillation.layer_weight: ",
            f"pruning.repair: {record.params['pruning.repair']}",
        ):
            assert words in text
    on_front = {point.trial for point in front.pareto_front(front.points(records))}
    assert {t for t in texts if "on the front" in t} == {
        t for t in texts if any(f"trial {number} (" in t for number in on_front)
    }


@pytest.mark.slow
def test_the_page_asks_nothing_of_any_network(probe):
    told = probe(make_records(10))

    assert told["loaded"] == []
    assert told["refused"] == []


@pytest.mark.slow
def test_a_curve_trial_has_a_text_for_each_outcome(probe):
    curve = tuple(make_outcome(0.1 / g, g) for g in (1.0, 2.0, 3.0))

    texts = probe([TrialRecord(number=5, state="finished", outcomes=curve)])["texts"]

    assert len([text for text in texts if "trial 5 (l0)" in text]) == 3


@pytest.mark.slow
def test_the_page_of_ten_thousand_trials_is_under_six_megabytes(tmp_path):
    files = write_front(make_records(10_000), tmp_path, title="many")

    assert files.html.stat().st_size < 6_000_000
    assert "points far from the front are not drawn" in files.html.read_text("utf-8")
    assert len(files.csv.read_text("utf-8").splitlines()) == 10_001


@pytest.mark.parametrize("count", [0, 1, 2, 10, 200])
def test_a_front_of_any_size_is_drawn(tmp_path, count):
    files = write_front(make_records(count), tmp_path / "new" / "front", title="a < b & c")

    assert ET.parse(files.svg).getroot().tag.endswith("svg")  # noqa: S314  (our own file)
    assert files.png.read_bytes().startswith(b"\x89PNG")
    assert "<h1>a &lt; b &amp; c</h1>" in files.html.read_text("utf-8")


def test_errorless_recognizers_are_drawn_too(tmp_path):
    outcomes = (make_outcome(0.0, 1.0), make_outcome(0.0, 1.0), make_outcome(2.5, 0.0))
    record = TrialRecord(number=0, state="finished", outcomes=outcomes)

    assert write_front([record], tmp_path, title="odd", teacher_wer=0.0).png.exists()


def test_before_any_trial_has_finished_the_page_says_so(tmp_path):
    files = write_front([TrialRecord(number=0, state="running")], tmp_path, title="demo")

    assert "No trial has finished yet (1 running)." in files.html.read_text("utf-8")


def test_nothing_from_a_trial_becomes_markup(tmp_path):
    evil = "<script>alert(1)</script>"
    record = TrialRecord(
        number=0,
        state="finished",
        params={"pruning.repair": evil, evil: 1.0},
        outcomes=(make_outcome(method=evil),),
    )

    page = write_front([record], tmp_path, title=evil).html.read_text("utf-8")

    assert evil not in page


def test_equal_trials_give_equal_pictures(tmp_path):
    files = [write_front(make_records(20), tmp_path / name, title="demo") for name in "ab"]

    assert files[0].svg.read_bytes() == files[1].svg.read_bytes()
    assert files[0].png.read_bytes() == files[1].png.read_bytes()


def test_the_table_file_holds_every_outcome_in_plain_numbers(tmp_path):
    records = make_records(12)

    files = write_front([*records, TrialRecord(number=12, state="failed")], tmp_path, title="demo")

    with files.csv.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["trial"]) for row in rows] == list(range(12))
    assert [float(row["wer"]) for row in rows] == [r.outcomes[0].wer for r in records]
    assert float(rows[3]["pruning.l0.lambda_lr"]) == records[3].params["pruning.l0.lambda_lr"]
    on_front = {point.trial for point in front.pareto_front(front.points(records))}
    assert {int(row["trial"]) for row in rows if row["on_front"] == "1"} == on_front


def test_the_markdown_table_has_a_row_a_front_point(tmp_path):
    records = make_records(12)

    lines = write_front(records, tmp_path, title="demo").markdown.read_text("utf-8").splitlines()

    found = front.pareto_front(front.points(records))
    assert [line.split("|")[1].strip() for line in lines if line.startswith("|")][2:] == [
        point.name for point in found
    ]
    assert "12 finished" in lines[2]


def test_the_terminal_table_fits_eighty_columns():
    found = front.pareto_front(front.points(make_records(40, seed=3)))
    console = Console(width=80)
    with console.capture() as capture:
        console.print(front_table(found, title="demo"))

    shown = capture.get()
    assert "…" not in shown
    for point in found:
        assert f"{100 * point.result.wer_low:.2f} to {100 * point.result.wer_high:.2f}" in shown
    assert f"{front.knee(found).name} *" in shown


def test_the_teacher_is_drawn_once_it_is_trained(tmp_path):
    report = tmp_path / "teacher" / "model" / "report.json"
    assert teacher_wer(tmp_path) is None

    report.parent.mkdir(parents=True)
    for damaged in ("", "[]", '{"outcome": 0.1}', '{"outcome": {"wer": null}}'):
        report.write_text(damaged)
        assert teacher_wer(tmp_path) is None
    report.write_text('{"outcome": {"wer": 0.1}}')
    assert teacher_wer(tmp_path) == 0.1


def test_a_table_of_nothing_has_only_its_head():
    assert front_table([]).row_count == 0
    assert len(front_table([]).columns) == len(COLUMNS)


def test_the_points_nearest_the_front_are_kept():
    points = front.points(make_records(300))
    found = front.pareto_front(points)

    kept = chart_data.nearest(points, 50)

    assert len(kept) == 50 + len(found)
    assert all(point in kept for point in found)
    dropped = [point for point in points if point not in kept]
    assert not any(
        drop.wer <= keep.wer and drop.gflops < keep.gflops for drop in dropped for keep in found
    )


def test_methods_known_by_name_always_look_the_same():
    alone, among = chart_data.assign({"l0"}), chart_data.assign({"l0", "comp", "acip", "random"})

    assert alone["l0"] == among["l0"]
    assert len({(mark.color, mark.symbol) for mark in among.values()}) == 4


def test_a_long_front_is_told_in_plain_lines_with_the_same_words():
    found = front.pareto_front(front.points(make_records(400, seed=3)))
    heading, *lines, caption = front_as_lines(found)
    table = front_table(found)

    assert heading.split() == [word for name in COLUMNS.values() for word in name.split()]
    assert caption == table.caption
    for line, *cells in zip(lines, *(list(column.cells) for column in table.columns), strict=True):
        words = [word for cell in cells for word in str(cell).split()]
        assert sorted(line.split()) == sorted(words)
    assert sum(line.endswith("*") for line in lines) == 1


def test_a_latency_taken_on_a_busy_machine_is_marked_in_table_and_csv():
    points = [
        Point(trial=number, outcome=0, result=make_outcome(wer, gflops, latency_busy=is_busy))
        for number, (wer, gflops, is_busy) in enumerate(
            [(0.3, 1.0, True), (0.2, 2.0, False), (0.1, 3.0, None)]  # None: of before
        )
    ]

    shown = [row["latency (ms)"] for row in rows(points)]
    table = list(csv.DictReader(io.StringIO(csv_text(points, {}))))

    assert [text.endswith(" (busy)") for text in shown] == [True, False, False]
    assert [row["latency_busy"] for row in table] == ["True", "False", ""]
