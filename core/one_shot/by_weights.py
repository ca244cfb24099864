"""Pruning by the weights alone, where there is no speech: cut at once, neither repaired nor tuned.

No word error rate is measured, and none is claimed: what stays is what the method thinks of the
weights, and batch-norm statistics are those of the model that was brought.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from core import bundle
from core.bundle import Bundle
from core.config.base import ConfigError
from core.config.methods import method_names
from core.config.trial import NO_SPEECH, TrialConfig
from core.conformer.model import Conformer
from core.digests import bundle_digest
from core.evaluation.evaluator import Evaluator
from core.latency import cache
from core.pruning.extraction import without_weights
from core.pruning.reconstruction import extract_and_reconstruct
from core.pruning.selection import choose_for_target
from core.pruning.space import Choice, Space
from core.report import KEPT_UNITS, LONGEST_TRAINED
from core.runtime import seed_everything, select_device
from core.stages import Announce, be_silent
from core.training.distillation import Distillation
from core.training.method import GuardedData, MethodContext, load_method


def remaining() -> list[str]:
    """The methods that need no speech, neither to choose nor to be worth anything afterwards."""
    methods = {name: load_method(name) for name in method_names()}
    return [name for name, m in methods.items() if not (m.needs or m.lives_by_tuning)]


def check(config: TrialConfig) -> None:
    """Refuse a config that asks for what needs speech.

    Raises:
        ConfigError: one line for each key that does, naming what can be asked instead.
    """
    pruning, tuning = config.pruning, config.tuning
    lines = []
    if pruning.method not in remaining():
        lines.append(
            f"`pruning.method` must be one of {', '.join(remaining())} without speech,"
            f" but is `{pruning.method}` instead"
        )
    required = {
        "pruning.repair": (pruning.repair, "none"),
        "pruning.steps": (pruning.steps, 0),
        "tuning.steps": (tuning.steps, 0),
    }
    lines += [
        f"`{key}` must be {needed!r} without speech, but is {value!r} instead"
        for key, (value, needed) in required.items()
        if value != needed
    ]
    if lines:
        raise ConfigError("\n".join(lines))


def config_of(source: Path, pruning: dict[str, Any], *, seed: int = 0) -> TrialConfig:
    """Makes the config that prunes a bundle without speech.

    Raises:
        ConfigError: naming the value that cannot be.
    """
    return TrialConfig.parse(
        {
            "seed": seed,
            "corpus": {"name": NO_SPEECH},
            "teacher": {"bundle": str(source)},
            "pruning": {"repair": "none", "steps": 0, **pruning},
            "tuning": {"steps": 0},
        }
    )


def prune_bundle(
    config: TrialConfig, folder: Path, *, announce: Announce = be_silent
) -> dict[str, Any]:
    """Prunes a bundle without speech and writes the result to a new folder.

    Args:
        config: what is asked for.
        folder: a new folder.
        announce: called as each stage begins.

    Raises:
        BundleError: if the teacher is no whole bundle.
        ConfigError: if the config asks for what needs speech, or the folder is there already.
        ValueError: if the target cannot be met by this model and these axes.
    """
    check(config)
    if folder.exists():
        raise ConfigError(f"`out` must be a new folder, but `{folder}` is there already.")
    source = Path(config.teacher.bundle)
    announce("reading the model")
    dense = bundle.load(source)
    small, choice, space = prune_model(config, dense.model, announce=announce)
    cost = space.dense_cost(small)
    # What a bundle of a trial reports, as far as it exists without speech.
    measured = {
        "wer": None,
        "gflops": float(cost.flops) / 1e9,
        "params": int(cost.params),
        "flops_sparsity": float(space.sparsity(cost, "flops")),
        "params_sparsity": float(space.sparsity(cost, "params")),
    }
    lineage = {"config": config.model_dump(), **pruned_lineage(dense, choice, source=source)}
    announce("writing the smaller model")
    bundle.save(folder, small, dense.tokenizer, {"pruned": measured, **lineage})
    return {"model": str(folder), **measured}


def pruned_lineage(dense: Bundle, choice: Choice, *, source: Path) -> dict[str, Any]:
    """Return what the report of a pruned bundle says of where it comes from.

    Args:
        dense: the unpruned bundle.
        choice: the units that stay.
        source: the unpruned bundle's folder.
    """
    kept_units = {axis: units.nonzero().flatten().tolist() for axis, units in choice.items()}
    carried = {key: dense.report[key] for key in (LONGEST_TRAINED,) if key in dense.report}
    return {KEPT_UNITS: kept_units, "from": bundle_digest(source), **carried}


def prune_model(
    config: TrialConfig, teacher: Conformer, *, announce: Announce = be_silent
) -> tuple[Conformer, Choice, Space]:
    """Prunes a model without speech: returns the smaller one, the units it kept, and the space.

    Args:
        config: what is asked for.
        teacher: the method's to change: a large one is not copied. Costs, and a teacher that
            nobody will ask, are of its shape alone.
        announce: called as each stage begins.
    """
    seed_everything(config, config.runtime.threads)
    method = load_method(config.pruning.method)
    unpruned = without_weights(teacher)
    # The teacher itself becomes the student: two copies of a large model may not fit into memory.
    student = method.prepare_model(teacher, config, GuardedData("audio")).requires_grad_()
    with TemporaryDirectory() as scratch:
        cache.measure(config, Path(scratch), unpruned.shape)
        table = cache.open_table(config, Path(scratch))
    space = Space.of(
        without_weights(student),
        method.axes(config),
        config.pruning.utterance_seconds,
        unpruned=unpruned,
        latency=table,
    )
    device = select_device(config)
    ctx = MethodContext(
        config=config,
        student=student,
        # On `meta`, as nothing is trained: it only completes the context.
        distillation=Distillation(unpruned, config.distillation),
        space=space,
        speech=GuardedData("audio"),
        labeled=GuardedData("labels"),
        choose=lambda scores, target: choose_for_target(space, scores, config.pruning, target),
        evaluator=Evaluator(config, space, None, device),
        device=device,
    )
    announce(f"scoring units by `{config.pruning.method}`")
    scores = method.search_result(ctx, None).scores
    announce("choosing units")
    choice = ctx.choose(scores, ctx.target)
    announce("extracting the smaller model")
    small = extract_and_reconstruct(ctx.student, {}, choice, how="none", speech=())
    return small.eval(), choice, space
