"""Which loader of sherpa-onnx computes a model's features."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from core.features.spec import FrontendSpec
from core.inference.graph_interface import ExportError


@dataclass(frozen=True, kw_only=True, slots=True)
class Loader:
    """Which method of `OfflineRecognizer` loads a model, and how its graph must be."""

    name: str
    is_exact: bool = True
    """Whether it computes the very features that the model was trained on."""
    is_nemo: bool = False
    """Whether it reads a graph as a model of NeMo's."""
    metadata: Mapping[str, str] = field(default_factory=dict)


def choose_loader(spec: FrontendSpec, vocabulary: int) -> Loader:
    """The loader that computes what a model hears.

    Raises:
        ExportError: if there is none.
    """
    if spec.subsampling_kind == "conv4" and spec.features == "kaldi":
        return Loader(name="from_zipformer_ctc")
    if not (spec.is_padded and spec.features in ("nemo", "sherpa")):
        raise ExportError(
            "A model for sherpa-onnx must hear Kaldi's features through the front end `conv4`, or"
            " NeMo's through `striding` or `dw_striding`, but this one hears"
            f" {spec.features}'s through `{spec.subsampling_kind}` instead."
        )
    is_normalised = spec.normalization == "per_feature"
    return Loader(
        name="from_nemo_ctc",
        is_exact=spec.features == "sherpa",  # its frames and windows are not NeMo's own
        is_nemo=True,
        metadata={
            "vocab_size": str(vocabulary),
            "subsampling_factor": "1",  # of a graph with a frame for each of the features
            "normalize_type": "per_feature" if is_normalised else "",
        },
    )
