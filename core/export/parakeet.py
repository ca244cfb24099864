"""Export to the folder that transformers' Parakeet classes and their processor load.

They have one size for all blocks, and the residual width for channels and for the table of
positions; `ParakeetForRNNT` and `ParakeetForTDT` have one more for the embedding, all layers of the
LSTM and the joint. Models with smaller sizes are padded with zeros. Of a hybrid the transducer
leaves.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from core.conformer.model import Conformer
from core.conformer.shape import BlockShape, Shape, TransducerShape
from core.data.tokenizer import FILE_NAME, Tokenizer
from core.decoders.greedy import MOST_SYMBOLS
from core.export.onnx.transducer import check_durations
from core.export.padding import pad_to_shape
from core.export.tokenizer_json import blank_name, fast_tokenizer
from core.features.spec import FrontendSpec
from core.importers.parakeet import CONFIG, WEIGHTS, names_of
from core.importers.tokenizer import FAST
from core.importers.weights import OURS_ALONE, source_tensor_name
from core.inference.graph_interface import ExportError

EXTRACTOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
TOKENS_CONFIG, GENERATION = "tokenizer_config.json", "generation_config.json"
_SUPPORTED_SPEC = {
    "subsampling_kind": "dw_striding",
    "features": "nemo",
    "normalization": "per_feature",
    "window": "hann",
}
"""The only features and front end that its processor and its encoder support."""
ELSEWHERE = "`--to onnx` exports it unchanged."
_POINTWISE = ("pointwise_conv1", "pointwise_conv2", "ctc_head")
"""Layers that are convolutions of kernel size 1 there."""
_BLANK_MOVES = ("ctc_head", "head", "embedding")
"""Layers with a row a token: their blank comes last. A head has rows of durations behind it."""


def class_name(shape: Shape) -> str:
    """Return the class of transformers that loads a model."""
    return {"ctc": "ParakeetForCTC", "rnnt": "ParakeetForRNNT", "tdt": "ParakeetForTDT"}[
        _kind(shape)
    ]


def _kind(shape: Shape) -> str:
    if shape.transducer is None:
        return "ctc"
    return "tdt" if shape.transducer.durations else "rnnt"


# Sizes are at least 1, also if no inner unit or head is left: that one is of zeros.
def parakeet_shape(model: Conformer) -> Shape:
    """Return the smallest shape of such a class that a model fits into.

    Raises:
        ExportError: if there is none, with a way to make a model that fits.
    """
    shape = model.shape
    _check_rules(model)
    inner = max([1, *(size for block in shape.blocks for size in (block.ff1, block.ff2))])
    heads = max([1, *(block.heads for block in shape.blocks)])
    block = BlockShape(ff1=inner, heads=heads, channels=shape.width, ff2=inner)
    channels = max(shape.frontend_channels)
    return replace(
        shape,
        sub1=channels,
        sub2=channels,
        sub3=channels if shape.frontend_spec.stages == 3 else 0,
        blocks=(block,) * len(shape.blocks),
        ranks={},
        transducer=None if shape.transducer is None else _one_size(shape.transducer),
        has_ctc=shape.transducer is None,
    )


def _one_size(shape: TransducerShape) -> TransducerShape:
    largest = max(shape.embedding, shape.joint, *shape.units)
    units = (largest,) * len(shape.units)
    return replace(shape, embedding=largest, joint=largest, units=units)


# The first broken rule alone is raised, as an error is one line.
def _check_rules(model: Conformer) -> None:
    for rule in _broken_rules(model):
        raise ExportError(rule)


def _broken_rules(model: Conformer) -> Iterator[str]:
    """Yield an error for each rule of such a class that a model breaks."""
    yield from _broken_decoder_rules(model)
    shape, elsewhere = model.shape, ELSEWHERE
    for name, expected in _SUPPORTED_SPEC.items():
        value = getattr(shape.frontend_spec, name)
        if value != expected:
            yield (
                f"`frontend.{name}` of a model for transformers must be {expected}, as imported"
                f" FastConformers have it, but is {value} instead; {elsewhere}"
            )
    if bool((model.frontend.mean != 0).any() | (model.frontend.deviation != 1).any()):
        yield (
            "The features of a model for transformers must not be normalized by the model, but this"
            f" one has a mean and a deviation of its own; {elsewhere}"
        )
    if shape.width != shape.position_width or shape.width % 2:
        yield (
            f"The residual width of a model for transformers must be even and that of its table of"
            f" positions, {shape.position_width}, but is {shape.width} instead; a sweep whose"
            f" `pruning.axes` lack `width` keeps it, and {elsewhere}"
        )
    for i, block in enumerate(shape.blocks):
        if block.channels > shape.width:
            yield (
                f"`blocks.{i}` of a model for transformers must have at most {shape.width} channels"
                f" of convolution, its residual width, but has {block.channels} instead;"
                f" {elsewhere}"
            )
        if block.linear_features:
            yield (
                f"`blocks.{i}` of a model for transformers must have softmax attention, but has"
                f" attention in linear time by {block.linear_features} features instead (the method"
                f" `performer`); {elsewhere}"
            )


def _broken_decoder_rules(model: Conformer) -> Iterator[str]:
    if model.transducer is None or model.shape.transducer is None:
        return
    check_durations(model.transducer)
    if not model.shape.transducer.units:
        yield (
            "The predictor of a transducer for transformers must be an LSTM, but this one reads its"
            f" last {model.shape.transducer.context} tokens instead; {ELSEWHERE}"
        )


def count_added(model: Conformer) -> int:
    """Return the number of parameters that padding to that shape adds."""
    with torch.device("meta"):
        # On the device `meta` a model has shapes alone, so counting takes no memory.
        whole = Conformer(parakeet_shape(model))
    left_out = () if whole.head is not None or model.head is None else model.head.parameters()
    return (
        sum(p.numel() for p in whole.parameters())
        + sum(p.numel() for p in left_out)
        - sum(p.numel() for p in model.parameters())
    )


def write_parakeet(model: Conformer, tokenizer: Tokenizer, folder: Path) -> None:
    """Write all files that transformers loads.

    Raises:
        ExportError: if the model or its tokenizer cannot be expressed in transformers.
    """
    shape = parakeet_shape(model)
    blank = blank_name(tokenizer)
    tokens = fast_tokenizer(tokenizer, blank)
    extractor = _extractor(shape.frontend_spec)
    for name, contents in {
        CONFIG: _config(shape),
        EXTRACTOR: extractor,
        PROCESSOR: _processor(extractor, _kind(shape), blank),
        FAST: tokens,
        TOKENS_CONFIG: {
            "tokenizer_class": "ParakeetTokenizer",
            "processor_class": "ParakeetProcessor",
            "pad_token": blank,
        },
        **_generation(shape),
    }.items():
        (folder / name).write_text(
            json.dumps(contents, indent=1, ensure_ascii=False), encoding="utf-8"
        )
    (folder / FILE_NAME).write_bytes(tokenizer.without_blank())
    save_file(_tensors(pad_to_shape(model, shape)), folder / WEIGHTS, metadata={"format": "pt"})


def _config(shape: Shape) -> dict[str, Any]:
    # All blocks have one size here; a model without blocks states sizes of 1, which nothing uses.
    block = shape.blocks[0] if shape.blocks else BlockShape(ff1=1, heads=1, channels=1, ff2=1)
    return {
        "architectures": [class_name(shape)],
        "model_type": f"parakeet_{_kind(shape)}",
        "dtype": "float32",
        "vocab_size": shape.vocabulary,
        "pad_token_id": shape.vocabulary - 1,
        **_decoder_config(shape),
        "encoder_config": {
            "model_type": "parakeet_encoder",
            "hidden_size": shape.width,
            "num_hidden_layers": len(shape.blocks),
            "num_attention_heads": block.heads,
            "num_key_value_heads": block.heads,
            "head_dim": shape.head_width,
            "intermediate_size": block.ff1,
            "hidden_act": "silu",
            "attention_bias": True,
            "convolution_bias": True,
            "conv_kernel_size": shape.kernel,
            "subsampling_factor": shape.frontend_spec.subsampling,
            "subsampling_conv_channels": shape.sub1,
            "subsampling_conv_kernel_size": 3,
            "subsampling_conv_stride": 2,
            "num_mel_bins": shape.frontend_spec.mels,
            "scale_input": False,  # the front end's weights include the scale
        },
    }


def _generation(shape: Shape) -> dict[str, dict[str, Any]]:
    """Return the file with the settings of a transducer's search."""
    if shape.transducer is None:
        return {}
    size, num_durations = shape.vocabulary, len(shape.transducer.durations)
    settings: dict[str, Any] = {
        "decoder_start_token_id": size - 1,
        "pad_token_id": size - 1,
        # No token is the end, and this is the id of none. Without an end, transformers goes on with
        # utterances of a batch that are done, at their last frame.
        "eos_token_id": size + num_durations,
    }
    if num_durations:
        # Its search takes the best of all outputs, the durations' among them.
        settings["suppress_tokens"] = list(range(size, size + num_durations))
    return {GENERATION: settings}


