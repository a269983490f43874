"""The measures of sound measure what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests import g711
from tests.audio import (
    Samples,
    align_and_correlate,
    dominant_frequency,
    load_wav,
    longest_dropout_ms,
    longest_silence_ms,
    save_wav,
    tone,
)
from tests.speech import RATE, sentence, speech, write_speech

SILENCE = np.zeros(RATE, dtype=np.int16)


@pytest.fixture(scope="module")
def spoken() -> Samples:
    return speech(4.0)


@pytest.mark.parametrize("delay_ms", [0, 1, 137, 2500])
def test_a_delayed_copy_matches_with_its_delay(spoken: Samples, delay_ms: int) -> None:
    captured = np.concatenate([np.zeros(delay_ms * 8, dtype=np.int16), spoken, SILENCE])
    match = align_and_correlate(spoken, captured, RATE)
    assert match.correlation > 0.999
    assert match.lag_ms == delay_ms


def test_a_missing_beginning_gives_a_negative_lag(spoken: Samples) -> None:
    match = align_and_correlate(spoken, spoken[800:], RATE)
    assert match.lag_ms == -100
    assert match.correlation > 0.95


def test_loudness_does_not_matter_and_g711_hardly_does(spoken: Samples) -> None:
    captured = g711.decode(g711.encode((spoken // 2).astype(np.int16)))
    assert align_and_correlate(spoken, captured, RATE).correlation > 0.99


def test_noise_and_another_text_do_not_match(spoken: Samples) -> None:
    noise = np.random.default_rng(1).normal(0, 3000, spoken.size).astype(np.int16)
    assert align_and_correlate(spoken, noise, RATE).correlation < 0.2
    assert align_and_correlate(spoken, speech(4.0, variant=3), RATE).correlation < 0.5


def test_a_slip_of_the_jitter_buffer_still_matches(spoken: Samples) -> None:
    middle = spoken.size // 8000 * 4000  # on the border of two segments
    captured = np.concatenate([spoken[:middle], np.zeros(320, dtype=np.int16), spoken[middle:]])
    assert align_and_correlate(spoken, captured, RATE).correlation > 0.98


def test_a_lost_second_lowers_the_correlation_and_is_found_as_dropout(spoken: Samples) -> None:
    captured = spoken.copy()
    captured[8000:16000] = 0
    assert align_and_correlate(spoken, captured, RATE).correlation < 0.93
    assert longest_dropout_ms(spoken, captured, RATE) > 200
    assert longest_dropout_ms(spoken, spoken, RATE) == 0


def test_silence_cannot_be_compared(spoken: Samples) -> None:
    with pytest.raises(ValueError, match="silent"):
        align_and_correlate(spoken, SILENCE, RATE)


@pytest.mark.parametrize("gap_ms", [0, 20, 60, 500])
def test_the_gap_in_a_tone_is_measured(gap_ms: int) -> None:
    sound = tone(440, 1.0)
    captured = np.concatenate([SILENCE, sound, np.zeros(gap_ms * 8, dtype=np.int16), sound, SILENCE])
    assert longest_silence_ms(captured, RATE) == pytest.approx(gap_ms, abs=10)


def test_the_gap_of_silence_is_none() -> None:
    assert longest_silence_ms(SILENCE, RATE) == 0


@pytest.mark.parametrize("frequency", [300.0, 440.0, 1004.0, 3400.0])
def test_the_dominant_frequency_is_that_of_the_tone(frequency: float) -> None:
    assert dominant_frequency(tone(frequency, 0.5), RATE) == pytest.approx(frequency, abs=1.5)
    assert dominant_frequency(SILENCE, RATE) == 0.0


def test_wav_files_keep_samples_rate_and_channels(tmp_path: Path, spoken: Samples) -> None:
    stereo = np.stack([spoken, spoken[::-1]], axis=1)
    samples, rate = load_wav(save_wav(tmp_path / "stereo.wav", stereo, RATE))
    assert rate == RATE
    assert np.array_equal(samples, stereo)


def test_speech_has_the_length_asked_for_and_is_the_same_each_time(tmp_path: Path) -> None:
    samples, rate = load_wav(write_speech(tmp_path / "speech.wav", 2.5, variant=2))
    assert rate == RATE
    assert samples.shape == (20_000,)
    assert np.array_equal(samples, speech(2.5, variant=2))
    assert not np.array_equal(samples, speech(2.5, variant=1))


def test_a_sentence_is_speech_of_some_seconds() -> None:
    samples = sentence()
    assert 2 * RATE < samples.size < 20 * RATE
    assert samples.dtype == np.int16
    assert np.abs(samples).max() > 1000


@pytest.mark.parametrize("payload_type", [0, 8])
def test_g711_octets_decode_to_themselves(payload_type: int) -> None:
    octets = bytes(range(256))
    again = g711.encode(g711.decode(octets, payload_type), payload_type)
    different = [octet for octet, other in zip(octets, again, strict=True) if octet != other]
    assert different in ([], [0x7F], [0xFF])  # µ-law has a positive and a negative zero


def test_g711_values_are_those_of_the_recommendation() -> None:
    assert g711.decode(bytes([0x80, 0x00, 0xFF, 0xEF]), 0).tolist() == [32124, -32124, 0, 132]
    assert g711.decode(bytes([0xD5, 0x55, 0xAA, 0x2A]), 8).tolist() == [8, -8, 32256, -32256]
