"""Folders of transformers' `ParakeetForCTC`, `ParakeetForRNNT` and `ParakeetForTDT`.

They are the FastConformers that NVIDIA publishes there.
"""

import math
from pathlib import Path

from core.bundle import Bundle
from core.conformer.shape import DURATIONS, BlockShape, Shape, TransducerShape
from core.features.spec import LARGEST_MELS, FrontendSpec
from core.importers.nemo import BLOCK, OF_ATTENTION, OF_CONVOLUTION, OF_FEEDFORWARD, frontend_names
from core.importers.nemo_decoders import check_durations, lstm_names
from core.importers.safe_read import read_json, read_weights
from core.importers.settings import Settings
from core.importers.tokenizer import read_tokens
from core.importers.weights import Plan, assemble_model

CONFIG, WEIGHTS = "config.json", "model.safetensors"
KINDS = ("parakeet_ctc", "parakeet_rnnt", "parakeet_tdt")
_RENAMED = {
    "self_attn.linear_q": "self_attn.q_proj",
    "self_attn.linear_k": "self_attn.k_proj",
    "self_attn.linear_v": "self_attn.v_proj",
    "self_attn.linear_out": "self_attn.o_proj",
    "self_attn.linear_pos": "self_attn.relative_k_proj",
    "self_attn.pos_bias_u": "self_attn.bias_u",
    "self_attn.pos_bias_v": "self_attn.bias_v",
    "conv.batch_norm": "conv.norm",
}
"""What NeMo calls otherwise."""
_EXTRACTOR = {
    "sampling_rate": (16_000,),
    "hop_length": (160,),
    "n_fft": (512,),
    "win_length": (400,),
}


def from_parakeet(folder: Path, settings: Settings) -> Bundle:
    """Read a folder whose `config.json` says that it is one.

    Raises:
        ImportingError: in one line, if it is damaged or a variant that we do not know.
    """
    kind = settings.one_of("model_type", KINDS)
    # With CTC the padding is the blank; transducers have a token for each.
    name, size = ("pad_token_id", 1025) if kind == "parakeet_ctc" else ("blank_token_id", 8193)
    vocabulary = settings.whole("vocab_size", low=3, default=size)
    blank = settings.whole(name, low=0, high=vocabulary - 1, default=size - 1)
    plan = _plan(settings, _frontend_spec(folder, settings), vocabulary, blank)
    tokenizer = read_tokens(folder, vocabulary=vocabulary, blank=blank)
    model = assemble_model(plan, read_weights(folder, WEIGHTS), WEIGHTS)
    origin = {"family": kind, "source": folder.name}
    return Bundle(model=model, tokenizer=tokenizer, report={"imported": origin})


