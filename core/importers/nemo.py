"""NeMo's archives `.nemo` of Conformers and FastConformers with SentencePiece tokens.

Their decoders, CTC, RNN-T, TDT or two of them, are in `core/importers/nemo_decoders.py`.
"""

import math
from pathlib import Path

from core.bundle import Bundle
from core.conformer.shape import BlockShape, Shape
from core.data.audio_decoding import CorpusError
from core.data.tokenizer import Tokenizer
from core.features.spec import LARGEST_MELS, FrontendSpec, SubsamplingKind
from core.importers.nemo_decoders import Branch, Decoders, read_decoders
from core.importers.safe_read import (
    LARGEST_TOKENIZER,
    ImportingError,
    read_archive,
    read_checkpoint,
    read_yaml,
)
from core.importers.settings import Settings
from core.importers.weights import Plan, assemble_model

CONFIG, WEIGHTS = "model_config.yaml", "model_weights.ckpt"
BLOCK = {
    "ff1.norm": "norm_feed_forward1",
    "ff1.up": "feed_forward1.linear1",
    "ff1.down": "feed_forward1.linear2",
    "attention.norm": "norm_self_att",
    "attention.query": "self_attn.linear_q",
    "attention.key": "self_attn.linear_k",
    "attention.value": "self_attn.linear_v",
    "attention.output": "self_attn.linear_out",
    "attention.position": "self_attn.linear_pos",
    "attention.content_bias": "self_attn.pos_bias_u",
    "attention.position_bias": "self_attn.pos_bias_v",
    "convolution.norm": "norm_conv",
    "convolution.up": "conv.pointwise_conv1",
    "convolution.depthwise": "conv.depthwise_conv",
    "convolution.batch_norm": "conv.batch_norm",
    "convolution.down": "conv.pointwise_conv2",
    "ff2.norm": "norm_feed_forward2",
    "ff2.up": "feed_forward2.linear1",
    "ff2.down": "feed_forward2.linear2",
    "norm": "norm_out",
}
"""Their modules of a block by ours."""
OF_ATTENTION = ("attention.query", "attention.key", "attention.value", "attention.output")
OF_FEEDFORWARD = ("ff1.up", "ff1.down", "ff2.up", "ff2.down")
OF_CONVOLUTION = ("convolution.up", "convolution.depthwise", "convolution.down")
"""Our layers that have a bias unless `use_bias` is false."""


def from_nemo(path: Path, branch: Branch = "all") -> Bundle:
    """Read an archive.

    Args:
        path: of the archive.
        branch: which decoders of a hybrid.

    Raises:
        ImportingError: in one line, if it is damaged or a model of another kind.
    """
    files = read_archive(path)
    for name in (CONFIG, WEIGHTS):
        if name not in files:
            raise ImportingError(f"`{path.name}` must hold `{name}`, but does not.")
    settings = Settings(file=CONFIG, values=read_yaml(files[CONFIG], CONFIG))
    tokenizer = _tokenizer(settings, files)
    decoders = read_decoders(settings, num_classes=tokenizer.size - 1, branch=branch)
    plan = _plan(settings, tokenizer.size, decoders)
    model = assemble_model(plan, read_checkpoint(files[WEIGHTS], WEIGHTS), WEIGHTS)
    origin = {"family": "nemo", "source": path.name, "nemo": str(settings.get("nemo_version"))[:40]}
    return Bundle(model=model, tokenizer=tokenizer, report={"imported": origin})


def _plan(settings: Settings, vocabulary: int, decoders: Decoders) -> Plan:
    _check_kind(settings)
    frontend_spec = _frontend_spec(settings)
    width, heads = settings.whole("encoder.d_model"), settings.whole("encoder.n_heads")
    if width % heads:
        raise settings.wrong("encoder.d_model", f"divisible by n_heads = {heads}", width)
    kernel = settings.whole("encoder.conv_kernel_size", default=31)
    if kernel % 2 == 0:
        raise settings.wrong("encoder.conv_kernel_size", "odd", kernel)
    # -1 stands for as many channels as the residual width.
    channels = settings.whole("encoder.subsampling_conv_channels", low=-1, default=-1)
    inner = width * settings.whole("encoder.ff_expansion_factor", high=64, default=4)
    block = BlockShape(ff1=inner, heads=heads, channels=width, ff2=inner)
    channels = channels if channels > 0 else width
    shape = Shape(
        sub1=channels,
        sub2=channels,
        sub3=channels if frontend_spec.stages == 3 else 0,
        width=width,
        position_width=width,
        head_width=width // heads,
        kernel=kernel,
        vocabulary=vocabulary,
        blocks=(block,) * settings.whole("encoder.n_layers", high=512),
        frontend_spec=frontend_spec,
        transducer=decoders.transducer,
        has_ctc=decoders.has_ctc,
    )
    has_bias = settings.one_of("encoder.use_bias", (True, False))
    is_scaled = settings.one_of("encoder.xscaling", (True, False))
    unbiased = () if has_bias else (*OF_FEEDFORWARD, *OF_ATTENTION, *OF_CONVOLUTION)
    return Plan(
        shape=shape,
        names={**_names(frontend_spec), **decoders.names},
        blank=vocabulary - 1,
        # `xscaling` multiplies the front end's output by the root of the width: by 22.6 at width
        # 512.
        input_scale=math.sqrt(width) if is_scaled else 1.0,
        # The doubled braces leave `{}` for the number of the block: blocks.{}.ff1.up.
        unbiased=frozenset(f"blocks.{{}}.{name}" for name in unbiased),
        # Windows, mel filters and positions are recomputed here, and must not count as unknown
        # tensors.
        ignored=("num_batches_tracked", "featurizer.window", "featurizer.fb", "pos_enc.pe"),
        unused=decoders.unused,
        starts_with_zeros=True,
    )


