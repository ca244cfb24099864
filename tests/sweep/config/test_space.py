import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.config.base import ConfigError
from core.config.settings import WarmedTargetSettings
from sweep.config.distributions import Choice, Range
from sweep.config.space import SearchSpace


def space(**pruning):
    return SearchSpace.parse({"pruning": pruning})


def test_a_leaf_may_be_fixed_or_a_distribution():
    found = SearchSpace.parse(
        {
            "seed": {"int_uniform": [0, 9]},
            "pruning": {
                "steps": 7,
                "target_sparsity": {"uniform": [0.1, 0.9]},
                "l0": {"lambda_lr": {"log_uniform": [0.01, 1.0]}},
                "repair": {"choice": ["none", "ls"]},
            },
        }
    )

    assert found.distributions == {
        "pruning.l0.lambda_lr": Range(low=0.01, high=1.0, is_log=True),
        "pruning.repair": Choice(options=("none", "ls")),
        "pruning.target_sparsity": Range(low=0.1, high=0.9),
        "seed": Range(low=0, high=9, is_integer=True),
    }
    assert found.base.pruning.steps == 7


def test_the_order_written_means_nothing():
    a, b = {"uniform": [0.1, 0.9]}, {"int_uniform": [2, 3]}
    one = space(target_sparsity=a, steps=b)
    other = space(steps=b, target_sparsity=a)

    assert list(one.distributions) == list(other.distributions)


def test_a_trial_is_the_fixed_leaves_with_the_given_ones():
    found = space(steps=7, target_sparsity={"uniform": [0.1, 0.9]})
    config = found.trial_config({"pruning.target_sparsity": 0.3, "pruning.method": "dense"})

    assert (config.pruning.steps, config.pruning.target_sparsity) == (7, 0.3)
    assert config.pruning.method == "dense"


def test_the_base_stands_at_the_middle_of_every_range():
    found = space(
        target_sparsity={"uniform": [0.2, 0.6]}, l0={"lambda_lr": {"log_uniform": [0.01, 1.0]}}
    )

    assert math.isclose(found.base.pruning.target_sparsity, 0.4)
    settings = found.base.pruning.settings(WarmedTargetSettings)
    assert math.isclose(settings.lambda_lr, 0.1)


@given(
    low=st.floats(1e-6, 1e3),
    width=st.floats(1e-6, 1e3),
    share=st.floats(0, 1),
    is_log=st.booleans(),
)
def test_every_point_of_a_range_lies_in_it(low, width, share, is_log):
    leaf = Range(low=low, high=low + width, is_log=is_log)

    assert leaf.low <= leaf.at(share) <= leaf.high


@given(low=st.integers(-50, 50), width=st.integers(1, 50), share=st.floats(0, 1))
def test_whole_numbers_stay_whole_and_inside(low, width, share):
    value = Range(low=low, high=low + width, is_integer=True).at(share)

    assert isinstance(value, int)
    assert low <= value <= low + width


@pytest.mark.parametrize(
    ("pruning", "message"),
    [
        ({"target_sparsity": {"uniform": [0.1, 1.2]}}, "`pruning.target_sparsity`.*1.2"),
        ({"target_sparsity": {"uniform": [-0.5, 0.9]}}, "`pruning.target_sparsity`.*-0.5"),
        ({"target_sparsity": {"uniform": [0.9, 0.1]}}, "the lower first"),
        ({"target_sparsity": {"uniform": [0.5, 0.5]}}, "for one value, write it alone"),
        ({"target_sparsity": {"uniform": [0.1]}}, "two numbers"),
        ({"target_sparsity": {"uniform": ["a", "b"]}}, "two numbers"),
        ({"target_sparsity": {"uniform": [0.1, float("inf")]}}, "two numbers"),
        ({"l0": {"lambda_lr": {"log_uniform": [0.0, 1.0]}}}, "above 0"),
        ({"steps": {"int_uniform": [1.5, 3]}}, "whole numbers"),
        ({"steps": {"uniform": [1, 9]}}, "`pruning.steps` must be"),
        ({"method": {"choice": ["l0", "lzero"]}}, "`pruning.method`.*`lzero`"),
        ({"method": {"choice": []}}, "one or more"),
        ({"method": {"choice": ["l0", "l0"]}}, "different values"),
        ({"steps": {"choice": [1, True]}}, "different values"),  # equal to a ledger's index
        ({"target_sparsity": {"choice": [0, 0.0]}}, "different values"),
        ({"axes": {"choice": [["head"], ["inner"]]}}, "numbers, texts"),
        ({"l0": {"lambda_lrr": {"uniform": [0.1, 0.2]}}}, "lambda_lrr`.*did you mean `lambda_lr`"),
        ({"l0": {"lambda_lr": {"unifrom": [0.1, 0.2]}}}, "did you mean `uniform`"),
        ({"l0": {"lambda_lr": {"uniform": [0.1, 0.2], "choice": [1.0]}}}, "one of `uniform`"),
        ({"l0": {"lambda_lr": -1.0}}, "`pruning.l0.lambda_lr`"),
        ({"lambda_lr": -1.0}, r"`pruning.lambda_lr` must stand .* write it in .trial.pruning.l0."),
        ({"acip": {"smallest": 0.1}}, "`pruning.acip.smallest` must be left out where .* `l0`"),
    ],
)
def test_what_cannot_be_is_refused_by_name(pruning, message):
    with pytest.raises(ConfigError, match=message):
        space(**pruning)


