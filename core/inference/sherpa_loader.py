"""The loader of sherpa-onnx that computes a model's features."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from core.features.spec import FrontendSpec
from core.inference.graph_interface import ExportError


@dataclass(frozen=True, kw_only=True, slots=True)
class Loader:
    """A method of `OfflineRecognizer` that loads a model, and the graph that it reads."""

    name: str
    is_exact: bool = True
    """Whether it computes exactly the features that the model was trained on."""
    is_nemo: bool = False
    """Whether it reads a graph in NeMo's form."""
    metadata: Mapping[str, str] = field(default_factory=dict)


def choose_loader(spec: FrontendSpec, vocabulary: int) -> Loader:
    """Return the loader that computes these features.

    Raises:
        ExportError: if there is none.
    """
    # It computes Kaldi's features as training here does, and assumes 4x subsampling for its times.
    if spec.subsampling_kind == "conv4" and spec.features == "kaldi":
        return Loader(name="from_zipformer_ctc")
    if not (spec.is_padded and spec.features in ("nemo", "sherpa")):
        raise ExportError(
            "A model for sherpa-onnx must read Kaldi's features through the front end `conv4`, or"
            " NeMo's through `striding` or `dw_striding`, but this one reads"
            f" {spec.features}'s through `{spec.subsampling_kind}` instead."
        )
    is_normalized = spec.normalization == "per_feature"
    return Loader(
        name="from_nemo_ctc",
        is_exact=spec.features == "sherpa",  # its frames and windows are not NeMo's own
        is_nemo=True,
        # Without `vocab_size` or `subsampling_factor` sherpa-onnx exits the process.
        metadata={
            "vocab_size": str(vocabulary),
            "subsampling_factor": "1",  # the graph outputs a frame for each frame of features
            "normalize_type": "per_feature" if is_normalized else "",
        },
    )
