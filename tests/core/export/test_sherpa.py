"""What sherpa-onnx is given: tokens that join to the same text, and the loader of its features."""

import importlib.util
import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.export import Dim

from core.config.trial import CorpusConfig
from core.data.tokenizer import BLANK, Tokenizer
from core.export.onnx.conversion import export_onnx
from core.export.sherpa import (
    SPEC,
    TOKENS,
    WORD_START,
    needs_sherpa,
    sherpa_spec,
    tokens_text,
    transcribe_with_sherpa,
)
from core.features.nemo import compute_features
from core.features.spec import NATIVE, FrontendSpec
from core.inference.graph_interface import ExportError
from core.inference.sherpa_loader import Loader, choose_loader
from core.testing import SHAPE, small_model

pytestmark = pytest.mark.whole

TEXTS = ["ONE TWO THREE", "THREE TEN TWENTY", "TWO TENS"]
HAS_SHERPA = importlib.util.find_spec("sherpa_onnx") is not None


def tokenizer_of(kind, folder, texts=TEXTS):
    vocabulary = {"word": 6, "char": 40}.get(kind, 20)
    return Tokenizer.train(texts, CorpusConfig(tokens=kind, vocabulary=vocabulary), folder)


def symbols_of(text):
    """Symbols in the order of their ids, as sherpa-onnx reads them."""
    pairs = [line.split(" ") for line in text.splitlines()]
    assert [int(number) for _, number in pairs] == list(range(len(pairs)))
    return [f" {symbol[1:]}" if symbol.startswith(WORD_START) else symbol for symbol, _ in pairs]


@pytest.mark.parametrize("kind", ["word", "unigram", "bpe", "char"])
def test_symbols_join_to_what_the_tokenizer_says(kind, tmp_path):
    tokenizer = tokenizer_of(kind, tmp_path)
    symbols = symbols_of(tokens_text(tokenizer))
    chance = np.random.default_rng(0)

    for _ in range(200):
        ids = chance.integers(1, tokenizer.size, chance.integers(0, 9)).tolist()
        joined = "".join(symbols[i] for i in ids)

        assert " ".join(joined.split()) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", ["word", "unigram", "bpe", "char"])
def test_the_blank_has_the_name_by_which_it_is_found(kind, tmp_path):
    symbols = symbols_of(tokens_text(tokenizer_of(kind, tmp_path)))

    assert symbols[BLANK] == "<blk>"
    assert symbols.count("<blk>") == 1


def test_unknown_words_are_set_apart_without_a_trace(tmp_path):
    tokenizer = tokenizer_of("word", tmp_path)
    symbols = symbols_of(tokens_text(tokenizer))

    assert symbols[tokenizer.unknown] == " \u2047"


def test_every_piece_keeps_its_symbol_wherever_the_unknown_one_stands():
    pieces = ["\u2581", "a", "b", "<unk>"]
    tokenizer = Tokenizer.of_pieces(pieces, [-1.0, -2.0, -3.0, 0.0], unknown="<unk>", is_bpe=False)

    lines = tokens_text(tokenizer).splitlines()

    assert tokenizer.unknown == 4
    assert lines[:4] == ["<blk> 0", "\u2581 1", "a 2", "b 3"]
    assert lines[4] == "\u2581\u2047\u00a0 4"


def test_a_symbol_with_white_space_is_refused(tmp_path):
    tokenizer = tokenizer_of("char", tmp_path, ["A\tB AB"])

    with pytest.raises(ExportError, match=r"symbol without white space, but token \d+ is '\\t'"):
        tokens_text(tokenizer)


def test_the_loader_is_the_one_that_computes_the_features():
    frontend_spec = FrontendSpec(
        features="nemo", normalization="per_feature", subsampling_kind="dw_striding", stages=3
    )
    nemo = choose_loader(frontend_spec, 1025)

    assert choose_loader(NATIVE, 7) == Loader(name="from_zipformer_ctc")
    assert nemo.name == "from_nemo_ctc"
    assert nemo.is_nemo
    assert not nemo.is_exact
    assert choose_loader(frontend_spec.for_sherpa(has_transducer=False), 1025) == replace(
        nemo, is_exact=True
    )
    assert NATIVE.for_sherpa(has_transducer=False) == NATIVE
    assert nemo.metadata == {
        "vocab_size": "1025",
        "subsampling_factor": "1",
        "normalize_type": "per_feature",
    }
    for other in (
        FrontendSpec(subsampling_kind="linear", stages=0),
        replace(frontend_spec, subsampling_kind="conv4", stages=2),
    ):
        with pytest.raises(ExportError, match=rf"must read .* but .* {other.features}'s through"):
            choose_loader(other, 7)


def test_without_sherpa_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(importlib.util.sys.modules, "sherpa_onnx", None)

    with pytest.raises(ExportError, match=r'`sherpa_onnx`.*"conformer-sweep\[sherpa\]"'):
        needs_sherpa()


