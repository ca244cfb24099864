"""The demo's sweep with each decoder."""

import pytest

from core.config.base import ConfigError
from sweep.cli.sweep_commands import demo
from sweep.config.sweep import open_config
from sweep.run.start import create_demo


@pytest.mark.parametrize("decoder", ["ctc", "rnnt", "tdt"])
def test_the_demo_has_the_decoder_and_nothing_else_differs(decoder, tmp_path):
    create_demo(tmp_path / "asked", decoder)
    create_demo(tmp_path / "usual", "ctc")

    asked, usual = (open_config(tmp_path / name).space.base for name in ("asked", "usual"))
    assert asked.model.decoder == decoder
    assert asked.model_copy(update={"model": usual.model}) == usual


def test_a_begun_demo_keeps_its_decoder(tmp_path):
    create_demo(tmp_path / "begun", "tdt")

    with pytest.raises(ConfigError, match="`--decoder` must be that of the sweep"):
        demo(tmp_path / "begun", "rnnt")
