"""What is left of a model, read from its bundle and drawn."""

import json
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
import torch

from core.config.trial import ModelConfig
from core.conformer.shape import Shape
from core.pruning.extraction import extract
from core.testing import random_mask, small_model
from sweep.report.architecture import Left, read_structure, structure
from sweep.report.architecture_heatmap import MOST_PANELS, Panel, draw_front, evenly, heatmap_svg

WHOLE = Shape.of(ModelConfig(size="tiny"), 64)


def pruned(share):
    blocks = tuple(
        replace(block, ff1=round(share * block.ff1), heads=place % 5, ff2=0)
        for place, block in enumerate(WHOLE.blocks)
    )
    return structure(replace(WHOLE, width=round(share * WHOLE.width), blocks=blocks), WHOLE)


def panels(count):
    return [
        Panel(title=f"trial {n}\n5 % WER", structure=pruned((n + 1) / count)) for n in range(count)
    ]


def test_the_structure_is_what_the_extracted_model_has():
    torch.manual_seed(0)
    model = small_model()
    small = extract(model, random_mask(model.axes(), "binary"))

    found = structure(small.shape, model.shape)

    block, left = small.shape.blocks[0], found.blocks[0]
    assert [each.remaining for each in left[:4]] == [
        block.ff1,
        block.heads,
        block.channels,
        block.ff2,
    ]
    assert left[4] == Left(remaining=sum(each.remaining > 0 for each in left[:4]), whole=4)
    assert [each.remaining for each in found.trunk] == [
        *(small.shape.sub1, small.shape.sub2, small.shape.width)
    ]


def test_a_structure_is_read_without_loading_a_model(tmp_path):
    for name, shape in (("small", replace(WHOLE, width=7)), ("teacher", WHOLE)):
        (tmp_path / name).mkdir()
        plain = {"format": 1, **shape.to_plain()}
        (tmp_path / name / "shape.json").write_text(json.dumps(plain))

    found = read_structure(tmp_path / "small", tmp_path / "teacher")

    assert str(found.trunk[2]) == "7/96"
    assert found.blocks[0][1].share == 1.0


@pytest.mark.parametrize("gone", [(2,), (0, 4), (0, 1, 2, 3, 4, 5)])
def test_blocks_that_are_gone_stand_empty_in_their_places(tmp_path, gone):
    left = replace(WHOLE, blocks=WHOLE.blocks[len(gone) :])
    for name, shape in (("small", left), ("teacher", WHOLE)):
        (tmp_path / name).mkdir()
        plain = {"format": 1, **shape.to_plain()}
        (tmp_path / name / "shape.json").write_text(json.dumps(plain))
    kept = {f"blocks.{i}": [] if i in gone else [0] for i in range(len(WHOLE.blocks))}
    report = tmp_path / "small" / "report.json"

    assert read_structure(tmp_path / "small", tmp_path / "teacher") is None
    report.write_text(json.dumps({"kept_units": kept}))
    found = read_structure(tmp_path / "small", tmp_path / "teacher")

    assert len(found.blocks) == len(WHOLE.blocks)
    for i, block in enumerate(found.blocks):
        assert {each.share for each in block} == {0.0 if i in gone else 1.0}
    report.write_text("[]")
    assert read_structure(tmp_path / "small", tmp_path / "teacher") is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"blocks": 3}'])
def test_what_is_no_bundle_has_no_structure(tmp_path, text):
    assert read_structure(tmp_path, tmp_path) is None
    (tmp_path / "shape.json").write_text(text)
    assert read_structure(tmp_path, tmp_path) is None


def test_every_part_has_a_cell_with_its_count():
    text = heatmap_svg(Panel(title="trial 7", structure=pruned(0.5)))

    written = {comment.text.strip() for comment in _comments(text)}
    assert {"trial 7", "block 6", "192/384", "0/384", "4/4", "48/96", "whole", "width"} <= written


def _comments(text):
    """Matplotlib draws letters as shapes, and says in a comment what they spell."""
    parser = ET.XMLParser(target=ET.TreeBuilder(insert_comments=True))  # noqa: S314  (our own)
    root = ET.fromstring(text, parser)  # noqa: S314  (our own file)
    return [each for each in root.iter() if each.tag is ET.Comment]


@pytest.mark.parametrize("count", [1, 3, 40])
def test_front_points_stand_side_by_side(tmp_path, count):
    files = [tmp_path / "kept.svg", tmp_path / "kept.png"]

    draw_front(panels(count), svg=files[0], png=files[1])

    titles = {comment.text.strip() for comment in _comments(files[0].read_text())}
    assert {"trial 0", f"trial {count - 1}"} <= titles
    assert sum(title.startswith("trial") for title in titles) == min(count, MOST_PANELS)
    assert files[1].read_bytes().startswith(b"\x89PNG")


def test_of_a_long_front_both_ends_are_shown():
    assert evenly(panels(3), 5) == panels(3)
    shown = evenly(panels(50), 5)
    assert [panel.title.split()[1] for panel in shown] == ["0", "12", "24", "37", "49"]


def test_equal_models_give_equal_pictures():
    assert heatmap_svg(panels(1)[0]) == heatmap_svg(panels(1)[0])
