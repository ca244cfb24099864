"""Export to sherpa-onnx: the files that its offline CTC recognizer loads, and its transcripts.

sherpa-onnx computes the features itself: the right loader depends on the features that a model was
trained on. The package is that of the extra `sherpa`. It runs in a process of its own, as it exits
the process on a file that it cannot read.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from core.data.tokenizer import BLANK, WORD_START, Tokenizer
from core.export import sherpa_worker
from core.export.worker_process import RuntimeTranscripts, needs_package, transcribe_in_process
from core.inference.graph_interface import ExportError
from core.inference.sherpa_loader import Loader

Precision = Literal["float", "int8"]
BLANK_NAME = "<blk>"
"""The symbol by which sherpa-onnx finds the blank."""
TOKENS, SPEC = "tokens.txt", "sherpa.json"


def needs_sherpa() -> None:
    """Check that sherpa-onnx is installed.

    Raises:
        ExportError: if it is not, with the command that installs it.
    """
    needs_package("sherpa_onnx", "sherpa")


def tokens_text(tokenizer: Tokenizer, *, is_blank_last: bool = False) -> str:
    """Return one line per token with its symbol and id.

    The blank is 0, or the last token, with all others one lower. sherpa-onnx joins symbols and
    reads a leading U+2581 as a space; SentencePiece writes the unknown token between two spaces.

    Raises:
        ExportError: if a token has no symbol, or one that the format cannot hold.
    """
    pieces, unknown = tokenizer.pieces, tokenizer.unknown
    are_words = all(
        piece.startswith(WORD_START) for i, piece in enumerate(pieces) if i not in (BLANK, unknown)
    )
    # A symbol cannot end with a space, but a part of a word may follow: use a no-break space.
    after = "" if are_words else "\u00a0"
    # U+2581, U+2047 and, where tokens are parts of words, a no-break space.
    pieces[unknown] = f"{WORD_START}{tokenizer.decode([unknown])}{after}"
    pieces[BLANK] = BLANK_NAME
    for number, piece in enumerate(pieces):
        if not piece or set(piece) & set(" \t\n\v\f\r"):
            raise ExportError(
                f"A token must have a symbol without white space, but token {number} is {piece!r}."
            )
    if len(set(pieces)) < len(pieces):
        raise ExportError("Tokens must have symbols of their own, but two have the same one.")
    ordered = [*pieces[1:], pieces[0]] if is_blank_last else pieces
    return "".join(f"{piece} {number}\n" for number, piece in enumerate(ordered))


def sherpa_spec(loader: Loader, graphs: Mapping[Precision, str]) -> dict[str, Any]:
    """Return the contents of `sherpa.json`: a loader, and its arguments for each precision.

    Args:
        loader: of the model.
        graphs: files by precision; the first is the default.
    """
    arguments = {name: {"model": file, "tokens": TOKENS} for name, file in graphs.items()}
    # A program that knows no precisions passes `arguments` as they are to the loader.
    first = next(iter(arguments.values()))
    return {"loader": loader.name, "arguments": first, "precisions": arguments}


def transcribe_with_sherpa(
    folder: Path, sounds: Sequence[Float[Tensor, " _"]], precision: Precision = "float"
) -> RuntimeTranscripts:
    """Transcribe sounds with an export, in a process of its own.

    Raises:
        ExportError: if sherpa-onnx is not installed, or cannot load or run the export.
    """
    needs_sherpa()
    export_spec = json.loads((folder / SPEC).read_text(encoding="utf-8"))
    files = export_spec["precisions"][precision]
    request = {
        "loader": export_spec["loader"],
        "arguments": {name: str(folder / file) for name, file in files.items()}
        | export_spec.get("options", {}),
    }
    graph = next(iter(files.values()))  # of a transducer, its encoder
    rule = f"sherpa-onnx must load and run `{graph}` by `{export_spec['loader']}`"
    return transcribe_in_process(sherpa_worker.__file__, request, sounds, rule=rule)
