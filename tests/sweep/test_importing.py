"""`conformer-sweep import`: a recognizer from elsewhere, in one line or with one line."""

import json
import sys
from pathlib import Path

import pytest

from core import bundle
from sweep.cli import app

ARCHIVE = Path(__file__).parents[3] / "shared/data/models/fastconformer-8x.nemo"


def ran(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["conformer-sweep", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        app.main()
    captured = capsys.readouterr()
    return ended.value.code or 0, captured.out, captured.err


@pytest.mark.skipif(not ARCHIVE.is_file(), reason="../shared/data/models is not there")
def test_an_archive_becomes_a_bundle_that_says_what_it_is(tmp_path, monkeypatch, capsys):
    code, out, _ = ran(monkeypatch, capsys, "import", ARCHIVE, tmp_path / "out", "--json")
    to = (tmp_path / "in-sherpa", "--for-sherpa", "--json")
    again, in_sherpa, _ = ran(monkeypatch, capsys, "import", ARCHIVE, *to)

    told = json.loads(out)
    assert code == again == 0
    assert json.loads(in_sherpa)["frontend"] == told["frontend"] | {"features": "sherpa"}
    assert (told["family"], told["blocks"], told["tokens"]) == ("nemo", 2, 65)
    assert told["params"] == sum(
        p.numel() for p in bundle.load(tmp_path / "out").model.parameters()
    )


def test_what_is_no_recognizer_is_bad_input(tmp_path, monkeypatch, capsys):
    code, _, err = ran(monkeypatch, capsys, "import", tmp_path, tmp_path / "out")

    assert code == 2
    assert err.startswith("error: ")
    assert "must be a `.nemo` archive, or a folder of" in err
    assert list(tmp_path.iterdir()) == []
