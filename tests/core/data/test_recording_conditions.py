"""Silence, levels, noise and bandwidth that training simulates are those of real waveforms."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F
from torchaudio.functional import resample

from core.config.augmentation import AugmentConfig
from core.config.trial import TrialConfig
from core.data.batching import TrainBatches, dev_batches
from core.data.feature_cache import FeatureStore
from core.data.prepare import Speech
from core.data.recording_conditions import (
    UNCHANGED,
    Condition,
    Noise,
    apply_condition,
    draw_conditions,
    noise_frames,
    quietest_frame,
    silence_frames,
    silence_value,
    with_gain,
)
from core.data.tokenizer import Tokenizer, transcript
from core.decoders.ctc import ctc_loss
from core.features.kaldi import NUM_MELS
from core.features.nemo import compute_features
from core.features.spec import NATIVE, FrontendSpec
from core.testing import small_model
from core.training.setup import calibration_batches

FRONTEND_SPECS = {
    "kaldi": NATIVE,
    "nemo": FrontendSpec(features="nemo", subsampling_kind="striding"),
    "sherpa": FrontendSpec(features="sherpa", subsampling_kind="striding"),
}
each_spec = pytest.mark.parametrize("spec", FRONTEND_SPECS.values(), ids=FRONTEND_SPECS)

ALWAYS = AugmentConfig(
    silence_share=1.0, empty_share=0.3, level_share=1.0, noise_share=1.0, band_share=1.0
)
SOMETIMES = AugmentConfig(
    silence_share=0.1, empty_share=0.02, level_share=0.15, noise_share=0.04, band_share=0.08
)
NEVER = AugmentConfig(
    silence_share=0.0, empty_share=0.0, level_share=0.0, noise_share=0.0, band_share=0.0
)


def features_of(waveform, spec):
    features, _ = compute_features(spec, waveform[None], torch.tensor([len(waveform)]))
    return features[0]


def noise_like_speech(seconds=1.0, *, level=0.05, seed=0):
    """Noise that is loud and faint by turns."""
    generator = torch.Generator().manual_seed(seed)
    samples = level * torch.randn(round(16_000 * seconds), generator=generator)
    return samples * torch.linspace(0, 12, len(samples)).sin()


@each_spec
def test_silence_has_the_features_of_zeros(spec):
    zeros = features_of(torch.zeros(16_000), spec)

    torch.testing.assert_close(silence_frames(len(zeros), None, spec), zeros, atol=0, rtol=0)


@each_spec
@pytest.mark.parametrize("decibels", [-45.0, -20.0, 10.0])
def test_a_gain_gives_the_features_of_the_waveform_at_that_level(spec, decibels):
    waveform, floor = noise_like_speech(), silence_value(spec)
    features = features_of(waveform, spec)

    actual = with_gain(features, decibels * math.log(10) / 10, spec)

    right = features_of(waveform * 10 ** (decibels / 20), spec)
    is_known = features > floor + 0.1  # below, a power may be anything
    torch.testing.assert_close(actual[is_known], right[is_known], atol=0.02, rtol=0)
    is_loud = is_known & (right > floor + 3.0)
    torch.testing.assert_close(actual[is_loud], right[is_loud], atol=2e-3, rtol=0)


@each_spec
@pytest.mark.parametrize("gain", [-5.0, 5.0])
def test_zeros_are_zeros_at_any_level_also_in_half_precision(spec, gain):
    zeros = silence_frames(50, None, spec)

    torch.testing.assert_close(with_gain(zeros, gain, spec), zeros, atol=1e-4, rtol=0)
    stored = zeros.half().float()
    actual = with_gain(stored, gain, spec)
    assert (actual - zeros).abs().max() < (0.02 if spec.features != "nemo" or gain < 0 else 1.0)


@each_spec
@pytest.mark.parametrize(("before", "after"), [(100, 0), (0, 150), (30, 70)])
def test_speech_between_zeros_has_its_features_between_those_of_zeros(spec, before, after):
    waveform = noise_like_speech()
    condition = Condition(before=before, after=after)

    actual = apply_condition(features_of(waveform, spec), condition, spec)

    right = features_of(F.pad(waveform, (160 * before, 160 * after)), spec)
    assert len(actual) == len(right) == 100 + condition.added_frames
    near_a_seam = {before + i for i in range(-3, 3)} | {before + 100 + i for i in range(-3, 3)}
    rows = [i for i in range(len(right)) if i not in near_a_seam]
    torch.testing.assert_close(actual[rows], right[rows], atol=1e-3, rtol=0)


@each_spec
@pytest.mark.parametrize("decibels", [-100.0, -60.0, -20.0])
def test_noise_is_as_loud_in_the_features_as_in_the_waveform(spec, decibels):
    generator = torch.Generator().manual_seed(7)
    noise = 10 ** (decibels / 20) * torch.randn(4 * 16_000, generator=generator)
    level = decibels * math.log(10) / 10

    actual = silence_frames(400, Noise(begin=3, level=level, slope=0.0), spec)

    right = features_of(noise, spec)
    gap = (actual - right).mean(0)
    assert gap.abs().max() < 0.6
    assert gap.mean().abs() < 0.1


@each_spec
def test_noise_under_speech_adds_its_power(spec):
    waveform = noise_like_speech()
    generator = torch.Generator().manual_seed(7)
    drowned = waveform + 0.5 * torch.randn(len(waveform), generator=generator)
    condition = Condition(noise=Noise(begin=0, level=2 * math.log(0.5), slope=0.0))

    actual = apply_condition(features_of(waveform, spec), condition, spec)

    gap = (actual - features_of(drowned, spec)).mean(0)
    assert gap.abs().max() < 0.9
    assert gap.mean().abs() < 0.15


def test_a_band_ends_where_it_should_and_loses_no_more_than_it_should():
    features = features_of(noise_like_speech(), NATIVE)
    condition = Condition(band_end=57, band_slope=0.6, band_depth=4.0)

    actual = apply_condition(features, condition, NATIVE)

    assert torch.equal(actual[:, :58], features[:, :58])
    lost = features - actual
    assert (lost[:, 58:] > 0).all()
    assert lost.max() <= 4.0 + 1e-5
    assert (actual >= silence_value(NATIVE)).all()


def test_speech_of_8000_samples_a_second_is_nearer_to_a_band_than_to_the_whole():
    waveform = noise_like_speech(2.0)
    narrow = features_of(resample(resample(waveform, 16_000, 8_000), 8_000, 16_000), NATIVE)
    condition = Condition(band_end=57, band_slope=0.6, band_depth=12.0)

    actual = apply_condition(features_of(waveform, NATIVE), condition, NATIVE)

    gap, before = ((x - narrow).abs().mean() for x in (actual, features_of(waveform, NATIVE)))
    assert gap < before / 3


def test_silence_between_words_lies_where_it_is_quiet():
    features = torch.zeros(200, NUM_MELS)
    features[90:96] -= 3.0

    actual = apply_condition(features, Condition(between=50), NATIVE)

    assert 90 <= quietest_frame(features) <= 96
    is_silent = (actual == silence_value(NATIVE)).all(1).nonzero()[:, 0]
    assert len(is_silent) == 50
    assert 90 <= int(is_silent[0]) <= 96
    assert torch.equal(torch.cat([actual[: is_silent[0]], actual[is_silent[-1] + 1 :]]), features)


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_very_short_utterances_come_through_every_condition(count):
    features = torch.zeros(count, NUM_MELS)

    for condition in draw_conditions(50, ALWAYS, NATIVE, seed=0, epoch=0):
        actual = apply_condition(features, condition, NATIVE)

        assert len(actual) == count + condition.added_frames
        assert actual.isfinite().all()


def test_conditions_depend_on_seed_epoch_and_number_alone():
    def draw(count, seed, epoch):
        return draw_conditions(count, ALWAYS, NATIVE, seed=seed, epoch=epoch)

    assert draw(40, 0, 0) == draw(40, 0, 0)
    assert draw(40, 0, 0)[:10] == draw(10, 0, 0)
    assert draw(40, 0, 0) != draw(40, 1, 0)
    assert draw(40, 0, 0) != draw(40, 0, 1)


def test_each_condition_has_its_share():
    config = SOMETIMES
    count = 20_000
    drawn = draw_conditions(count, config, NATIVE, seed=0, epoch=0)

    shares = {
        config.silence_share * (1 - config.empty_share): sum(c.added_frames > 0 for c in drawn),
        config.empty_share: sum(c.is_empty for c in drawn),
        config.level_share: sum(c.gain != 0 for c in drawn),
        config.noise_share: sum(c.noise is not None for c in drawn),
        config.band_share: sum(c.band_depth > 0 for c in drawn),
    }
    for share, actual in shares.items():
        assert abs(actual - count * share) < 5 * math.sqrt(count * share * (1 - share))
    longest = 100 * config.silence_seconds
    assert 0 < max(max(c.before, c.between, c.after) for c in drawn) <= longest
    gains = [c.gain * 10 / math.log(10) for c in drawn if c.gain]
    assert config.level_low_db <= min(gains) < 0 < max(gains) <= config.level_high_db


@pytest.mark.parametrize(
    "spec",
    [None, FrontendSpec(features="nemo", normalization="per_feature", subsampling_kind="striding")],
)
def test_features_that_are_unknown_or_normalized_over_an_utterance_stay_as_they_are(spec):
    assert draw_conditions(9, ALWAYS, spec, seed=0, epoch=0) == [UNCHANGED] * 9


@pytest.fixture(scope="module")
def speech(demo_corpus, demo_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    tokenizer = Tokenizer.train(map(transcript, demo_corpus.train), demo_config, folder)
    train, dev = (
        FeatureStore.build(
            getattr(demo_corpus, split), tokenizer, folder / split, is_training=split == "train"
        )
        for split in ("train", "dev")
    )
    return Speech(tokenizer=tokenizer, train=train, dev=dev, test=dev)


def same(one, other):
    return (
        torch.equal(one.features, other.features)
        and torch.equal(one.num_frames, other.num_frames)
        and torch.equal(one.tokens, other.tokens)
        and (one.ids, one.texts) == (other.ids, other.texts)
    )


@pytest.mark.parametrize("num_before", [0, 1, 17])
def test_resumed_batches_are_those_of_an_uninterrupted_run(speech, num_before):
    uninterrupted = TrainBatches(speech.train, 20.0, seed=5, augment=ALWAYS)
    for _ in range(num_before):
        next(uninterrupted)

    resumed = TrainBatches(speech.train, 20.0, seed=5, augment=ALWAYS)
    resumed.load_state_dict(uninterrupted.state_dict())

    assert all(same(next(resumed), next(uninterrupted)) for _ in range(25))


def is_as_recorded(batch, store):
    return all(
        torch.equal(batch.features[row, : int(batch.num_frames[row])], store.item(i).features)
        for row, i in enumerate(batch.indices)
    )


@pytest.mark.parametrize("num_clean", [0, 1, 10, 31])
def test_training_from_nothing_begins_with_speech_as_it_was_recorded(speech, num_clean):
    batches = TrainBatches(speech.train, 20.0, seed=0, augment=ALWAYS, clean_batches=num_clean)
    drawn = [next(batches) for _ in range(40)]

    assert [is_as_recorded(batch, speech.train) for batch in drawn].index(False) == num_clean
    assert not any(is_as_recorded(batch, speech.train) for batch in drawn[num_clean:])
    resumed = TrainBatches(speech.train, 20.0, seed=0, augment=ALWAYS, clean_batches=num_clean)
    resumed.load_state_dict(batches.state_dict())
    assert all(same(next(resumed), next(batches)) for _ in range(10))


def test_without_any_share_batches_are_those_of_the_speech_as_it_is(speech):
    plain = TrainBatches(speech.train, 20.0, seed=0)
    without = TrainBatches(speech.train, 20.0, seed=0, augment=NEVER)

    assert all(same(next(plain), next(without)) for _ in range(12))


@pytest.mark.parametrize("augment", [SOMETIMES, ALWAYS])
def test_a_batch_is_no_larger_than_it_may_be_and_its_words_are_those_of_its_speech(speech, augment):
    batches = TrainBatches(speech.train, 20.0, seed=0, augment=augment)
    num_empty = 0
    for _ in range(40):
        batch = next(batches)
        assert batch.features[:, :, 0].numel() <= 20.0 * 100 or len(batch.ids) == 1
        for row, i in enumerate(batch.indices):
            item, length = speech.train.item(i), int(batch.num_frames[row])
            tokens = batch.tokens[row, : batch.num_tokens[row]]
            num_empty += len(tokens) == 0
            assert len(tokens) == 0 or torch.equal(tokens, item.tokens)
            assert len(item.features) <= length
            assert (batch.texts[row] == "") == (len(tokens) == 0)
            assert not batch.features[row, length:].any()
    if augment is ALWAYS:
        assert num_empty > 0


def test_speech_to_judge_and_to_calibrate_on_stays_as_it_is(speech):
    for batch in dev_batches(speech.dev, 20.0):
        for row, i in enumerate(batch.indices):
            features = speech.dev.item(i).features
            assert torch.equal(batch.features[row, : len(features)], features)

    with_conditions, without = (
        calibration_batches(
            TrialConfig.model_validate({"training": {"augment": augment.model_dump()}}),
            speech,
            torch.device("cpu"),
        )
        for augment in (ALWAYS, NEVER)
    )
    assert all(map(same, with_conditions, without))


def test_a_store_from_before_its_frontend_was_written_is_trained_on_as_it_is(speech):
    old = FeatureStore.open(speech.train.folder)
    old.frontend_spec = None

    plain = TrainBatches(speech.train, 20.0, seed=0)
    batches = TrainBatches(old, 20.0, seed=0, augment=ALWAYS)

    assert all(same(next(plain), next(batches)) for _ in range(5))


def test_a_batch_of_silence_alone_has_a_loss_with_gradients(speech):
    augment = AugmentConfig(**NEVER.model_dump() | {"empty_share": 0.999})
    batch = next(TrainBatches(speech.train, 20.0, seed=0, augment=augment))
    assert not batch.num_tokens.any()
    model = small_model().train()

    loss = ctc_loss(model(batch.features, batch.num_frames), batch.tokens, batch.num_tokens)
    loss.backward()

    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", ["level", "noise"])
def test_a_range_the_wrong_way_round_is_refused(name):
    with pytest.raises(ValidationError, match=rf"`{name}_low_db` must be at most `{name}_high_db`"):
        AugmentConfig(**{f"{name}_low_db": -1.0, f"{name}_high_db": -2.0})


def test_noise_goes_round_where_it_ends():
    noise = Noise(begin=390, level=0.0, slope=-0.1)

    rows = noise_frames(850, noise, NATIVE)

    assert torch.equal(rows[:400], rows[400:800])
    shifted = noise_frames(10, replace(noise, begin=0), NATIVE)
    assert torch.equal(rows[10:20], shifted)
    assert np.isfinite(rows.numpy()).all()
