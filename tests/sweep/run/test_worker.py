"""What a worker says of what went wrong; what becomes of a sweep, test_full_disk.py shows."""

import errno
import os
import subprocess

import pytest
import torch
from safetensors.torch import save_file

from core.data.audio_decoding import CorpusError
from core.training import checkpoint
from core.training.loop import DivergenceError
from sweep.run.ray_cluster import ClusterError
from sweep.run.worker import error_kind, raise_full_disk


@pytest.fixture
def full_disk(tmp_path):
    """A disk that holds hardly anything."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(command, check=False, capture_output=True).returncode:  # noqa: S603
        pytest.skip("needs the right to mount a small disk")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)  # noqa: S603, S607


def by_torch(disk, tensors):
    checkpoint.save(disk / "checkpoints", 1, tensors)


def by_safetensors(disk, tensors):
    save_file(tensors, disk / "model.safetensors")


def by_hand(disk, tensors):
    (disk / "file").write_bytes(bytes(tensors["weight"].numel()))


@pytest.mark.parametrize("write", [by_torch, by_safetensors, by_hand])
def test_a_full_disk_is_said_in_the_systems_words_whoever_wrote(full_disk, write):
    with (
        pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as raised,
        raise_full_disk(full_disk),
    ):
        write(full_disk, {"weight": torch.zeros(100_000)})

    assert raised.value.filename == str(full_disk)
    assert error_kind(raised.value) == "disk"


def test_other_errors_pass_as_they_are(tmp_path):
    with pytest.raises(FileNotFoundError), raise_full_disk(tmp_path):
        (tmp_path / "nothing").read_text()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (CorpusError("`a.wav` must have sound, but has none instead."), "data"),
        (ClusterError("too few machines"), "cluster"),
        (DivergenceError("no number"), "divergence"),
        (MemoryError(), "memory"),
        (RuntimeError("DefaultCPUAllocator: not enough memory"), "memory"),
        (OSError(errno.EACCES, "Permission denied"), "other"),
        (ZeroDivisionError(), "other"),
    ],
)
def test_each_fault_has_its_kind(error, kind):
    assert error_kind(error) == kind
