"""Names of an exported graph's inputs and outputs, errors, and the packages of an export."""

import importlib.util
from collections.abc import Mapping

INPUTS, OUTPUTS = ("features", "num_frames"), ("log_probabilities", "num_output_frames")
NEMO_INPUTS = ("audio_signal", "length")
"""Of NeMo's exports, whose features have mels before frames."""
CTC_OUTPUTS, ENCODER_OUTPUTS = ("logprobs", "encoded_lengths"), ("outputs", "encoded_lengths")
STEP_INPUTS = ("encoder_outputs", "targets", "target_length", "input_states_1", "input_states_2")
STEP_OUTPUTS = ("outputs", "prednet_lengths", "output_states_1", "output_states_2")
ENCODER, STEP = "encoder-model", "decoder_joint-model"
"""Names of a transducer's graphs, without their suffix."""
SUFFIXES = {False: ".onnx", True: ".int8.onnx"}
"""Of graphs in floats, and in 8-bit integers."""

Ends = Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]
"""Inputs and outputs of some graphs, by the graph's name."""
STATELESS_ENDS: Ends = {
    "encoder": (("x", "x_lens"), ("encoder_out", "encoder_out_lens")),
    "decoder": (("y",), ("decoder_out",)),
    "joiner": (("encoder_out", "decoder_out"), ("logit",)),
}
NEMO_ENDS: Ends = {
    "encoder": (NEMO_INPUTS, ENCODER_OUTPUTS),
    "decoder": (
        ("targets", "target_length", "input_states_1", "input_states_2"),
        ("decoder_outputs", "prednet_lengths", "output_states_1", "output_states_2"),
    ),
    "joiner": (("encoder_outputs", "decoder_outputs"), ("outputs",)),
}
"""Of the graphs of sherpa-onnx's own kind of transducer, and of that for NeMo's models."""

EXTRA = ("onnx", "onnxscript", "onnxruntime")


class ExportError(ValueError):
    """An export cannot be made, checked or used."""


class GraphError(ValueError):
    """A file is not the graph of a recognizer, or is refused."""


def needs_extra() -> None:
    """Check that the packages of the extra `export` are installed.

    Raises:
        ExportError: naming the one that is not, and the command that installs it.
    """
    for name in EXTRA:
        if importlib.util.find_spec(name) is None:
            raise ExportError(
                f"A graph must have the package `{name}`, but it is not installed;"
                ' `pip install "conformer-sweep[export]"` installs it.'
            )
