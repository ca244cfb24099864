"""An archive that somebody sent is unpacked inside its folder and within bounds, or refused."""

import gzip
import io
import os
import shutil
import struct
import tarfile
from contextlib import suppress

import pytest

from core.archives import DAMAGED, open_tar
from core.config.base import ConfigError
from core.importers.safe_read import ImportingError, read_archive
from sweep.storage.archive import pack, unpack
from sweep.storage.archive_members import ALWAYS_ALLOWED


def member(name, kind=tarfile.REGTYPE, *, link="", mode=0o644):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, mode
    return info


@pytest.fixture(scope="module")
def whole(made_sweep, tmp_path_factory):
    """A packed sweep as it should be."""
    file = tmp_path_factory.mktemp("whole") / "whole.tar.gz"
    pack(made_sweep, file)
    return file


@pytest.fixture
def pack_with(whole, tmp_path):
    """Makes a packed sweep with further members in it."""

    def pack_with(*others):
        file = tmp_path / "sent.tar.gz"
        with tarfile.open(whole) as source, tarfile.open(file, "w:gz") as target:
            for entry in source:
                target.addfile(entry, source.extractfile(entry) if entry.isfile() else None)
            for entry, data in others:
                entry.size = len(data)
                target.addfile(entry, io.BytesIO(data))
        return file

    return pack_with


OUT = "../outside"
MEMBERS = {
    "climbs": [(member(OUT), b"x")],
    "climbs on its way": [(member("trials/../../outside"), b"x")],
    "absolute": [(member("/tmp/outside-of-conformer-sweep"), b"x")],  # noqa: S108
    "link out": [(member("l", tarfile.SYMTYPE, link=OUT), b"")],
    "absolute link": [(member("l", tarfile.SYMTYPE, link="/etc"), b"")],
    "link inside": [(member("l", tarfile.SYMTYPE, link="sweep.toml"), b"")],
    "link, then a file through it": [
        (member("l", tarfile.SYMTYPE, link=".."), b""),
        (member("l/outside"), b"x"),
    ],
    "link of confirm that leads out": [
        (member("confirm", tarfile.DIRTYPE), b""),
        (member("confirm/teacher", tarfile.SYMTYPE, link="../../teacher"), b""),
    ],
    "hard link": [(member("h", tarfile.LNKTYPE, link="/etc/passwd"), b"")],
    "hard link inside": [(member("h", tarfile.LNKTYPE, link="sweep.toml"), b"")],
    "device": [(member("d", tarfile.CHRTYPE), b"")],
    "disk": [(member("d", tarfile.BLKTYPE), b"")],
    "pipe": [(member("lock", tarfile.FIFOTYPE), b"")],
    "sparse": [(member("s", tarfile.GNUTYPE_SPARSE), b"")],
    "unknown kind": [(member("u", b"Z"), b"")],
    "twice": [(member("sweep.toml"), b"[sweep]\n")],
    "file in a file": [(member("sweep.toml/x"), b"")],
    "no name": [(member("."), b"x")],
    "bucket": [(member(".store/address"), b"s3://bucket/sweep")],
    "bucket inside": [(member("confirm/.store/address"), b"s3://bucket/sweep")],
    "server": [(member("ledger.address"), b'{"address": "postgresql://h/d", "study": "s"}')],
    "server inside": [(member("confirm/ledger.address"), b"{}")],
    "journal of SQLite": [(member("mlflow.db-journal"), b"x")],
    "log of SQLite": [(member("ledger.db-wal"), b"x")],
    "a name for a terminal": [(member("\x1b]0;owned\x07/../../x"), b"x")],
}


@pytest.mark.parametrize("kind", MEMBERS)
def test_what_no_packed_sweep_holds_is_refused_and_leaves_nothing(
    pack_with, tmp_path, guard_effects, run_command, kind
):
    file = pack_with(*MEMBERS[kind])
    before = sorted(tmp_path.iterdir())

    with guard_effects(tmp_path):
        code, out, err = run_command("unpack", file, tmp_path / "new")

    assert code == 2
    assert out == ""
    assert err.startswith(f"error: `{file}` must be a packed sweep, but ")
    assert err.count("\n") == 1
    assert err[:-1].isprintable()
    assert sorted(tmp_path.iterdir()) == before


def test_what_may_be_inside_is_there_without_its_rights(pack_with, tmp_path):
    shared = member("confirm/teacher", tarfile.SYMTYPE, link="../teacher")
    strange = "trials/0001/ümläut \\ name"
    file = pack_with(
        (member("teacher", tarfile.DIRTYPE), b""),
        (member("confirm", tarfile.DIRTYPE), b""),
        (shared, b""),
        (member("tool", mode=0o6755), b"#!/bin/sh\n"),
        (member(strange), b"x" * 100_000),
    )

    unpack(file, tmp_path / "new")

    assert (tmp_path / "new/confirm/teacher").resolve() == tmp_path / "new/teacher"
    assert (tmp_path / "new" / strange).read_bytes() == b"x" * 100_000
    assert not (tmp_path / "new/tool").stat().st_mode & 0o7111


