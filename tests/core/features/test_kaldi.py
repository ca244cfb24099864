import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pad_sequence
from torchaudio.compliance.kaldi import fbank

from core.config.augmentation import AugmentConfig
from core.data.audio import read_cut
from core.features.kaldi import NUM_MELS, count_frames, log_mel, spec_augment


def kaldi(waveform):
    return fbank(
        waveform[None],
        num_mel_bins=80,
        sample_frequency=16000,
        dither=0.0,
        snip_edges=False,
        low_freq=20,
        high_freq=-400,
    )


def ragged_waveforms(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    waveforms = [0.1 * torch.randn(n, generator=generator) for n in lengths]
    return waveforms, pad_sequence(waveforms, batch_first=True), torch.tensor(lengths)


# 400 samples are the fewest that torchaudio accepts.
@pytest.mark.parametrize("num_samples", [400, 479, 480, 560, 641, 16000, 30123])
def test_features_are_kaldis_filter_banks(num_samples):
    [waveform], batch, lengths = ragged_waveforms([num_samples])

    features, num_frames = log_mel(batch, lengths)

    assert num_frames.tolist() == [(num_samples + 80) // 160]
    torch.testing.assert_close(features[0], kaldi(waveform), atol=1e-3, rtol=0)


def test_features_of_speech_are_kaldis_filter_banks(demo_corpus):
    waveforms = [read_cut(cut) for cut in demo_corpus.dev]
    lengths = torch.tensor([len(waveform) for waveform in waveforms])

    features, num_frames = log_mel(pad_sequence(waveforms, batch_first=True), lengths)

    for waveform, row, length in zip(waveforms, features, num_frames.tolist(), strict=True):
        torch.testing.assert_close(row[:length], kaldi(waveform), atol=1e-3, rtol=0)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 5000), min_size=1, max_size=5))
def test_an_utterance_in_a_batch_has_the_features_it_has_alone(lengths):
    waveforms, batch, num_samples = ragged_waveforms(lengths)

    features, num_frames = log_mel(batch, num_samples)

    for i, waveform in enumerate(waveforms):
        alone, [length] = log_mel(waveform[None], num_samples[i : i + 1])
        assert num_frames[i] == length == count_frames(num_samples)[i]
        torch.testing.assert_close(features[i, :length], alone[0], atol=1e-5, rtol=0)
        assert features[i, length:].abs().sum() == 0


def test_speech_shorter_than_half_a_shift_has_no_frames():
    features, num_frames = log_mel(torch.ones(2, 79), torch.tensor([79, 0]))

    assert features.shape == (2, 0, NUM_MELS)
    assert num_frames.tolist() == [0, 0]


def test_autocast_does_not_cost_the_features_their_digits():
    _, batch, lengths = ragged_waveforms([4000])
    exact, _ = log_mel(batch, lengths)

    with torch.autocast("cpu", torch.bfloat16):
        inside, _ = log_mel(batch, lengths)

    torch.testing.assert_close(inside, exact, atol=0, rtol=0)


def mask_noise(config, *, seed=0, num_frames=(300, 120, 7)):
    features = torch.randn(len(num_frames), max(num_frames), NUM_MELS).add(5)
    lengths = torch.tensor(num_frames)
    generator = torch.Generator().manual_seed(seed)
    return features, spec_augment(features, lengths, config, generator), lengths


def test_masks_hide_at_most_what_the_config_says():
    config = AugmentConfig(
        frequency_masks=2, frequency_width=10, time_masks_per_second=1.0, time_width_seconds=0.2
    )

    features, augmented, lengths = mask_noise(config)

    for before, after, length in zip(features, augmented, lengths.tolist(), strict=True):
        hidden = before != after
        assert hidden[length:].sum() == 0
        num_bins = hidden[:length].all(dim=0).sum()
        num_spans = hidden[:length].all(dim=1).sum()
        assert num_bins <= (2 * 10 if length > 7 else NUM_MELS)
        assert num_spans <= round(length / 100) * 20


def test_what_is_hidden_becomes_the_utterances_mean_of_its_bin():
    features, augmented, lengths = mask_noise(AugmentConfig())

    for before, after, length in zip(features, augmented, lengths.tolist(), strict=True):
        mean = before[:length].mean(0).expand_as(before)
        hidden = before != after
        torch.testing.assert_close(after[hidden], mean[hidden])


def test_masks_differ_between_utterances_and_repeat_with_the_seed():
    config = AugmentConfig(time_masks_per_second=0.0)
    features = torch.randn(1, 50, NUM_MELS).expand(4, -1, -1)
    lengths = torch.full((4,), 50)

    first, again, other = (
        spec_augment(features, lengths, config, torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )

    torch.testing.assert_close(first, again, atol=0, rtol=0)
    assert (first != other).any()
    assert (first[0] != first[1]).any()


def test_no_masks_leave_the_features_as_they_are():
    features, augmented, _ = mask_noise(AugmentConfig(frequency_masks=0, time_masks_per_second=0.0))

    torch.testing.assert_close(augmented, features, atol=0, rtol=0)
