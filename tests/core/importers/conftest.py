"""Archives made anew."""

import io
import tarfile

import pytest


@pytest.fixture(scope="session")
def repack():
    def make_archive(file, files):
        with tarfile.open(file, "w") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(f"./{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        return file

    return make_archive
