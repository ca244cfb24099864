"""What sherpa-onnx needs to load a model as an offline CTC recogniser, and what it then hears.

sherpa-onnx computes the features itself: which of its loaders is the right one depends on the
features that a model was trained on. Wants the package of the extra `sherpa`, and only asks it in
a process of its own, as it ends the process over a file that it does not understand.
"""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

from core.data.tokenizer import BLANK, UNKNOWN, Tokenizer
from core.export import sherpa_worker
from core.inference.graph_interface import ExportError
from core.inference.sherpa_loader import Loader

Precision = Literal["float", "int8"]
BLANK_NAME = "<blk>"
"""By which sherpa-onnx finds the blank."""
TOKENS, SPEC = "tokens.txt", "sherpa.json"
WORD_START = "\u2581"


@dataclass(frozen=True, kw_only=True, slots=True)
class RuntimeTranscripts:
    """What sherpa-onnx says of some sounds, in their order."""

    alone: tuple[str, ...]
    together: tuple[str, ...]
    """The same in batches, padded."""
    version: str


def needs_sherpa() -> None:
    """Check that sherpa-onnx is there.

    Raises:
        ExportError: if it is not, with what installs it.
    """
    if importlib.util.find_spec("sherpa_onnx") is None:
        raise ExportError(
            "An export to sherpa must have the package `sherpa_onnx` to verify it with, but it is"
            ' not installed; `pip install "conformer-sweep[sherpa]"` installs it.'
        )


def tokens_text(tokenizer: Tokenizer, *, blank: int = BLANK) -> str:
    """Each token's symbol and id, a line each.

    sherpa-onnx joins symbols, a leading U+2581 read as a space, where SentencePiece sets what it
    does not know between two spaces.

    Raises:
        ExportError: if a token has no symbol, or one that the format cannot hold.
    """
    pieces = tokenizer.pieces
    are_words = all(
        piece.startswith(WORD_START) for i, piece in enumerate(pieces) if i not in (blank, UNKNOWN)
    )
    # The format has no space to end a symbol on; after it a part of a word may come.
    after = "" if are_words else "\u00a0"
    pieces[UNKNOWN] = f"{WORD_START}{tokenizer.decode([UNKNOWN])}{after}"
    pieces[blank] = BLANK_NAME
    for number, piece in enumerate(pieces):
        if not piece or set(piece) & set(" \t\n\v\f\r"):
            raise ExportError(
                f"A token must have a symbol without white space, but token {number} is {piece!r}."
            )
    if len(set(pieces)) < len(pieces):
        raise ExportError("Tokens must have symbols of their own, but two have the same one.")
    return "".join(f"{piece} {number}\n" for number, piece in enumerate(pieces))


def spec(loader: Loader, graphs: Mapping[Precision, str]) -> dict[str, Any]:
    """What a program needs to load the export: a loader, and its arguments for each precision.

    Args:
        loader: of the model.
        graphs: files by precision; the first is what to load unless there is a reason.
    """
    arguments = {name: {"model": file, "tokens": TOKENS} for name, file in graphs.items()}
    first = next(iter(arguments.values()))
    return {"loader": loader.name, "arguments": first, "precisions": arguments}


def transcribe_with_sherpa(
    folder: Path, sounds: Sequence[Float[Tensor, " _"]], precision: Precision = "float"
) -> RuntimeTranscripts:
    """What an export hears in some sounds, loaded in a process of its own.

    Raises:
        ExportError: if sherpa-onnx is not installed, or cannot load or run the export.
    """
    needs_sherpa()
    told = json.loads((folder / SPEC).read_text(encoding="utf-8"))
    files = told["precisions"][precision]
    with TemporaryDirectory() as scratch:
        arrays = Path(scratch) / "sounds.npz"
        np.savez(arrays, *(sound.numpy() for sound in sounds))
        order = {
            "loader": told["loader"],
            "arguments": {name: str(folder / file) for name, file in files.items()},
            "sounds": str(arrays),
        }
        ended = subprocess.run(  # noqa: S603 - this interpreter, our own file
            [sys.executable, "-P", sherpa_worker.__file__],
            input=json.dumps(order).encode(),
            capture_output=True,
            check=False,
        )
    if ended.returncode != 0:
        reason = ended.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise ExportError(
            f"sherpa-onnx must load and run `{files['model']}` by `{told['loader']}`,"
            f" but its process ended with {ended.returncode} instead ({reason[:300]})."
        )
    found = json.loads(ended.stdout.decode().strip().rpartition("\n")[2])
    return RuntimeTranscripts(
        alone=tuple(found["alone"]),
        together=tuple(found["together"]),
        version=found["version"],
    )
