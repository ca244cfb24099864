"""What transformers' ParakeetForCTC computes, we compute, from its saved folders."""

import json

import pytest
import torch

from core.decoders.places import Places
from core.features.nemo import compute_features
from core.importers.load import read_model
from core.importers.safe_read import ImportingError, read_weights

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

TEXTS = ["turn the kitchen light on", "what is the time now", "set a timer for ten minutes"] * 4
LENGTHS = (16_001, 12_337, 8_000, 2_000)


def fast_tokenizer(size=60):
    """BPE over spaces made visible, as NVIDIA's tokenizers are published."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))  # noqa: S106 - no secret
    spaces = {"replacement": "\u2581", "prepend_scheme": "always", "split": False}
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(**spaces)
    tokenizer.decoder = tokenizers.decoders.Metaspace(replacement="\u2581")
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens(["<pad>"])
    return tokenizer


@pytest.fixture
def save_model(save_parakeet):
    """Saves a model of chance with its tokenizer."""

    def save(folder, **changes):
        tokenizer = fast_tokenizer()
        model = save_parakeet(folder, tokenizer.get_vocab_size(), **changes)
        tokenizer.save(str(folder / "tokenizer.json"))
        return model

    return save


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention_bias": False, "convolution_bias": False, "scale_input": False},
        {"subsampling_factor": 4, "conv_kernel_size": 5},
        {"num_mel_bins": 128},
    ],
)
def test_log_probabilities_are_transformers_on_ragged_batches(changes, save_model, tmp_path):
    theirs = save_model(tmp_path, **changes)
    ours = read_model(tmp_path)
    rng = torch.Generator().manual_seed(1)
    waveforms = [torch.randn(n, generator=rng) * 0.1 for n in LENGTHS]

    extractor = transformers.ParakeetFeatureExtractor(feature_size=ours.model.mels)
    inputs = extractor([w.numpy() for w in waveforms], sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        logits = theirs(inputs["input_features"], attention_mask=inputs["attention_mask"]).logits
    features, num_frames = compute_features(
        ours.model.shape.frontend_spec,
        torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True),
        torch.tensor(LENGTHS),
    )
    outputs = ours.model(features, num_frames)

    assert torch.equal(num_frames, inputs["attention_mask"].sum(1))
    for i, real in enumerate(num_frames):
        expected = inputs["input_features"][i, :real]
        torch.testing.assert_close(features[i, :real], expected, rtol=0, atol=1e-4)
    for i, real in enumerate(outputs.num_frames):
        torch.testing.assert_close(
            outputs.logits[i, :real].log_softmax(-1),
            logits[i, :real].log_softmax(-1).roll(1, dims=-1),
            rtol=0,
            atol=1e-5,
        )


@pytest.mark.slow
def test_its_fast_tokenizer_becomes_sentencepiece_with_the_same_ids_but_for_the_blank(
    save_model, tmp_path
):
    save_model(tmp_path)
    theirs, ours = fast_tokenizer(), read_model(tmp_path).tokenizer

    assert ours.size == theirs.get_vocab_size()
    for text in ["turn the light now", "ten kitchens", "a", *TEXTS]:
        assert [i - 1 for i in ours.encode(text)] == theirs.encode(text).ids
        assert ours.decode(ours.encode(text)) == text


TRANSDUCERS = [
    ("RNNT", {"decoder_hidden_size": 24}, {}),
    ("TDT", {"decoder_hidden_size": 24}, {"num_mel_bins": 128, "scale_input": False}),
    ("TDT", {"num_decoder_layers": 1, "durations": [0, 1, 2]}, {"attention_bias": False}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("decoder", "own", "sizes"), TRANSDUCERS)
def test_a_transducer_has_transformers_log_probabilities_at_every_place(
    decoder, own, sizes, save_model, tmp_path
):
    theirs = save_model(tmp_path, decoder=decoder, own=own, **sizes)
    ours = read_model(tmp_path).model
    tokens = torch.randint(1, ours.vocabulary, (2, 5), generator=torch.Generator().manual_seed(2))
    features = torch.randn(2, 120, ours.mels, generator=torch.Generator().manual_seed(1))
    num_frames = torch.tensor([120, 77])
    mask = torch.arange(120) < num_frames[:, None]
    features *= mask[..., None]  # as its extractor pads
    blank = ours.vocabulary - 1

    places = every_place(tokens, ours.frontend_spec.output_frames(num_frames))
    found = ours(features, num_frames, places=places).log_probs()

    # Ours are 0 for the blank, and one more than theirs for all others.
    ids = torch.cat([torch.full((2, 1), blank), tokens - 1], 1)
    with torch.no_grad():
        logits = theirs(features, attention_mask=mask, decoder_input_ids=ids).logits
    whole = [
        part.log_softmax(-1) for part in logits.split([blank + 1, logits.shape[-1] - blank - 1], -1)
    ]
    expected = torch.cat([whole[0].roll(1, dims=-1), whole[1]], -1)[tuple(places.index.T)]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def every_place(tokens, num_frames):
    """All frames of each utterance, before each token and after the last."""
    places = [
        (utterance, frame, before)
        for utterance, frames in enumerate(num_frames.tolist())
        for frame in range(frames)
        for before in range(tokens.shape[1] + 1)
    ]
    return Places(tokens=tokens, index=torch.tensor(places))


@pytest.mark.slow
def test_weights_in_parts_and_in_half_precision_are_read_as_one_file_is(save_model, tmp_path):
    save_model(tmp_path / "one", dtype=torch.bfloat16)
    save_model(tmp_path / "parts", dtype=torch.bfloat16, shard="100KB")

    one, parts = (read_model(tmp_path / name).model.state_dict() for name in ("one", "parts"))

    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    assert all(tensor.dtype == torch.float32 for tensor in one.values())
    assert all(torch.equal(parts[name], tensor) for name, tensor in one.items())


@pytest.mark.parametrize("file", ["../one.safetensors", "/one.safetensors", "one.bin", 7, None])
def test_an_index_that_names_a_file_elsewhere_is_refused(file, tmp_path):
    index = {"weight_map": {"a": file}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))

    with pytest.raises(ImportingError, match=r"`weight_map` of `model.safetensors.index.json`"):
        read_weights(tmp_path, "model.safetensors")


@pytest.mark.slow
def test_a_folder_of_another_family_is_refused_in_one_line(tmp_path):
    transformers.Wav2Vec2ConformerConfig().save_pretrained(tmp_path)

    with pytest.raises(ImportingError, match=r"Wav2Vec2Conformer, which reads raw samples"):
        read_model(tmp_path)
