"""What is written for transformers, read back: the round trip needs no package of theirs."""

from dataclasses import replace

import pytest
import torch

from core.config.trial import CorpusConfig
from core.conformer.shape import BlockShape
from core.data.tokenizer import Tokenizer
from core.export.parakeet import count_added, write_parakeet
from core.features.spec import FrontendSpec
from core.importers.load import read_model
from core.importers.safe_read import ImportingError
from core.inference.graph_interface import ExportError
from core.pruning.extraction import extract
from core.testing import (
    SHAPE,
    deeper,
    ragged_speech,
    random_mask,
    small_model,
    with_frontend,
    with_transducer,
)

TEXTS = ["ABCD", "BAD CAB", "DAB"]
HEARD = FrontendSpec(
    features="nemo", normalization="per_feature", subsampling_kind="dw_striding", stages=3
)


def tokenizer_of(folder, kind="char", vocabulary=40):
    return Tokenizer.train(TEXTS, CorpusConfig(tokens=kind, vocabulary=vocabulary), folder)


def heard_there(shape, **hears):
    """The shape with a front end that transformers knows."""
    shape = with_frontend(shape, "dw_striding 8x")
    heard = replace(shape.frontend_spec, **hears)
    return replace(shape, frontend_spec=heard, sub3=shape.sub3 if heard.stages == 3 else 0)


def model_of(shape, tokenizer):
    model = small_model(shape=replace(shape, vocabulary=tokenizer.size))
    model.frontend.mean.zero_()
    model.frontend.deviation.fill_(1.0)
    return model


@pytest.mark.parametrize("kind", ["open", "binary", "empty_axes", "empty_modules", "empty_blocks"])
@pytest.mark.parametrize("hears", [{}, {"stages": 2, "preemphasis": 0.5}])
def test_an_export_imported_again_says_the_same(kind, hears, tmp_path):
    tokenizer = tokenizer_of(tmp_path)
    model = model_of(heard_there(deeper(3), **hears), tokenizer)
    kept = [axis for axis in model.axes() if axis.kind != "width"]
    small = extract(model, random_mask(kept, kind))
    features, num_frames = ragged_speech(90, 61, 12)

    write_parakeet(small, tokenizer, tmp_path)
    again = read_model(tmp_path)

    expected, found = small(features, num_frames), again.model(features, num_frames)
    assert again.model.shape.frontend_spec == small.shape.frontend_spec
    assert again.tokenizer.pieces == tokenizer.pieces
    torch.testing.assert_close(
        found.logits[expected.is_frame].log_softmax(-1),
        expected.logits[expected.is_frame].log_softmax(-1),
        rtol=0,
        atol=1e-5,
    )


@pytest.mark.parametrize("mask", ["open", "binary", "empty_axes"])
@pytest.mark.parametrize("kind", ["lstm rnnt", "lstm tdt"])
def test_a_transducer_imported_again_says_the_same(kind, mask, tmp_path):
    """Its embedding, layers and joint of different sizes get one size there; a CTC head stays."""
    tokenizer = tokenizer_of(tmp_path)
    shape = with_transducer(heard_there(deeper(2)), kind, has_ctc=True)
    model = model_of(shape, tokenizer)
    kept = [axis for axis in model.axes() if axis.kind != "width"]
    small = extract(model, random_mask(kept, mask)).eval()
    features, num_frames = ragged_speech(90, 61, 12)
    places = small.best_places(features, num_frames)

    write_parakeet(small, tokenizer, tmp_path)
    again = read_model(tmp_path).model.eval()

    sizes = {again.shape.transducer.embedding, again.shape.transducer.joint}
    assert sizes == set(again.shape.transducer.units)
    torch.testing.assert_close(
        again(features, num_frames, places=places).at_places,
        small(features, num_frames, places=places).at_places,
        rtol=0,
        atol=1e-5,
    )
    count = sum(p.numel() for p in small.parameters()) - sum(
        p.numel() for p in small.head.parameters()
    )
    assert count_added(small) == sum(p.numel() for p in again.parameters()) - count


def test_a_predictor_without_states_is_refused(tmp_path):
    shape = with_transducer(heard_there(SHAPE), "stateless rnnt")
    tokenizer = tokenizer_of(tmp_path)

    with pytest.raises(ExportError, match=r"must be an LSTM, but this one reads its last 2 tokens"):
        write_parakeet(model_of(shape, tokenizer), tokenizer, tmp_path)


