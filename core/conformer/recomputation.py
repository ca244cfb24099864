"""Blocks that compute their results again for their gradients, instead of keeping them.

Only what enters a block is kept. A step takes a third more time, and the memory of activations no
longer grows with what is inside a block (Chen et al., 2016).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_IS_REPEATED: ContextVar[bool] = ContextVar("is_repeated", default=False)


def is_repeated() -> bool:
    """Whether the forward pass that runs repeats an earlier one, for its gradients."""
    return _IS_REPEATED.get()


def repeated_for_gradients(module: nn.Module) -> Callable[..., Tensor]:
    """Return a module's forward pass, of which only the arguments are kept for the gradients."""
    # The tensors that are here now: under gates, gradients are computed after the model has got its
    # own ones back.
    tensors = {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),  # norms share the width's gates
    }

    def forward(*arguments: Any) -> Tensor:
        result: Tensor = torch.func.functional_call(module, tensors, arguments)
        return result

    def run(*arguments: Any) -> Tensor:
        result: Tensor = checkpoint(
            forward, *arguments, use_reentrant=False, context_fn=_first_and_repeated
        )
        return result

    return run


def _first_and_repeated() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _Repeating()


class _Repeating:
    """A context in which `is_repeated` is true; unlike a generator's, it can be entered again."""

    def __enter__(self) -> None:
        self._token = _IS_REPEATED.set(True)

    def __exit__(self, *error: object) -> None:
        _IS_REPEATED.reset(self._token)