def bomb(path, size):
    """A gzip of zeros, as a tar archive that holds them in one file."""
    header = member("sweep.toml")
    header.size = size
    with gzip.open(path, "wb", compresslevel=6) as file:
        file.write(header.tobuf())
        for _ in range(size // 2**20):
            file.write(bytes(2**20))


def test_a_bomb_is_refused_before_it_fills_the_disk(tmp_path, guard_effects):
    bomb(tmp_path / "bomb.tar.gz", 3 * ALWAYS_ALLOWED)

    with guard_effects(tmp_path), pytest.raises(ConfigError, match="times its size"):
        unpack(tmp_path / "bomb.tar.gz", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def claiming(kind, size):
    """An archive whose header claims a name, a record or a file of that size."""
    header = bytearray(member("x", kind).tobuf())
    header[124:136] = b"\x80" + struct.pack(">Q", size).rjust(11, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return bytes(header)


CLAIMS = {
    "long name": tarfile.GNUTYPE_LONGNAME,
    "long link": tarfile.GNUTYPE_LONGLINK,
    "records": tarfile.XHDTYPE,
    "records of all": tarfile.XGLTYPE,
    "file": tarfile.REGTYPE,
}


@pytest.mark.parametrize("size", [2**33, 2**62])
@pytest.mark.parametrize("is_packed", [True, False])
@pytest.mark.parametrize("kind", CLAIMS)
def test_a_size_in_a_header_is_not_believed(tmp_path, kind, is_packed, size):
    file = tmp_path / "claims.nemo"
    content = claiming(CLAIMS[kind], size) + bytes(4096)
    file.write_bytes(gzip.compress(content) if is_packed else content)

    with pytest.raises(ImportingError, match=r"`claims.nemo` must"):
        read_archive(file)
    shutil.copy(file, tmp_path / "claims.tar.gz")
    with pytest.raises(ConfigError, match="must be a packed sweep"):
        unpack(tmp_path / "claims.tar.gz", tmp_path / "new")


def test_a_record_of_sizes_packed_a_thousand_times_stays_out_of_memory(tmp_path):
    size = 2**28
    file = tmp_path / "bomb.nemo"
    with gzip.open(file, "wb", compresslevel=6) as pack_with:
        pack_with.write(claiming(tarfile.XHDTYPE, size))
        for _ in range(size // 2**20):
            pack_with.write(bytes(2**20))

    with pytest.raises(ImportingError, match="bytes of memory"):
        read_archive(file)


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 8192, 2**20, 2**21 + 7])
@pytest.mark.parametrize("how", ["w", "w:gz"])
def test_files_of_any_size_are_read_whole(tmp_path, how, size):
    contents = {f"f{i}": os.urandom(size) for i in range(3)}
    with tarfile.open(tmp_path / "x.tar", how) as archive:
        for name, data in contents.items():
            entry = member(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))

    with open_tar(tmp_path / "x.tar", largest_read=2**22) as archive:
        content = {entry.name: archive.extractfile(entry).read() for entry in archive}
    assert content == contents


def test_a_header_that_points_backwards_ends(tmp_path):
    header = bytearray(member("x").tobuf())
    header[124:136] = b"\xff" * 12  # -1
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    (tmp_path / "x.tar").write_bytes(bytes(header) * 3 + bytes(1024))

    with open_tar(tmp_path / "x.tar", largest_read=2**20) as archive, suppress(*DAMAGED):
        assert len(list(archive)) < 10


@pytest.mark.parametrize(
    "kind", [k for k in MEMBERS if k.split()[0] in {"climbs", "absolute", "link", "hard", "device"}]
)
def test_a_model_s_archive_is_never_unpacked(tmp_path, guard_effects, run_command, kind):
    file = tmp_path / "model.nemo"
    with tarfile.open(file, "w") as archive:
        for entry, data in MEMBERS[kind]:
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    before = sorted(tmp_path.iterdir())

    with guard_effects(tmp_path):
        code, out, err = run_command("import", file, tmp_path / "out")

    assert (code, out) == (2, "")
    assert err.startswith("error: `model.nemo` must hold ")
    assert sorted(tmp_path.iterdir()) == before


def test_a_link_is_not_packed_as_it_would_point_to_nothing(sweep, tmp_path):
    (sweep / "features").symlink_to(tmp_path)

    with pytest.raises(ConfigError, match=r"`.*features` must be a file or a folder"):
        pack(sweep, tmp_path / "x.tar.gz")
    assert not (tmp_path / "x.tar.gz").exists()


def test_two_names_of_one_file_are_packed_as_two_files(sweep, tmp_path):
    (sweep / "a").write_text("same")
    (sweep / "b").hardlink_to(sweep / "a")

    pack(sweep, tmp_path / "x.tar.gz")
    unpack(tmp_path / "x.tar.gz", tmp_path / "new")

    assert (tmp_path / "new/b").read_text() == "same"
    assert (tmp_path / "new/b").stat().st_nlink == 1
