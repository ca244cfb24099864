"""NeMo's transducers and hybrids, from archives made of a real encoder and drawn decoders.

The oracle is `torch.nn.LSTM` with NeMo's names and rules: it starts with a vector of zeros, and the
joint's last layer follows an activation and, if there is any, dropout.
"""

import io
import random
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from core import bundle
from core.decoders.places import Places
from core.importers.load import import_model, read_model
from core.importers.nemo import CONFIG, WEIGHTS
from core.importers.safe_read import ImportingError, read_archive
from tests.support.malformed import check_refused, with_malformed_tensor

ARCHIVE = Path(__file__).parents[4] / "shared/data/models/fastconformer-8x.nemo"
pytestmark = pytest.mark.skipif(not ARCHIVE.is_file(), reason="../shared/data/models is not there")
MALFORMED = 300


class Prediction(nn.Module):
    """`decoder.prediction` of NeMo's RNNTDecoder."""

    def __init__(self, classes, hidden, layers):
        super().__init__()
        self.embed = nn.Embedding(classes + 1, hidden, padding_idx=classes)
        self.dec_rnn = nn.ModuleDict({"lstm": nn.LSTM(hidden, hidden, layers)})

    def forward(self, tokens):
        start = torch.zeros(len(tokens), 1, self.embed.embedding_dim)
        embedded = torch.cat([start, self.embed(tokens)], 1)
        return self.dec_rnn["lstm"](embedded.mT.permute(2, 0, 1))[0].transpose(0, 1)


class Model(nn.Module):
    """The decoders of an archive."""

    def __init__(self, *, classes, width, hidden, joint, layers, durations, dropout, is_hybrid):
        super().__init__()
        self.decoder = nn.ModuleDict({"prediction": Prediction(classes, hidden, layers)})
        steps = [nn.Tanh(), *[nn.Dropout(dropout)] * bool(dropout)]
        steps.append(nn.Linear(joint, classes + 1 + len(durations)))
        self.joint = nn.ModuleDict(
            {
                "enc": nn.Linear(width, joint),
                "pred": nn.Linear(hidden, joint),
                "joint_net": nn.Sequential(*steps),
            }
        )
        if is_hybrid:
            layers = nn.ModuleList([nn.Conv1d(width, classes + 1, 1)])
            self.ctc_decoder = nn.ModuleDict({"decoder_layers": layers})

    def forward(self, encoded, tokens):
        frames = self.joint["enc"](encoded)[:, :, None]
        predicted = self.joint["pred"](self.decoder["prediction"](tokens))[:, None]
        return self.joint["joint_net"](frames + predicted)


def transducer_archive(
    repack, file, *, durations=(), dropout=0.2, is_hybrid=False, layers=2, change=None
):
    """Write an archive with the real encoder, and return its drawn decoders."""
    files = read_archive(ARCHIVE)
    settings = yaml.safe_load(files[CONFIG])
    tensors = torch.load(io.BytesIO(files[WEIGHTS]), weights_only=True)
    tensors = {name: t for name, t in tensors.items() if not name.startswith("decoder.")}
    classes, width = settings["decoder"]["num_classes"], settings["encoder"]["d_model"]
    torch.manual_seed(3)
    decoders = Model(
        classes=classes,
        width=width,
        hidden=20,
        joint=24,
        layers=layers,
        durations=durations,
        dropout=dropout,
        is_hybrid=is_hybrid,
    ).eval()
    ctc = settings.pop("decoder")
    settings["decoder"] = {
        "_target_": "nemo.collections.asr.modules.RNNTDecoder",
        "blank_as_pad": True,
        "normalization_mode": None,
        "vocab_size": classes,
        "prednet": {"pred_hidden": 20, "pred_rnn_layers": layers, "dropout": 0.2, "t_max": None},
    }
    settings["joint"] = {
        "_target_": "nemo.collections.asr.modules.RNNTJoint",
        "num_classes": classes,
        "num_extra_outputs": len(durations),
        "jointnet": {"joint_hidden": 24, "activation": "tanh", "dropout": dropout},
    }
    if durations:
        settings["loss"] = {"loss_name": "tdt", "tdt_kwargs": {"durations": list(durations)}}
    if is_hybrid:
        settings["aux_ctc"] = {"ctc_loss_weight": 0.3, "decoder": ctc}
    if change:
        change(settings)
    saved = io.BytesIO()
    torch.save(tensors | decoders.state_dict(), saved)
    config = yaml.safe_dump(settings).encode()
    repack(file, files | {CONFIG: config, WEIGHTS: saved.getvalue()})
    return decoders


KINDS = [
    {},
    {"durations": (0, 1, 2, 3, 4)},
    {"durations": (1, 2), "dropout": 0.0, "layers": 1},
    {"durations": (0, 1, 2), "is_hybrid": True},
]


@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_at_every_place_are_those_of_nemos_parts(kind, tmp_path, repack):
    decoders = transducer_archive(repack, tmp_path / "model.nemo", **kind)
    ours = read_model(tmp_path / "model.nemo").model
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, ours.vocabulary, (2, 5), generator=generator)
    speech = torch.randn(2, 120, 80, generator=generator), torch.tensor([120, 77])
    cells = [
        (u, t, p) for u, frames in enumerate((15, 10)) for t in range(frames) for p in range(6)
    ]
    index = torch.tensor(cells)

    output = ours(*speech, places=Places(tokens=tokens, index=index))

    with torch.no_grad():  # the blank, 0 here, is their last
        logits = decoders(output.encoded, tokens - 1)
    of_tokens, of_durations = logits.tensor_split([ours.vocabulary], -1)
    expected = [of_tokens.log_softmax(-1).roll(1, dims=-1), of_durations.log_softmax(-1)]
    expected = torch.cat(expected, -1)[tuple(index.T)]
    torch.testing.assert_close(output.log_probs(), expected, rtol=0, atol=1e-5)
    if kind.get("is_hybrid"):
        head = decoders.ctc_decoder["decoder_layers"][0]
        with torch.no_grad():
            theirs = head(output.encoded.mT).mT.roll(1, dims=-1)
        torch.testing.assert_close(output.logits, theirs, rtol=0, atol=1e-5)


