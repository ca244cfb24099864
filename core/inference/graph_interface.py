"""Inputs and outputs of an exported graph, and what an export needs."""

import importlib.util

INPUTS, OUTPUTS = ("features", "num_frames"), ("log_probabilities", "num_output_frames")


EXTRA = ("onnx", "onnxscript", "onnxruntime")


class ExportError(ValueError):
    """What an export needs is not installed."""


class GraphError(ValueError):
    """A file that is no recogniser's graph."""


def needs_extra() -> None:
    """Check that the packages of the extra `export` are there.

    Raises:
        ExportError: naming the one that is not, and what installs it.
    """
    for name in EXTRA:
        if importlib.util.find_spec(name) is None:
            raise ExportError(
                f"A graph must have the package `{name}`, but it is not installed;"
                ' `pip install "conformer-sweep[export]"` installs it.'
            )
