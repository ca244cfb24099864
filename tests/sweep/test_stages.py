"""A long command says what it does, on stderr; a short one does not."""

import os
import pty
import subprocess
import sys
import time

import pytest

from sweep.cli.output.stages import StageReporter
from sweep.cli.output.transcribe import TranscriptionProgress


def test_what_lasts_is_said_by_name_and_again(capsys):
    with StageReporter("starting", quiet_seconds=0.1, every_seconds=0.5) as stages:
        stages.announce("reading [the] model")
        time.sleep(1.3)
        stages.announce("writing")
        time.sleep(0.5)

    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert sum(line.startswith("reading [the] model (") for line in lines) >= 2
    assert lines[-1].startswith("writing (")


def test_a_short_command_prints_nothing(capsys):
    with StageReporter("starting") as stages:
        stages.announce("reading")
        time.sleep(0.5)

    assert capsys.readouterr() == ("", "")


def test_an_error_ends_it(capsys):
    with pytest.raises(ValueError, match="one"), StageReporter("starting", quiet_seconds=0.0):
        int("one")
    capsys.readouterr()
    time.sleep(0.5)

    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_the_stage_is_shown_and_wiped_away():
    code = (
        "import time; from sweep.cli.output.stages import StageReporter\n"
        "with StageReporter('starting') as stages:\n"
        "    stages.announce('reading the model'); time.sleep(1)\n"
        "print('done')"
    )
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(  # noqa: S603 - this interpreter, our own code
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=environment,
        text=True,
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # the terminal's other end is closed
                break
            shown += part
            if not part:
                break
        out, _ = process.communicate()
    os.close(ours)

    assert (process.returncode, out) == (0, "done\n")
    assert b"reading the model" in shown
    assert shown.rstrip().endswith((b"\x1b[2K", b"\x1b[?25h"))


def test_where_no_bar_is_seen_transcribing_says_that_it_goes_on(monkeypatch, capsys):
    monkeypatch.setitem(StageReporter.__init__.__kwdefaults__, "quiet_seconds", 0.0)

    with TranscriptionProgress(60.0):
        time.sleep(0.5)

    assert "transcribing (" in capsys.readouterr().err
