"""State dicts of `torchaudio.models.Conformer` with a head, in a folder that says what they are.

config.json  model.safetensors or model.pt  tokenizer.model (or tokenizer.json)

    {"model_type": "torchaudio_conformer",
     "conformer": {"input_dim": 80, "num_heads": 4, "ffn_dim": 320, "num_layers": 2,
                   "depthwise_conv_kernel_size": 31},
     "names": {"conformer": "encoder", "head": "head", "input": ""}, "blank": 0,
     "frontend": {"features": "kaldi", "normalization": "none"}}

It has no front end: `input` names a linear layer from 80 mel bins to its width; without one its
width is 80. Its attention knows no positions, so that ours get a matrix of zeros. In padded
batches its convolutions read the padding, which ours never do: both agree on single utterances.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.bundle import Bundle
from core.conformer.shape import BlockShape, Shape
from core.features import spec
from core.features.spec import NATIVE, FrontendSpec
from core.importers.safe_read import (
    LARGEST_WEIGHTS,
    ImportingError,
    read_bytes,
    read_checkpoint,
    read_safetensors,
)
from core.importers.settings import Settings
from core.importers.tokenizer import read_tokens
from core.importers.weights import Plan, assemble_model

BLOCK = {
    "ff1.norm": "ffn1.sequential.0",
    # Of the feed-forward's list: 0 norm, 1 linear, 2 SiLU, 3 dropout, 4 linear.
    "ff1.up": "ffn1.sequential.1",
    "ff1.down": "ffn1.sequential.4",
    "attention.norm": "self_attn_layer_norm",
    "attention.query": "self_attn.query",
    "attention.key": "self_attn.key",
    "attention.value": "self_attn.value",
    "attention.output": "self_attn.out_proj",
    "convolution.norm": "conv_module.layer_norm",
    # 0 pointwise convolution, 1 GLU, 2 depthwise convolution, 3 batch norm, 4 SiLU, 5 pointwise
    # convolution.
    "convolution.up": "conv_module.sequential.0",
    "convolution.depthwise": "conv_module.sequential.2",
    "convolution.batch_norm": "conv_module.sequential.3",
    "convolution.down": "conv_module.sequential.5",
    "ff2.norm": "ffn2.sequential.0",
    "ff2.up": "ffn2.sequential.1",
    "ff2.down": "ffn2.sequential.4",
    "norm": "final_layer_norm",
}
"""Their modules of a block by ours; queries, keys and values are one tensor there."""


def from_torchaudio(folder: Path, settings: Settings) -> Bundle:
    """Read a folder whose `config.json` says that it is one.

    Raises:
        ImportingError: in one line, if it is damaged or a variant that we do not know.
    """
    settings = replace(settings, values=upgrade_format_1(settings.values))
    file = folder / "model.safetensors"
    if file.is_file():
        tensors = read_safetensors(file)
    else:
        file = folder / "model.pt"
        tensors = read_checkpoint(read_bytes(file, largest=LARGEST_WEIGHTS), file.name)
    head = str(settings.get("names.head", "head"))
    missing = [name for leaf in ("weight", "bias") if (name := f"{head}.{leaf}") not in tensors]
    if missing:
        raise ImportingError(
            f"`{file.name}` must have a head named `{head}`, but has no `{missing[0]}`;"
            " `names.head` of `config.json` names it."
        )
    vocabulary = len(tensors[f"{head}.bias"])
    blank = settings.whole("blank", low=0, high=max(vocabulary - 1, 0), default=0)
    plan = _plan(settings, vocabulary, blank)
    tokenizer = read_tokens(folder, vocabulary=vocabulary, blank=blank)
    model = assemble_model(plan, split_state(tensors), file.name)
    origin = {"family": "torchaudio_conformer", "source": folder.name}
    return Bundle(model=model, tokenizer=tokenizer, report={"imported": origin})


def upgrade_format_1(values: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of a `config.json` with today's keys, from one written for version 0.1.

    It named the features in a table `hearing`, which is `frontend` today.
    """
    upgraded = dict(values)
    if "hearing" in upgraded and "frontend" not in upgraded:
        upgraded["frontend"] = spec.upgrade_format_1(upgraded.pop("hearing"))
    return upgraded


def split_state(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """With queries, keys and values each on its own."""
    apart: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        # `self_attn.in_proj_weight` (3 D, D) becomes `self_attn.query.weight`, `.key.weight` and
        # `.value.weight`, each (D, D). Without the mark `rpartition` returns it empty.
        module, mark, leaf = name.rpartition(".in_proj_")
        if mark and tensor.dim() and len(tensor) % 3 == 0:
            thirds = zip(("query", "key", "value"), tensor.chunk(3), strict=False)
            apart |= {f"{module}.{part}.{leaf}": third for part, third in thirds}
        else:
            apart[name] = tensor
    return apart


def _plan(settings: Settings, vocabulary: int, blank: int) -> Plan:
    settings.one_of("conformer.use_group_norm", (False,))
    settings.one_of("conformer.convolution_first", (False,))
    width = settings.whole("conformer.input_dim")
    heads, inner = settings.whole("conformer.num_heads"), settings.whole("conformer.ffn_dim")
    kernel = settings.whole("conformer.depthwise_conv_kernel_size")
    if width % heads or kernel % 2 == 0:
        rule = f"divisible by num_heads = {heads}, and its kernel odd"
        raise settings.wrong("conformer.input_dim", rule, width)
    block = BlockShape(ff1=inner, heads=heads, channels=width, ff2=inner)
    names, made = _names(settings), _without_positions()
    if "frontend.linear" not in names:
        if width != NATIVE.mels:
            raise settings.wrong("conformer.input_dim", "80 without `names.input`", width)
        # The identity: features go to the first block as they are. `made` tensors are expanded to
        # the shape that the model has, so one zero is a whole bias.
        made |= {
            "frontend.linear.weight": torch.eye(NATIVE.mels),
            "frontend.linear.bias": torch.zeros(1),
        }
    shape = Shape(
        sub1=0,
        sub2=0,
        width=width,
        position_width=width,
        head_width=width // heads,
        kernel=kernel,
        vocabulary=vocabulary,
        blocks=(block,) * settings.whole("conformer.num_layers", high=512),
        frontend_spec=_frontend_spec(settings),
    )
    return Plan(shape=shape, names=names, blank=blank, made=made)


def _frontend_spec(settings: Settings) -> FrontendSpec:
    """Whatever features it was trained on; Kaldi's are never normalised."""
    features = settings.one_of("frontend.features", ("kaldi", "nemo"))
    allowed = ("none",) if features == "kaldi" else ("none", "per_feature")
    return FrontendSpec(
        features=features,
        normalization=settings.one_of("frontend.normalization", allowed),
        subsampling_kind="linear",
        stages=0,
    )


def _names(settings: Settings) -> dict[str, str]:
    prefix = str(settings.get("names.conformer", "") or "")
    prefix = f"{prefix}." if prefix else ""
    names = {
        f"blocks.{{}}.{ours}": f"{prefix}conformer_layers.{{}}.{name}"
        for ours, name in BLOCK.items()
    }
    names["head"] = str(settings.get("names.head", "head"))
    if settings.get("names.input"):
        names["frontend.linear"] = str(settings.get("names.input"))
    return names


def _without_positions() -> dict[str, Tensor]:
    # Scores are (q + content bias) k + (q + position bias) p, where p are projected positions. With
    # both biases and the projection at 0, q k is left: attention without positions.
    parts = ("position.weight", "content_bias", "position_bias")
    return {f"blocks.{{}}.attention.{part}": torch.zeros(1) for part in parts}
