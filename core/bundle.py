"""A bundle: a folder with a whole recognizer: shape, weights, tokenizer, and what was measured.

shape.json  model.safetensors  tokenizer.model  report.json  checksums.json
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from core.conformer.model import Conformer
from core.conformer.shape import FORMAT, read_shape
from core.data.tokenizer import FILE_NAME, Tokenizer
from core.files import atomic_folder, sha256_file
from core.outside_files import read_json
from core.report import upgrade_format_1

DEPTH_ORDER = "depth_order"
"""Key of `report.json`: the model's blocks by number, the most important one first."""
FILES = ("shape.json", "model.safetensors", FILE_NAME, "report.json")


class BundleError(ValueError):
    """Raised for a folder that is no whole bundle."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    model: Conformer
    """In evaluation mode, on the CPU."""
    tokenizer: Tokenizer
    report: Mapping[str, Any]
    """Measurements and settings, as plain values; the keys are in core/report.py."""


def save(folder: Path, model: Conformer, tokenizer: Tokenizer, report: Mapping[str, Any]) -> None:
    """Writes a bundle under a temporary name, then renames it: the folder is whole or absent.

    Args:
        folder: of the bundle.
        model: its weights are copied to the CPU.
        tokenizer: of the model.
        report: plain values for `report.json`.

    Raises:
        OSError: if the disk is full or not writable; what stood there before stands.
    """
    with atomic_folder(folder) as tmp_path:
        shape = {"format": FORMAT, **model.shape.to_plain()}
        (tmp_path / "shape.json").write_text(json.dumps(shape, indent=1))
        # safetensors refuses tensors that are views with strides of their own.
        weights = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
        save_file(weights, tmp_path / "model.safetensors")
        tokenizer.save(tmp_path / FILE_NAME)
        (tmp_path / "report.json").write_text(json.dumps(report, indent=1))
        checksums = {name: sha256_file(tmp_path / name) for name in FILES}
        (tmp_path / "checksums.json").write_text(json.dumps(checksums, indent=1))


def load(folder: Path) -> Bundle:
    """Read a bundle; nothing in it is run.

    Raises:
        BundleError: in one line naming the file that is missing or damaged.
    """
    check(folder)
    plain, report = read_table(folder / "shape.json"), read_table(folder / "report.json")
    try:
        shape = read_shape(plain)
        weights = load_file(folder / "model.safetensors")
        # No weights are drawn that would be replaced; `assign` below takes those of the file as
        # they are.
        with torch.device("meta"):
            model = Conformer(shape)
    except (SafetensorError, ValueError, OSError) as error:
        raise BundleError(f"`{folder}` must be a whole bundle, but {error}") from error
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        # The first line of torch's error names the class; the second one says what does not fit.
        first = str(error).splitlines()[1].strip()
        raise BundleError(
            f"`{folder}/model.safetensors` must fit shape.json, but: {first}"
        ) from None
    tokenizer = Tokenizer.load(folder / FILE_NAME)
    if tokenizer.size != shape.vocabulary:
        raise BundleError(
            f"`{folder}/{FILE_NAME}` must have {shape.vocabulary} pieces, as the model has outputs,"
            f" but has {tokenizer.size} instead."
        )
    return Bundle(model=model.eval(), tokenizer=tokenizer, report=upgrade_format_1(report))


def check(folder: Path) -> None:
    """Check that every file is there and as it was written.

    Raises:
        BundleError: in one line naming the first file that is not.
    """
    if not folder.is_dir():
        raise BundleError(f"`{folder}` must be a bundle's folder, but there is no such folder.")
    if not (folder / "checksums.json").exists() and any(folder.glob("*.onnx")):
        raise BundleError(
            f"`{folder}` must be a bundle, but is an export for other runtimes instead; give the"
            " bundle or DIR:TRIAL that it was made of (`transcribe`, `evaluate` and `bench` take"
            " exports, too)."
        )
    if not (folder / "checksums.json").exists() and (folder / "config.json").is_file():
        raise BundleError(
            f"`{folder}` must be a bundle, but has the config.json of another library's model"
            f" instead; `conformer-sweep import {folder} NEW` makes a bundle of what it can read."
        )
    try:
        checksums = read_json(folder / "checksums.json")
    except (OSError, ValueError):
        raise BundleError(
            f"`{folder}` must be a bundle, but its checksums.json is missing or damaged."
        ) from None
    for name in FILES:
        path = folder / name
        if not path.is_file():
            raise BundleError(f"`{folder}` must be a whole bundle, but {name} is missing.")
        if not isinstance(checksums, dict) or checksums.get(name) != sha256_file(path):
            raise BundleError(f"`{path}` must match its checksum, but is damaged.")


def is_whole(folder: Path) -> bool:
    try:
        check(folder)
    except BundleError:
        return False
    return True


def read_table(path: Path) -> dict[str, Any]:
    """A file of JSON with a table in it.

    Raises:
        BundleError: if it is none.
    """
    try:
        table = read_json(path)
    except (OSError, ValueError) as error:
        raise BundleError(f"`{path}` must be JSON, but: {error}") from error
    if not isinstance(table, dict):
        raise BundleError(f"`{path}` must be a table, but is {str(table)[:80]} instead.")
    return table
