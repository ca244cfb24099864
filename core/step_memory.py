"""The memory of a training step, from shapes alone: nothing is computed, and nothing allocated.

A step runs on fake tensors, which have a shape and no numbers, and the bytes that are alive are
counted at each operator: what torch asks for, to the byte. What an allocator keeps beside that is
not in it. A CPU's heap keeps holes between blocks, unless these are mapped one by one
(`MALLOC_MMAP_THRESHOLD_=65536`).
"""

import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from core.config.base import ConfigError
from core.config.pruning import PruningConfig
from core.config.trial import TrialConfig
from core.conformer.model import Conformer
from core.conformer.shape import Shape
from core.data.batching import Batch
from core.evaluation.evaluator import Evaluator
from core.pruning.extraction import without_weights
from core.pruning.space import Space
from core.training.distillation import Distillation
from core.training.gate_stage import GateStage
from core.training.method import MethodContext, load_method

ATEN = torch.ops.aten
HOST = torch.device("cpu")
LENGTHS = (4.0, 20.0)
"""Of utterances, in seconds: attention takes more memory for a batch of few long ones."""
PARTS = (1, 2, 4, 8, 16, 32, 64)
"""Numbers of micro-batches that are tried."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepMemory:
    """Bytes that a training step needs."""

    weights: int
    """Of the model that is trained, of its gates, and of the teacher beside it."""
    gradients: int
    optimizer: int
    peak: int
    """The most that is alive at once; gradients are not there when activations are most."""

    @property
    def activations(self) -> int:
        """Bytes of the batch and of all results that are alive at the peak."""
        return self.peak - self.weights - self.optimizer


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive, and the most there ever were."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if tensors and not any(isinstance(tensor, FakeTensor) for tensor in tensors):
            # Lengths are real numbers on the host, which a step reads.
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        result = RULES.get(func, func)(*args, **kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device.type != "meta":
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: UntypedStorage) -> None:
        # Views share a storage, which lives as long as the last of them.
        key = storage._cdata  # noqa: SLF001 - the only name that torch has for it
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def _ctc_losses(log_probs: Tensor, _tokens: Any, _lengths: Any, counts: Any, *_: Any) -> Any:
    time, batch = log_probs.shape[:2]
    return log_probs.new_empty(batch), log_probs.new_empty(batch, time, 2 * max(counts) + 1)


RULES: Mapping[Any, Callable[..., Any]] = {
    ATEN._ctc_loss.default: lambda *a, **_: _ctc_losses(*a),  # noqa: SLF001 - an operator's name
    ATEN._ctc_loss_backward.default: lambda *a, **_: torch.empty_like(a[1]),  # noqa: SLF001
}
"""The shapes of results of operators for which torch has no rule."""


def estimate_step_memory(config: TrialConfig, shape: Shape, batch: Batch) -> StepMemory:
    """Estimate the memory of a step under gates with a teacher: of all steps it needs most.

    Smaller models, and steps without gates or a teacher, need less.

    Args:
        config: of a trial.
        shape: of the unpruned model.
        batch: as long as a trial's are; of its numbers only lengths are read.
    """
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, LiveBytes() as live:
        stage = make_largest_stage(config, shape)
        weights = live.now
        features, tokens = (fake.from_tensor(x).clone() for x in (batch.features, batch.tokens))
        own = replace(batch, features=features, tokens=tokens)
        for step in range(2):  # the optimizers' state comes with the first
            stage.step(own, step)
        optimizers = [stage.primal, *stage.gate_primal, *stage.control.optimizers]
        return StepMemory(
            weights=weights,
            gradients=_num_bytes(parameter.grad for parameter in _parameters(optimizers)),
            optimizer=sum(_num_bytes(tree_leaves(o.state)) for o in optimizers),
            peak=live.peak,
        )


def estimate_largest(config: TrialConfig, shape: Shape) -> StepMemory:
    """Estimate the memory of a trial's largest step, on full batches of short or long utterances.

    Args:
        config: of the trial.
        shape: of the unpruned model.
    """
    batches = [noise_batch(config, shape, seconds=seconds) for seconds in LENGTHS]
    estimates = [estimate_step_memory(config, shape, batch) for batch in batches]
    return max(estimates, key=lambda estimate: estimate.peak)


def with_counted_parts(config: TrialConfig, shape: Shape) -> TrialConfig:
    """Return the config with a number for `training.micro_batches = "auto"`.

    Args:
        config: of a trial.
        shape: of the unpruned model.

    Raises:
        ConfigError: if no number of parts makes a step fit into the memory.
    """
    if config.training.micro_batches != "auto":
        return config
    allowed, peak = config.runtime.memory_gigabytes, 0.0
    for parts in PARTS:
        training = config.training.model_copy(update={"micro_batches": parts})
        counted = config.model_copy(update={"training": training})
        peak = estimate_largest(counted, shape).peak / 1e9
        if peak <= allowed:
            return counted
    raise ConfigError(
        f"`runtime.memory_gigabytes` must be at least {peak:.1f} for this model and"
        f" `training.batch_seconds`, but is {allowed:g} instead; `runtime.checkpointing` takes less"
    )


def noise_batch(config: TrialConfig, shape: Shape, *, seconds: float) -> Batch:
    """Return a full batch of utterances of one length; at least one."""
    # A batch of 60 s is 15 utterances of 4 s with 400 frames and 8 tokens each.
    count = max(1, round(config.training.batch_seconds / seconds))
    frames, tokens = round(100 * seconds), max(1, round(2 * seconds))
    return Batch(
        features=torch.randn(count, frames, shape.frontend_spec.mels),
        num_frames=torch.full((count,), frames),
        tokens=torch.randint(1, shape.vocabulary, (count, tokens)),
        num_tokens=torch.full((count,), tokens),
        seconds=seconds * count,
        ids=("",) * count,
        texts=("",) * count,
        indices=tuple(range(count)),
    )


def make_largest_stage(config: TrialConfig, shape: Shape, device: torch.device = HOST) -> GateStage:
    """Make the search of `l0`: every gate is learned, and none is read."""
    own = {"method": "l0", "steps": 2, "axes": config.pruning.axes}
    pruning = PruningConfig.model_validate(own)
    # Matching by order reads which block is nearest; matching by number needs as much memory.
    distillation = config.distillation.model_copy(update={"matching": "fixed"})
    config = config.model_copy(update={"pruning": pruning, "distillation": distillation})
    with device:
        student, teacher = Conformer(shape), Conformer(shape)
    space = Space.of(without_weights(student), pruning.axes, pruning.utterance_seconds)
    ctx = MethodContext(
        config=config,
        student=student,
        distillation=Distillation(teacher, distillation),
        space=space,
        speech=(),
        labeled=(),
        choose=lambda _scores, _target: space.open_choice(),
        evaluator=Evaluator(config, space, None, device),
        device=device,
    )
    stage = load_method("l0").search(ctx)
    assert isinstance(stage, GateStage)
    stage.narrow_from = None  # fake gates cannot be read, and at first all are open
    return stage


def _parameters(optimizers: Iterable[Optimizer]) -> list[Tensor]:
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    return [parameter for group in groups for parameter in group["params"]]


def _num_bytes(leaves: Iterable[Any]) -> int:
    return sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor))