def _names(frontend_spec: FrontendSpec) -> dict[str, str]:
    names = {f"blocks.{{}}.{ours}": f"encoder.layers.{{}}.{name}" for ours, name in BLOCK.items()}
    names |= frontend_names(frontend_spec, "encoder.pre_encode.conv")
    names["frontend.linear"] = "encoder.pre_encode.out"
    return names


def frontend_names(frontend_spec: FrontendSpec, theirs: str) -> dict[str, str]:
    """Their convolutions, counted with the activations between them, by ours."""
    # With 8x subsampling, by number in their list:
    #   striding: 0 conv1, 1 ReLU, 2 conv2, 3 ReLU, 4 conv3
    #   dw_striding: 0 conv1, 1 ReLU, 2-3 conv2 (depthwise, pointwise), 4 ReLU, 5-6 conv3
    names = {"frontend.conv1": f"{theirs}.0"}
    for stage in range(1, frontend_spec.stages):
        if frontend_spec.subsampling_kind == "striding":
            names[f"frontend.conv{stage + 1}"] = f"{theirs}.{2 * stage}"
        else:
            names[f"frontend.conv{stage + 1}.depthwise"] = f"{theirs}.{3 * stage - 1}"
            names[f"frontend.conv{stage + 1}.pointwise"] = f"{theirs}.{3 * stage}"
    return names


def _check_kind(settings: Settings) -> None:
    """Refuse what another Conformer would be: streaming, of other norms, of other positions."""
    settings.one_of("encoder.self_attention_model", ("rel_pos",))
    settings.one_of("encoder.conv_norm_type", ("batch_norm",))
    settings.one_of("encoder.untie_biases", (True,))
    settings.one_of("encoder.causal_downsampling", (False,))
    # -1 is no limit: a frame attends to all others. Streaming models have numbers here, such as
    # [70, 13].
    settings.one_of("encoder.att_context_size", ([-1, -1], None))
    settings.one_of("encoder.conv_context_size", (None,))
    settings.one_of("encoder.reduction", (None,))
    settings.one_of("encoder.feat_out", (-1,))


def _frontend_spec(settings: Settings) -> FrontendSpec:
    kinds: tuple[SubsamplingKind, ...] = ("striding", "dw_striding")
    kind = settings.one_of("encoder.subsampling", kinds)
    # Each stage halves the frames: 4x takes two, 8x three.
    stages = {4: 2, 8: 3}[settings.one_of("encoder.subsampling_factor", (4, 8))]
    for name, allowed in _FEATURES.items():
        settings.one_of(
            f"preprocessor.{name}", allowed, default=_OTHER_DEFAULTS.get(name, allowed[0])
        )
    mels = settings.whole("preprocessor.features", high=LARGEST_MELS, default=64)
    settings.one_of("encoder.feat_in", (mels,))
    normalization = settings.one_of("preprocessor.normalize", ("per_feature", "NA", None))
    return FrontendSpec(
        features="nemo",
        normalization="per_feature" if normalization == "per_feature" else "none",
        preemphasis=settings.number("preprocessor.preemph", default=0.97),
        window=settings.one_of("preprocessor.window", ("hann", "hamming")),
        subsampling_kind=kind,
        stages=stages,
        mels=mels,
    )


_FEATURES: dict[str, tuple[object, ...]] = {
    "sample_rate": (16_000,),
    "window_size": (0.025,),
    "window_stride": (0.01,),
    # None stands for the smallest power of two that is not below a window of 400 samples: 512.
    "n_fft": (512, None),
    "log": (True,),
    "frame_splicing": (1,),
    # `one_of` compares types as well, so a number that YAML may write in two ways stands here
    # twice.
    "mag_power": (2.0, 2),
    "lowfreq": (0, 0.0),
    "highfreq": (None, 8000, 8000.0),
    "mel_norm": ("slaney",),
    "log_zero_guard_type": ("add",),
    "log_zero_guard_value": (2.0**-24,),
    "exact_pad": (False,),
}
"""Allowed values of their features' settings; dither plays no part at inference."""
_OTHER_DEFAULTS = {"window_size": 0.02}
"""NeMo's own defaults where they differ from the values allowed: a file must state these."""


def _tokenizer(settings: Settings, files: dict[str, bytes]) -> Tokenizer:
    # NeMo's `bpe` is any model of SentencePiece. None is not allowed, so an archive that states no
    # type is refused.
    settings.one_of("tokenizer.type", ("bpe",), default=None)
    name = str(settings.get("tokenizer.model_path")).removeprefix("nemo:")
    if name not in files or len(files[name]) > LARGEST_TOKENIZER:
        raise settings.wrong("tokenizer.model_path", "`nemo:` and a file of the archive", name)
    try:
        return Tokenizer.with_blank(files[name])
    except CorpusError as error:
        raise ImportingError(f"`{name}`: {error}") from None
