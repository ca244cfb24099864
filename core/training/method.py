"""The interface of a pruning method, and the context that it works in.

A method is one file of core/methods with an instance METHOD. It scores each unit, after training
gates or at once; selection, repair, extraction, tuning and evaluation are shared.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from core.config.pruning import AxisKind, Repair
from core.config.trial import TrialConfig
from core.conformer.axes import Mask
from core.conformer.model import Conformer
from core.data.batching import Batch
from core.evaluation.evaluator import Evaluator
from core.pruning.calibration import Calibration
from core.pruning.selection import Scores
from core.pruning.space import Choice, Space
from core.training.distillation import Distillation
from core.training.loop import DenseStage, Rates, TeachingTask, Trainable, Tuning

Need = Literal["audio", "labels"]


class NeedError(RuntimeError):
    """A method used data that is not in its `needs`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchResult:
    """The result of a search: scores, and the gates to extract with."""

    scores: Scores
    """A score for each unit, comparable across axes; axes without an entry stay whole."""
    reference: Mask
    """Gates under which the student computes what extraction preserves; empty for all open."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodContext:
    """Everything that a method works with."""

    config: TrialConfig
    student: Conformer
    """A copy of the teacher, after `prepare_model`; the method may change it."""
    distillation: Distillation
    space: Space
    speech: Calibration
    """A few batches of training speech, without its words."""
    labeled: Iterable[Batch]
    """The same batches with their words; may be iterated over several times."""
    choose: Callable[[Scores, float], dict[str, Tensor]]
    """Returns the choice that these scores give when this share is to be removed."""
    evaluator: Evaluator
    device: torch.device
    shared: Path | None = None
    """Folder beside the teacher, of all trials of a sweep; None if there is none."""

    @property
    def target(self) -> float:
        return self.config.pruning.target_sparsity

    def restricted_to(self, needs: AbstractSet[Need]) -> "MethodContext":
        """Return the same context in which the use of other data than `needs` raises NeedError."""
        restricted = replace(self, speech=guard_audio(self.speech, needs))
        return (
            restricted if "labels" in needs else replace(restricted, labeled=GuardedData("labels"))
        )


def guard_audio(speech: Calibration, needs: AbstractSet[Need]) -> Calibration:
    """Return the speech, or an object whose use raises NeedError if `audio` is not needed."""
    return speech if "audio" in needs else GuardedData("audio")


@dataclass(frozen=True, slots=True)
class GuardedData:
    """Takes the place of data that a method does not need; its use raises NeedError."""

    what: Need

    # Only use raises: a context with it can be passed on and copied.
    def __iter__(self) -> Iterator[Any]:
        raise NeedError(
            f"`needs` of a method must name {self.what}, as the method uses them, but does not."
        )


class Method(ABC):
    """A pruning method: override what differs; most methods need only `search_result`."""

    needs: frozenset[Need] = frozenset()
    """The training data that it uses to score units: `audio`, `labels`, both or neither."""
    yields: Literal["curve", "point"] = "curve"
    """Whether its scores order all units for any budget, or were learned for one."""

    lives_by_tuning: bool = False
    """Whether its models are not meant to be used before they are tuned."""
    default_repair: Repair = "ls"
    """What `repair = "auto"` stands for: the repair that was measured to suit it."""
    is_from_scratch: bool = False
    """Whether its models are tuned from random weights."""

    def targets(self, config: TrialConfig) -> tuple[float, ...]:
        """Return the shares of the resource to remove; each becomes an outcome."""
        further = config.pruning.further_targets if self.yields == "curve" else ()
        return (config.pruning.target_sparsity, *further)

    def axes(self, config: TrialConfig) -> Sequence[AxisKind]:
        """Return the kinds of units that may be removed: those of the config, unless overridden."""
        return config.pruning.axes

    def prepare_model(
        self, model: Conformer, config: TrialConfig, speech: Calibration
    ) -> Conformer:
        """Change the copy of the teacher with which the search begins.

        It must depend on config and speech alone: a resumed trial calls it again.
        """
        del config, speech
        return model

    def search(self, ctx: MethodContext) -> Trainable | None:
        """Return the stage that trains during the search; if None, its steps go to tuning."""
        del ctx
        return None

    @abstractmethod
    def search_result(self, ctx: MethodContext, search: Trainable | None) -> SearchResult:
        """Return the result of the search, or of scoring at once."""

    def repair(self, config: TrialConfig) -> Repair:
        """Return how extraction adjusts the consumers of removed units."""
        return self.default_repair if config.pruning.repair == "auto" else config.pruning.repair

    def prepare_tuning(self, model: Conformer, ctx: MethodContext) -> Conformer:
        """Return the extracted model as its tuning starts."""
        del ctx
        return model

    def tuning(self, model: Conformer, choice: Choice, ctx: MethodContext, *, steps: int) -> Tuning:
        """Return the stage that trains the extracted model on its task and the teacher's outputs.

        Args:
            model: extracted, after `prepare_tuning`.
            choice: the teacher's units that it keeps.
            ctx: unrestricted, whatever the search needed.
            steps: of this outcome's tuning.
        """
        config = ctx.config
        return DenseStage(
            model,
            stage="tune",
            steps=steps,
            rates=tuning_rates(config),
            evaluator=ctx.evaluator,
            runtime=config.runtime,
            taught=TeachingTask(distillation=ctx.distillation, choice=choice),
            micro_batches=config.training.parts,
            loss=config.loss,
        )


def tuning_rates(config: TrialConfig) -> Rates:
    return Rates(
        peak=config.tuning.learning_rate,
        warmup_share=config.tuning.warmup_share,
        weight_decay=config.teacher.weight_decay,
        clip=config.training.clip,
    )


# An import by name: the file alone makes a method known, and a configuration that is only read
# never imports it.
def load_method(name: str) -> Method:
    """Return the METHOD of a file in core/methods; the config has checked that it exists."""
    method = import_module(f"core.methods.{name}").METHOD
    assert isinstance(method, Method)
    return method
