"""Speech of the world: voices, phrases, the pool and its uses."""

from pathlib import Path

import espeakng_loader
import numpy as np
import pytest

from pollux.data.world import speech
from pollux.data.world.scene import COLOURS, HELD_OUT, SHAPES


def test_voices_of_training_and_evaluation_share_no_timbre_and_all_exist():
    train, unseen = ({v.split("+")[1] for v in speech.voices(held_out)} for held_out in (False, True))
    assert not train & unseen and len(train) == 32 and len(unseen) == 10
    assert train | unseen <= {p.name for p in (Path(espeakng_loader.get_data_path()) / "voices" / "!v").iterdir()}


def test_phrases_have_five_words_and_held_out_pairs_are_never_in_training():
    for held_out in (False, True):
        for phrase in speech.phrases(held_out):
            words = phrase.split()
            colour = next(w for w in words if w in COLOURS)
            shape = next(s for s in SHAPES if any(w in (s, s + "s", s + "es") for w in words))
            assert len(words) == 5 and ((colour, shape) in HELD_OUT) == held_out
    assert len({w for h in (False, True) for p in speech.phrases(h) for w in p.split()}) == 45


def test_word_lists_hold_every_word_in_any_company_but_never_name_a_held_out_pair():
    rng = np.random.default_rng(0)
    lists = [speech.word_list(rng).split() for _ in range(4000)]
    assert {len(words) for words in lists} == {4, 5}
    assert {w for words in lists for w in words} == {w for h in (False, True) for p in speech.phrases(h) for w in p.split()} - {"the"}
    singular = {plural: shape for shape, plural in speech.PLURALS.items()}
    for colour, shape in HELD_OUT:
        apart = [words for words in lists if colour in words and shape in [singular.get(w, w) for w in words]]
        assert apart and not any(
            words[i] == colour and singular.get(words[i + 1], words[i + 1]) == shape for words in apart for i in range(len(words) - 1)
        )


def test_speech_is_audible_trimmed_and_follows_voice_and_speed():
    text = "seven small green rings here"
    slow, fast, other = (
        speech.speak(speech.Utterance(text, v, s, 50)) for v, s in (("en-us+m1", 160), ("en-us+m1", 220), ("en-us+f1", 160))
    )
    assert slow.dtype == np.float32 and np.abs(slow).max() == pytest.approx(0.7, abs=1e-3)
    assert 1.2 < len(slow) / 16_000 < 2.5 and len(fast) < 0.85 * len(slow)
    assert pitch(other) > 1.4 * pitch(slow)
    assert all(np.abs(edge).max() > 0.005 for edge in (slow[:50], slow[-50:]))
    assert 0.03 < np.sqrt(np.mean(slow**2)) < 0.4


def pitch(samples):
    """Median pitch in Hz by autocorrelation of half-second pieces."""
    values = []
    for start in range(0, len(samples) - 8000, 4000):
        piece = samples[start : start + 4000]
        correlation = np.correlate(piece, piece, "full")[len(piece) - 1 :]
        values.append(16_000 / (45 + correlation[45:250].argmax()))
    return np.median(values)


def test_every_voice_speaks_and_sounds_the_same_whatever_was_said_before():
    spoken = [speech.Utterance("push the ring up here", v, 180, 50) for h in (False, True) for v in speech.voices(h)]
    clips = [speech.speak(u) for u in spoken]
    assert all(0.6 < len(c) / 16_000 < 2.5 and np.sqrt(np.mean(c**2)) > 0.03 for c in clips)
    assert len({c[:4000].tobytes() for c in clips}) == len(clips)
    again = [speech.speak(u) for u in reversed(spoken)]
    assert all(np.array_equal(a, b) for a, b in zip(clips, reversed(again), strict=True))


def test_an_unknown_voice_is_refused_by_name():
    with pytest.raises(ValueError, match="no voice 'nobody at all'"):
        speech.speak(speech.Utterance("hello", "nobody at all", 180, 50))


def test_a_pool_is_the_same_from_memory_from_disk_and_anew(tmp_path):
    rng = np.random.default_rng(0)
    utterances = tuple(speech.sample_utterance(rng, text, False) for text in speech.phrases(False)[:5])
    made = speech.SpeechPool(utterances, tmp_path / "a", workers=1)
    read = speech.SpeechPool(utterances, tmp_path / "a", workers=1)
    anew = speech.SpeechPool(utterances, tmp_path / "b", workers=1)
    assert len(made) == 5 and len(list((tmp_path / "a").iterdir())) == 2
    for i, utterance in enumerate(utterances):
        assert np.array_equal(made.clip(i), read.clip(i)) and np.array_equal(made.clip(i), anew.clip(i))
        assert np.abs(made.clip(i) - speech.speak(utterance)).max() < 1e-4


def test_each_use_of_a_clip_differs_and_keeps_noise_15_to_30_decibels_down():
    clip = speech.speak(speech.Utterance("put the red ring left", "en-us+m1", 180, 50))
    rng = np.random.default_rng(0)
    uses = [speech.vary(rng, clip) for _ in range(30)]
    assert len({len(u) for u in uses}) > 20 and all(0 <= len(u) - len(clip) <= 2 * 1280 for u in uses)
    for use in uses:
        shift = np.correlate(use, clip, "valid").argmax()
        aligned = use[shift : shift + len(clip)]
        gain = aligned @ clip / (clip @ clip)
        ratio = 10 * np.log10(np.mean((gain * clip) ** 2) / np.mean((aligned - gain * clip) ** 2))
        assert 0.45 < gain < 1.3 and 14 < ratio < 31


def test_a_disguise_moves_pitch_and_length_together_by_at_most_15_percent():
    rng, tone = np.random.default_rng(0), np.sin(2 * np.pi * 1000 / 16_000 * np.arange(16_000)).astype(np.float32)
    speeds = []
    for _ in range(40):
        played = speech.disguise(rng, tone)
        pitch = np.abs(np.fft.rfft(played)).argmax() * 16_000 / len(played)
        speeds.append(16_000 / len(played))
        assert pitch == pytest.approx(1000 * speeds[-1], abs=2)
        assert played.dtype == np.float32 and np.abs(played).max() == pytest.approx(0.7, rel=1e-3)
    assert 0.86 < min(speeds) < 0.93 and 1.07 < max(speeds) < 1.16


def test_a_disguise_changes_the_balance_of_bass_and_treble():
    rng, noise = np.random.default_rng(0), np.random.default_rng(1).normal(size=16_000).astype(np.float32)
    power = [np.abs(np.fft.rfft(speech.disguise(rng, noise))) ** 2 for _ in range(40)]
    balance = [np.log(p[len(p) // 2 :].mean() / p[: len(p) // 2].mean()) for p in power]
    assert max(balance) - min(balance) > 1


@pytest.mark.slow
def test_two_processes_make_the_same_pool_as_one(tmp_path):
    rng = np.random.default_rng(0)
    utterances = tuple(speech.sample_utterance(rng, text, False) for text in speech.phrases(False)[:220])
    one, two = (speech.SpeechPool(utterances, tmp_path / str(n), workers=n) for n in (1, 2))
    assert all(np.array_equal(one.clip(i), two.clip(i)) for i in range(len(utterances)))
