"""A GPU that is not there: steps run on fake tensors, and what would wait for a GPU is counted.

Tensors on the host are real, and so is what is computed of them alone. Those on `cuda` have a
shape, a type and a device, but no numbers. An operator that mixes devices raises torch's error. One
whose result the host would have to read is counted as a wait, with its line in core/, and so is a
copy that blocks: every one from the device, and one to it without `non_blocking`.

torch's engine for gradients asks for the GPU itself, so here a plain one takes its place. What
cannot be known without a GPU: what CUDA's own kernels copy inside, as that of CTC's loss does.
"""

import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.autograd.graph import Node
from torch.backends import cudnn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from core.step_memory import RULES

GPU = torch.device("cuda")
FOLDER = "core/"
ATEN = torch.ops.aten
COPIES = (ATEN._to_copy.default, ATEN.copy_.default)  # noqa: SLF001 - operators have such names


class WaitCounter(TorchDispatchMode):
    """Counts waits by the line of core/ that asks; host and device are told apart."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.places: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        if not any(is_on_device(leaf) for leaf in tree_leaves((args, kwargs))):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if func in SHAPES:
            return SHAPES[func](*args, **kwargs)
        if func in COPIES and is_blocking(func, args, kwargs):
            self.places.update([innermost_place()])
        try:
            return func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            self.places.update([innermost_place()])
            return invented(func, args)


def is_on_device(leaf: Any) -> bool:
    return isinstance(leaf, FakeTensor) or (isinstance(leaf, torch.device) and leaf.type == "cuda")


def is_blocking(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether the host waits for a copy between it and the device."""
    if func is ATEN.copy_.default:
        target, source = args[0].device, args[1].device
        non_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
    else:
        source = args[0].device
        target = kwargs.get("device") or source
        non_blocking = kwargs.get("non_blocking", False)
    if source.type == target.type:
        return False
    return not non_blocking or target.type == "cpu"


def invented(func: Any, args: Sequence[Any]) -> Any:
    """Return a result that nobody can know, so that a step goes on after a wait.

    Raises:
        NotImplementedError: of an operator for which none is given here.
    """
    if func is ATEN._local_scalar_dense.default:  # noqa: SLF001 - the operator of `item`
        return False if args[0].dtype is torch.bool else 1
    if func is ATEN.nonzero.default:
        x = args[0]
        return x.new_empty((x.numel(), x.dim()), dtype=torch.int64)
    if func is ATEN.index.Tensor:
        x, index = args[0], args[1][0]
        return x.new_empty((index.numel(), *x.shape[index.dim() :]))
    raise NotImplementedError(f"A wait in {innermost_place()}, whose result is unknown: {func}")


SHAPES: Mapping[Any, Callable[..., Any]] = {
    ATEN._use_cudnn_ctc_loss.default: lambda *_: False,  # noqa: SLF001 - an operator's name
    ATEN._use_miopen_ctc_loss.default: lambda *_: False,  # noqa: SLF001 - an operator's name
    **RULES,
}
"""Results of operators for which torch has no rule of shapes."""


def innermost_place() -> str:
    """The line of core/ that runs, such as `core/conformer/norm.py:61`, or `outside core`."""
    frame: Any = sys._getframe()  # noqa: SLF001 - cheaper than a traceback
    while frame is not None:
        _, found, rest = frame.f_code.co_filename.rpartition(f"/{FOLDER}")
        if found:
            return f"{FOLDER}{rest}:{frame.f_lineno}"
        frame = frame.f_back
    return "outside core"


@contextmanager
def fake_gpu() -> Iterator[WaitCounter]:
    """Let tensors of `cuda` be fake, and count what would wait for the GPU."""
    with (
        warnings.catch_warnings(),
        patch("torch.autograd.backward", backward),
        patch("torch.autograd.grad", grad),
        cudnn.flags(enabled=False),  # which asks the GPU what it can do
        FakeTensorMode(allow_non_fake_inputs=True),
        WaitCounter() as counter,
    ):
        # Copies of modules ask each tensor where its numbers lie.
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        yield counter


def backward(tensors: Any, grad_tensors: Any = None, *_: Any, **__: Any) -> None:
    """Add up gradients in the `grad` of all leaves, as torch's function of this name does."""
    roots = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    given = grad_tensors if isinstance(grad_tensors, list | tuple) else [grad_tensors] * len(roots)
    for leaf, gradient in gradients(roots, given).items():
        leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient


def grad(outputs: Any, inputs: Any, *_: Any, **__: Any) -> tuple[Tensor, ...]:
    """Return gradients of leaves, as torch's function of this name does; 0 where there is none."""
    roots = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    leaves = gradients(roots, [None] * len(roots))
    return tuple(leaves.get(leaf, torch.zeros_like(leaf)) for leaf in inputs)


@torch.no_grad()
def gradients(roots: Sequence[Tensor], given: Sequence[Tensor | None]) -> dict[Tensor, Tensor]:
    """Return the gradient of each leaf: each node is called once all that read it have been."""
    incoming: dict[Node, dict[int, Tensor]] = defaultdict(dict)

    def add(node: Node, number: int, gradient: Tensor) -> None:
        metadata = node._input_metadata[number]  # noqa: SLF001 - where torch keeps shapes
        gradient = gradient.sum_to_size(metadata.shape).to(metadata.dtype)
        slots = incoming[node]
        slots[number] = slots[number] + gradient if number in slots else gradient

    starts = [root.grad_fn for root in roots if root.grad_fn is not None]
    for root, start, gradient in zip(roots, starts, given, strict=True):
        add(start, root.output_nr, torch.ones_like(root) if gradient is None else gradient)
    leaves: dict[Tensor, Tensor] = {}
    for node in readers_first(starts):
        slots = incoming.pop(node, None)
        if slots is None:
            continue
        if hasattr(node, "variable"):
            leaves[node.variable] = slots[0]
            continue
        count = len(node._input_metadata)  # noqa: SLF001 - where torch keeps shapes
        call: Any = node.apply if hasattr(node, "apply") else node
        given_back = call(*(slots.get(i) for i in range(count)))
        given_back = given_back if isinstance(given_back, tuple) else (given_back,)
        for (reader, number), gradient in zip(node.next_functions, given_back, strict=False):
            if reader is not None and gradient is not None:
                add(reader, number, gradient)
    return leaves


def readers_first(starts: Sequence[Node]) -> list[Node]:
    """Return all nodes below some, each after all nodes that pass gradients to it."""
    order: list[Node] = []
    seen: set[Node] = set()
    stack = [(node, False) for node in starts]
    while stack:
        node, is_done = stack.pop()
        if is_done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(n, False) for n, _ in node.next_functions if n is not None]
    return order[::-1]