def test_every_culprit_has_its_line():
    with pytest.raises(ConfigError) as caught:
        space(target_sparsity={"uniform": [0.1, 1.2]}, l0={"lambda_lr": {"uniform": [-1.0, 1.0]}})

    lines = str(caught.value).splitlines()
    assert len(lines) == 2


@pytest.mark.parametrize(
    "table",
    [
        {"corpus": {"vocabulary": {"int_uniform": [10, 20]}}},
        {"corpus": {"demo": {"seed": {"int_uniform": [0, 9]}}}},
        {"model": {"blocks": {"int_uniform": [1, 3]}}},
        {"teacher": {"steps": {"int_uniform": [1, 3]}}},
    ],
)
def test_what_the_shared_teacher_depends_on_is_not_searched(table):
    with pytest.raises(ConfigError, match="share one teacher"):
        SearchSpace.parse(table)


def test_what_all_trials_need_is_made_for_latency_if_any_trial_goes_by_it():
    asked = space(resource={"choice": ["flops", "latency"]}, target_sparsity=0.5)
    assert asked.shared.pruning.resource == "latency"
    assert space(target_sparsity=0.5).shared == space(target_sparsity=0.5).base


def test_shares_of_further_resources_may_be_distributions():
    found = space(resource="params", also={"flops": {"uniform": [0.4, 0.6]}, "latency": 0.3})

    assert found.distributions == {"pruning.also.flops": Range(low=0.4, high=0.6)}
    assert found.trial_config({"pruning.also.flops": 0.45}).pruning.targets == {
        "params": 0.5,
        "flops": 0.45,
        "latency": 0.3,
    }


def test_a_bad_end_of_a_further_share_is_named():
    with pytest.raises(ConfigError, match=r"`pruning.also.flops` must be less than 1, but is 1.2"):
        space(resource="params", also={"flops": {"uniform": [0.4, 1.2]}})


LOW = {"uniform": [0.1, 0.4]}
CONDITIONAL = {
    "method": {"choice": ["l0", "acip", "magnitude"]},
    "target_sparsity": {"uniform": [0.2, 0.8]},
    "l0": {"lambda_lr": {"log_uniform": [0.01, 1.0]}, "start_from": {"choice": ["ld", "random"]}},
    "ld": {"groups": {"int_uniform": [2, 4]}},
    "acip": {"smallest": LOW, "learning_rate": 1e-3},
}


@pytest.mark.parametrize(
    ("params", "own"),
    [
        ({"pruning.method": "magnitude"}, set()),
        ({"pruning.method": "dense"}, set()),
        ({"pruning.method": "acip"}, {"pruning.acip.smallest"}),
        (
            {"pruning.method": "l0", "pruning.l0.start_from": "random"},
            {"pruning.l0.lambda_lr", "pruning.l0.start_from"},
        ),
        (
            {"pruning.method": "l0", "pruning.l0.start_from": "ld"},
            {"pruning.l0.lambda_lr", "pruning.l0.start_from", "pruning.ld.groups"},
        ),
    ],
)
def test_a_trial_has_the_leaves_of_its_own_methods_alone(params, own):
    found = space(**CONDITIONAL)

    assert found.is_conditional
    assert set(found.active_leaves(params)) == {
        "pruning.method",
        "pruning.target_sparsity",
        *own,
    }
    assert (
        found.trial_config({**found.middle(params), **params}).pruning.method
        == (params["pruning.method"])
    )


def test_fixed_settings_reach_the_trials_of_their_method_alone():
    found = space(**CONDITIONAL)

    acip = found.trial_config({"pruning.method": "acip"}).pruning.model_dump()
    magnitude = found.trial_config({"pruning.method": "magnitude"}).pruning.model_dump()

    assert acip["acip"]["learning_rate"] == 1e-3
    assert not {"acip", "l0", "ld"} & set(magnitude)


def test_a_space_of_one_method_is_not_conditional():
    assert not space(l0={"lambda_lr": {"uniform": [0.1, 0.2]}}).is_conditional
    assert not space(method={"choice": ["l0", "acip"]}, steps=3).is_conditional


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"smallest": {"uniform": [0.1, 1.5]}}, "`pruning.acip.smallest`.*1.5"),
        ({"smallest": 2.0}, "`pruning.acip.smallest` must be less than 1"),
    ],
)
def test_settings_of_every_method_of_a_choice_are_checked(table, message):
    with pytest.raises(ConfigError, match=message):
        space(method={"choice": ["l0", "magnitude", "acip"]}, acip=table)


@pytest.mark.parametrize("methods", [["l0", "acip"], ["acip", "magnitude", "l0"], ["magnitude"]])
@pytest.mark.parametrize("levels", [2, 3])
def test_a_grid_has_each_trial_of_each_method_once(methods, levels):
    tables = {name: CONDITIONAL[name] for name in ("l0", "acip") if name in methods}
    tables |= {"ld": CONDITIONAL["ld"]} if "l0" in methods else {}
    found = space(method={"choice": methods}, target_sparsity=LOW, **tables)

    points = found.grid(levels)

    assert len({str(point) for point in points}) == len(points) == found.grid_size(levels)
    # Of `l0`: lambda_lr times (every number of `ld`'s groups, and `random`).
    groups = len(Range(low=2, high=4, is_integer=True).levels(levels))
    own = {"l0": levels * (groups + 1), "acip": levels, "magnitude": 1}
    assert len(points) == levels * sum(own[name] for name in methods)
    for point in points:
        assert set(point) == set(found.active_leaves(point))
