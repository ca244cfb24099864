"""A model that has learned something, and what a method may touch of it."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

from core.config.methods import method_names, settings_class
from core.config.trial import TrialConfig
from core.conformer.model import Conformer
from core.evaluation.evaluator import Evaluator
from core.pruning.extraction import clone
from core.pruning.selection import choose_for_target
from core.pruning.space import Space
from core.testing import make_patterned_speech, run_method, train_toy
from core.training.distillation import Distillation
from core.training.method import MethodContext, SearchResult, guard_audio, load_method

MakeBench = Callable[..., MethodContext]


SMALL = {"groups": 4, "rounds": 3}


def small_search(method: str, **pruning: Any) -> dict[str, Any]:
    """Returns `[trial.pruning]` of a small search; a method's own settings go into its table."""
    tables = {name: settings_class(name).model_fields for name in method_names()}
    owned = set().union(*tables.values())
    start = pruning.get("start_from", "")
    own = {
        name: {key: value for key, value in (SMALL | pruning).items() if key in tables[name]}
        for name in dict.fromkeys(filter(None, (method, start)))
        if tables[name]
    }
    shared = {key: value for key, value in pruning.items() if key not in owned}
    return {"method": method, "steps": 24, **shared, **own}


@pytest.fixture(scope="session")
def toy() -> Conformer:
    return train_toy()


@pytest.fixture(scope="session")
def context_of(toy: Conformer) -> MakeBench:
    """Makes a ctx of a method on the toy or another model, with patterned speech."""

    def made(
        method: str, *, seed: int = 0, model: Conformer | None = None, **pruning: Any
    ) -> MethodContext:
        whole = model or toy
        config = TrialConfig.parse({"seed": seed, "pruning": small_search(method, **pruning)})
        torch.manual_seed(seed)
        plugin, batches = load_method(method), [make_patterned_speech(12, seed=i) for i in range(3)]
        speech = [(batch.features, batch.num_frames) for batch in batches]
        student = plugin.prepare_model(clone(whole), config, guard_audio(speech, plugin.needs))
        student.requires_grad_()
        space = Space.of(clone(student), plugin.axes(config), 4.0, unpruned=whole)

        def choose(scores: Any, target: float) -> dict[str, torch.Tensor]:
            is_asked = bool(scores)
            return (
                choose_for_target(space, scores, config.pruning, target)
                if is_asked
                else space.open_choice()
            )

        return MethodContext(
            config=config,
            student=student,
            distillation=Distillation(clone(whole), config.distillation),
            space=space,
            speech=speech,
            labeled=batches,
            choose=choose,
            evaluator=Evaluator(config, space, None, torch.device("cpu")),
            device=torch.device("cpu"),
        )

    return made


@pytest.fixture(scope="session")
def searched(context_of: MakeBench) -> Callable[..., tuple[MethodContext, SearchResult]]:
    """A ctx of a method, and what was found on it at 60 % of FLOPs; once for all tests."""

    @cache
    def made(method: str, seed: int = 0) -> tuple[MethodContext, SearchResult]:
        ctx = context_of(method, seed=seed, target_sparsity=0.6)
        return ctx, run_method(ctx)

    return made


@pytest.fixture(scope="session")
def searched_anew(context_of: MakeBench) -> Callable[[str], tuple[MethodContext, SearchResult]]:
    """The same, from the beginning."""

    def made(method: str) -> tuple[MethodContext, SearchResult]:
        ctx = context_of(method, target_sparsity=0.6)
        return ctx, run_method(ctx)

    return made
