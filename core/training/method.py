"""What a pruning method is, and all it may touch.

A method is one file of core/methods that names its one instance METHOD. It says what each unit is
worth, after training gates or at once; selection, repair, extraction, tuning and measuring are
shared.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module

import torch
from torch import Tensor

from core.config import TrialConfig
from core.conformer.axes import Mask
from core.conformer.model import Conformer
from core.evaluation.judge import Judge
from core.pruning.budget import Scores
from core.pruning.repair import Calibration
from core.pruning.space import Space
from core.training.distillation import Distillation
from core.training.trainer import Trainable


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What a search leaves."""

    scores: Scores
    """What each unit is worth, comparable across axes; axes without an entry stay whole."""
    reference: Mask
    """Gates under which the student computes what extraction should keep; empty for all open."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workbench:
    """Everything a method may touch."""

    config: TrialConfig
    student: Conformer
    """A copy of the teacher, the method's to change."""
    distillation: Distillation
    space: Space
    speech: Calibration
    """A few batches of training speech."""
    choose: Callable[[Scores], dict[str, Tensor]]
    """The structure that these scores give at the trial's budget."""
    judge: Judge
    device: torch.device

    @property
    def target(self) -> float:
        return self.config.pruning.target_sparsity


class Method(ABC):
    """Override what differs; most methods need only `found`."""

    def target(self, config: TrialConfig) -> float:
        """The share of the resource to remove."""
        return config.pruning.target_sparsity

    def search(self, bench: Workbench) -> Trainable | None:
        """The stage that trains while it searches; without one, its steps go to tuning."""
        del bench
        return None

    @abstractmethod
    def found(self, bench: Workbench, search: Trainable | None) -> Found:
        """What the search left, or what can be said at once."""

    def started(self, model: Conformer, bench: Workbench) -> Conformer:
        """The extracted model as its tuning starts."""
        del bench
        return model


def load_method(name: str) -> Method:
    """The method of a file in core/methods; the config has checked that it is there."""
    method = import_module(f"core.methods.{name}").METHOD
    assert isinstance(method, Method)
    return method


def ranked_within(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each score's rank as a share of its axis, so that every axis loses the same share."""
    return {
        name: (values.argsort(stable=True).argsort(stable=True).double() + 1) / len(values)
        for name, values in scores.items()
    }
