"""Small models, masks and speech that tests and benchmarks share."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from core.config.trial import RuntimeConfig, TrialConfig
from core.conformer.axes import Axis
from core.conformer.model import Conformer
from core.conformer.norm import BatchNorm
from core.conformer.shape import BlockShape, Shape, TransducerShape
from core.data.batching import Batch
from core.distributed import join_ranks
from core.features.spec import NATIVE, FrontendSpec
from core.pruning.latency_table import Component, Grid, LatencyTable, monotone
from core.runtime import TrialDirs
from core.training.intermediate_ctc import InterCTC
from core.training.loop import DenseStage, Rates
from core.training.method import MethodContext, SearchResult, load_method
from core.trial import run

MaskKind = Literal[
    "open", "binary", "soft", "empty_axes", "empty_modules", "all_modules_empty", "empty_blocks"
]
MASK_KINDS: tuple[MaskKind, ...] = (
    "open",
    "binary",
    "soft",
    "empty_axes",
    "empty_modules",
    "all_modules_empty",
    "empty_blocks",
)

SHAPE = Shape(
    sub1=6,
    sub2=5,
    width=16,
    position_width=16,
    head_width=4,
    kernel=5,
    vocabulary=7,
    blocks=(
        BlockShape(ff1=12, heads=3, channels=10, ff2=9),
        BlockShape(ff1=8, heads=2, channels=6, ff2=11),
    ),
)


FRONTEND_SPECS = {
    "conv4": NATIVE,
    "striding": FrontendSpec(features="nemo", subsampling_kind="striding"),
    "striding 8x": FrontendSpec(features="nemo", subsampling_kind="striding", stages=3),
    "dw_striding": FrontendSpec(features="nemo", subsampling_kind="dw_striding"),
    "dw_striding 8x": FrontendSpec(
        features="nemo", normalization="per_feature", subsampling_kind="dw_striding", stages=3
    ),
    "linear": FrontendSpec(subsampling_kind="linear", stages=0),
}
"""Every kind of front end."""


def with_frontend(shape: Shape, kind: str) -> Shape:
    """The shape with another front end."""
    frontend_spec = FRONTEND_SPECS[kind]
    sub1, sub2, sub3 = (size if i < frontend_spec.stages else 0 for i, size in enumerate((6, 5, 7)))
    return replace(shape, frontend_spec=frontend_spec, sub1=sub1, sub2=sub2, sub3=sub3)


TRANSDUCERS = {
    "stateless rnnt": TransducerShape(embedding=9, context=2, joint=11),
    "lstm rnnt": TransducerShape(embedding=9, units=(10, 8), joint=11, activation="relu"),
    "stateless tdt": TransducerShape(embedding=9, context=3, joint=11, durations=(0, 1, 2)),
    "lstm tdt": TransducerShape(
        embedding=9, units=(10,), joint=11, durations=(0, 1, 2, 3, 4), activation="sigmoid"
    ),
}
"""Every kind of predictor and of lattice."""


def with_transducer(shape: Shape, kind: str, *, has_ctc: bool = False) -> Shape:
    """The shape with a transducer, in place of its CTC head or beside it."""
    return replace(shape, transducer=TRANSDUCERS[kind], has_ctc=has_ctc)


TOY = Shape(
    sub1=12,
    sub2=12,
    width=48,
    position_width=48,
    head_width=12,
    kernel=7,
    vocabulary=12,
    blocks=(BlockShape(ff1=96, heads=4, channels=48, ff2=96),) * 3,
)
"""Of the task that `patterned` speech sets, which is learned in seconds."""


def small_model(seed: int = 0, *, shape: Shape = SHAPE) -> Conformer:
    """A model whose every parameter and statistic is away from its start, so that none hides."""
    torch.manual_seed(seed)
    model = Conformer(shape)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, BatchNorm):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
        model.frontend.mean.normal_()
        model.frontend.deviation.uniform_(0.5, 2.0)
        # A channel that is never above 0 has no effect.
        for stage in model.frontend.stages[1:] if shape.frontend_spec.is_padded else ():
            bias = (stage if isinstance(stage, nn.Conv2d) else stage.pointwise).bias
            assert bias is not None
            bias.add_(1.0)
    return model.eval()


def deeper(blocks: int, *, linear_features: int = 0) -> Shape:
    """The small shape with more blocks, sizes alternating.

    With features, attention of every other block from the first runs by them in linear time.
    """
    kinds = (replace(SHAPE.blocks[0], linear_features=linear_features), SHAPE.blocks[1])
    return replace(SHAPE, blocks=tuple(kinds[i % 2] for i in range(blocks)))


def with_factors(shape: Shape) -> Shape:
    """Every other linear layer as two factors, of few and of very many directions in turn."""
    return replace(
        shape, ranks={name: 3 + 6 * (i % 3) for i, name in enumerate(shape.linears()[::2])}
    )


def ragged_speech(
    *lengths: int, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[Float[Tensor, "batch mel_frames mels"], Int[Tensor, " batch"]]:
    """Noise of these mel frames, as loud beyond an utterance's end as before."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(len(lengths), max(lengths), 80, generator=generator, dtype=dtype)
    return features, torch.tensor(lengths)


