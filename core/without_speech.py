"""Pruning by the weights alone, where there is no speech: cut at once, neither repaired nor tuned.

No word error rate is measured, and none is claimed: what stays is what the method thinks of the
weights, and batch-norm statistics are those of the model that was brought.
"""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from core import latency
from core.config import NO_SPEECH, TrialConfig, method_names
from core.conformer.model import Conformer
from core.deploy.bundle import Bundle
from core.evaluation.judge import Judge
from core.pruning.budget import chosen
from core.pruning.extraction import clone
from core.pruning.repair import repaired
from core.pruning.space import Space
from core.setting import device_of, set_chance
from core.strict import ConfigError
from core.training.distillation import Distillation
from core.training.method import Untouchable, Workbench, load_method


@dataclass(frozen=True, kw_only=True, slots=True)
class Pruned:
    """A smaller model that nobody has listened to yet."""

    model: Conformer
    kept: dict[str, list[int]]
    """The units that stayed, by axis."""
    target_sparsity: float
    flops_sparsity: float
    params_sparsity: float
    """Shares removed of the FLOPs and parameters of the model that was brought."""
    gflops: float
    params: int


def remaining() -> list[str]:
    """The methods that need no speech, neither to choose nor to be worth anything afterwards."""
    methods = {name: load_method(name) for name in method_names()}
    return [name for name, m in methods.items() if not (m.needs or m.lives_by_tuning)]


def demands(config: TrialConfig) -> TrialConfig:
    """Refuse a config that asks speech of a corpus that is none.

    Raises:
        ConfigError: one line for each key that does, naming what can be asked instead.
    """
    if config.corpus.name != NO_SPEECH:
        return config
    pruning, tuning = config.pruning, config.tuning
    lines = []
    if pruning.method not in remaining():
        lines.append(
            f"`pruning.method` must be one of {', '.join(remaining())} without speech,"
            f" but is `{pruning.method}` instead"
        )
    wanted = {
        "pruning.repair": (pruning.repair, "none"),
        "pruning.steps": (pruning.steps, 0),
        "tuning.steps": (tuning.steps, 0),
    }
    lines += [
        f"`{key}` must be {needed!r} without speech, but is {value!r} instead"
        for key, (value, needed) in wanted.items()
        if value != needed
    ]
    if lines:
        raise ConfigError("\n".join(lines))
    return config


def config_of(given: Path, pruning: dict[str, Any], *, seed: int = 0) -> TrialConfig:
    """What is asked of a bundle where there is no speech.

    Raises:
        ConfigError: if it cannot be done, naming what can.
    """
    config = TrialConfig.parse(
        {
            "seed": seed,
            "corpus": {"name": NO_SPEECH},
            "teacher": {"bundle": str(given)},
            "pruning": {"repair": "none", "steps": 0, **pruning},
            "tuning": {"steps": 0},
        }
    )
    return demands(config)


def prune(config: TrialConfig, given: Bundle) -> list[Pruned]:
    """The models that a config without speech asks for, one a target.

    Raises:
        ConfigError: if it asks for what needs speech.
        ValueError: if a target cannot be met by this model and these axes.
    """
    demands(config)
    set_chance(config, config.runtime.threads)
    method, teacher = load_method(config.pruning.method), given.model
    student = method.prepared(clone(teacher), config, Untouchable("audio")).requires_grad_()
    with TemporaryDirectory() as scratch:
        latency.measure(config, Path(scratch), teacher.shape)
        table = latency.opened(config, Path(scratch))
    space = Space.of(
        clone(student),
        method.axes(config),
        config.pruning.utterance_seconds,
        unpruned=teacher,
        latency=table,
    )
    device = device_of(config)
    bench = Workbench(
        config=config,
        student=student,
        distillation=Distillation(teacher, config.distillation),
        space=space,
        speech=Untouchable("audio"),
        labelled=Untouchable("labels"),
        choose=lambda scores, target: chosen(space, scores, config.pruning, target),
        judge=Judge(config, space, None, device),
        device=device,
    )
    found = method.found(bench, None)
    return [
        _cut(bench, bench.choose(found.scores, target), target)
        for target in method.targets(config)
    ]


def _cut(bench: Workbench, choice: Any, target: float) -> Pruned:
    small = repaired(bench.student, {}, choice, how="none", speech=())
    space, cost = bench.space, bench.space.dense_cost(small)
    return Pruned(
        model=small.eval(),
        kept={axis: units.nonzero().flatten().tolist() for axis, units in choice.items()},
        target_sparsity=target,
        flops_sparsity=float(space.sparsity(cost, "flops")),
        params_sparsity=float(space.sparsity(cost, "params")),
        gflops=float(cost.flops) / 1e9,
        params=int(cost.params),
    )