@pytest.fixture(scope="module")
def nemo(tmp_path_factory):
    """A graph with mels first, and the metadata that NeMo's loader wants."""
    if not HAS_SHERPA:
        pytest.skip("needs sherpa-onnx: the extra `sherpa`")
    folder = tmp_path_factory.mktemp("nemo")
    loader = choose_loader(
        FrontendSpec(features="nemo", subsampling_kind="striding"), SHAPE.vocabulary
    )
    graph = folder / "model.onnx"
    export_onnx(small_model(), graph, is_nemo=True, metadata=loader.metadata)
    (folder / SPEC).write_text(json.dumps(sherpa_spec(loader, {"float": graph.name})))
    return folder


LEVELS = 4000
"""Of a feature that is read out as a number."""


class Reading(nn.Module):
    """Says a mel bin's level in each frame, in one of two tokens by turns: none is a repetition."""

    def __init__(self, mel, levels):
        super().__init__()
        self.mel = mel
        self.register_buffer("levels", levels)

    def forward(self, features, num_frames):
        near = -(features[:, self.mel, :, None] - self.levels).abs()  # (B, T, levels)
        is_odd = (torch.arange(near.shape[1]) % 2)[:, None].bool()
        never = torch.full_like(near, -1e9)
        even, odd = torch.where(is_odd, never, near), torch.where(is_odd, near, never)
        return torch.cat([even, odd, never[:, :, :1]], dim=2), num_frames


def read_out(folder, sounds, mel, levels, metadata):
    """A mel bin's features of some sounds, as sherpa-onnx computes them, to the next level."""
    free = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC}, {0: Dim.DYNAMIC})
    example = (torch.randn(2, 80, 90), torch.tensor([90, 50]))
    program = torch.onnx.export(
        Reading(mel, levels), example, dynamo=True, dynamic_shapes=free, verbose=False
    )
    program.save(folder / "model.onnx")
    graph = onnx.load(folder / "model.onnx")
    onnx.helper.set_model_props(graph, metadata)
    onnx.save(graph, folder / "model.onnx")
    lines = [f"{WORD_START}{number} {number}\n" for number in range(2 * len(levels))]
    (folder / TOKENS).write_text("".join(lines) + f"<blk> {2 * len(levels)}\n")
    told = sherpa_spec(Loader(name="from_nemo_ctc"), {"float": "model.onnx"})
    (folder / SPEC).write_text(json.dumps(told))
    texts = transcribe_with_sherpa(folder, sounds).alone
    return [levels[[int(word) % len(levels) for word in text.split()]] for text in texts]


@pytest.mark.slow
@pytest.mark.skipif(not HAS_SHERPA, reason="needs sherpa-onnx: the extra `sherpa`")
@pytest.mark.filterwarnings("ignore")  # of torch's exporter
@pytest.mark.parametrize("mel", [0, 40, 79])
@pytest.mark.parametrize(
    ("normalization", "low", "high"), [("none", -18, 8), ("per_feature", -6, 6)]
)
def test_what_is_heard_for_sherpa_is_what_sherpa_computes(normalization, low, high, mel, tmp_path):
    frontend_spec = FrontendSpec(
        features="sherpa", normalization=normalization, subsampling_kind="dw_striding", stages=2
    )
    chance = torch.Generator().manual_seed(0)
    sounds = [0.1 * torch.randn(n, generator=chance) for n in (16_000, 5_555, 12_400)]
    sounds[1][2_000:3_000] *= 1e-3  # nearly nothing
    levels = torch.linspace(low, high, LEVELS)
    metadata = dict(choose_loader(frontend_spec, 2 * LEVELS + 1).metadata)

    found = read_out(tmp_path, sounds, mel, levels, metadata)

    for sound, theirs in zip(sounds, found, strict=True):
        features, _ = compute_features(frontend_spec, sound[None], torch.tensor([len(sound)]))
        assert len(theirs) == features.shape[1]
        gap = (features[0, :, mel] - theirs).abs().max()
        assert gap < 0.5 * (high - low) / (LEVELS - 1) + 3e-4


SOUNDS = [torch.randn(16_000, generator=torch.Generator().manual_seed(0))]
SEVEN = "<blk> 0\na 1\nb 2\nc 3\nd 4\ne 5\nf 6\n"


@pytest.mark.long
@pytest.mark.slow
def test_a_graph_with_nemo_s_metadata_is_loaded(nemo):
    (nemo / TOKENS).write_text(SEVEN)

    assert transcribe_with_sherpa(nemo, []).alone == ()


@pytest.mark.long
@pytest.mark.slow
def test_what_ends_sherpa_s_process_is_an_error_of_ours(nemo):
    (nemo / TOKENS).write_text(SEVEN.replace("<blk>", "nothing"))

    with pytest.raises(ExportError, match=r"load and run `model\.onnx` by `from_nemo_ctc`.*ended"):
        transcribe_with_sherpa(nemo, SOUNDS)