def test_the_blank_is_a_vector_of_zeros_to_the_predictor(tmp_path, repack):
    transducer_archive(repack, tmp_path / "model.nemo")

    embedding = read_model(tmp_path / "model.nemo").model.transducer.predictor.embedding.weight

    assert not embedding[0].any()
    assert embedding[1:].any(1).all()


@pytest.mark.parametrize("branch", ["all", "ctc", "transducer"])
def test_a_hybrid_is_imported_whole_or_by_branch(branch, tmp_path, repack):
    transducer_archive(repack, tmp_path / "model.nemo", durations=(0, 1), is_hybrid=True)

    import_model(str(tmp_path / "model.nemo"), tmp_path / "out", branch=branch)

    decoders = bundle.load(tmp_path / "out").model.shape.decoders
    assert decoders == {"all": ["TDT", "CTC"], "ctc": ["CTC"], "transducer": ["TDT"]}[branch]


@pytest.mark.parametrize(("branch", "file"), [("transducer", "ctc"), ("ctc", "rnnt")])
def test_a_branch_that_a_model_lacks_is_refused(branch, file, tmp_path, repack):
    transducer_archive(repack, tmp_path / "rnnt.nemo")
    source = ARCHIVE if file == "ctc" else tmp_path / "rnnt.nemo"

    with pytest.raises(ImportingError, match=rf"`--decoder` .* but is `{branch}` instead"):
        import_model(str(source), tmp_path / "out", branch=branch)

    assert not (tmp_path / "out").exists()


REFUSED = [
    (
        "decoder",
        "_target_",
        "nemo.collections.asr.modules.StatelessTransducerDecoder",
        "RNNTDecoder",
    ),
    ("decoder", "blank_as_pad", False, "must be True"),
    ("decoder", "normalization_mode", "layer", "must be None"),
    ("decoder", "vocab_size", 63, "as tokens are"),
    ("decoder.prednet", "rnn_hidden_size", 40, "must be 20"),
    ("decoder.prednet", "pred_rnn_layers", 0, "whole number from 1 to 16"),
    ("joint", "_target_", "nemo.collections.asr.modules.HATJoint", "RNNTJoint"),
    ("joint", "num_extra_outputs", 3, "3 whole numbers that ascend"),
    ("joint.jointnet", "activation", "gelu", "'relu' or 'tanh' or 'sigmoid'"),
    ("joint.jointnet", "joint_hidden", 23, "shape"),
    ("", "target", "nemo.collections.asr.models.EncDecHybridRNNTCTCBPEModelWithPrompt", "alone"),
]


def changed(table, key, value):
    def change(settings):
        for part in filter(None, table.split(".")):
            settings = settings[part]
        settings[key] = value

    return change


@pytest.mark.parametrize(("table", "key", "value", "rule"), REFUSED)
def test_another_decoder_is_refused_by_its_setting(table, key, value, rule, tmp_path, repack):
    kind = {"durations": (0, 1), "change": changed(table, key, value)}
    transducer_archive(repack, tmp_path / "model.nemo", **kind)

    with pytest.raises(ImportingError, match=rule) as refused:
        read_model(tmp_path / "model.nemo")

    assert "\n" not in str(refused.value)


ABSURD = [-1, 10**9, [[1]], {}, None, "x", float("nan"), 1.5, True, [3, 2], ["a"], [0, 0]]
SETTINGS = [
    ("decoder", "vocab_size"),
    ("decoder.prednet", "pred_hidden"),
    ("decoder.prednet", "pred_rnn_layers"),
    ("joint", "num_classes"),
    ("joint", "num_extra_outputs"),
    ("joint.jointnet", "joint_hidden"),
    ("joint.jointnet", "activation"),
    ("joint.jointnet", "dropout"),
    ("loss.tdt_kwargs", "durations"),
]
HARMLESS = [("joint.jointnet", "dropout", None), ("loss.tdt_kwargs", "durations", None)]


@pytest.mark.long
@pytest.mark.slow
def test_every_malformed_transducer_is_refused_in_one_line(tmp_path, repack):
    rng = random.Random(0)
    file = tmp_path / "model.nemo"
    decoders = transducer_archive(repack, file, durations=(0, 1), is_hybrid=True)
    whole = read_archive(file)
    settings = yaml.safe_load(whole[CONFIG])
    tensors = torch.load(io.BytesIO(whole[WEIGHTS]), weights_only=True)
    names = sorted(decoders.state_dict())

    for number in range(MALFORMED):
        files = dict(whole)
        if number % 2:
            files[CONFIG] = yaml.safe_dump(malformed_settings(settings, rng)).encode()
        else:
            saved = io.BytesIO()
            torch.save(with_malformed_tensor(tensors, rng.choice(names), rng), saved)
            files[WEIGHTS] = saved.getvalue()
        repack(file, files)

        check_refused(file, tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["model.nemo"]


def malformed_settings(settings, rng):
    """One setting of a decoder absurd, of another kind, or gone."""
    copy = yaml.safe_load(yaml.safe_dump(settings))
    while True:
        table, key = rng.choice(SETTINGS)
        value = rng.choice(ABSURD)
        if (table, key, value) not in HARMLESS:
            break
    changed(table, key, value)(copy)
    return copy
