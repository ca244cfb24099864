"""What transformers' ParakeetForCTC computes, we compute, from its saved folders."""

import pytest
import torch

from core.features.nemo import compute_features
from core.importers.load import read_model
from core.importers.safe_read import ImportingError

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
    ],
)
def test_log_probabilities_are_transformers_on_ragged_batches(changes, save_model, tmp_path):
    theirs = save_model(tmp_path, **changes)
    ours = read_model(tmp_path)
    rng = torch.Generator().manual_seed(1)
    waveforms = [torch.randn(n, generator=rng) * 0.1 for n in LENGTHS]

    extractor = transformers.ParakeetFeatureExtractor()
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


@pytest.mark.slow
def test_a_folder_of_another_family_is_refused_in_one_line(tmp_path):
    transformers.Wav2Vec2ConformerConfig().save_pretrained(tmp_path)

    with pytest.raises(ImportingError, match=r"Wav2Vec2Conformer, which reads raw samples"):
        read_model(tmp_path)
