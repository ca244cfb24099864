"""Law 5: equal config and seed give equal reports, interrupted or not; and what a trial leaves."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from core import bundle
from core.config.base import ConfigError
from core.config.methods import method_names
from core.config.trial import TrialConfig
from core.cost_estimate import estimate_cost
from core.data.audio_decoding import CorpusError
from core.data.prepare import open_speech
from core.pruning.extraction import select_blocks
from core.report import LONGEST_TRAINED, Report
from core.runtime import TrialDirs
from core.teacher import prepare
from core.training.loop import DivergenceError
from core.training.method import load_method
from core.trial import run

pytestmark = [pytest.mark.slow, pytest.mark.whole]


def trial_config(**sections) -> TrialConfig:
    """A trial of a few seconds."""
    base = {
        "seed": 3,
        "corpus": {
            "tokens": "word",
            "demo": {"train_utterances": 60, "dev_utterances": 10, "test_utterances": 12},
        },
        "model": {
            "blocks": 2,
            "width": 16,
            "inner": 24,
            "heads": 2,
            "channels": 16,
            "frontend_channels": 8,
        },
        "teacher": {"steps": 6},
        "pruning": {"steps": 6, "calibration_batches": 2},
        "tuning": {"steps": 4, "dropout": 0.1},
        "training": {"batch_seconds": 16.0},
        "evaluation": {"latency_repeats": 1, "bootstrap_samples": 100},
        "runtime": {"report_steps": 2, "checkpoint_steps": 3},
    }
    for name, values in sections.items():
        base[name] = base.get(name, {}) | values
    return TrialConfig.parse(base)


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    """Speech and teacher, made once."""
    folder = tmp_path_factory.mktemp("sweep")
    list(prepare(trial_config(), dirs_in(folder, "unused")))
    return folder


def dirs_in(shared: Path, name: str) -> TrialDirs:
    return TrialDirs(
        teacher=shared / "teacher", features=shared / "features", trial=shared / "trials" / name
    )


def run_single(config, dirs, **hurt: int | None):
    """Run a trial of one outcome, perhaps killing it once; timings are left out."""
    reports, (outcome,) = run_to_end(config, dirs, **hurt)
    return reports, outcome


def run_to_end(config, dirs, *, kill_after: int | None = None, last_known_step: int | None = None):
    reports = []
    if kill_after is not None:
        doomed = run(config, dirs)
        reports = [timeless(next(doomed)) for _ in range(kill_after)]
        doomed.close()
        torch.manual_seed(999)  # another process would not know this one's chance
    going = run(config, dirs, last_known_step=last_known_step)
    while True:
        try:
            reports.append(timeless(next(going)))
        except StopIteration as stop:
            outcomes = stop.value
            return reports, [
                replace(o, latency_ms=0.0, latency_busy=None, real_time_factor=0.0)
                for o in outcomes
            ]


def timeless(report: Report) -> Report:
    return replace(report, audio_seconds_per_second=None)


SEARCH_LONG = ("acip", "comp", "constrained", "cpd", "foster", "ld", "mope", "prunenet")


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=pytest.mark.long) if name in SEARCH_LONG else name
        for name in method_names()
    ],
)
def test_a_killed_and_resumed_trial_gives_the_same_numbers_as_an_untouched_one(shared, method):
    config = trial_config(pruning={"method": method})
    untouched = run_single(config, dirs_in(shared, f"{method}-untouched"))

    for kill_after in (1, 2, 4):
        dirs = dirs_in(shared, f"{method}-{kill_after}")
        assert run_single(config, dirs, kill_after=kill_after) == untouched

    steps = [report.step for report in untouched[0]]
    assert steps == [2, 4, 6, 8, 10]


@pytest.mark.long
@pytest.mark.parametrize("method", ["l0", "constrained"])
def test_a_resumed_search_has_gates_as_cold_as_an_untouched_one(shared, method):
    own = {"gates": "annealed", "start_from": "numerical", "gate_travel": 20.0}
    own |= {"shrink_rounds": 3} if method == "l0" else {}
    config = trial_config(pruning={"method": method, "steps": 8, method: own})
    untouched = run_single(config, dirs_in(shared, f"{method}-cold"))

    for kill_after in (1, 3, 4):  # the last is the search's end
        dirs = dirs_in(shared, f"{method}-cold-{kill_after}")
        assert run_single(config, dirs, kill_after=kill_after) == untouched


def test_equal_configs_give_equal_models_and_another_seed_another(shared):
    config = trial_config()
    first, second = dirs_in(shared, "equal-1"), dirs_in(shared, "equal-2")

    assert run_single(config, first) == run_single(config, second)

    weights = [bundle.load(p.trial / "model").model.state_dict() for p in (first, second)]
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name])
    other = config.model_copy(update={"seed": 4})
    assert run_single(other, dirs_in(shared, "equal-3")) != run_single(config, first)


@pytest.mark.parametrize("method", method_names())
def test_an_outcome_says_what_its_bundle_is(shared, method):
    config = trial_config(pruning={"method": method, "target_sparsity": 0.6})
    dirs = dirs_in(shared, f"{method}-outcome")

    _, outcome = run_single(config, dirs)

    model = bundle.load(dirs.trial / outcome.model).model
    assert outcome.params == sum(p.numel() for p in model.parameters())
    counts = {axis.name: axis.size for axis in model.axes()}
    assert outcome.gflops == model.cost(counts, 10.0).flops / 1e9
    assert outcome.target_sparsity == (0.0 if method == "dense" else 0.6)
    assert outcome.realised_sparsity >= outcome.target_sparsity
    assert outcome.steps == 10
    assert outcome.repair == load_method(method).repair(config)
    assert outcome.wer_low <= outcome.wer <= outcome.wer_high


@pytest.mark.parametrize("resource", ["flops", "params"])
def test_the_resource_is_the_one_that_was_asked_for(shared, resource):
    config = trial_config(pruning={"resource": resource, "target_sparsity": 0.5})

    _, outcome = run_single(config, dirs_in(shared, resource))

    realised = {"flops": outcome.flops_sparsity, "params": outcome.params_sparsity}
    assert outcome.realised_sparsity == realised[resource] >= 0.5


@pytest.mark.long
@pytest.mark.parametrize("method", ["l0", "constrained", "cpd", "magnitude", "acip"])
def test_targets_of_several_resources_are_all_met_by_the_bundle(shared, method):
    targets = {"resource": "params", "target_sparsity": 0.5, "also": {"flops": 0.4}}
    config = trial_config(pruning={"method": method, **targets})

    reports, outcome = run_single(config, dirs_in(shared, f"several-{method}"))

    assert outcome.params_sparsity >= 0.5
    assert outcome.flops_sparsity >= 0.4
    assert outcome.latency_sparsity is None
    if method == "l0":
        assert {"violation", "violation_flops", "sparsity_flops"} <= set(reports[0].losses)


def test_a_trial_goes_by_the_latency_that_was_measured_beside_the_teacher(shared, tmp_path):
    axes = ["frontend", "width", "head", "inner", "channel", "module"]
    pruning = {"resource": "latency", "target_sparsity": 0.3, "utterance_seconds": 2.0}
    config = trial_config(
        teacher={"bundle": str(shared / "teacher" / "model")}, pruning={**pruning, "axes": axes}
    )
    dirs = TrialDirs(teacher=tmp_path / "t", features=shared / "features", trial=tmp_path / "0")
    list(prepare(config, dirs))
    file = dirs.teacher / "latency" / "table.json"
    measured = file.read_text()

    _, outcome = run_single(config, dirs)

    assert list(prepare(config, dirs)) == []
    assert file.read_text() == measured
    assert outcome.latency_sparsity == outcome.realised_sparsity >= 0.3
    assert outcome.resource == "latency"
    sections = {"pruning": {**pruning, "axes": axes, "latency_table": str(file)}}
    elsewhere = dirs_in(shared, "given-table")
    assert run_single(trial_config(**sections), elsewhere)[1].latency_sparsity >= 0.3


def test_a_missing_table_of_latencies_is_named(shared):
    config = trial_config(pruning={"resource": "latency"})

    with pytest.raises(ConfigError, match=r"table.json` must exist, as latency is a target"):
        run_single(config, dirs_in(shared, "no-table"))


def test_a_finished_trial_says_its_outcome_again_without_a_step(shared):
    config, dirs = trial_config(), dirs_in(shared, "again")
    first = run_single(config, dirs)

    assert run_single(config, dirs) == ([], first[1])


def test_reports_of_an_earlier_run_that_nobody_heard_are_said_again(shared):
    config = trial_config()
    all_reports, outcome = run_single(config, dirs_in(shared, "heard"))

    dirs = dirs_in(shared, "unheard")
    doomed = run(config, dirs)
    for _ in range(3):
        next(doomed)
    doomed.close()
    assert run_single(config, dirs, last_known_step=2) == (all_reports[1:], outcome)
    assert run_single(config, dirs, last_known_step=4) == (all_reports[2:], outcome)
    assert run_single(config, dirs, last_known_step=10) == ([], outcome)

    for state in dirs.trial.glob("checkpoints/*/state.pt"):
        state.write_bytes(b"damaged")
    assert run_single(config, dirs, last_known_step=0) == ([], outcome)


def test_a_finished_trial_is_tuned_on_to_the_same_numbers_interrupted_or_not(shared):
    config = trial_config(tuning={"more_steps": 6})
    dirs = dirs_in(shared, "on-untouched")
    _, first = run_single(trial_config(), dirs)
    reports, outcome = run_single(config, dirs)

    assert [report.step for report in reports] == [12, 14, 16]
    assert {report.total_steps for report in reports} == {16}
    assert (first.steps, outcome.steps) == (10, 16)
    assert outcome.gflops == first.gflops
    old, new = (bundle.load(dirs.trial / o.model).model.state_dict() for o in (first, outcome))
    assert old.keys() == new.keys()
    assert any(not torch.equal(old[name], new[name]) for name in old)
    for kill_after in (1, 6):
        assert run_single(config, dirs_in(shared, f"on-{kill_after}"), kill_after=kill_after)[
            1
        ] == (outcome)


@pytest.mark.long
def test_each_outcome_of_a_curve_is_what_a_trial_of_its_own_comes_to(shared):
    curve = {"method": "magnitude", "target_sparsity": 0.3, "further_targets": [0.6, 0.8]}
    dirs = dirs_in(shared, "curve")
    reports, outcomes = run_to_end(trial_config(pruning=curve), dirs)

    assert [report.step for report in reports] == list(range(2, 31, 2))
    assert {report.total_steps for report in reports} == {30}
    assert [outcome.model for outcome in outcomes] == ["model", "model.1", "model.2"]
    for number, target in enumerate((0.3, 0.6, 0.8)):
        alone = trial_config(pruning={"method": "magnitude", "target_sparsity": target})
        _, outcome = run_single(alone, dirs_in(shared, f"alone-{number}"))
        assert replace(outcomes[number], model="model") == outcome
    for kill_after in (2, 5, 8, 13):
        dirs = dirs_in(shared, f"curve-{kill_after}")
        again = run_to_end(trial_config(pruning=curve), dirs, kill_after=kill_after)
        assert again == (reports, outcomes)


def test_a_family_has_every_size_from_one_search_interrupted_or_not(shared):
    family = {"method": "family", "target_sparsity": 0.3, "further_targets": [0.7, 0.5]}
    config = trial_config(pruning=family, tuning={"steps": 2})
    dirs = dirs_in(shared, "sizes")
    reports, outcomes = run_to_end(config, dirs)

    assert [report.step for report in reports] == list(range(2, 13, 2))
    assert [outcome.target_sparsity for outcome in outcomes] == [0.3, 0.7, 0.5]
    assert all(o.realised_sparsity >= o.target_sparsity for o in outcomes)
    kept_units = [
        bundle.load(dirs.trial / outcome.model).report["kept_units"] for outcome in outcomes
    ]
    for larger, smaller in ((0, 2), (2, 1)):
        assert all(
            set(kept_units[smaller][name]) <= set(kept_units[larger][name])
            for name in kept_units[0]
        )
    for kill_after in (1, 2, 5):
        again = run_to_end(config, dirs_in(shared, f"sizes-{kill_after}"), kill_after=kill_after)
        assert again == (reports, outcomes)


@pytest.mark.long
def test_a_curve_is_tuned_on_point_by_point(shared):
    curve = {"method": "magnitude", "target_sparsity": 0.3, "further_targets": [0.6]}
    dirs = dirs_in(shared, "curve-on")
    _, first = run_to_end(trial_config(pruning=curve), dirs)
    longer = trial_config(pruning=curve, tuning={"more_steps": 4})
    reports, outcomes = run_to_end(longer, dirs)

    assert [report.step for report in reports] == [22, 24, 26, 28]
    assert [outcome.steps for outcome in outcomes] == [14, 14]
    assert [o.gflops for o in outcomes] == [o.gflops for o in first]
    for kill_after in (1, 10, 13):
        dirs = dirs_in(shared, f"curve-on-{kill_after}")
        assert run_to_end(longer, dirs, kill_after=kill_after)[1] == outcomes


def test_a_resumed_trial_alters_the_blocks_that_its_speech_had_chosen(shared):
    config = trial_config(pruning={"method": "performer", "performer": {"linear_blocks": 1}})
    dirs = dirs_in(shared, "chosen")
    untouched = run_single(config, dirs)

    assert run_single(config, dirs_in(shared, "chosen-5"), kill_after=5) == untouched

    blocks = bundle.load(dirs.trial / "model").model.shape.blocks
    assert sorted(block.linear_features for block in blocks) == [0, 64]


def test_a_method_that_learns_for_one_budget_leaves_further_ones_out(shared):
    config = trial_config(pruning={"method": "l0", "further_targets": [0.6]})

    _, outcomes = run_to_end(config, dirs_in(shared, "point"))

    assert len(outcomes) == 1


def test_an_unmet_target_is_refused_before_it_is_tuned(shared):
    config = trial_config(pruning={"target_sparsity": 0.999, "method": "magnitude"})

    with pytest.raises(ValueError, match=r"`pruning.target_sparsity` must be at most"):
        run_single(config, dirs_in(shared, "unmet"))


def test_a_killed_teacher_goes_on_to_the_same_weights(tmp_path, shared):
    config = trial_config()
    dirs = TrialDirs(teacher=tmp_path / "t", features=shared / "features", trial=tmp_path / "0")
    doomed = prepare(config, dirs)
    next(doomed)
    doomed.close()

    list(prepare(config, dirs))

    whole = bundle.load(shared / "teacher" / "model").model.state_dict()
    for name, tensor in bundle.load(tmp_path / "t" / "model").model.state_dict().items():
        assert torch.equal(tensor, whole[name])


def test_what_is_prepared_is_not_prepared_again(shared):
    before = {p: p.stat().st_mtime_ns for p in shared.rglob("*") if p.is_file()}

    assert list(prepare(trial_config(), dirs_in(shared, "unused"))) == []

    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_a_bundle_may_be_the_teacher(shared, tmp_path):
    config = trial_config(teacher={"bundle": str(shared / "teacher" / "model")})
    dirs = TrialDirs(teacher=tmp_path / "t", features=tmp_path / "f", trial=tmp_path / "0")

    assert {report.stage for report in prepare(config, dirs)} == {"speech"}
    _, outcome = run_single(config, dirs)

    assert outcome.flops_sparsity >= 0.5


def test_missing_speech_is_named(tmp_path):
    dirs = TrialDirs(teacher=tmp_path, features=tmp_path / "nowhere", trial=tmp_path / "0")

    with pytest.raises(CorpusError, match=r"nowhere` must hold prepared speech"):
        next(run(trial_config(), dirs))


def test_the_price_is_that_of_the_unpruned_model():
    estimate = estimate_cost(trial_config(corpus={"vocabulary": 20}))

    assert estimate.params > 0
    assert estimate.gflops > 0
    assert estimate.seconds_per_step > 0


def test_the_price_with_a_given_teacher_is_that_of_its_shape(shared):
    teacher_path = shared / "teacher" / "model"
    plain = trial_config(model={"width": 32}).model_dump()

    estimate = estimate_cost(TrialConfig.parse(plain | {"teacher": {"bundle": str(teacher_path)}}))

    assert estimate.params == sum(p.numel() for p in bundle.load(teacher_path).model.parameters())


def test_bundles_say_how_long_the_longest_utterance_was_that_they_learned_from(shared):
    config, dirs = trial_config(), dirs_in(shared, "longest")
    run_single(config, dirs)
    longest = open_speech(dirs.features).train.longest_seconds

    assert 0 < longest <= config.corpus.max_seconds
    for folder in (dirs.teacher, dirs.trial):
        assert bundle.load(folder / "model").report[LONGEST_TRAINED] == longest


def test_outcomes_are_plain_values_on_disk(shared):
    config, dirs = trial_config(), dirs_in(shared, "plain")
    _, outcome = run_single(config, dirs)

    (plain,) = json.loads((dirs.trial / "outcomes.json").read_text())

    assert plain | {"latency_ms": 0.0, "latency_busy": None, "real_time_factor": 0.0} == asdict(
        outcome
    )


@pytest.mark.parametrize("method", ["l0", "family"])
def test_precision_bf16_trains_and_keeps_gates_exact(shared, method):
    config = trial_config(pruning={"method": method}, runtime={"precision": "bf16"})

    reports, outcome = run_single(config, dirs_in(shared, f"bf16-{method}"))

    assert all(torch.isfinite(torch.tensor(list(r.losses.values()))).all() for r in reports)
    assert outcome.flops_sparsity >= 0.5


@pytest.mark.parametrize("method", ["l0", "family", "magnitude"])
def test_a_trial_with_little_memory_passes_its_batches_in_parts(shared, method):
    config = trial_config(pruning={"method": method}, training={"micro_batches": 2})
    reports, outcome = run_single(config, dirs_in(shared, f"parts {method}"))

    assert outcome.steps == 10
    assert {report.stage for report in reports} >= {"tune"}


def test_a_loss_that_is_no_number_ends_the_trial_with_a_reason(shared, tmp_path):
    message = bundle.load(shared / "teacher" / "model")
    with torch.no_grad():
        for parameter in message.model.parameters():
            parameter.fill_(float("nan"))
    bundle.save(tmp_path / "model", message.model, message.tokenizer, message.report)
    dirs = replace(dirs_in(shared, "nan"), teacher=tmp_path)

    with pytest.raises(DivergenceError, match="mean loss must be a number, but is nan at step 2"):
        run_single(trial_config(), dirs)


def test_depth_alone_needs_no_step(shared):
    pruning = {"method": "interctc", "target_sparsity": 0.0, "further_targets": [0.3], "steps": 0}
    config = trial_config(pruning=pruning, tuning={"steps": 0})
    dirs = dirs_in(shared, "depth")

    reports, outcomes = run_to_end(config, dirs)

    assert reports == []
    assert [outcome.steps for outcome in outcomes] == [0, 0]
    models = [bundle.load(dirs.trial / outcome.model) for outcome in outcomes]
    assert [len(small.model.blocks) for small in models] == [2, 1]
    best = models[0].report["depth_order"]
    assert sorted(best) == [0, 1]
    assert models[1].report["kept_units"][f"blocks.{best[0]}"] == [0]
    assert models[1].report["depth_order"] == [0]
    teacher = bundle.load(dirs.teacher / "model").model
    small = select_blocks(teacher, best[:1])
    for name, parameter in models[1].model.named_parameters():
        assert torch.equal(parameter, dict(small.named_parameters())[name])


def test_fewer_blocks_are_tuned_on_and_their_order_stays(shared):
    pruning = {
        "method": "interctc",
        "target_sparsity": 0.0,
        "interctc": {"depth_order": "truncate"},
    }
    dirs = dirs_in(shared, "depth-on")
    run_single(trial_config(pruning=pruning), dirs)

    _, outcome = run_single(trial_config(pruning=pruning, tuning={"more_steps": 2}), dirs)

    assert outcome.steps == 12
    assert bundle.load(dirs.trial / outcome.model).report["depth_order"] == [0, 1]


def test_a_teacher_trained_for_depth_goes_on_to_the_same_weights_when_killed(shared, tmp_path):
    config = trial_config(
        teacher={"steps": 4, "interctc_weight": 0.3, "stochastic_depth": 0.5},
        runtime={"report_steps": 1, "checkpoint_steps": 1},
    )
    places = [
        TrialDirs(teacher=tmp_path / name, features=shared / "features", trial=tmp_path / "0")
        for name in ("whole", "killed")
    ]
    reports = list(prepare(config, places[0]))
    doomed = prepare(config, places[1])
    for _ in range(2):
        next(doomed)
    doomed.close()
    torch.manual_seed(999)

    list(prepare(config, places[1]))

    assert all(report.losses["intermediate"] > 0 for report in reports)
    whole, killed = (bundle.load(p.teacher / "model").model.state_dict() for p in places)
    for name, tensor in whole.items():
        assert torch.equal(tensor, killed[name])
