"""A model that has learned something, and what a method may touch of it."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

from core.config import TrialConfig
from core.conformer.model import Conformer
from core.evaluation.judge import Judge
from core.pruning.budget import chosen
from core.pruning.extraction import clone
from core.pruning.space import Space
from core.testing import found_on, patterned, taught_toy
from core.training.distillation import Distillation
from core.training.method import Found, Workbench, heard, load_method

MakeBench = Callable[..., Workbench]


@pytest.fixture(scope="session")
def toy() -> Conformer:
    return taught_toy()


@pytest.fixture(scope="session")
def bench_of(toy: Conformer) -> MakeBench:
    """Makes a bench of a method on the toy or another model, with patterned speech."""

    def made(
        method: str, *, seed: int = 0, model: Conformer | None = None, **pruning: Any
    ) -> Workbench:
        whole = model or toy
        values = {"method": method, "steps": 24, "groups": 4, "rounds": 3, **pruning}
        config = TrialConfig.parse({"seed": seed, "pruning": values})
        torch.manual_seed(seed)
        plugin, batches = load_method(method), [patterned(12, seed=i) for i in range(3)]
        speech = [(batch.features, batch.num_frames) for batch in batches]
        student = plugin.prepared(clone(whole), config, heard(speech, plugin.needs))
        student.requires_grad_()
        space = Space.of(clone(student), plugin.axes(config), 4.0, unpruned=whole)

        def choose(scores: Any, target: float) -> dict[str, torch.Tensor]:
            is_asked = bool(scores)
            return (
                chosen(space, scores, config.pruning, target) if is_asked else space.open_choice()
            )

        return Workbench(
            config=config,
            student=student,
            distillation=Distillation(clone(whole), config.distillation),
            space=space,
            speech=speech,
            labelled=batches,
            choose=choose,
            judge=Judge(config, space, None, torch.device("cpu")),
            device=torch.device("cpu"),
        )

    return made


@pytest.fixture(scope="session")
def searched(bench_of: MakeBench) -> Callable[..., tuple[Workbench, Found]]:
    """A bench of a method, and what was found on it at 60 % of FLOPs; once for all tests."""

    @cache
    def made(method: str, seed: int = 0) -> tuple[Workbench, Found]:
        bench = bench_of(method, seed=seed, target_sparsity=0.6)
        return bench, found_on(bench)

    return made


@pytest.fixture(scope="session")
def searched_anew(bench_of: MakeBench) -> Callable[[str], tuple[Workbench, Found]]:
    """The same, from the beginning."""

    def made(method: str) -> tuple[Workbench, Found]:
        bench = bench_of(method, target_sparsity=0.6)
        return bench, found_on(bench)

    return made
