"""What torchaudio's Conformer computes of utterances alone, we compute."""

import json

import pytest
import torch
from torch import nn
from torchaudio.models import Conformer

from core.importers.load import read_model
from core.importers.safe_read import ImportingError

SIZES = {"num_heads": 4, "ffn_dim": 96, "num_layers": 2, "depthwise_conv_kernel_size": 7}
PIECES = ["<unk>", "\u2581", "a", "b", "c"]


class Recognizer(nn.Module):
    """As a person would write one around it."""

    def __init__(self, width):
        super().__init__()
        self.input = nn.Linear(80, width) if width != 80 else nn.Identity()
        self.encoder = Conformer(input_dim=width, **SIZES)
        self.head = nn.Linear(width, 1 + len(PIECES))

    def forward(self, features, lengths):
        return self.head(self.encoder(self.input(features), lengths)[0])


def save_model(folder, width):
    torch.manual_seed(0)
    model = Recognizer(width).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    names = {"conformer": "encoder", "head": "head", "input": "input" if width != 80 else ""}
    config = {
        "model_type": "torchaudio_conformer",
        "conformer": {"input_dim": width} | SIZES,
        "names": names,
        "blank": 5,
    }
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(model.state_dict(), folder / "model.pt")
    vocab = [[piece, -float(i)] for i, piece in enumerate(PIECES)]
    table = {"model": {"type": "Unigram", "unk_id": 0, "vocab": vocab}, "added_tokens": []}
    (folder / "tokenizer.json").write_text(json.dumps(table))
    return model


@pytest.mark.parametrize("width", [80, 48])
def test_log_probabilities_are_torchaudios_on_single_utterances(width, tmp_path):
    theirs = save_model(tmp_path, width)
    ours = read_model(tmp_path)

    for num_frames in (37, 60, 1):
        features, lengths = torch.randn(1, num_frames, 80), torch.tensor([num_frames])
        expected = theirs(features, lengths).log_softmax(-1).roll(1, dims=-1)
        outputs = ours.model(features, lengths)

        assert int(outputs.num_frames[0]) == num_frames
        torch.testing.assert_close(outputs.logits.log_softmax(-1), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            {"conformer": {"input_dim": 80}},
            r"`conformer.num_heads` of `config.json` must be a whole",
        ),
        ({"model_type": "whisper"}, r"`model_type` of `config.json` must be that of .*'whisper'"),
        ({"names": {"conformer": "other"}}, r"lacks `other.conformer_layers"),
        ({"names": {"head": "lm_head"}}, r"a head named `lm_head`, but has no `lm_head.weight`"),
    ],
)
def test_a_folder_that_does_not_say_what_it_holds_is_refused(damage, message, tmp_path):
    save_model(tmp_path, 80)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | damage))

    with pytest.raises(ImportingError, match=message):
        read_model(tmp_path)


@pytest.mark.parametrize(
    "table",
    [
        {"hearing": {"features": "nemo", "normalisation": "per_feature"}},
        {"frontend": {"features": "nemo", "normalization": "per_feature"}},
    ],
    ids=["as of version 0.1", "as of today"],
)
def test_its_features_are_named_in_a_table(table, tmp_path):
    save_model(tmp_path, 80)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | table))

    spec = read_model(tmp_path).model.frontend_spec

    assert (spec.features, spec.normalization) == ("nemo", "per_feature")


def test_features_named_twice_are_those_of_today(tmp_path):
    save_model(tmp_path, 80)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"hearing": {"features": "nemo"}, "frontend": {"features": "kaldi"}}
    (tmp_path / "config.json").write_text(json.dumps(config))

    assert read_model(tmp_path).model.frontend_spec.features == "kaldi"
