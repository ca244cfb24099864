"""What a pruning method is, and all it may touch.

A method is one file of core/methods that names its one instance METHOD. It says what each unit is
worth, after training gates or at once; selection, repair, extraction, tuning and measuring are
shared.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor

from core.config.pruning import AxisKind, Repair
from core.config.trial import TrialConfig
from core.conformer.axes import Mask
from core.conformer.model import Conformer
from core.data.batching import Batch
from core.evaluation.evaluator import Evaluator
from core.pruning.reconstruction import Calibration
from core.pruning.selection import Scores
from core.pruning.space import Choice, Space
from core.training.distillation import Distillation
from core.training.loop import DenseStage, Rates, TeachingTask, Trainable, Tuning

Need = Literal["audio", "labels"]


class NeedError(RuntimeError):
    """A method touched what it does not say it needs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchResult:
    """What a search leaves."""

    scores: Scores
    """What each unit is worth, comparable across axes; axes without an entry stay whole."""
    reference: Mask
    """Gates under which the student computes what extraction should keep; empty for all open."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodContext:
    """Everything a method may touch."""

    config: TrialConfig
    student: Conformer
    """What the method made of a copy of the teacher; its to change."""
    distillation: Distillation
    space: Space
    speech: Calibration
    """A few batches of training speech, without its words."""
    labelled: Iterable[Batch]
    """The same batches with their words; may be walked again and again."""
    choose: Callable[[Scores, float], dict[str, Tensor]]
    """The structure that these scores give when such a share is to be removed."""
    judge: Evaluator
    device: torch.device

    @property
    def target(self) -> float:
        return self.config.pruning.target_sparsity

    def restricted_to(self, needs: AbstractSet[Need]) -> "MethodContext":
        """The same, but for data that is not needed: touching it is a NeedError."""
        limited = replace(self, speech=guard_audio(self.speech, needs))
        return limited if "labels" in needs else replace(limited, labelled=GuardedData("labels"))


def guard_audio(speech: Calibration, needs: AbstractSet[Need]) -> Calibration:
    """The same speech, but where it is not needed: touching it is a NeedError."""
    return speech if "audio" in needs else GuardedData("audio")


@dataclass(frozen=True, slots=True)
class GuardedData:
    """Stands where data would be that nobody may look at."""

    what: Need

    def __iter__(self) -> Iterator[Any]:
        raise NeedError(f"A method that touches {self.what} must say that it needs them.")


class Method(ABC):
    """Override what differs; most methods need only `found`."""

    needs: frozenset[Need] = frozenset()
    """What of the training data it touches to find scores: `speech`, `labelled`, or neither."""
    yields: Literal["curve", "point"] = "curve"
    """Whether what is found orders all units, for any budget, or was learned for one."""

    lives_by_tuning: bool = False
    """Whether its models are worth nothing of their own before they are tuned."""
    is_from_scratch: bool = False
    """Whether its models are tuned from random weights."""

    def targets(self, config: TrialConfig) -> tuple[float, ...]:
        """The shares of the resource to remove; each becomes an outcome."""
        further = config.pruning.further_targets if self.yields == "curve" else ()
        return (config.pruning.target_sparsity, *further)

    def axes(self, config: TrialConfig) -> Sequence[AxisKind]:
        """The kinds of units that may go: as the config says, or what the method is made for."""
        return config.pruning.axes

    def prepare_model(
        self, model: Conformer, config: TrialConfig, speech: Calibration
    ) -> Conformer:
        """A copy of the teacher as the search begins: where parts are altered.

        By config and speech alone, to the same each time: a resumed trial asks again.
        """
        del config, speech
        return model

    def search(self, bench: MethodContext) -> Trainable | None:
        """The stage that trains while it searches; without one, its steps go to tuning."""
        del bench
        return None

    @abstractmethod
    def search_result(self, bench: MethodContext, search: Trainable | None) -> SearchResult:
        """What the search left, or what can be said at once."""

    def repair(self, config: TrialConfig) -> Repair:
        """How extraction adjusts the consumers of removed units."""
        return config.pruning.repair

    def prepare_tuning(self, model: Conformer, bench: MethodContext) -> Conformer:
        """The extracted model as its tuning starts."""
        del bench
        return model

    def tuning(
        self, model: Conformer, choice: Choice, bench: MethodContext, *, steps: int
    ) -> Tuning:
        """The stage that trains the extracted model: what its tasks and the teacher teach it.

        Args:
            model: extracted, and started.
            choice: what of the teacher it kept.
            bench: all of it, whatever the search needed.
            steps: of this outcome's tuning.
        """
        config = bench.config
        return DenseStage(
            model,
            stage="tune",
            steps=steps,
            rates=tuning_rates(config),
            judge=bench.judge,
            runtime=config.runtime,
            taught=TeachingTask(distillation=bench.distillation, choice=choice),
            micro_batches=config.training.micro_batches,
        )


def tuning_rates(config: TrialConfig) -> Rates:
    return Rates(
        peak=config.tuning.learning_rate,
        warmup_share=config.tuning.warmup_share,
        weight_decay=config.teacher.weight_decay,
        clip=config.training.clip,
    )


def load_method(name: str) -> Method:
    """The method of a file in core/methods; the config has checked that it is there."""
    method = import_module(f"core.methods.{name}").METHOD
    assert isinstance(method, Method)
    return method