def test_what_is_alike_already_comes_back_tensor_by_tensor(tmp_path):
    tokenizer = tokenizer_of(tmp_path)
    block = BlockShape(ff1=12, heads=2, channels=16, ff2=12)
    shape = replace(heard_there(SHAPE), sub1=6, sub2=6, sub3=6, blocks=(block,) * 2)
    model = model_of(shape, tokenizer)

    write_parakeet(model, tokenizer, tmp_path)
    again = read_model(tmp_path).model

    assert count_added(model) == 0
    assert again.shape == model.shape
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


@pytest.mark.parametrize("kind", ["unigram", "bpe", "char"])
def test_its_fast_tokenizer_alone_becomes_the_tokens_again(kind, tmp_path):
    tokenizer = tokenizer_of(tmp_path, kind, vocabulary=12)
    write_parakeet(model_of(heard_there(SHAPE), tokenizer), tokenizer, tmp_path)
    (tmp_path / "tokenizer.model").unlink()

    again = read_model(tmp_path).tokenizer

    assert again.pieces[1:] == tokenizer.pieces[1:]
    for text in [*TEXTS, "CAD DAD"]:
        assert again.encode(text) == tokenizer.encode(text)


@pytest.mark.parametrize(
    ("changes", "hears", "message"),
    [
        (
            {"frontend_spec": FrontendSpec(), "sub3": 0},
            None,
            r"`frontend.subsampling_kind`.*dw_striding.*is conv4 in",
        ),
        ({}, {"normalization": "none"}, r"`frontend.normalization`.*be per_feature.*is none inst"),
        ({}, {"window": "hamming"}, r"`frontend.window`.*must be hann,.*is hamming instead"),
        ({"position_width": 18}, {}, r"positions, 18, but is 16 instead; .*lack `width`"),
        ({"width": 15, "position_width": 15}, {}, r"must be even .* but is 15 instead"),
        (
            {"blocks": (BlockShape(ff1=4, heads=1, channels=17, ff2=4),)},
            {},
            r"`blocks.0`.*at most 16 channels.*has 17 instead",
        ),
        (
            {"blocks": (BlockShape(ff1=4, heads=1, channels=4, ff2=4, linear_features=6),)},
            {},
            r"`blocks.0`.*softmax attention.*by 6 features instead \(the method `performer`\)",
        ),
    ],
)
def test_what_transformers_cannot_be_told_is_refused_with_another_way(
    changes, hears, message, tmp_path
):
    tokenizer = tokenizer_of(tmp_path)
    shape = SHAPE if hears is None else heard_there(SHAPE, **hears)
    before = sorted(tmp_path.iterdir())

    with pytest.raises(ExportError, match=rf"{message}.*`--to onnx`") as refused:
        write_parakeet(model_of(replace(shape, **changes), tokenizer), tokenizer, tmp_path)

    assert len(str(refused.value).splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before


def test_features_that_were_normalised_by_the_model_itself_are_refused(tmp_path):
    tokenizer = tokenizer_of(tmp_path)
    model = model_of(heard_there(SHAPE), tokenizer)
    model.frontend.mean[3] = 0.5

    with pytest.raises(ExportError, match=r"a mean and a deviation of its own.*`--to onnx`"):
        write_parakeet(model, tokenizer, tmp_path)


def test_parameters_that_fill_up_are_counted(tmp_path):
    tokenizer = tokenizer_of(tmp_path)
    model = model_of(heard_there(SHAPE), tokenizer)
    write_parakeet(model, tokenizer, tmp_path)

    again = read_model(tmp_path).model

    before, after = (sum(p.numel() for p in each.parameters()) for each in (model, again))
    assert count_added(model) == after - before > 0


def test_head_widths_of_their_own_are_read_and_checked(tmp_path):
    tokenizer = tokenizer_of(tmp_path)
    shape = heard_there(replace(SHAPE, head_width=6))
    write_parakeet(model_of(shape, tokenizer), tokenizer, tmp_path)
    config = tmp_path / "config.json"

    assert read_model(tmp_path).model.shape.head_width == 6
    three, one = (f'"num_key_value_heads": {heads}' for heads in (3, 1))
    config.write_text(config.read_text().replace(three, one))
    with pytest.raises(ImportingError, match=r"num_key_value_heads.*must be 3, but is 1 instead"):
        read_model(tmp_path)
