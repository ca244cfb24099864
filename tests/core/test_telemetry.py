"""What other libraries send to their makers is switched off."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from core.export.onnx.conversion import export_onnx
from core.telemetry import TELEMETRY_OFF, disable_telemetry
from core.testing import small_model

pytest.importorskip("onnx")
RUN_A_GRAPH = """
import sys
from pathlib import Path
from core.inference.onnx_session import Graph
Graph(Path(sys.argv[1]))
"""


def test_what_the_user_has_set_stays():
    environment = {"ORT_DISABLE_TELEMETRY": "0"}

    disable_telemetry(environment)

    assert environment == TELEMETRY_OFF | {"ORT_DISABLE_TELEMETRY": "0"}


@pytest.mark.long
@pytest.mark.slow
def test_a_graph_leaves_nothing_in_the_temporary_folder(tmp_path):
    file, temporary = tmp_path / "model.onnx", tmp_path / "temporary"
    temporary.mkdir()
    export_onnx(small_model().eval(), file)
    environment = {k: v for k, v in os.environ.items() if k not in TELEMETRY_OFF}

    subprocess.run(  # noqa: S603  (this interpreter, a program of three lines)
        [sys.executable, "-c", RUN_A_GRAPH, str(file)],
        env=environment | {"TMPDIR": str(temporary)},
        cwd=Path(__file__).parents[2],
        check=True,
    )

    assert list(temporary.iterdir()) == []
