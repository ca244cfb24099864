"""Unknown input is refused by name, never dropped."""

import pytest

from core.config.base import ConfigError
from core.config.methods import method_names
from core.config.trial import TrialConfig


def performer(**settings) -> dict:
    return {"pruning": {"method": "performer", "performer": settings}}


def l0(**settings) -> dict:
    return {"pruning": {"l0": settings}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"pruning": {"l0": {"lambda_lrr": 1.0}}},
            r"`pruning.l0.lambda_lrr`.*did you mean `lambda_lr`",
        ),
        ({"prunin": {}}, r"`prunin` is not a key; did you mean `pruning`"),
        ({"pruning": {"zzz": 1}}, r"`pruning.zzz` is not a key; known are .*method, resource"),
        ({"corpus": {"demo": {"sed": 1}}}, r"`corpus.demo.sed` is not a key; did you mean `seed`"),
        ({"pruning": {"target_sparsity": 1.0}}, r"`pruning.target_sparsity` must be less than 1"),
        ({"pruning": {"target_sparsity": "half"}}, r"must be number, but is 'half' instead"),
        ({"pruning": {"target_sparsity": float("nan")}}, r"`pruning.target_sparsity` must be"),
        ({"pruning": {"resource": "time"}}, r"`pruning.resource` must be .*but is 'time'"),
        ({"pruning": {"also": {"flops": 0.5}}}, r"`pruning.also` must name other .* `flops`"),
        ({"pruning": {"also": {"params": 1.0}}}, r"`pruning.also.params` must be less than 1"),
        ({"pruning": {"also": {"param": 0.5}}}, r"`pruning.also.param.*` must be .*'params'"),
        ({"pruning": {"multiple_of": 0}}, r"`pruning.multiple_of` must be greater"),
        ({"pruning": {"steps": 1.5}}, r"`pruning.steps` must be integer"),
        ({"pruning": {"steps": True}}, r"`pruning.steps` must be integer"),
        ({"pruning": {"method": "magnitud"}}, r"`pruning.method`.*did you mean `magnitude`"),
        (
            {"pruning": {"l0": {"start_from": "magnitud"}}},
            r"`pruning.l0.start_from`.*mean `magnitude`",
        ),
        (l0(gates="hard"), r"`pruning.l0.gates` must be .*but is 'hard'"),
        ({"pruning": {"axes": ["heads"]}}, r"`pruning.axes.0` must be .*but is 'heads'"),
        ({"pruning": {"axes": []}}, r"`pruning.axes`"),
        ({"pruning": "l0"}, r"`pruning` must be"),
        (
            performer(linear_blocks="some"),
            r"performer.linear_blocks` must .*'some' instead$",
        ),
        (
            performer(linear_blocks=0),
            r"performer.linear_blocks` must be .*but is 0 instead",
        ),
        (performer(linear_blocks=True), r"`pruning.performer.linear_blocks` must be .*is True"),
        (
            performer(linear_blocks=[1, 1]),
            r"performer.linear_blocks` .*is \[1, 1\] instead",
        ),
        (
            performer(linear_blocks=[]),
            r"performer.linear_blocks` must be .*is \[\] instead",
        ),
        (performer(linear_blocks=[-1]), r"`pruning.performer.linear_blocks` must be .*is \[-1\]"),
        (performer(linear_features=0), r"`pruning.performer.linear_features` must be greater"),
        (performer(linear_features=5), r"must be a multiple of 2, but is 5 instead"),
        ({"corpus": {"speeds": [3.0]}}, r"`speeds` must lie in \[0.5, 2\], but one is 3.0"),
        (
            {"corpus": {"demo": {"snr_low_db": 40.0}}},
            r"`snr_low_db` must be at most `snr_high_db`, but is 40.0",
        ),
        ({"model": {"size": "huge"}}, r"`model.size` must be 'tiny', 'small', 'medium' or 'large'"),
        ({"runtime": {"device": "tpu"}}, r"`runtime.device` must be 'auto', 'cpu' or 'cuda'"),
    ],
)
def test_what_cannot_be_is_refused_by_name(values, message):
    with pytest.raises(ConfigError, match=message):
        TrialConfig.parse(values)


@pytest.mark.parametrize("blocks", ["all", 3, [0, 2]])
def test_blocks_may_be_all_or_so_many_or_named(blocks):
    pruning = TrialConfig.parse(performer(linear_blocks=blocks)).pruning

    assert pruning.model_dump()["performer"]["linear_blocks"] == blocks


def test_every_culprit_has_a_line():
    with pytest.raises(ConfigError) as caught:
        TrialConfig.parse({"seed": -1, "pruning": {"stepps": 1, "l0": {"gate_lr": 0.0}}})

    lines = str(caught.value).splitlines()
    assert [line.split("`")[1] for line in lines] == [
        "seed",
        "pruning.l0.gate_lr",
        "pruning.stepps",
    ]


def test_a_configuration_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        TrialConfig().seed = 3


def test_what_is_written_out_is_read_back():
    config = TrialConfig.parse({"seed": 5, "pruning": {"axes": ["head"]}})

    assert TrialConfig.parse(config.model_dump()) == config


def test_the_registry_of_methods_is_its_folder():
    assert method_names() == sorted(method_names())
    assert not any(name.startswith("_") for name in method_names())