def _decoder_config(shape: Shape) -> dict[str, Any]:
    transducer = shape.transducer
    if transducer is None:
        return {}
    durations = {"durations": list(transducer.durations)} if transducer.durations else {}
    return durations | {
        "blank_token_id": shape.vocabulary - 1,
        "decoder_hidden_size": transducer.joint,
        "num_decoder_layers": len(transducer.units),
        "hidden_act": transducer.activation,
        "max_symbols_per_step": MOST_SYMBOLS,
    }


def _extractor(frontend_spec: FrontendSpec) -> dict[str, Any]:
    return {
        "feature_extractor_type": "ParakeetFeatureExtractor",
        "processor_class": "ParakeetProcessor",
        "feature_size": frontend_spec.mels,
        "sampling_rate": 16_000,
        "hop_length": 160,
        "n_fft": 512,
        "win_length": 400,
        "preemphasis": frontend_spec.preemphasis,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
    }


def _processor(extractor: dict[str, Any], kind: str, blank: str) -> dict[str, Any]:
    # Without `decoder_type`, a piece named `<blank>` would select another decoder.
    return {
        "processor_class": "ParakeetProcessor",
        "decoder_type": kind,
        "blank_token": blank,
        "feature_extractor": extractor,
    }


def _tensors(model: Conformer) -> dict[str, Tensor]:
    """Return the tensors with the names and shapes of such a class."""
    names, tensors = names_of(model.shape.frontend_spec, model.shape.transducer), {}
    for name, tensor in model.state_dict().items():
        if name in OURS_ALONE:
            continue
        theirs = source_tensor_name(name, names)
        tensors[theirs] = _as_theirs(theirs, tensor.detach().float(), model.vocabulary)
        if name.endswith("running_mean"):
            # Ours have no such counter; without it transformers names a missing tensor.
            tensors[theirs.replace("running_mean", "num_batches_tracked")] = torch.tensor(0)
    return tensors


def _as_theirs(name: str, tensor: Tensor, vocabulary: int) -> Tensor:
    """Return a tensor in the form of such a class; the row of the blank comes last."""
    module, _, leaf = name.rpartition(".")
    layer = module.rpartition(".")[2]
    # The blank's row moves from first to last: rows 0 1 2 become 1 2 0.
    if layer in _BLANK_MOVES:
        tensor = torch.cat((tensor[1:vocabulary], tensor[:1], tensor[vocabulary:]))
    # (outputs, inputs) becomes (outputs, inputs, 1).
    if leaf == "weight" and layer in _POINTWISE:
        tensor = tensor[..., None]
    if leaf == "weight" and ".subsampling.layers." in name and tensor.ndim == 2:
        tensor = tensor[..., None, None]
    return tensor.contiguous()
