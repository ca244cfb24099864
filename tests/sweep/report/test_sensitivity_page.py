"""The page of `sensitivity`: what it draws, and that nothing in it is run."""

import pytest

from sweep.report.sensitivity_page import heat_map_cells, kl_of_share, write_sensitivity


def row(axis, counts, kl, units=12):
    shares = {"flops_share": 0.1, "params_share": 0.05}
    return {"axis": axis, "kind": "inner", "units": units, "counts": counts, "kl": kl, **shares}


ROWS = [
    row("width", [4, 8], [0.5, 2.0]),
    row("blocks.0.ff1.inner", [3, 6, 9, 12], [0.1, 0.2, 0.3, 0.4]),
    row("blocks.1.attention.head", [1, 2], [0.5, 0.7], units=2),
    row("blocks.1.ff2.inner", [1], [0.0]),
]


def test_a_cell_is_the_price_of_half_the_units():
    assert heat_map_cells(ROWS) == {(0, 0): 0.2, (1, 1): 0.5, (1, 3): 0.0}


@pytest.mark.parametrize(
    ("share", "kl"), [(0.25, 0.1), (0.26, 0.2), (0.5, 0.2), (0.75, 0.3), (1.0, 0.4)]
)
def test_the_price_of_a_share_is_that_of_the_first_level_with_as_many(share, kl):
    assert kl_of_share(ROWS[1], share) == kl


def test_a_table_that_does_not_go_as_far_gives_its_last_level():
    assert kl_of_share(ROWS[0], 1.0) == 2.0


def test_the_page_has_all_parts_and_is_alone(tmp_path):
    write_sensitivity(ROWS, tmp_path, title="teacher")

    page = (tmp_path / "sensitivity.html").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {
        f"sensitivity.{ending}" for ending in ("html", "png", "svg")
    }
    assert all(row["axis"] in page for row in ROWS)
    assert page.count("<svg") == 1
    assert 'http-equiv="Content-Security-Policy" content="default-src \'none\'' in page


def test_a_name_cannot_command_the_page(tmp_path):
    rows = [*ROWS, row("<script>alert(1)</script>", [1], [0.1])]

    write_sensitivity(rows, tmp_path, title="<img src=x onerror=alert(1)>")

    page = (tmp_path / "sensitivity.html").read_text()
    assert "<script" not in page
    assert "<img" not in page
