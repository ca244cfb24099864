"""The cost of a sweep and the shares that its trials remove, estimated before it runs."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sweep.config.distributions import Distribution
from sweep.config.space import SearchSpace
from sweep.config.sweep import SweepConfig

if TYPE_CHECKING:  # torch takes seconds that a line of text should not
    from core.cost_estimate import CostEstimate
    from core.step_memory import StepMemory

CARDS = (24, 40, 80)
"""Memory of usual GPUs, in GB."""


def estimate_values(config: SweepConfig, cost: "CostEstimate") -> dict[str, Any]:
    """Estimates the cost of a sweep: sizes, and hours of work from one measured step.

    A masked step costs a little more than the dense one measured, an extracted model's less.
    """
    base = config.space.base
    steps = base.pruning.steps + base.tuning.steps
    # 0.5 s a step, a teacher of 1000, 20 trials of 300: 0.5 * (1000 + 6000) / 3600 = 0.97 hours.
    teacher = 0 if base.teacher.bundle else base.teacher.steps
    seconds = cost.seconds_per_step * (teacher + steps * config.num_trials)
    return {
        "name": config.sweep.name,
        "trials": config.num_trials,
        "searched": list(config.space.distributions),
        "removed": removed_range(config.space),
        "params": cost.params,
        "gflops": cost.gflops,
        "seconds_per_step": cost.seconds_per_step,
        "teacher_steps": teacher,
        "trial_steps": steps,
        "worker_hours": seconds / 3600,
        "table_seconds": cost.table_seconds,
        "table_gigabytes": cost.table_gigabytes,
        "micro_batches": cost.micro_batches,
        "memory_gigabytes": _gigabytes(cost.memory) if cost.memory else {},
    }


def _gigabytes(memory: "StepMemory") -> dict[str, float]:
    """Return the memory of a step, and its parts, in 10^9 bytes."""
    parts = ("weights", "gradients", "optimizer", "activations", "peak")
    return {name: getattr(memory, name) / 1e9 for name in parts}


def _memory_lines(gigabytes: Mapping[str, float], parts: int) -> list[str]:
    """Say what a step needs of memory, and how many trials fit a card; nothing if it is unknown."""
    if not gigabytes:
        return []
    fits = ", ".join(f"{int(card / gigabytes['peak'])} on {card} GB" for card in CARDS)
    in_parts = f", a batch in {parts} parts" if parts > 1 else ""
    named = ", ".join(
        f"{name} {gigabytes[name]:.2g}"
        for name in ("weights", "gradients", "optimizer", "activations")
    )
    return [
        f"memory of a step: at most {gigabytes['peak']:.2g} GB ({named}){in_parts}",
        f"trials at once, by memory: {fits}, less what CUDA itself takes",
    ]


def estimate_lines(values: Mapping[str, Any]) -> list[str]:
    """Returns the values of `estimate_values` as lines of text."""
    searched = ", ".join(values["searched"])
    budgets = [f"{_percent(ends)} of {name}" for name, ends in values["removed"].items()]
    seconds = values["seconds_per_step"]
    timed = [f"one step: {seconds:.2f} s on this machine"] if seconds else []
    if values["table_seconds"]:
        timed.append(
            f"sensitivity tables: about {values['table_seconds']:.0f} s and"
            f" {values['table_gigabytes']:.2g} GB, once for all trials"
        )
    timed += _memory_lines(values["memory_gigabytes"], values["micro_batches"])
    return [
        f"{values['name']}: {values['trials']} trials" + (f" over {searched}" if searched else ""),
        f"teacher: {values['params']:,} parameters, {values['gflops']:.3g} GFLOPs an utterance",
        f"to remove: {', '.join(budgets)}",
        *timed,
        f"{values['teacher_steps']} steps for the teacher, {values['trial_steps']} a trial",
        f"about {values['worker_hours']:.1f} hours of one worker",
    ]


def removed_range(space: SearchSpace) -> dict[str, tuple[float, float]]:
    """Returns the smallest and the largest share that trials remove, by resource.

    A trial with several resources must meet all of their shares at once.

    Where the resource itself is sampled, the name lists all of its options.
    """
    pruning, searched = space.base.pruning, space.distributions
    resources = searched.get("pruning.resource")
    # resource = { choice = ["flops", "latency"] } gives the name "flops or latency".
    first = " or ".join(map(str, resources.probes())) if resources else pruning.resource
    budgets: list[tuple[str, str, float]] = [(first, "target_sparsity", pruning.target_sparsity)]
    budgets += [(name, f"also.{name}", share) for name, share in pruning.also.items()]
    return {name: _ends(searched.get(f"pruning.{leaf}"), share) for name, leaf, share in budgets}


def _ends(leaf: Distribution | None, share: float) -> tuple[float, float]:
    shares = [float(probe) for probe in leaf.probes()] if leaf else [share]
    return min(shares), max(shares)


def _percent(ends: tuple[float, float]) -> str:
    low, high = (f"{100 * share:.4g}" for share in ends)
    return f"{low} %" if low == high else f"{low} to {high} %"
