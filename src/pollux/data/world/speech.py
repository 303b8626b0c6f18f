"""Spoken sentences of the world: a small grammar, many voices of espeak-ng, and a pool of clips that is made once per run.

espeak-ng comes as a shared library in the espeakng-loader wheel and is called through ctypes. Synthesis is too slow for the
training loop, so a `SpeechPool` holds clean clips on disk, and every use adds its own gain, noise and silence (`vary`).
Clips are float32 [n] in [-1, 1] at 16 kHz.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import itertools
import json
import math
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr

from pollux.data.world.noise import normal
from pollux.data.world.scene import COLOURS, HELD_OUT, SHAPES, SIZES

RATE = 16_000  # Hz
_ACCENTS = ("en-us", "en", "en-gb-scotland", "en-gb-x-rp")  # "en" is the British one
_VARIANTS = (
    *("m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "f1", "f2", "f3", "f4", "f5"),
    *("Alex", "Andrea", "Andy", "Annie", "Diogo", "Gene", "Henrique", "Hugo", "Jacky", "Lee", "Marco", "Mario", "Michael"),
    *("adam", "anika", "antonio", "belinda", "benjamin", "boris", "david", "edward", "linda", "max", "norbert"),
    *("pablo", "quincy", "shelby", "steph", "travis"),
)
_HELD_OUT_VARIANTS = ("m3", "m7", "f2", "f5", "Andrea", "Gene", "belinda", "edward", "max", "steph")
_SYNCHRONOUS, _SPEED, _PITCH, _UTF8 = 2, 1, 3, 1  # constants of speak_lib.h
_BUFFER = 1000  # milliseconds of sound that one callback may bring

VERBS = ("put", "move", "push", "pull", "drop")
DIRECTIONS = ("left", "right", "up", "down", "away")
NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine")
PLACES = ("here", "there", "inside", "outside")
PLURALS = {"cross": "crosses"} | {s: s + "s" for s in SHAPES if s != "cross"}


def voices(held_out: bool) -> tuple[str, ...]:
    """Names of the voices: those for training in every accent, those for evaluation in one each. No timbre occurs in both."""
    if not held_out:
        return tuple(f"{accent}+{v}" for v in _VARIANTS if v not in _HELD_OUT_VARIANTS for accent in _ACCENTS)
    return tuple(f"{_ACCENTS[i % len(_ACCENTS)]}+{v}" for i, v in enumerate(_VARIANTS) if v in _HELD_OUT_VARIANTS)


@functools.cache
def phrases(held_out: bool) -> tuple[str, ...]:
    """Every five-word phrase of the grammar without a held-out pair of colour and shape, or every one with such a pair."""
    pairs = [(c, s) for c in COLOURS for s in SHAPES if ((c, s) in HELD_OUT) == held_out]
    commands = [f"{verb} the {c} {s} {way}" for c, s in pairs for verb in VERBS for way in DIRECTIONS]
    counts = [f"{n} {size} {c} {PLURALS[s]} {place}" for c, s in pairs for n in NUMBERS for size in SIZES for place in PLACES]
    return tuple(commands + counts)


def word_list(rng: np.random.Generator) -> str:
    """Four or five words of the phrases in any order, a held-out shape never next to its colour.

    Where phrases alone are heard, which pairs occur outweighs how a word sounds; in lists any words come together.
    """
    words = (*COLOURS, *SHAPES, *PLURALS.values(), *SIZES, *VERBS, *DIRECTIONS, *NUMBERS, *PLACES)
    alone = {plural: shape for shape, plural in PLURALS.items()}
    while True:
        chosen = [words[i] for i in rng.integers(len(words), size=rng.integers(4, 6))]
        if not any((a, alone.get(b, b)) in HELD_OUT for a, b in itertools.pairwise(chosen)):
            return " ".join(chosen)


@dataclass(frozen=True)
class Utterance:
    text: str
    voice: str  # as espeak-ng names it: accent+variant
    speed: int  # words a minute
    pitch: int  # 0..99


def sample_utterance(rng: np.random.Generator, text: str, held_out: bool) -> Utterance:
    """A sentence in a random voice, speed and pitch."""
    names = voices(held_out)
    return Utterance(text, names[rng.integers(len(names))], int(rng.integers(165, 216)), int(rng.integers(35, 66)))


@contextlib.contextmanager
def _library() -> Iterator[tuple[ctypes.CDLL, int, list[np.ndarray]]]:
    """espeak-ng loaded anew, its sampling rate, and the list that its callback appends pieces of sound to.

    It is unloaded again after every sentence (1 ms), because its pitch flutter and random state survive even its own
    termination: without that, a clip would depend on the clips made before it.
    """
    import _ctypes

    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    data = espeakng_loader.get_data_path()
    rate = library.espeak_Initialize(_SYNCHRONOUS, _BUFFER, data.encode(), 0)
    if rate <= 0:
        raise RuntimeError(f"espeak-ng could not start with its data at {data}; its path may be too long (160 characters)")
    library.espeak_ng_SetRandSeed(ctypes.c_long(1))
    pieces: list[np.ndarray] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int16), ctypes.c_int, ctypes.c_void_p)
    def receive(samples, count, events):
        if samples and count > 0:
            pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    library.espeak_SetSynthCallback(receive)
    try:
        yield library, rate, pieces
    finally:
        library.espeak_Terminate()
        unload = getattr(_ctypes, "FreeLibrary" if os.name == "nt" else "dlclose")
        unload(library._handle)


def speak(utterance: Utterance) -> np.ndarray:
    """Synthesise one sentence: float32 [n] at 16 kHz, peak 0.7, silence at both ends cut off.

    The same utterance always gives the same samples. Raises ValueError when espeak-ng does not know the voice. Not thread safe.
    """
    with _library() as (library, rate, pieces):
        if library.espeak_SetVoiceByName(utterance.voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {utterance.voice!r}")
        library.espeak_SetParameter(_SPEED, utterance.speed, 0)
        library.espeak_SetParameter(_PITCH, utterance.pitch, 0)
        text = utterance.text.encode() + b"\0"
        library.espeak_Synth(text, ctypes.c_size_t(len(text)), 0, 0, 0, _UTF8, None, None)
    samples = soxr.resample(np.concatenate(pieces).astype(np.float32), rate, RATE)
    loud = np.flatnonzero(np.abs(samples) > 0.01 * np.abs(samples).max())
    samples = samples[loud[0] : loud[-1] + 1]
    return samples * (0.7 / np.abs(samples).max())


def _speak_all(utterances: list[Utterance]) -> list[np.ndarray]:
    return [(speak(u) * 32767).astype(np.int16) for u in utterances]


class SpeechPool:
    """Clean clips of a list of utterances, synthesised on first use and kept in `folder` as one memory-mapped array.

    `workers` processes share the synthesis (1 = this process). A second run with the same utterances reads the files.
    """

    def __init__(self, utterances: tuple[Utterance, ...], folder: str | Path, workers: int = 2):
        self.utterances = utterances
        key = hashlib.sha256(json.dumps([u.__dict__ for u in utterances]).encode()).hexdigest()[:16]
        path = Path(folder) / f"speech-{key}.npy"
        ends_path = path.with_suffix(".ends.npy")
        if not path.exists():
            clips = _synthesise(utterances, workers)
            path.parent.mkdir(parents=True, exist_ok=True)
            _save(ends_path, np.cumsum([len(c) for c in clips]))
            _save(path, np.concatenate(clips))
        self._samples = np.load(path, mmap_mode="r")
        self._ends = np.load(ends_path)

    def __len__(self) -> int:
        return len(self.utterances)

    def clip(self, index: int) -> np.ndarray:
        """The clean clip of utterance `index`, float32 [n] at 16 kHz."""
        start = self._ends[index - 1] if index else 0
        return self._samples[start : self._ends[index]].astype(np.float32) / 32768


def _synthesise(utterances: tuple[Utterance, ...], workers: int) -> list[np.ndarray]:
    if workers <= 1 or len(utterances) < 200:
        return _speak_all(list(utterances))
    chunks = [list(utterances[i : i + 100]) for i in range(0, len(utterances), 100)]
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        return [clip for clips in pool.map(_speak_all, chunks) for clip in clips]


def _save(path: Path, array: np.ndarray) -> None:
    """Write under a temporary name first, so that an interrupted run leaves no half file."""
    partial = path.with_name(f"{path.stem}.{os.getpid()}.partial.npy")
    np.save(partial, array)
    partial.replace(path)


def disguise(rng: np.random.Generator, clip: np.ndarray) -> np.ndarray:
    """A clip as another speaker might say it into another microphone, for training: played up to 15 % faster or slower, so that pitch and
    formants shift with it (Ko et al. 2015), and with the treble up or down."""
    speed, tilt = math.exp(rng.uniform(-0.14, 0.14)), rng.uniform(-0.4, 0.6)
    place = np.arange(int((len(clip) - 1) / speed)) * speed
    index = place.astype(np.int32)
    share = (place - index).astype(np.float32)
    played = clip[index] * (1 - share) + clip[index + 1] * share
    played[1:] -= tilt * played[:-1]
    return played * (0.7 / max(float(np.abs(played).max()), 1e-6))


def vary(rng: np.random.Generator, clip: np.ndarray) -> np.ndarray:
    """One use of a clip: gain -6..+2 dB, up to 80 ms of silence before and after, white noise at 15-30 dB below the speech."""
    before, after = rng.integers(0, RATE * 80 // 1000, 2)
    gain = 10 ** (rng.uniform(-6, 2) / 20)
    level = gain * math.sqrt(np.mean(clip**2)) * 10 ** (-rng.uniform(15, 30) / 20)
    varied = level * normal((int(before + len(clip) + after),), int(rng.integers(2**31)))
    varied[before : before + len(clip)] += gain * clip
    return np.clip(varied, -1, 1)
