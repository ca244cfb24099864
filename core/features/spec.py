"""Specification of a recognizer's input: its features, and how its front end subsamples them.

Needs no torch: counts are integers, or tensors of integers.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

SubsamplingKind = Literal["conv4", "striding", "dw_striding", "linear"]
"""`conv4`: two 3x3 convolutions of stride 2 without padding. `striding`: with padding of 1, frames
beyond an utterance zeroed before each. `dw_striding`: so, all but the first depthwise-separable.
`linear`: one matrix, frame by frame."""
FeatureKind = Literal["kaldi", "nemo", "sherpa", "sherpa_transducer"]
Normalization = Literal["none", "per_feature"]
Window = Literal["hann", "hamming"]

LARGEST_MELS = 256
"""With more, bins of low frequencies hold no line of a spectrum of 257."""
_HOP = 160
"""Samples from one frame to the next."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontendSpec:
    """The features and the subsampling between samples and the first encoder block."""

    features: FeatureKind = "kaldi"
    """`kaldi`: those of models trained here; `nemo`: Slaney's mel scale, centered frames;
    `sherpa`: as sherpa-onnx computes them for a model of `nemo` with CTC, with Kaldi's frames;
    `sherpa_transducer`: for one with a transducer, with Kaldi's window and range, too."""
    normalization: Normalization = "none"
    """Whether each mel bin has mean 0 and deviation 1 over an utterance; never for `kaldi`."""
    preemphasis: float = 0.97
    window: Window = "hann"
    """Preemphasis and window of `nemo` features; those of the other kinds are fixed."""
    subsampling_kind: SubsamplingKind = "conv4"
    stages: int = 2
    """Convolutions of stride 2, one after the other."""
    mels: int = 80
    """Mel bins: 80, or another number of a model that was imported."""

    @classmethod
    def from_plain(cls, values: Any) -> "FrontendSpec":
        """Read back what `to_plain` wrote.

        Raises:
            ValueError: naming what is missing, unknown or no value of its kind.
        """
        keys = {field.name for field in fields(cls)}
        if not isinstance(values, Mapping) or {"mels", *values} != keys:
            raise ValueError(f"`frontend.*` must be exactly {', '.join(sorted(keys))}.")
        for name, kinds in _CHOICES.items():
            if values[name] not in kinds:
                raise ValueError(
                    f"`frontend.{name}` must be one of {', '.join(kinds)},"
                    f" but is {values[name]!r} instead"
                )
        slope = values["preemphasis"]
        if type(slope) not in (int, float) or not 0 <= slope < 1:
            raise ValueError(f"`frontend.preemphasis` must be in [0, 1), but is {slope!r} instead")
        if values["features"] == "kaldi" and values["normalization"] != "none":
            raise ValueError(
                "`frontend.normalization` must be `none` for kaldi features,"
                f" but is `{values['normalization']}` instead"
            )
        _check_sizes(values)
        return cls(**values)

    def to_plain(self) -> dict[str, Any]:
        plain = asdict(self)
        if self.mels == 80:  # as files were written before there were others
            del plain["mels"]
        return plain

    @property
    def is_padded(self) -> bool:
        """Whether convolutions see zeros around an utterance."""
        return self.subsampling_kind in ("striding", "dw_striding")

    @property
    def subsampling(self) -> int:
        """Frames of features for each frame of output."""
        return int(2**self.stages)

    @property
    def shortest(self) -> int:
        """Fewest frames of features that give a frame of output."""
        # 7 frames become 3 and then 1; 6 become 2 and then 0.
        return 7 if self.subsampling_kind == "conv4" else 1

    def for_sherpa(self, *, has_transducer: bool) -> "FrontendSpec":
        """Return the specification of what sherpa-onnx computes for a model of this one."""
        if self.features != "nemo":
            return self
        kind: FeatureKind = "sherpa_transducer" if has_transducer else "sherpa"
        return replace(self, features=kind, preemphasis=0.97, window="hann")

    def count_frames(self, num_samples: Any) -> Any:
        """Counts the frames of features, from samples at 16 kHz."""
        # Frames of `nemo` begin at sample 0, so only whole hops count: 240 samples have 1 frame,
        # and 2 in the other kinds.
        half = 0 if self.features == "nemo" else _HOP // 2
        return (num_samples + half) // _HOP

    def stage_frames(self, num_frames: Any) -> tuple[Any, ...]:
        """Counts the frames after each convolution, from frames of features."""
        counts: list[Any] = []
        for _ in range(self.stages):
            # 1000 frames: 499 and 249 without padding, 500 and 250 with it.
            num_frames = (num_frames - 1) // 2 + self.is_padded
            # 0 frames would become (0 - 1) // 2 = -1. A product, as `num_frames` may be a tensor.
            counts.append(num_frames * (num_frames > 0))
        return tuple(counts)

    def output_frames(self, num_frames: Any) -> Any:
        """Counts the frames after all convolutions, from frames of features."""
        return (num_frames, *self.stage_frames(num_frames))[-1]


def _check_sizes(values: Mapping[str, Any]) -> None:
    """Check the numbers of mel bins and of stages.

    Raises:
        ValueError: naming the one that is not allowed.
    """
    mels, stages = values.get("mels", 80), values["stages"]
    if type(mels) is not int or not 1 <= mels <= LARGEST_MELS:
        raise ValueError(
            f"`frontend.mels` must be a whole number from 1 to {LARGEST_MELS},"
            f" but is {mels!r} instead"
        )
    if values["features"] == "kaldi" and mels != 80:
        raise ValueError(f"`frontend.mels` must be 80 for kaldi features, but is {mels} instead")
    allowed_stages = _STAGES[values["subsampling_kind"]]
    if type(stages) is not int or stages not in allowed_stages:
        raise ValueError(
            f"`frontend.stages` of {values['subsampling_kind']} must be"
            f" {' or '.join(map(str, allowed_stages))}, but is {stages!r} instead"
        )


def upgrade_format_1(values: Any) -> Any:
    """The plain values of a specification with today's keys, from those of files of format 1.

    Values that are no table are returned as they are, for `from_plain` to refuse.
    """
    if not isinstance(values, Mapping):
        return values
    renamed = {"normalisation": "normalization", "frontend": "subsampling_kind"}
    return {renamed.get(key, key): value for key, value in values.items()}


_CHOICES: dict[str, tuple[str, ...]] = {
    "features": get_args(FeatureKind),
    "normalization": get_args(Normalization),
    "window": get_args(Window),
    "subsampling_kind": get_args(SubsamplingKind),
}
_STAGES: dict[str, tuple[int, ...]] = {
    "conv4": (2,),
    "striding": (2, 3),
    "dw_striding": (2, 3),
    "linear": (0,),
}
NATIVE = FrontendSpec()
"""The specification of models trained here."""
