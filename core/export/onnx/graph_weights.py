"""The weights of an ONNX graph, one tensor at a time, so that a model is never whole in memory.

A graph holds its weights itself, or names a second file with them, as protobuf ends at 2 GiB. The
extra `export` installs the packages.
"""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, cast

import numpy as np

from core.export.onnx.conversion import DATA
from core.inference.graph_interface import INPUTS, OUTPUTS, GraphError

SMALLEST_OUTSIDE = 1024
"""Bytes of the smallest tensor in the second file: the runtime reads shapes and the like from the
graph alone."""


def open_graph(file: Path, expected: Sequence[str] = INPUTS + OUTPUTS) -> Any:
    """Open the graph of a recognizer, without weights in a second file.

    Args:
        file: of the graph.
        expected: its inputs and outputs.

    Raises:
        GraphError: if it is missing or no such graph.
    """
    import onnx  # noqa: PLC0415  # an extra

    if not file.is_file():
        raise GraphError(f"`{file}` must be an ONNX graph, but there is no such file.")
    try:
        model = onnx.load(file, load_external_data=False)
    except Exception as error:  # noqa: BLE001  # errors of protobuf share no other class
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise GraphError(f"`{file}` must be an ONNX graph, but: {first}") from None
    names = tuple(end.name for end in (*model.graph.input, *model.graph.output))
    if names != tuple(expected):
        raise GraphError(
            f"`{file}` must be an ONNX graph with the inputs and outputs"
            f" {', '.join(expected)}, but has {', '.join(names) or 'none'} instead."
        )
    return model


def read_tensor(tensor: Any, folder: Path) -> np.ndarray:
    """Return the values of a constant; those in a second file are memory-mapped.

    Args:
        tensor: an initializer.
        folder: of the graph.

    Raises:
        GraphError: if its file is in another folder, or too short.
    """
    from onnx import helper, numpy_helper  # noqa: PLC0415  # an extra
    from onnx.external_data_helper import (  # noqa: PLC0415
        ExternalDataInfo,
        uses_external_data,
    )

    if not uses_external_data(tensor):
        return numpy_helper.to_array(tensor)
    info = ExternalDataInfo(tensor)
    file = folder / info.location
    # A bare name: `../a`, `/etc/a` or a link would read files outside of the folder.
    if Path(info.location).name != info.location or file.is_symlink() or not file.is_file():
        raise GraphError(
            f"The weights of a graph must lie in a file of its folder `{folder}`, but"
            f" `{tensor.name}` names `{info.location}` instead."
        )
    kind: Any = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    try:
        # Mapped, not read: memory holds the pages in use, not the tensor.
        begin = cast("int | None", info.offset) or 0
        return np.memmap(file, dtype=kind, mode="r", offset=begin, shape=tuple(tensor.dims))
    except ValueError:
        raise GraphError(
            f"`{file}` must hold the weights of its graph, but ends before `{tensor.name}`."
        ) from None


class GraphWriter:
    """Writes a graph with new constants, in a second file if they are large.

    Args:
        model: the graph; its constants are removed.
        file: the path to write.
        is_outside: whether large constants go to a second file.
    """

    def __init__(self, model: Any, file: Path, *, is_outside: bool) -> None:
        self._model, self._file, self._is_outside = model, file, is_outside
        self._data: IO[bytes] | None = None
        del model.graph.initializer[:]

    def __enter__(self) -> "GraphWriter":  # noqa: PYI034 - beartype in tests takes no Self here
        if self._is_outside:
            self._data = self._file.with_name(f"{self._file.name}{DATA}").open("wb")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._data is not None:
            self._data.close()
        # After an error there is no graph, and so nothing that looks complete.
        if error is None:
            self._file.write_bytes(self._model.SerializeToString())

    def add(self, name: str, values: np.ndarray) -> None:
        """Write one constant."""
        import onnx  # noqa: PLC0415  # an extra
        from onnx.external_data_helper import set_external_data  # noqa: PLC0415

        tensor = self._model.graph.initializer.add()
        if self._data is None or values.nbytes < SMALLEST_OUTSIDE:
            # Not `ascontiguousarray`: it makes a scalar an array of one number, which has an axis.
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.asarray(values, order="C"), name))
            return
        tensor.name, tensor.dims[:] = name, values.shape
        tensor.data_type = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
        tensor.raw_data = b"\0"  # required before external data can replace it
        # Tensors follow one another without gaps; the graph states where each begins.
        begin = self._data.tell()
        self._data.write(np.ascontiguousarray(values).data)
        location, length = f"{self._file.name}{DATA}", values.nbytes
        set_external_data(tensor, location=location, offset=begin, length=length)
        tensor.ClearField("raw_data")
