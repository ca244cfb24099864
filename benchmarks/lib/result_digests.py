"""What a trial came to, as numbers and digests that do not depend on names; and what differs."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from core.report import LATENCY_FIELDS

TIMES = {"audio_seconds_per_second", *LATENCY_FIELDS}
"""Fields that hold a measured time, by old and new names: equal runs differ in them."""

Case = dict[str, Any]


def case_of(reports: Iterable[Any], outcomes: Any, folder: Path) -> Case:
    """What is compared of a case: numbers of each report and outcome, digests of all weights."""
    outcomes = outcomes if isinstance(outcomes, list) else [outcomes]
    return {
        "reports": [numbers_of(report) for report in reports],
        "outcomes": [numbers_of(outcome) for outcome in outcomes],
        "weights": sorted(digests_of(file) for file in folder.rglob("*.safetensors")),
    }


def numbers_of(record: Any) -> dict[str, Any]:
    """The numbers of a record as hexadecimal texts, by name and as a sorted list; and its texts."""
    named: dict[str, str] = {}
    texts: dict[str, str] = {}
    for name, value in _leaves(record):
        if value is None or name.rpartition(".")[2] in TIMES:
            continue
        if isinstance(value, str):
            texts[name] = value
        else:
            named[name] = float(value).hex()
    return {"numbers": sorted(named.values()), "named": named, "texts": texts}


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def digests_of(file: Path) -> list[str]:
    """A digest of each tensor's kind, shape and bytes, sorted: names do not count."""
    digests = []
    for tensor in load_file(file).values():
        whole = f"{tensor.dtype} {tuple(tensor.shape)} ".encode()
        whole += tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        digests.append(hashlib.sha256(whole).hexdigest())
    return sorted(digests)


def differences(before: Case, after: Case, *, with_names: bool) -> Iterator[str]:
    """One line for each difference between two files of results."""
    if before["torch"] != after["torch"]:
        yield f"torch: {before['torch']} before, {after['torch']} after"
    olds, news = before["cases"], after["cases"]
    for name in sorted({*olds, *news}):
        if name not in olds or name not in news:
            yield f"{name}: only {'before' if name in olds else 'after'}"
            continue
        for part in ("reports", "outcomes", "weights"):
            old, new = olds[name][part], news[name][part]
            if len(old) != len(new):
                yield f"{name}: {len(old)} {part} before, {len(new)} after"
                continue
            for number, pair in enumerate(zip(old, new, strict=True)):
                line = _difference(*pair, with_names=with_names)
                if line:
                    yield f"{name}: {part} {number}: {line}"


def _difference(old: Any, new: Any, *, with_names: bool) -> str:
    if isinstance(old, list):  # digests
        return f"{_count(old, new)} of {len(old)} tensors differ" if old != new else ""
    if old["numbers"] != new["numbers"]:
        names = [k for k in old["named"] if old["named"][k] != new["named"].get(k)]
        shown = ", ".join(f"{k} {_read(old, k)} -> {_read(new, k)}" for k in names[:4])
        return f"{_count(old['numbers'], new['numbers'])} numbers differ: {shown}"
    if with_names:
        changed = [
            key
            for part in ("named", "texts")
            for key in sorted({*old[part], *new[part]})
            if old[part].get(key) != new[part].get(key)
        ]
        return f"names or texts differ: {', '.join(changed[:6])}" if changed else ""
    return ""


def _count(old: list[str], new: list[str]) -> int:
    return max((Counter(old) - Counter(new)).total(), (Counter(new) - Counter(old)).total())


def _read(record: Case, name: str) -> str:
    value = record["named"].get(name)
    return "none" if value is None else f"{float.fromhex(value):.9g}"
