"""Two fronts side by side: the arithmetic, and what of it is drawn and told."""

import json
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_outcomes import make_outcome, make_records

from sweep.config.distributions import Range
from sweep.config.sweep import create, load, parse
from sweep.ledger.ledger import Ledger
from sweep.pareto import front
from sweep.pareto.comparison import FrontSide, band, best_wer, compare, coverage, unlike
from sweep.search.confirm import confirmations, plan
from sweep.snapshot import load_snapshot

LEAVES = {"pruning.target_sparsity": Range(low=0.0, high=0.95)}


def points(*pairs):
    """Points at (GFLOPs, WER)."""
    return [
        front.Point(trial=i, outcome=0, result=make_outcome(float(wer), float(gflops)))
        for i, (gflops, wer) in enumerate(pairs)
    ]


clouds = st.lists(
    st.tuples(st.sampled_from([0.5, 1.0, 1.5, 2.0]), st.sampled_from([0.1, 0.2, 0.3, 0.4])),
    min_size=1,
    max_size=6,
)


def level(surface, gflops):
    return min((wer for at, wer in surface if at <= gflops), default=1.0)


def test_who_covers_what_share_of_the_other():
    ours, theirs = points((1, 0.3), (2, 0.1)), points((1, 0.3), (1.5, 0.2), (3, 0.2), (3, 0.05))

    assert coverage(ours, theirs) == 2 / 4
    assert coverage(theirs, ours) == 1 / 2


@given(clouds, clouds)
def test_a_side_with_more_points_covers_no_less(one, more):
    few, many = points(*one), points(*one, *more)
    compared = compare(FrontSide(name="few", points=few), FrontSide(name="many", points=many))

    assert compared.hypervolumes[0] <= compared.hypervolumes[1] + 1e-12
    assert compared.covers[1] == 1


@given(st.lists(clouds, min_size=2, max_size=4), st.sampled_from([0.4, 0.5, 1.2, 2.0, 3.0]))
def test_a_band_lies_between_what_one_and_what_all_runs_attain(runs, gflops):
    found = band([points(*run) for run in runs])
    attained = [best_wer(points(*run), gflops) or 1.0 for run in runs]

    assert level(found.best, gflops) == min(attained)
    assert level(found.worst, gflops) == max(attained)
    assert min(attained) <= level(found.median, gflops) <= max(attained)


def test_both_are_judged_by_the_corner_of_the_larger_unpruned_model():
    compared = compare(
        FrontSide(name="a", points=points((3.2, 0.1))),
        FrontSide(name="b", points=points((1.6, 0.1))),
    )

    assert compared.worst_gflops == pytest.approx(3.2)
    assert compared.hypervolumes == pytest.approx((0, 0.45))


def test_sweeps_judged_by_other_speech_are_told_apart():
    spaces = [f"[trial.corpus]\ntokens = '{tokens}'\n" for tokens in ("char", "word")]
    one, other = (parse(text, source="a") for text in spaces)

    assert unlike(one, other) == ["trial.corpus.tokens: char -> word"]
    assert unlike(one, one) == []


@pytest.fixture
def folders(tiny_space, tmp_path):
    """Two finished sweeps; the second is confirmed with two seeds, each a little worse."""
    made = [tmp_path / "one", tmp_path / "two"]
    for seed, folder in enumerate(made):
        create(folder, load(str(tiny_space)), "")
        _finish(folder, [(r.params, r.outcomes[0]) for r in make_records(8, seed=seed)])
    place = plan(load_snapshot(made[1]), seeds=2)
    ledger = Ledger.open(place)
    of, found = confirmations(ledger), {p.trial: p.result for p in load_snapshot(made[1]).front}
    for record in ledger.records():
        worse = 1 + 0.1 * (record.params["seed"] % 2)
        again = found[of[record.number]]
        ledger.start(record.number)
        ledger.finish(record.number, [replace(again, wer=worse * again.wer)])
    ledger.close()
    return made


def _finish(folder, trials):
    ledger = Ledger.create(folder)
    for number, (params, outcome) in enumerate(trials):
        ledger.add(params, LEAVES)
        ledger.start(number)
        ledger.finish(number, [outcome])
    ledger.close()


def test_a_comparison_as_json(run, folders):
    one, two = folders
    code, out, _ = run("pareto", one, "--compare", two, "--json")
    values = json.loads(out)

    assert code == 0
    assert set(values) == {"corner", "sweeps", "budgets", "unlike"}
    assert [sweep["name"] for sweep in values["sweeps"]] == ["one", "two"]
    assert [len(sweep["run_hypervolumes"]) for sweep in values["sweeps"]] == [0, 2]
    own = values["sweeps"][1]
    assert min(own["run_hypervolumes"]) < max(own["run_hypervolumes"]) <= own["hypervolume"] + 1e-9
    assert values["unlike"] == []


@pytest.mark.slow
def test_a_comparison_is_drawn_and_its_page_asks_nothing_of_any_network(
    run, folders, tmp_path, browse
):
    one, two = folders
    files = {kind: tmp_path / f"c.{kind}" for kind in ("html", "svg", "png")}
    copies = [word for kind, path in files.items() for word in (f"--{kind}", path)]
    code, out, _ = run("pareto", one, "--compare", two, *copies)

    assert code == 0
    assert "covers of the other" in out
    assert ET.parse(files["svg"]).getroot().tag.endswith("svg")  # noqa: S314  (our own file)
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    probe = """<pre id="told"></pre><script>addEventListener("load", () => setTimeout(() => {
      const names = document.getElementById("chart").data.map(trace => trace.name);
      const loaded = performance.getEntriesByType("resource").length;
      document.getElementById("told").textContent = JSON.stringify({names, loaded});
    }, 500));</script></body>"""
    page = files["html"].read_text("utf-8").replace("</body>", probe)
    files["html"].write_text(page, "utf-8")
    elements = browse(files["html"].as_uri())
    told = json.loads(elements.partition('id="told">')[2].partition("</pre>")[0])
    assert told["loaded"] == 0
    assert "two: any to all of 2 seeds" in told["names"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-wer", "0.001"], "must have a finished trial within the limits"),
        (["--knee"], "`--compare` must be without `--knee` and `--csv`"),
    ],
)
def test_what_cannot_be_compared_is_refused(run, folders, words, message):
    code, out, err = run("pareto", folders[0], "--compare", folders[1], *words)

    assert (code, out) == (2, "")
    assert message in err


def test_another_sweep_must_be_one(run, folders, tmp_path):
    code, _, err = run("pareto", folders[0], "--compare", tmp_path / "none")

    assert code == 2
    assert "must hold a sweep" in err
