"""Conformer encoders of other libraries, made to one shape; each imports its library when made.

Every one of them is given which frames are real, as a batch of speech would give it.

Shapes: B batch, T frames, D width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Forward = Callable[[Tensor, Tensor], Tensor]
"""Frames (B, T, D) and which of them are real (B, T), to frames."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """Those of an encoder."""

    width: int
    blocks: int
    heads: int
    inner: int
    kernel: int
    dropout: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Peer:
    """An encoder, and how it is asked."""

    model: nn.Module
    forward: Forward


def torchaudio_conformer(sizes: Sizes) -> Peer:
    """Absolute attention, without any notion of position: fewer FLOPs than the others have."""
    from torchaudio.models import Conformer  # noqa: PLC0415 - see above

    model = Conformer(
        sizes.width, sizes.heads, sizes.inner, sizes.blocks, sizes.kernel, dropout=sizes.dropout
    )
    return Peer(model=model, forward=lambda x, is_frame: model(x, is_frame.sum(1))[0])


def wav2vec2_conformer(sizes: Sizes) -> Peer:
    from transformers.models.wav2vec2_conformer import (  # noqa: PLC0415
        configuration_wav2vec2_conformer as configuration,
    )
    from transformers.models.wav2vec2_conformer import (  # noqa: PLC0415
        modeling_wav2vec2_conformer as modeling,
    )

    config = configuration.Wav2Vec2ConformerConfig(
        hidden_size=sizes.width,
        num_hidden_layers=sizes.blocks,
        num_attention_heads=sizes.heads,
        intermediate_size=sizes.inner,
        conv_depthwise_kernel_size=sizes.kernel,
        position_embeddings_type="relative",
        layerdrop=0.0,
        hidden_dropout=sizes.dropout,
        attention_dropout=sizes.dropout,
        activation_dropout=sizes.dropout,
        conformer_conv_dropout=sizes.dropout,
    )
    config._attn_implementation = "eager"  # noqa: SLF001 - the only one with relative positions
    model = modeling.Wav2Vec2ConformerEncoder(config)
    # It writes zeros into what it is given.
    return Peer(
        model=model, forward=lambda x, is_frame: model(x.clone(), is_frame).last_hidden_state
    )


def parakeet(sizes: Sizes) -> Peer:
    """The encoder's blocks and positions, without its front end."""
    from transformers.models.parakeet import configuration_parakeet, modeling_parakeet  # noqa: PLC0415

    config = configuration_parakeet.ParakeetEncoderConfig(
        hidden_size=sizes.width,
        num_hidden_layers=sizes.blocks,
        num_attention_heads=sizes.heads,
        intermediate_size=sizes.inner,
        conv_kernel_size=sizes.kernel,
        dropout=sizes.dropout,
        attention_dropout=sizes.dropout,
        activation_dropout=sizes.dropout,
        layerdrop=0.0,
    )
    config._attn_implementation = "sdpa"  # noqa: SLF001 - as its own loader sets it
    blocks = nn.ModuleList(
        modeling_parakeet.ParakeetEncoderBlock(config, i) for i in range(sizes.blocks)
    )
    positions = modeling_parakeet.ParakeetEncoderRelPositionalEncoding(config)

    def forward(x: Tensor, is_frame: Tensor) -> Tensor:
        table = positions(x)
        pairs = (is_frame[:, None] & is_frame[:, :, None])[:, None]  # (B, 1, T, T)
        for block in blocks:
            x = block(x, attention_mask=pairs, position_embeddings=table)
        return x

    return Peer(model=nn.ModuleList([blocks, positions]), forward=forward)


def speechbrain_conformer(sizes: Sizes) -> Peer:
    from speechbrain.lobes.models.transformer.Conformer import ConformerEncoder  # noqa: PLC0415
    from speechbrain.nnet.attention import RelPosEncXL  # noqa: PLC0415

    encoder = ConformerEncoder(
        num_layers=sizes.blocks,
        d_model=sizes.width,
        d_ffn=sizes.inner,
        nhead=sizes.heads,
        kernel_size=sizes.kernel,
        dropout=sizes.dropout,
    )
    positions = RelPosEncXL(sizes.width)

    def forward(x: Tensor, is_frame: Tensor) -> Tensor:
        return encoder(x, src_key_padding_mask=~is_frame, pos_embs=positions(x))[0]

    return Peer(model=nn.ModuleList([encoder, positions]), forward=forward)


PEERS: dict[str, Callable[[Sizes], Peer]] = {
    "torchaudio Conformer": torchaudio_conformer,
    "transformers Wav2Vec2-Conformer": wav2vec2_conformer,
    "transformers Parakeet": parakeet,
    "SpeechBrain Conformer": speechbrain_conformer,
}


def installed(sizes: Sizes, device: torch.device) -> tuple[dict[str, Peer], list[str]]:
    """All peers that are there, in training mode, by name; and the names of the others."""
    made: dict[str, Peer] = {}
    absent = []
    for name, make in PEERS.items():
        try:
            made[name] = make(sizes)
        except ImportError:
            absent.append(name)
        else:
            made[name].model.train().to(device)
    return made, absent
