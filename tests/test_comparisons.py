"""What the benchmarks that compare trials run: the same steps for all, and each trial once."""

import argparse
import importlib

import pytest


@pytest.fixture
def loaded(tiny_space):
    """Loads a benchmark, and plans its cells on the tiny space."""

    def planned(name, **values):
        module = importlib.import_module(f"benchmarks.quality.{name}")
        asked = {"search_steps": 0, "tuning_steps": 0, "batch_seconds": 0.0, "plain": False}
        asked |= {
            "untuned": False,
            "calibration_batches": 0,
            "untaught": False,
            "precision": None,
            "decoder": None,
            "predictor": None,
            "latency": 0.5,
        }
        args = argparse.Namespace(space=str(tiny_space), seeds=2, **(asked | values))
        return module, list(module.planned(args))

    return planned


def methods_planned(loaded, **values):
    asked = {"methods": ["l0"], "variants": False, "removed": [0.5, 0.9], "resource": "flops"}
    asked |= {"first_seed": 0}
    return loaded("methods", **(asked | values))


def test_one_trial_serves_all_shares_where_one_search_does(loaded):
    _, cells = methods_planned(loaded, methods=["magnitude", "l0", "dense"])

    shares = [
        (cell.name, cell.config.pruning.target_sparsity, cell.config.pruning.further_targets)
        for cell in cells
        if cell.seed == 0
    ]
    assert shares == [
        ("magnitude", 0.5, [0.9]),
        ("l0", 0.5, []),
        ("l0", 0.9, []),
        ("dense", 0.0, []),
    ]


@pytest.mark.parametrize("resource", ["flops", "params"])
def test_no_two_trials_share_a_folder_and_all_take_the_same_steps(loaded, resource):
    names = ["acip", "magnitude", "dense", "l0"]
    _, cells = methods_planned(loaded, methods=names, variants=True, resource=resource)

    assert len({cell.folder for cell in cells}) == len(cells)
    steps = {cell.config.pruning.steps + cell.config.tuning.steps for cell in cells}
    assert len(steps) == 1
    assert {cell.config.pruning.resource for cell in cells} == {resource}


def test_trials_of_another_resource_do_not_pass_for_those_that_are_done(loaded):
    folders = [
        {cell.folder for cell in methods_planned(loaded, resource=resource)[1]}
        for resource in ("flops", "params")
    ]

    assert folders[0].isdisjoint(folders[1])


def test_a_variant_is_l0_but_for_what_it_says(loaded):
    methods, cells = methods_planned(loaded, variants=True, removed=[0.5])
    by_name = {cell.name: cell.config.pruning.model_dump()["l0"] for cell in cells}

    plain = by_name.pop("l0")
    assert by_name.keys() == methods.VARIANTS.keys()
    for name, pruning in by_name.items():
        differs = {key for key, value in pruning.items() if value != plain[key]}
        assert differs == methods.VARIANTS[name]["l0"].keys(), name
        assert differs


def test_a_curve_reaches_as_far_as_it_is_cut(loaded):
    _, cells = methods_planned(loaded, methods=["acip"], removed=[0.7, 0.95])

    pruning = cells[0].config.pruning.model_dump()
    assert pruning["acip"]["smallest"] == pytest.approx(0.05)


def test_half_the_size_asks_for_half_and_its_control_for_nothing(loaded):
    _, cells = loaded(
        "half_the_size",
        rows=["dense", "params only"],
        search_steps=30,
        tuning_steps=70,
        batch_seconds=5.0,
        plain=True,
        untaught=True,
        precision="bf16",
    )

    asked = {cell.name: cell.config.pruning for cell in cells}
    assert asked["dense"].method == "dense"
    assert (asked["params only"].resource, asked["params only"].target_sparsity) == ("params", 0.5)
    assert len({cell.folder for cell in cells}) == 4
    steps = {(c.config.pruning.steps, c.config.tuning.steps) for c in cells}
    assert steps == {(30, 70)}
    training = [c.config.training for c in cells]
    assert {t.batch_seconds for t in training} == {5.0}
    assert {t.augment.frequency_masks for t in training} == {0}
    assert {t.augment.time_masks_per_second for t in training} == {0.0}
    taught = [c.config.distillation for c in cells]
    assert {(t.logit_weight, t.layer_weight) for t in taught} == {(0.0, 0.0)}
    assert {c.config.runtime.precision for c in cells} == {"bf16"}


def test_the_teacher_learns_as_the_space_says_whatever_trials_do(loaded, tiny_space):
    _, (said, *_) = loaded("half_the_size", rows=["dense"])
    _, (cell, *_) = loaded("half_the_size", rows=["dense"], batch_seconds=5.0, plain=True)
    teaching = importlib.import_module("benchmarks.lib.cells").teaching

    assert cell.config.training != said.config.training
    assert teaching(cell.config, str(tiny_space)).training == said.config.training
    assert teaching(cell.config, "") == cell.config


def test_the_fast_half_is_as_small_and_gives_up_more_than_is_claimed(loaded):
    names = ["params only", "params and FLOPs and latency"]
    _, cells = loaded("half_the_size", rows=names)

    small, fast = (cell.config.pruning for cell in cells[:2])
    assert (fast.resource, fast.target_sparsity) == (small.resource, small.target_sparsity)
    assert not small.also
    assert fast.also["flops"] >= 0.5
    assert fast.also["latency"] > 0.45
    assert fast.multiple_of > small.multiple_of