def _plan(settings: Settings, frontend_spec: FrontendSpec, vocabulary: int, blank: int) -> Plan:
    settings.one_of("encoder_config.hidden_act", ("silu", "swish"))
    width = settings.whole("encoder_config.hidden_size", default=1024)
    heads = settings.whole("encoder_config.num_attention_heads", default=8)
    # Heads need not share the width if the file states a width of their own.
    if width % heads and settings.get("encoder_config.head_dim") is None:
        rule = f"divisible by num_attention_heads = {heads}"
        raise settings.wrong("encoder_config.hidden_size", rule, width)
    # Fewer would mean that several heads of queries share one of keys; our attention has as many of
    # both.
    settings.one_of("encoder_config.num_key_value_heads", (heads,))
    # A pruned model that was exported may have 3 heads of 64 in a width of 256.
    head_width = settings.whole("encoder_config.head_dim", default=width // heads)
    kernel = settings.whole("encoder_config.conv_kernel_size", default=9)
    if kernel % 2 == 0:
        raise settings.wrong("encoder_config.conv_kernel_size", "odd", kernel)
    inner = settings.whole("encoder_config.intermediate_size", default=4096)
    channels = settings.whole("encoder_config.subsampling_conv_channels", default=256)
    count = settings.whole("encoder_config.num_hidden_layers", high=512, default=24)
    block = BlockShape(ff1=inner, heads=heads, channels=width, ff2=inner)
    shape = Shape(
        sub1=channels,
        sub2=channels,
        sub3=channels if frontend_spec.stages == 3 else 0,
        width=width,
        position_width=width,
        head_width=head_width,
        kernel=kernel,
        vocabulary=vocabulary,
        blocks=(block,) * count,
        frontend_spec=frontend_spec,
        transducer=(transducer := _transducer_shape(settings)),
        has_ctc=transducer is None,
    )
    return Plan(
        shape=shape,
        names=names_of(frontend_spec, transducer),
        blank=blank,
        input_scale=(
            math.sqrt(width)
            if settings.one_of("encoder_config.scale_input", (True, False))
            else 1.0
        ),
        unbiased=_unbiased_modules(settings),
    )


def _unbiased_modules(settings: Settings) -> frozenset[str]:
    """Our layers that have no bias there; `attention_bias` speaks for the feed-forwards, too."""
    in_attention = settings.one_of("encoder_config.attention_bias", (True, False))
    in_convolution = settings.one_of("encoder_config.convolution_bias", (True, False))
    # `relative_k_proj` and the norms are in neither list: the first never has a bias, the norms
    # always have one.
    attention = () if in_attention else (*OF_ATTENTION, *OF_FEEDFORWARD)
    convolution = () if in_convolution else OF_CONVOLUTION
    return frozenset(f"blocks.{{}}.{name}" for name in (*attention, *convolution))


def _transducer_shape(settings: Settings) -> TransducerShape | None:
    kind = settings.get("model_type")
    if kind == "parakeet_ctc":
        return None
    hidden = settings.whole("decoder_hidden_size", default=640)
    layers = settings.whole("num_decoder_layers", high=16, default=2)
    durations = settings.get("durations", list(DURATIONS))
    count = len(durations) if isinstance(durations, list) else 0
    return TransducerShape(
        embedding=hidden,
        joint=hidden,
        units=(hidden,) * layers,
        durations=check_durations(settings, "durations", durations, count)
        if kind == "parakeet_tdt"
        else (),
        activation=settings.one_of("hidden_act", ("relu", "tanh", "sigmoid")),
    )


def names_of(
    frontend_spec: FrontendSpec, transducer: TransducerShape | None = None
) -> dict[str, str]:
    """Their modules by ours."""
    names = {
        # NeMo's names where they are equal: `feed_forward1.linear1` stays, `self_attn.linear_q`
        # becomes `self_attn.q_proj`.
        f"blocks.{{}}.{ours}": f"encoder.layers.{{}}.{_RENAMED.get(name, name)}"
        for ours, name in BLOCK.items()
    }
    names |= frontend_names(frontend_spec, "encoder.subsampling.layers")
    names["frontend.linear"] = "encoder.subsampling.linear"
    if transducer is None:
        return names | {"head": "ctc_head"}
    return names | {
        "transducer.predictor.embedding": "decoder.embedding",
        **lstm_names("decoder.lstm", len(transducer.units)),
        "transducer.joint.encoder": "encoder_projector",
        "transducer.joint.predictor": "decoder.decoder_projector",
        "transducer.joint.output": "joint.head",
    }


def _frontend_spec(folder: Path, settings: Settings) -> FrontendSpec:
    mels = settings.whole("encoder_config.num_mel_bins", high=LARGEST_MELS, default=80)
    settings.one_of("encoder_config.subsampling_conv_kernel_size", (3,))
    settings.one_of("encoder_config.subsampling_conv_stride", (2,))
    stages = {8: 3, 4: 2}[settings.one_of("encoder_config.subsampling_factor", (8, 4))]
    extractor = _extractor(folder)
    for name, allowed in _EXTRACTOR.items():
        extractor.one_of(name, allowed)
    extractor.one_of("feature_size", (mels,), default=80)
    return FrontendSpec(
        features="nemo",
        normalization="per_feature",
        preemphasis=extractor.number("preemphasis", default=0.97),
        subsampling_kind="dw_striding",
        stages=stages,
        mels=mels,
    )


def _extractor(folder: Path) -> Settings:
    """Its own file, a part of the processor's, or what its class does when nothing is said."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            values = read_json(folder / name)
            # `processor_config.json` holds the extractor's settings one level deeper.
            inside = values.get("feature_extractor", values)
            return Settings(file=name, values=inside if isinstance(inside, dict) else values)
    return Settings(file="preprocessor_config.json", values={})
