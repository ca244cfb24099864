"""Decoders of NeMo's archives: CTC, RNN-T or TDT, and hybrids of CTC with one of the others."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from core.conformer.shape import DURATIONS, TransducerShape
from core.importers.settings import Settings

Branch = Literal["all", "ctc", "transducer"]
"""Which decoders of a hybrid are imported."""
LSTM_TENSORS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
OTHER_KINDS = ("Prompt", "MultiTask", "MultiLang", "AED")
"""Parts of names of classes whose models take more than speech, or have another decoder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoders:
    """The decoders of a model, and the names of their tensors."""

    transducer: TransducerShape | None
    has_ctc: bool
    names: Mapping[str, str]
    """Their modules or tensors by ours."""
    unused: tuple[str, ...] = ()
    """Beginnings of names of tensors of a decoder that is left out."""


def read_decoders(settings: Settings, *, num_classes: int, branch: Branch = "all") -> Decoders:
    """Return the decoders of an archive.

    Args:
        settings: of the archive.
        num_classes: its tokens, without the blank.
        branch: of a hybrid.

    Raises:
        ImportingError: naming the setting of a decoder that cannot be imported.
    """
    kind = str(settings.get("target", "")).rpartition(".")[2]
    if any(part in kind for part in OTHER_KINDS):
        raise settings.wrong("target", "a model of CTC, RNN-T or TDT that takes speech alone", kind)
    has_transducer = settings.get("joint") is not None
    if not has_transducer:
        _check_classes(settings, "decoder.num_classes", num_classes)
        names = {"head": "decoder.decoder_layers.0"}
        return Decoders(transducer=None, has_ctc=True, names=names)
    is_hybrid = settings.get("aux_ctc") is not None
    with_ctc = is_hybrid and branch != "transducer"
    with_transducer = not (is_hybrid and branch == "ctc")
    shape = _transducer_shape(settings, num_classes)
    names = {"head": "ctc_decoder.decoder_layers.0"} if with_ctc else {}
    unused = ("ctc_decoder.",) if is_hybrid and not with_ctc else ()
    if with_transducer:
        names |= _transducer_names(settings, len(shape.units))
    return Decoders(
        transducer=shape if with_transducer else None,
        has_ctc=with_ctc,
        names=names,
        unused=unused if with_transducer else ("decoder.prediction.", "joint."),
    )


def lstm_names(theirs: str, num_layers: int) -> dict[str, str]:
    """Return the names in an `nn.LSTM` of the tensors of our layers of one."""
    # Ours has a module a layer, and theirs the layer's number at the end of the tensor's name.
    return {
        f"transducer.predictor.layers.{i}.{tensor}": f"{theirs}.{tensor}_l{i}"
        for i in range(num_layers)
        for tensor in LSTM_TENSORS
    }


def _transducer_shape(settings: Settings, num_classes: int) -> TransducerShape:
    _check_class(settings, "decoder._target_", ("RNNTDecoder",))
    _check_class(settings, "joint._target_", ("RNNTJoint", "SampledRNNTJoint"))
    for name in ("decoder.vocab_size", "joint.num_classes"):
        _check_classes(settings, name, num_classes)
    settings.one_of("decoder.blank_as_pad", (True,))
    settings.one_of("decoder.normalization_mode", (None,))
    hidden = settings.whole("decoder.prednet.pred_hidden")
    # A larger LSTM would have projections between its layers.
    settings.one_of("decoder.prednet.rnn_hidden_size", (hidden, -1, None))
    num_layers = settings.whole("decoder.prednet.pred_rnn_layers", high=16, default=1)
    return TransducerShape(
        embedding=hidden,
        joint=settings.whole("joint.jointnet.joint_hidden"),
        units=(hidden,) * num_layers,
        durations=_durations(settings),
        activation=settings.one_of("joint.jointnet.activation", ("relu", "tanh", "sigmoid")),
    )


def _durations(settings: Settings) -> tuple[int, ...]:
    """Return the frames by which TDT advances; none for RNN-T."""
    count = settings.whole("joint.num_extra_outputs", low=0, high=64, default=0)
    if not count:
        settings.one_of("loss.loss_name", ("default", "rnnt", "warprnnt_numba", "warprnnt"))
        return ()
    default = list(DURATIONS[:count])
    for name in ("decoding.durations", "loss.tdt_kwargs.durations", "model_defaults.tdt_durations"):
        durations = settings.get(name)
        if durations is not None:
            return check_durations(settings, name, durations, count)
    return check_durations(settings, "decoding.durations", default, count)


def check_durations(settings: Settings, name: str, durations: Any, count: int) -> tuple[int, ...]:
    """Return durations of a TDT as a tuple.

    Raises:
        ImportingError: if they are not so many whole numbers that ascend from 0 or 1.
    """
    is_list = isinstance(durations, list) and all(type(number) is int for number in durations)
    if (
        not is_list
        or len(durations) != count
        or durations != sorted(set(durations))
        or not 0 <= durations[0] <= 1 <= durations[-1] <= 64
    ):
        raise settings.wrong(name, f"{count} whole numbers that ascend from 0 or 1", durations)
    return tuple(durations)


def _transducer_names(settings: Settings, num_layers: int) -> dict[str, str]:
    # Their joint is a list of an activation, dropout if there is any, and the linear layer.
    dropout = settings.number("joint.jointnet.dropout", default=0.0)
    return {
        "transducer.predictor.embedding": "decoder.prediction.embed",
        **lstm_names("decoder.prediction.dec_rnn.lstm", num_layers),
        "transducer.joint.encoder": "joint.enc",
        "transducer.joint.predictor": "joint.pred",
        "transducer.joint.output": f"joint.joint_net.{2 if dropout else 1}",
    }


def _check_class(settings: Settings, name: str, allowed: tuple[str, ...]) -> None:
    kind = settings.get(name, allowed[0])
    if str(kind).rpartition(".")[2] not in allowed:
        raise settings.wrong(name, " or ".join(allowed), kind)


def _check_classes(settings: Settings, name: str, num_classes: int) -> None:
    # NeMo counts classes without the blank: 1024 pieces are 1024 classes and 1025 outputs.
    if settings.whole(name) != num_classes:
        raise settings.wrong(name, f"{num_classes} as tokens are", settings.get(name))
