"""Names of an exported graph's inputs and outputs, errors, and the packages of an export."""

import importlib.util

INPUTS, OUTPUTS = ("features", "num_frames"), ("log_probabilities", "num_output_frames")


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
