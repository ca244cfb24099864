"""Voices that share no split, speech that sounds like speech, noise as loud as asked."""

from itertools import combinations

import numpy as np
import pytest

from core.data.sources import tts


def test_no_voice_is_in_two_splits():
    voices = {split: set(names.split()) for split, names in tts.VOICES.items()}

    assert all(voices[a].isdisjoint(voices[b]) for a, b in combinations(voices, 2))
    families = {split: {name.rstrip("0123456789") for name in voices[split]} for split in voices}
    assert all(families[a].isdisjoint(families[b]) for a, b in combinations(families, 2))


@pytest.mark.slow
def test_every_voice_speaks_and_no_two_sound_the_same():
    names = [name for names in tts.VOICES.values() for name in names.split()]
    lines = [
        tts.Line(
            speaker=1, voice=f"en-us+{name}", text="open the door", words_per_minute=170, pitch=50
        )
        for name in names
    ]

    spoken = tts._spoken(lines, seed=0)

    assert all(0.5 < len(samples) / 16000 < 2 for samples in spoken)
    assert all(0.01 < tts._rms(samples) < 0.4 for samples in spoken)
    assert len({samples.tobytes() for samples in spoken}) == len(names)


@pytest.mark.parametrize("snr_db", [0.0, 10.0, 30.0])
def test_noise_is_as_loud_as_asked(snr_db):
    tone = np.sin(np.arange(16000) / 5)

    samples = tts.mix_with_noise(tone, snr_db, np.random.default_rng(0))

    pauses = np.concatenate([samples[:1500], samples[-1500:]])  # at least 0.1 s each: only noise
    speech = samples[len(samples) // 2 - 4000 : len(samples) // 2 + 4000]
    ratio = (np.mean(speech**2) - np.mean(pauses**2)) / np.mean(pauses**2)
    assert abs(10 * np.log10(ratio) - snr_db) < 3
