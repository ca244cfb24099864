"""The sizes of a Conformer's parts: the architecture of a dense or an extracted model."""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

from core.config.base import ConfigError
from core.config.trial import ModelConfig
from core.features import spec
from core.features.spec import NATIVE, FrontendSpec

FORMAT = 2
"""The version of `shape.json` that is written; 1 is read as well."""
Activation = Literal["relu", "tanh", "sigmoid"]
LARGEST = 65_536
CONTEXT = 2
"""Tokens that a stateless predictor reads: icefall's number."""
DURATIONS = (0, 1, 2, 3, 4)
"""Frames by which TDT advances: NeMo's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockShape:
    """Sizes of one block; 0 for a removed module."""

    ff1: int
    heads: int
    channels: int
    ff2: int
    linear_features: int = 0
    """Random features of attention in linear time; 0 for softmax."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TransducerShape:
    """Sizes of a transducer's predictor and joint."""

    embedding: int
    joint: int
    units: tuple[int, ...] = ()
    """Units of each layer of an LSTM; none for a stateless predictor."""
    context: int = 0
    """Tokens that a stateless predictor reads; 0 for an LSTM."""
    durations: tuple[int, ...] = ()
    """Of TDT, ascending from 0 or 1; none for RNN-T."""
    activation: Activation = "tanh"
    """Of the joint."""

    @classmethod
    def from_plain(cls, values: Any) -> "TransducerShape":
        """Read back what `asdict` gave.

        Raises:
            ValueError: if a size is missing, unknown, not a whole number or out of range.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or set(values) != names:
            raise ValueError(
                f"`transducer.*` must be exactly {', '.join(sorted(names))}, but is {values}."
            )
        lists = {name: values[name] for name in ("units", "durations")}
        for name, sizes in lists.items():
            if not isinstance(sizes, list | tuple):
                raise ValueError(  # noqa: TRY004 - data
                    f"`transducer.{name}` must be a list, but is {sizes!r} instead"
                )
            for size in sizes:
                _check_size(f"transducer.{name}", size, low=int(name == "units"))
        for name, low in (("embedding", 1), ("joint", 1), ("context", 0 if lists["units"] else 1)):
            _check_size(f"transducer.{name}", values[name], low=low)
        durations = lists["durations"]
        if [*durations] != sorted(set(durations)) or (durations and max(durations) < 1):
            raise ValueError(
                f"`transducer.durations` must ascend to 1 or more, but are {durations} instead"
            )
        if values["activation"] not in get_args(Activation):
            raise ValueError(
                f"`transducer.activation` must be one of {', '.join(get_args(Activation))},"
                f" but is {values['activation']!r} instead"
            )
        return cls(**{**values, **{name: tuple(sizes) for name, sizes in lists.items()}})


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Sizes of a whole model."""

    sub1: int
    sub2: int
    """Channels of the front end's first two convolutions; 0 where it has none."""
    width: int
    position_width: int
    """Width of the table of positions: the unpruned width, as the table is not pruned."""
    head_width: int
    kernel: int
    vocabulary: int
    blocks: tuple[BlockShape, ...]
    ranks: Mapping[str, int] = field(default_factory=dict)
    """Ranks of factored linear layers, by name; all others are one matrix."""
    sub3: int = 0
    """Channels of a third convolution, where there is one."""
    frontend_spec: FrontendSpec = NATIVE
    """The features, and the kind of the front end."""
    transducer: TransducerShape | None = None
    has_ctc: bool = True
    """Whether there is a CTC head: alone, or beside a transducer."""

    @classmethod
    def of(cls, config: ModelConfig, vocabulary: int) -> "Shape":
        """Return the unpruned shape of a config.

        Raises:
            ConfigError: if the width cannot be shared by the heads, or the kernel is even.
        """
        size = {
            name: getattr(config, name) if getattr(config, name) is not None else value
            for name, value in _SIZES[config.size].items()
        }
        if size["width"] % size["heads"]:
            raise ConfigError(
                f"`model.width` must be divisible by `model.heads` = {size['heads']},"
                f" but is {size['width']} instead"
            )
        if size["kernel"] % 2 == 0:
            raise ConfigError(f"`model.kernel` must be odd, but is {size['kernel']} instead")
        inner, heads, channels = size["inner"], size["heads"], size["channels"]
        block = BlockShape(ff1=inner, heads=heads, channels=channels, ff2=inner)
        return cls(
            sub1=size["frontend_channels"],
            sub2=size["frontend_channels"],
            width=size["width"],
            position_width=size["width"],
            head_width=size["width"] // heads,
            kernel=size["kernel"],
            vocabulary=vocabulary,
            blocks=(block,) * size["blocks"],
            transducer=None if config.decoder == "ctc" else _new_transducer(config, size["width"]),
            has_ctc=config.decoder == "ctc" or config.auxiliary_ctc,
        )

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> "Shape":
        """Read back what `to_plain` wrote.

        Raises:
            ValueError: if a size is missing, unknown, not a whole number or out of range.
        """
        whole = dict(values)
        blocks, ranks = whole.pop("blocks", None), whole.pop("ranks", {})
        frontend_spec = FrontendSpec.from_plain(whole.pop("frontend", NATIVE.to_plain()))
        decoders = _decoders(whole.pop("transducer", None), whole.pop("has_ctc", True))
        if not isinstance(blocks, list):
            raise ValueError("`blocks` must be a list of sizes, but is not.")  # noqa: TRY004 - data
        checked = tuple(
            BlockShape(**_sizes(block, BlockShape, low=0, name=f"blocks.{i}."))
            for i, block in enumerate(blocks)
        )
        # Channels are 0 where there is no convolution, and only there.
        # Two stages: sub1 and sub2 are at least 1, sub3 must be 0.
        channels = {f"sub{i + 1}": int(i < frontend_spec.stages) for i in range(3)}
        sizes = _sizes(whole, cls, low=1, name="", lows=channels)
        unused = [name for name, low in channels.items() if not low and sizes.get(name)]
        if unused:
            raise ValueError(f"`{unused[0]}` must be 0 where there is no such convolution.")
        shape = cls(**sizes, blocks=checked, frontend_spec=frontend_spec, **decoders)
        return replace(shape, ranks=_ranks(ranks, shape.linears()))

    def to_plain(self) -> dict[str, Any]:
        plain = asdict(self) | {"blocks": [asdict(block) for block in self.blocks]}
        del plain["frontend_spec"]
        plain["frontend"] = self.frontend_spec.to_plain()
        # What a model does not use is left out: it is written as it was before there was any.
        usual = {"ranks": {}, "sub3": 0, "frontend": NATIVE.to_plain()}
        usual |= {"transducer": None, "has_ctc": True}
        return {key: value for key, value in plain.items() if usual.get(key, ...) != value}

    @property
    def frontend_channels(self) -> tuple[int, ...]:
        """Channels of each of the front end's convolutions."""
        return (self.sub1, self.sub2, self.sub3)[: self.frontend_spec.stages]

    @property
    def decoders(self) -> list[str]:
        """Names of the decoders, the one that is judged first."""
        names = []
        if self.transducer is not None:
            names.append("TDT" if self.transducer.durations else "RNN-T")
        return [*names, "CTC"] if self.has_ctc else names

    def linears(self) -> list[str]:
        """Return the names of the linear layers that may be factored, in modules that exist."""
        # Two feed-forward modules with 2 layers each, attention with 5 (4 in linear time), and
        # convolution with 2: `blocks.0.attention.query` and 10 more for a whole block.
        return [
            f"blocks.{i}.{module}.{layer}"
            for i, block in enumerate(self.blocks)
            for module, size, layers in (
                ("ff1", block.ff1, ("up", "down")),
                ("attention", block.heads, _attention_layers(block)),
                ("convolution", block.channels, ("up", "down")),
                ("ff2", block.ff2, ("up", "down")),
            )
            if size
            for layer in layers
        ]


