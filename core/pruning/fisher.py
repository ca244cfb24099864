"""Fisher information of a model's output distribution, with respect to tensors inside the model.

F is the mean of g g^T, g being the gradient of -log p(label) with respect to a tensor's rows, of a
label that is drawn from the model's own distribution at each frame. No transcript is read.

Shapes: B batch, T frames, N rows, O outputs of a module.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from core.conformer.model import Conformer
from core.environment import return_freed_memory
from core.pruning.calibration import Calibration, gram, split_batches

MOST_ACTIVATIONS = 1.5e8
"""Numbers that one backward pass may hold: those of 10 s of a model of 0.6 B parameters."""
ACTIVATIONS_PER_ENTRY = 48
"""Numbers that are held for each frame, block and entry of the width, about."""
Watch = Callable[[], AbstractContextManager[list[Tensor]]]
"""Inside the context a forward pass adds tensors to the list."""


def output_fisher(
    model: Conformer, modules: Sequence[str], speech: Calibration, *, seed: int
) -> tuple[dict[str, Float[Tensor, "_ _"]], int]:
    """Return the sum of g g^T over each module's output rows, and the number of distributions.

    Args:
        model: evaluated as it is.
        modules: names of linear layers and convolutions.
        speech: calibration speech.
        seed: of the labels, which are drawn from the model's own distribution.
    """
    watched = [model.get_submodule(name) for name in modules]
    sums: dict[str, Tensor] = {}
    total = 0
    for _, gradients, _, count in label_gradients(
        model, speech, lambda: watch_outputs(watched), seed=seed
    ):
        total += count
        for name, module, gradient in zip(modules, watched, gradients, strict=True):
            rows = _rows(module, gradient)
            sums[name] = sums.get(name, 0) + gram(rows)
    return sums, total


def label_gradients(
    model: Conformer, speech: Calibration, watch: Watch, *, seed: int
) -> Iterator[tuple[list[Tensor], tuple[Tensor, ...], Bool[Tensor, "batch time"], int]]:
    """Yield watched tensors, gradients of -log p(label), real frames, and the number of labels.

    Args:
        model: evaluated as it is.
        speech: calibration speech, in parts that a backward pass can hold.
        watch: collects tensors of a forward pass.
        seed: of the labels.
    """
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    entries = ACTIVATIONS_PER_ENTRY * model.shape.width * max(1, len(model.blocks))
    # The front end makes of 4 or 8 mel frames one.
    most_frames = round(8 * MOST_ACTIVATIONS / entries)
    for features, lengths in split_batches(speech, most_frames=most_frames):
        places = model.best_places(features, lengths)
        with torch.enable_grad(), watch() as tensors:
            output = model(features.detach().requires_grad_(), lengths, places=places)
            log_probs = output.log_probs()
            # Of tokens, and of a transducer's durations: one label of each.
            kinds = log_probs.split([model.vocabulary, log_probs.shape[1] - model.vocabulary], 1)
            drawn = [_drawn(kind, generator) for kind in kinds if kind.shape[1]]
            loss = -torch.stack(drawn).sum()
            gradients = torch.autograd.grad(
                loss, tensors, allow_unused=True, materialize_grads=True
            )
        yield tensors, gradients, output.is_frame, len(log_probs)
        return_freed_memory()


def _drawn(
    log_probs: Float[Tensor, "distributions labels"], generator: torch.Generator
) -> Float[Tensor, ""]:
    """Return the sum of the log-probabilities of labels that are drawn from the distributions."""
    labels = torch.multinomial(log_probs.detach().exp().cpu(), 1, generator=generator)
    return log_probs.gather(1, labels.to(log_probs.device)).sum()


@contextmanager
def watch_outputs(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collect the outputs of modules in the order of the list, which may not be that of the run."""
    outputs: list[Tensor] = [torch.empty(0)] * len(modules)

    def watch(number: int, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            del module, inputs
            outputs[number] = output

        return module.register_forward_hook(hook)

    handles = [watch(number, module) for number, module in enumerate(modules)]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _rows(module: nn.Module, gradient: Float[Tensor, "batch ..."]) -> Float[Tensor, "rows outputs"]:
    """Return gradients with outputs last; a convolution's image has its channels second."""
    # A pointwise layer reads an image, too, but with channels last: (B, S, G, C).
    is_convolution = isinstance(module, nn.Conv2d)
    last = gradient.permute(0, 2, 3, 1) if is_convolution else gradient
    return last.reshape(-1, last.shape[-1]).double()
