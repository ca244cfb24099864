"""A setting that lets manifests run programs counts in a file of the user's own alone."""

import shutil
import sys

import pytest

from core.config.base import ConfigError
from sweep.cli import app
from sweep.config.consent import check_consent, give_consent
from sweep.config.sweep import create, load, open_config
from sweep.ledger.ledger import Ledger
from sweep.storage.archive import pack, unpack


@pytest.fixture
def space(tiny_space, tmp_path, monkeypatch):
    """A search space of the user's own that allows programs."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    text = tiny_space.read_text()
    assert "[trial.corpus]\n" in text
    file = tmp_path / "mine.toml"
    file.write_text(text.replace("[trial.corpus]\n", '[trial.corpus]\nallow = ["commands"]\n', 1))
    return file


@pytest.fixture
def sweep(space, tmp_path):
    folder = tmp_path / "sweep"
    config = load(str(space))
    create(folder, config, space.read_text())
    ledger = Ledger.create(folder)
    ledger.close()
    return folder


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command as the shell would; give its exit code and its errors."""

    def ran(*words):
        monkeypatch.setattr(sys, "argv", ["conformer-sweep", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            app.main()
        return ended.value.code or 0, capsys.readouterr().err

    return ran


def test_a_sweep_that_was_started_here_may_go_on(sweep, space):
    give_consent(sweep, load(str(space)))

    check_consent(sweep, open_config(sweep))
    check_consent(sweep / "confirm", open_config(sweep))  # what lies inside is part of it


def test_what_others_wrote_allows_nothing(sweep, run):
    with pytest.raises(ConfigError, match=r"`corpus.allow` must come from a file of your own"):
        check_consent(sweep, open_config(sweep))

    code, err = run("resume", sweep)
    assert code == 2
    assert err.startswith("error: `corpus.allow` must come from a file of your own, but is ")
    code, err = run("warm-start", sweep.parent / "new", "--from", sweep)
    assert code == 2
    assert "`corpus.allow` must come from a file of your own" in err
    assert not (sweep.parent / "new").exists()


def test_an_archive_and_a_copy_bring_no_consent(sweep, space, tmp_path):
    give_consent(sweep, load(str(space)))
    pack(sweep, tmp_path / "sweep.tar.gz")
    with pytest.raises(ConfigError, match=r"must not let manifests name commands"):
        unpack(tmp_path / "sweep.tar.gz", tmp_path / "refused")
    unpack(tmp_path / "sweep.tar.gz", tmp_path / "unpacked", is_trusted=True)
    shutil.copytree(sweep, tmp_path / "copied")

    for place in ("unpacked", "copied"):
        with pytest.raises(ConfigError, match=r"must come from a file of your own"):
            check_consent(tmp_path / place, open_config(tmp_path / place))


def test_consent_is_to_one_corpus(sweep, space):
    give_consent(sweep, load(str(space)))
    (sweep / "sweep.toml").write_text(
        (sweep / "sweep.toml").read_text().replace("max_seconds = ", "max_seconds = 1.0 #")
    )

    with pytest.raises(ConfigError, match=r"must come from a file of your own"):
        check_consent(sweep, open_config(sweep))