def read_shape(values: Mapping[str, Any]) -> Shape:
    """The shape in the contents of a `shape.json`, of whichever version.

    Raises:
        ValueError: if the version is unknown, or as `Shape.from_plain`.
    """
    plain = dict(values)
    written = plain.pop("format", None)
    if written not in (1, FORMAT):
        raise ValueError(
            f"`shape.json` must be of format 1 or {FORMAT}, but is of {str(written)[:40]} instead;"
            " a newer version of conformer-sweep may read it"
        )
    return Shape.from_plain(upgrade_format_1(plain) if written == 1 else plain)


def upgrade_format_1(values: Mapping[str, Any]) -> dict[str, Any]:
    """The plain values of a shape with today's keys, from those of a `shape.json` of format 1."""
    upgraded = dict(values)
    if "hearing" in upgraded:
        upgraded["frontend"] = spec.upgrade_format_1(upgraded.pop("hearing"))
    return upgraded


def _attention_layers(block: BlockShape) -> tuple[str, ...]:
    """Return the layers that may be factored; in linear time the positions' matrix may not."""
    positions = () if block.linear_features else ("position",)
    # Linear time needs the weights of `position` as one matrix, to multiply them into the queries.
    return ("query", "key", "value", *positions, "output")


def _sizes(
    values: Any, kind: type, *, low: int, name: str, lows: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Check that all sizes are given and in range, and that there are no others.

    Some may have a lowest value of their own. One with a default may be missing: a bundle from
    before it was known lacks it.
    """
    aside = ("blocks", "ranks", "frontend_spec", "transducer", "has_ctc")
    # What is not a plain size is read apart.
    defaults = {field.name: field.default for field in fields(kind) if field.name not in aside}
    needed = {key for key, default in defaults.items() if default is MISSING}
    if not isinstance(values, dict) or not needed <= set(values) <= set(defaults):
        raise ValueError(
            f"`{name}*` must be exactly {', '.join(sorted(defaults))}, but is {values}."
        )
    for key, size in values.items():
        _check_size(f"{name}{key}", size, low=(lows or {}).get(key, low))
    return values


def _new_transducer(config: ModelConfig, width: int) -> TransducerShape:
    """Return the sizes of a transducer that is trained here."""
    size = config.predictor_width or width
    is_lstm = config.predictor == "lstm"
    return TransducerShape(
        embedding=size,
        joint=size,
        units=(size,) if is_lstm else (),
        context=0 if is_lstm else CONTEXT,
        durations=DURATIONS if config.decoder == "tdt" else (),
        activation="relu" if is_lstm else "tanh",
    )


def _decoders(transducer: Any, has_ctc: Any) -> dict[str, Any]:
    """Check which decoders there are."""
    if type(has_ctc) is not bool or not (has_ctc or transducer):
        raise ValueError("`has_ctc` must be true or false, and true without `transducer`.")
    read = None if transducer is None else TransducerShape.from_plain(transducer)
    return {"transducer": read, "has_ctc": has_ctc}


def _ranks(values: Any, linears: list[str]) -> dict[str, int]:
    """Check that ranks name existing layers."""
    if not isinstance(values, dict) or not set(values) <= set(linears):
        raise ValueError(f"`ranks` must name linear layers of the model, but is {values}.")
    for name, rank in values.items():
        _check_size(f"ranks.{name}", rank, low=1)
    return values


def _check_size(name: str, size: Any, *, low: int) -> None:
    # Not `isinstance`: JSON's true is a bool, which Python counts among the integers.
    if type(size) is not int or not low <= size <= LARGEST:
        raise ValueError(
            f"`{name}` must be a whole number from {low} to {LARGEST}, but is {size!r} instead"
        )


_SIZES: dict[str, dict[str, int]] = {
    "tiny": {
        "blocks": 6,
        "width": 96,
        "inner": 384,
        "heads": 4,
        "channels": 96,
        "kernel": 15,
        "frontend_channels": 40,
    },
    "small": {
        "blocks": 12,
        "width": 192,
        "inner": 768,
        "heads": 4,
        "channels": 192,
        "kernel": 31,
        "frontend_channels": 96,
    },
    "medium": {
        "blocks": 16,
        "width": 256,
        "inner": 1024,
        "heads": 4,
        "channels": 256,
        "kernel": 31,
        "frontend_channels": 256,
    },
    "large": {
        "blocks": 17,
        "width": 512,
        "inner": 2048,
        "heads": 8,
        "channels": 512,
        "kernel": 31,
        "frontend_channels": 512,
    },
}
