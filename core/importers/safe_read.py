"""What others wrote, read without running or unpacking any of it: archives, weights, tables.

Whatever is wrong with a file is one `ImportingError` that names it.
"""

import io
import json
import posixpath
import reprlib
import tarfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from core.archives import open_tar
from core.outside_files import check_plain

MOST_MEMBERS = 1000
MOST_PACKED = 20
"""Weights hardly pack at all: what grows more was made to fill the memory."""
LARGEST_TABLE = 4 * 2**20
LARGEST_TOKENIZER = 64 * 2**20
LARGEST_WEIGHTS = 32 * 2**30
"""Bytes; a recognizer of eight billion weights is larger than any published one."""


class ImportingError(ValueError):
    """A model that cannot be brought in."""


@contextmanager
def errors_as_import(name: str, rule: str) -> Iterator[None]:
    """Turn whatever a reader of damaged files raises into one line.

    Raises:
        ImportingError: naming the file.
    """
    try:
        yield
    except ImportingError:
        raise
    except FileNotFoundError:
        raise ImportingError(f"`{name}` must be {rule}, but there is no such file.") from None
    except Exception as error:  # noqa: BLE001  # parsers of damaged files raise all there is
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ImportingError(f"`{name}` must be {rule}, but: {reason}") from None


def short_repr(value: Any) -> str:
    """A value as an error may hold it: short, however deep it is."""
    return reprlib.repr(value)


def read_archive(path: Path) -> dict[str, bytes]:
    """The files of a tar archive, packed or not, by their normalised names.

    Raises:
        ImportingError: if it is damaged, too large, or holds what is no plain file inside.
    """
    files: dict[str, bytes] = {}
    with errors_as_import(path.name, "a tar archive"), ExitStack() as stack:
        # An archive of 1 MB may hold 20 MB. The limit counts what headers state, before any content
        # is read.
        remaining_bytes = min(LARGEST_WEIGHTS, MOST_PACKED * path.stat().st_size)
        archive = stack.enter_context(open_tar(path, largest_read=remaining_bytes))
        for count, member in enumerate(archive):
            # `./model_config.yaml` becomes `model_config.yaml`, and `a/../../b` becomes `../b`,
            # which is refused.
            name = posixpath.normpath(member.name)
            _check_member(path.name, member, name, is_new=name not in files)
            remaining_bytes -= member.size
            if count >= MOST_MEMBERS or remaining_bytes < 0:
                raise ImportingError(
                    f"`{path.name}` must hold at most {MOST_MEMBERS} files of {MOST_PACKED} times"
                    f" its own size, but {short_repr(name)} is beyond that."
                )
            if member.isfile():
                file = archive.extractfile(member)
                files[name] = file.read() if file else b""
                if len(files[name]) != member.size:
                    raise ImportingError(
                        f"`{path.name}` must be whole, but {short_repr(name)} is cut short."
                    )
    return files


def _check_member(archive: str, member: tarfile.TarInfo, name: str, *, is_new: bool) -> None:
    # No links and no devices. A second member of one name is refused, as it would replace the
    # first.
    is_plain = (member.isfile() and not member.issparse()) or member.isdir()
    if name.startswith(("/", "..")) or not is_plain or not is_new:
        raise ImportingError(
            f"`{archive}` must hold plain files inside, each once, but has"
            f" {short_repr(member.name)}."
        )


def read_yaml(content: bytes, name: str) -> dict[str, Any]:
    """A table of YAML; tags that would make objects are refused.

    Raises:
        ImportingError: if it is none.
    """
    _check_size(len(content), name, LARGEST_TABLE)
    with errors_as_import(name, "a table of YAML"):
        return _table(yaml.safe_load(content), name)


def read_json(path: Path) -> dict[str, Any]:
    """A table of JSON.

    Raises:
        ImportingError: if it is none.
    """
    with errors_as_import(path.name, "a table of JSON"):
        check_plain(path, largest=LARGEST_TOKENIZER)
        return _table(json.loads(path.read_text(encoding="utf-8")), path.name)


def read_bytes(path: Path, *, largest: int) -> bytes:
    """A small file.

    Raises:
        ImportingError: if it is missing or too large.
    """
    with errors_as_import(path.name, "a file"):
        check_plain(path, largest=largest)
        return path.read_bytes()


def read_checkpoint(content: bytes, name: str) -> dict[str, Tensor]:
    """Tensors by name that `torch.save` wrote; no other object of a pickle comes to life.

    Raises:
        ImportingError: if it is damaged, or holds anything else.
    """
    rule = "tensors by name as torch 1.6 or newer saves them"
    with errors_as_import(name, rule), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # `torch.save` of torch 1.6 and newer writes a zip file, whose headers state all sizes.
        with zipfile.ZipFile(io.BytesIO(content)) as records:
            # Records are stored as they are: what would grow was made to fill the memory.
            _check_size(sum(r.file_size for r in records.infolist()), name, len(content))
        # `weights_only` makes an unpickler that knows tensors and plain containers; any other class
        # raises.
        content_read = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        return _tensors(content_read, name, rule)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name.

    Raises:
        ImportingError: if the file is missing or damaged.
    """
    rule = "tensors as safetensors writes them"
    with errors_as_import(path.name, rule):
        check_plain(path, largest=LARGEST_WEIGHTS)
        return _tensors(load_file(path), path.name, rule)


def read_weights(folder: Path, name: str) -> dict[str, Tensor]:
    """Tensors by name of a folder, in one file or in several that an index lists.

    Args:
        folder: of the model.
        name: of the one file, such as `model.safetensors`; the index is `NAME.index.json`.

    Raises:
        ImportingError: if a file is missing or damaged, or the index names one elsewhere.
    """
    index = folder / f"{name}.index.json"
    if (folder / name).exists() or not index.exists():
        return read_safetensors(folder / name)
    tensors: dict[str, Tensor] = {}
    for part in _read_parts(index):
        tensors |= read_safetensors(folder / part)
    return tensors


def _read_parts(index: Path) -> list[str]:
    files = read_json(index).get("weight_map")
    # A part has a plain name: "model-00001-of-00002.safetensors", and no path to another folder.
    if not isinstance(files, dict) or not all(_is_part(file) for file in files.values()):
        raise ImportingError(
            f"`weight_map` of `{index.name}` must name a .safetensors file of this folder for each"
            f" tensor, but is {short_repr(files)} instead."
        )
    return list(dict.fromkeys(files.values()))


def _is_part(file: Any) -> bool:
    return isinstance(file, str) and Path(file).name == file and file.endswith(".safetensors")


def _tensors(tensors: Any, name: str, rule: str) -> dict[str, Tensor]:
    # Checkpoints of training hold the weights one level deeper, next to the optimizer's state.
    if isinstance(tensors, Mapping) and isinstance(tensors.get("state_dict"), Mapping):
        tensors = tensors["state_dict"]
    is_named = isinstance(tensors, Mapping) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in tensors.items()
    )
    if not is_named:
        raise ImportingError(
            f"`{name}` must be {rule}, but holds {short_repr(type(tensors))} of others."
        )
    return dict(tensors)


def _table(table: Any, name: str) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise ImportingError(f"`{name}` must be a table, but is {short_repr(table)} instead.")
    return table


def _check_size(size: int, name: str, largest: int) -> None:
    if size > largest:
        raise ImportingError(f"`{name}` must have at most {largest} bytes, but has {size} instead.")
