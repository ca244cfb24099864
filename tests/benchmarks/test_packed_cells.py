from benchmarks.lib.packed_cells import pack_errors, unpack_errors


def test_errors_and_outcomes_travel_and_models_do_not(tmp_path):
    cell = tmp_path / "here" / "teacher-0" / "cells" / "obs 50 % 0"
    cell.mkdir(parents=True)
    (cell / "outcomes.json").write_text('[{"model": "model"}]')
    (cell / "model.errors.json").write_text('{"errors": [1]}')
    (cell / "model").mkdir()
    (cell / "model" / "model.safetensors").write_bytes(b"large")
    there = tmp_path / "there"
    newer = there / "teacher-0" / "cells" / "obs 50 % 0" / "model.errors.json"
    newer.parent.mkdir(parents=True)
    newer.write_text("newer")

    pack_errors(tmp_path / "here", tmp_path / "packed.tar.xz")
    unpack_errors(tmp_path / "packed.tar.xz", there)

    found = {str(path.relative_to(there)) for path in there.rglob("*") if path.is_file()}
    own = "teacher-0/cells/obs 50 % 0"
    assert found == {f"{own}/outcomes.json", f"{own}/model.errors.json"}
    assert newer.read_text() == "newer"
