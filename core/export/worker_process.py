"""Runs another program's recognizer on sounds, in a process of its own.

Such programs exit on files that they cannot load, and import what is not wanted here.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from core.inference.graph_interface import ExportError


@dataclass(frozen=True, kw_only=True, slots=True)
class RuntimeTranscripts:
    """Transcripts of sounds by another program, in their order."""

    alone: tuple[str, ...]
    together: tuple[str, ...]
    """Transcripts of the same sounds in padded batches."""
    times: tuple[tuple[float, ...], ...] = ()
    """Of each sound alone, when each token begins, in seconds; empty if it does not say."""
    version: str


def needs_package(package: str, target: str) -> None:
    """Check that the package is installed by which exports to a target are verified.

    Raises:
        ExportError: if it is not, with the command that installs it.
    """
    if importlib.util.find_spec(package) is None:
        raise ExportError(
            f"An export to {target} must have the package `{package}` to verify it with, but it is"
            f' not installed; `pip install "conformer-sweep[{target}]"` installs it.'
        )


def transcribe_in_process(
    worker: str, request: Mapping[str, Any], sounds: Sequence[Float[Tensor, " _"]], *, rule: str
) -> RuntimeTranscripts:
    """Transcribe sounds by a worker.

    Args:
        worker: the file of the worker's program.
        request: what it reads besides the sounds.
        sounds: samples at 16 kHz.
        rule: what must work, for the error.

    Raises:
        ExportError: if the process ends with an error.
    """
    with TemporaryDirectory() as scratch:
        arrays = Path(scratch) / "sounds.npz"
        np.savez(arrays, *(sound.numpy() for sound in sounds))
        answer = run_worker(worker, {**request, "sounds": str(arrays)}, rule=rule)
    return RuntimeTranscripts(
        alone=tuple(answer["alone"]),
        together=tuple(answer["together"]),
        times=tuple(map(tuple, answer["times"])),
        version=answer["version"],
    )


def run_worker(
    worker: str, request: Mapping[str, Any], *, rule: str, env: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return a worker's answer.

    Args:
        worker: the file of the worker's program.
        request: what it reads.
        rule: what must work, for the error.
        env: variables of its environment, beside those of this process.

    Raises:
        ExportError: if the process ends with an error.
    """
    process = subprocess.run(  # noqa: S603 - this interpreter, our own file
        # -P: with this folder on the path, `import onnx` in a library would get the folder `onnx`.
        [sys.executable, "-P", worker],
        input=json.dumps(request).encode(),
        capture_output=True,
        check=False,
        env=os.environ | (env or {}),
    )
    if process.returncode != 0:
        reason = process.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise ExportError(
            f"{rule}, but its process ended with {process.returncode} instead ({reason[:300]})."
        )
    # The last line: what the library prints comes before it.
    answer: dict[str, Any] = json.loads(process.stdout.decode().strip().rpartition("\n")[2])
    return answer