def noise_with_tokens(*transcripts: Sequence[int], seed: int = 0) -> Batch:
    """Three utterances of noise that are said to be these tokens."""
    transcripts = transcripts or ([1, 2, 3], [2, 4], [5])
    features, num_frames = ragged_speech(90, 80, 60, seed=seed)
    return Batch(
        features=features,
        num_frames=num_frames,
        tokens=pad_sequence([torch.tensor(tokens) for tokens in transcripts], batch_first=True),
        num_tokens=torch.tensor([len(tokens) for tokens in transcripts]),
        seconds=2.3,
        ids=("a", "b", "c"),
        texts=("", "", ""),
        indices=(0, 1, 2),
    )


def make_patterned_speech(count: int, *, seed: int, tokens: range | None = None) -> Batch:
    """Made-up speech: each token is a pattern of its own that lasts a while, in noise.

    Of all of the toy's tokens, or of some.
    """
    spoken = tokens or range(1, TOY.vocabulary)
    generator = torch.Generator().manual_seed(seed)
    # The same patterns for every seed, as they are the language; a seed chooses sentences and
    # noise.
    patterns = torch.randn(TOY.vocabulary, 80, generator=torch.Generator().manual_seed(0))
    patterns[0] = 0.0  # silence
    transcripts, features = [], []
    for _ in range(count):
        length = int(torch.randint(3, 7, (1,), generator=generator))
        words = torch.randint(spoken.start, spoken.stop, (length,), generator=generator)
        lasts = torch.randint(12, 24, (2 * length + 1,), generator=generator)
        # Silence and words in turns: 2 n + 1 stretches, the even ones silent and half as long.
        lasts[::2] //= 2
        sequence = torch.zeros(2 * length + 1, dtype=torch.long)
        sequence[1::2] = words
        clean = patterns[sequence.repeat_interleave(lasts)]
        features.append(clean + 0.8 * torch.randn(clean.shape, generator=generator))
        transcripts.append(words)
    return Batch(
        features=pad_sequence(features, batch_first=True),
        num_frames=torch.tensor([len(item) for item in features]),
        tokens=pad_sequence(transcripts, batch_first=True),
        num_tokens=torch.tensor([len(item) for item in transcripts]),
        seconds=sum(len(item) for item in features) / 100,
        ids=tuple(map(str, range(count))),
        texts=("",) * count,
        indices=tuple(range(count)),
    )


def train_toy(steps: int = 150, interctc: InterCTC | None = None) -> Conformer:
    """A model that has learned patterned speech."""
    torch.manual_seed(0)
    model = Conformer(TOY)
    rates = Rates(peak=4e-3, warmup_share=0.2, weight_decay=1e-2, clip=5.0)
    runtime = RuntimeConfig()
    stage = DenseStage(
        model,
        stage="teacher",
        steps=steps,
        rates=rates,
        evaluator=None,
        runtime=runtime,
        interctc=interctc,
    )
    for step in range(steps):
        stage.step(make_patterned_speech(16, seed=1000 + step), step)
    return model.eval()


