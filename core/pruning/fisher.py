"""Fisher information of a model's output distribution, with respect to tensors inside the model.

F is the mean of g g^T, g being the gradient of -log p(label) with respect to a tensor's rows, of a
label that is drawn from the model's own distribution at each frame. No transcript is read.

Shapes: B batch, T frames, N rows, O outputs of a module.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from core.conformer.model import Conformer
from core.environment import return_freed_memory
from core.pruning.calibration import Calibration, split_batches
from core.pruning.least_squares import gram, with_ones

MOST_ACTIVATIONS = 1e8
"""Numbers that one backward pass may hold: those of 7 s of a model of 0.6 B parameters."""
ACTIVATIONS_PER_ENTRY = 48
"""Numbers that are held for each frame, block and entry of the width, about."""
Watch = Callable[[], AbstractContextManager[list[Tensor]]]
"""Inside the context a forward pass adds tensors to the list."""


@dataclass(kw_only=True, slots=True)
class ReaderSums:
    """Of a layer's inputs x and their gradients g: sums over real frames."""

    gram: Float[Tensor, "inputs1 inputs1"]
    """Of x x^T, with a last input of ones, in double precision: it is inverted."""
    products: Float[Tensor, "inputs1 inputs1"]
    """Of g g^T, in the gradients' own precision: it is only multiplied. What belongs to the ones is
    left 0."""

    @classmethod
    def zeros(cls, size: int, dtype: torch.dtype) -> "ReaderSums":
        return cls(
            gram=torch.zeros(size, size, dtype=torch.float64),
            products=torch.zeros(size, size, dtype=dtype),
        )

    def add(
        self, x: Float[Tensor, "frames inputs"], gradient: Float[Tensor, "frames inputs"]
    ) -> None:
        """Add the frames of a batch."""
        self.gram += gram(with_ones(x.double())).cpu()
        self.products[:-1, :-1] += (gradient.T @ gradient).cpu()


@dataclass(kw_only=True, slots=True)
class FisherSums:
    """What one pass over the speech, forward and backward, tells of some modules."""

    outputs: dict[str, Float[Tensor, "_ _"]]
    """Sum of g g^T over each module's output rows, by its name."""
    readers: list[ReaderSums]
    """Of each norm's outputs, which some layers read."""
    count: int
    """Number of distributions, one a frame for CTC."""


def fisher_sums(
    model: Conformer,
    speech: Calibration,
    *,
    modules: Sequence[str] = (),
    norms: Sequence[nn.Module] = (),
    seed: int,
) -> FisherSums:
    """Return the sums of gradients' products, on the CPU, of all that is asked for at once.

    Args:
        model: evaluated as it is; its gradients are not touched.
        speech: calibration speech, walked through once.
        modules: names of linear layers and convolutions, for the Fisher information of what they
            give.
        norms: modules whose outputs are read by others, for that of what these read.
        seed: of the labels, which are drawn from the model's own distribution.
    """
    watched = [*(model.get_submodule(name) for name in modules), *norms]
    dtype = model.frontend.linear.weight.dtype
    readers = [ReaderSums.zeros(model.shape.width + 1, dtype) for _ in norms]
    sums, split = FisherSums(outputs={}, readers=readers, count=0), len(modules)
    batches = label_gradients(model, speech, lambda: watch_outputs(watched), seed=seed)
    for outputs, gradients, is_frame, count in batches:
        sums.count += count
        for name, gradient in zip(modules, gradients[:split], strict=True):
            rows = _rows(model.get_submodule(name), gradient)
            product = (rows.T @ rows).cpu()
            # In place: a hundred new matrices a batch would leave holes in memory.
            sums.outputs.setdefault(name, torch.zeros_like(product)).add_(product)
        for reader, x, gradient in zip(readers, outputs[split:], gradients[split:], strict=True):
            reader.add(x.detach()[is_frame], gradient[is_frame])
    return sums


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
    return last.reshape(-1, last.shape[-1])
