"""Random-weight models of the exact shapes of NVIDIA's large recognizers, written tensor by tensor.

`python -m benchmarks.lib.large_source --shape 0.6b OUT` writes the folder that
transformers would save: config.json, model.safetensors, preprocessor_config.json, tokenizer.model.
The names and shapes are those of transformers' own class, which is only built on the `meta`
device, so that no more than one tensor is in memory. The real weights are had by
`conformer-sweep import nvidia/parakeet-ctc-0.6b` or `nvidia/parakeet-ctc-1.1b`.
"""

import argparse
import json
import math
import struct
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from string import ascii_lowercase

import torch
import transformers
from torch import Tensor

from core.data.tokenizer import FILE_NAME, Tokenizer

SHAPES = {
    "small": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "subsampling_conv_channels": 16,
    },
    "0.6b": {"hidden_size": 1024, "num_hidden_layers": 24},
    "1.1b": {"hidden_size": 1024, "num_hidden_layers": 42},
}
"""What each encoder differs in from transformers' defaults, which are those of parakeet-ctc."""
_TDT = {"hidden_size": 1024, "num_hidden_layers": 24, "num_mel_bins": 128}
_UNSCALED = {"scale_input": False, "attention_bias": False, "convolution_bias": False}
SHAPES |= {
    "small-tdt": SHAPES["small"],
    "rnnt-0.6b": SHAPES["0.6b"],
    "tdt-0.6b-v2": _TDT | _UNSCALED,
    "tdt-0.6b-v3": _TDT | _UNSCALED,
}
TRANSDUCERS = {"small-tdt": "TDT", "rnnt-0.6b": "RNNT", "tdt-0.6b-v2": "TDT", "tdt-0.6b-v3": "TDT"}
"""Shapes that are no CTC, and the class of their decoder: two LSTM layers of 640, but the small."""
PIECES = 1024
MANY = {"tdt-0.6b-v3": 8192}
"""Shapes that have another number of pieces."""
SPREAD = 0.02
"""Standard deviation of matrices, as transformers initializes them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--spread", type=float, default=SPREAD)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    write_source(args.out, args.shape, spread=args.spread)


def write_source(folder: Path, shape: str, *, spread: float = SPREAD) -> None:
    """Write a published model's folder with random weights.

    Args:
        folder: a new folder.
        shape: a key of `SHAPES`.
        spread: standard deviation of the entries of matrices and kernels.
    """
    folder.mkdir(parents=True)
    pieces, decoder = MANY.get(shape, PIECES), TRANSDUCERS.get(shape, "CTC")
    blank = {"pad_token_id" if decoder == "CTC" else "blank_token_id": pieces}
    if shape == "small-tdt":
        blank["decoder_hidden_size"] = 64
    config = getattr(transformers, f"Parakeet{decoder}Config")(
        vocab_size=pieces + 1, encoder_config=SHAPES[shape], **blank
    )
    config.architectures = [f"ParakeetFor{decoder}"]
    config.save_pretrained(folder)
    mels = config.encoder_config.num_mel_bins
    transformers.ParakeetFeatureExtractor(feature_size=mels).save_pretrained(folder)
    (folder / FILE_NAME).write_bytes(tokenizer(pieces).without_blank())
    with torch.device("meta"):
        tensors = getattr(transformers, f"ParakeetFor{decoder}")(config).state_dict()
    write_safetensors(folder / "model.safetensors", tensors, spread=spread)


def tokenizer(count: int = PIECES) -> Tokenizer:
    """So many pieces: letters, pairs and triples of them, at a word's start or not."""
    starts = (f"{start}{letter}" for letter in ascii_lowercase for start in ("", "\u2581"))
    pairs = ("".join(pair) for pair in product(ascii_lowercase, repeat=2))
    opening = (f"\u2581{a}{b}" for a, b in product(ascii_lowercase, repeat=2))
    triples = ("".join(triple) for triple in product(ascii_lowercase, repeat=3))
    pieces = ["<unk>", "\u2581", *starts, *pairs, *opening, *triples][:count]
    scores = [-float(number) / 100 for number in range(count)]
    return Tokenizer.of_pieces(pieces, scores, unknown="<unk>", is_bpe=False)


def write_safetensors(file: Path, tensors: Mapping[str, Tensor], *, spread: float) -> None:
    """Write the header, then one tensor after the other.

    The format: eight bytes with the header's length, the header as JSON, the tensors' bytes.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        kind = "F32" if tensor.is_floating_point() else "I64"
        spot = [begin, end]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": spot}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for tensor in random_tensors(tensors, spread):
            out.write(tensor.numpy().tobytes())


def random_tensors(tensors: Mapping[str, Tensor], spread: float) -> Iterator[Tensor]:
    """Each tensor by its name: norms do nothing, biases are small, all else is normal."""
    rng = torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            yield torch.zeros(tensor.shape, dtype=tensor.dtype)
        elif name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
            yield torch.ones(tensor.shape)
        else:
            # Of a convolution's small kernel so small numbers would leave nothing but its bias.
            fan_in = math.prod(tensor.shape[1:])
            is_kernel = tensor.ndim == 4 or "depthwise" in name
            wide = 1 / math.sqrt(fan_in) if is_kernel else spread
            yield wide * torch.randn(tensor.shape, generator=rng)


if __name__ == "__main__":
    main()