def run_method(ctx: MethodContext) -> SearchResult:
    """Runs a method as a trial does: its search, if it has one, then its result."""
    method = load_method(ctx.config.pruning.method)
    limited = ctx.restricted_to(method.needs)
    stage = method.search(limited)
    if stage is not None:
        for step in range(stage.steps):
            stage.step(make_patterned_speech(12, seed=100 + step), step)
    return method.search_result(limited, stage)


def run_as_rank(config: TrialConfig, dirs: TrialDirs, rank: int, size: int, store: str) -> int:
    """A further rank of a trial, in a process of its own; returns how often it reported.

    Args:
        config: the trial's.
        dirs: the trial's folders.
        rank: number of this rank, from 1.
        size: number of ranks, the first one included.
        store: `host:port` of the first rank's store.
    """
    torch.set_num_threads(1)
    with join_ranks(rank=rank, size=size, store=store, device=torch.device("cpu")) as ranks:
        return sum(1 for _ in run(config, dirs, ranks))


def random_mask(axes: Sequence[Axis], kind: MaskKind, seed: int = 0) -> dict[str, Tensor]:
    """Gates of one kind for all axes; floors are kept."""
    generator = torch.Generator().manual_seed(seed)
    mask = {axis.name: _gates(axis, kind, generator) for axis in axes}
    modules = [axis.name for axis in axes if axis.kind == "module"]
    blocks = [axis.name for axis in axes if axis.kind == "block"]
    closed = {
        "empty_modules": modules[::3],
        "all_modules_empty": modules,
        "empty_blocks": blocks[::2],
    }.get(kind, [])
    for name in closed:
        mask[name] = torch.zeros(1)
    if kind == "empty_axes":
        inside = [axis for axis in axes if axis.parent is not None and not axis.is_whole]
        for axis in inside[::2]:
            mask[axis.name] = torch.zeros(axis.size)
    return mask


def _gates(axis: Axis, kind: MaskKind, generator: torch.Generator) -> Tensor:
    if kind == "open" or (axis.is_whole and kind != "soft"):
        return torch.ones(axis.size)
    is_open = torch.rand(axis.size, generator=generator) < 0.6
    # The first units stay open: an axis with a floor would be refused, and one without would close
    # its module.
    is_open[: max(axis.floor, 1)] = True
    if kind != "soft":
        return is_open.float()
    return is_open * torch.rand(axis.size, generator=generator).clamp(min=0.05)


def make_latency_table(shape: Shape, seconds: float, *, seed: int = 0) -> LatencyTable:
    """Times up to a shape that rise as measured ones do: an overhead, a bend, and noise."""
    rng = np.random.default_rng(seed)
    largest: dict[Component, tuple[int, int]] = {
        "frontend": (shape.sub2, shape.sub1),
        "projection": (shape.sub2, shape.width),
        "feedforward": (max(max(b.ff1, b.ff2) for b in shape.blocks), shape.width),
        "attention": (max(b.heads for b in shape.blocks), shape.width),
        "convolution": (max(b.channels for b in shape.blocks), shape.width),
        "norm": (1, shape.width),
        "output": (1, shape.width),
    }

    def grid(part: Component) -> Grid:
        rows, columns = (
            sorted({max(1, round(share * size)) for share in (0.125, 0.25, 0.5, 1.0)})
            for size in largest[part]
        )
        share = np.outer(rows, columns) / (rows[-1] * columns[-1])
        times = 0.1 + share**0.9 + 0.05 * rng.random(share.shape)
        return Grid(units=rows, width=columns, ms=monotone(times))

    parts = {part: grid(part) for part in largest}
    return LatencyTable(utterance_seconds=seconds, device="cpu", threads=1, parts=parts)
