"""What is installed and what this machine has: the first question when something does not work."""

import importlib
import importlib.util
import os
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "ray",
    "torch",
    "optuna",
    "mlflow",
    "lhotse",
    "soundfile",
    "sentencepiece",
    "jiwer",
    "moocore",
    "plotly",
    "safetensors",
)
LEAST_DISK_GIB = 2.0


@dataclass(frozen=True, kw_only=True)
class Finding:
    name: str
    text: str
    is_fine: bool


def examine() -> list[Finding]:
    """Everything, cheapest first."""
    return [_python(), *map(_package, PACKAGES), _torchaudio(), _demo(), _cores(), _gpus(), _disk()]


def _python() -> Finding:
    text = sys.version.split()[0]
    return Finding(name="Python", text=text, is_fine=sys.version_info >= (3, 11))


def _package(name: str) -> Finding:
    try:
        return Finding(name=name, text=version(name), is_fine=True)
    except PackageNotFoundError:
        return Finding(name=name, text="not installed", is_fine=False)


def _torchaudio() -> Finding:
    """Import torchaudio: next to a CPU-only torch it may be installed and yet not load."""
    finding = _package("torchaudio")
    if not finding.is_fine:
        return finding
    try:
        importlib.import_module("torchaudio")
    except (ImportError, OSError, RuntimeError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        text = (
            f"{finding.text}, but cannot be imported: {lines[0][:200]}; install it from the index"
            " that torch was installed from (only audio of other rates than 16 kHz needs it)"
        )
        return Finding(name="torchaudio", text=text, is_fine=False)
    return finding


def _demo() -> Finding:
    """An extra: only the corpus `demo` needs it."""
    # Not imported: the import would load eSpeak NG's library, and only its presence is asked for.
    is_there = importlib.util.find_spec("espeakng_loader") is not None
    text = "eSpeak NG is there" if is_there else "eSpeak NG is not; install the extra `demo`"
    return Finding(name="demo corpus", text=text, is_fine=True)


def _cores() -> Finding:
    # In a container or a Slurm job the process may use 4 of the 64 cores that `os.cpu_count`
    # counts.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Finding(name="CPU", text=f"{cores} cores", is_fine=True)


def _gpus() -> Finding:
    import torch  # noqa: PLC0415  # seconds, of this command alone

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Finding(name="GPU", text=", ".join(names) or "none; trials run on the CPU", is_fine=True)


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    return Finding(name="disk", text=f"{free:.0f} GiB free here", is_fine=free >= LEAST_DISK_GIB)
