"""Spoken words, synthesised by espeak-ng in many voices, and their log-mel frames.

The package `espeakng-loader` brings espeak-ng's library and its data; the functions called here are those of its header
`speak_lib.h`.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Waveform = NDArray[np.float32]

# The commands of the Speech Commands data set (arXiv:1804.03209, section 5.1).
WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
ACCENTS = ("en", "en-us", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029")
# fmt: off
VOICES = (
    "m1", "m2", "m3", "m4", "m5", "m6", "m7", "f1", "f2", "f3", "f4", "f5", "adam", "anika", "aunty", "belinda",
    "benjamin", "boris", "david", "ed", "edward", "grandma", "grandpa", "ian", "john", "linda", "max", "michel", "paul",
    "quincy", "rob", "robert", "steph",
)
# fmt: on
RATE_RANGE, PITCH_RANGE = (120, 200), (25, 75)  # words a minute; espeak-ng's scale of 0 to 100

FRAMES, BANDS = 50, 20  # T and M
HOP = 0.016  # seconds between frames, so that a word of 0.8 s fits
WINDOW = 0.025

AUDIO_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: samples go to the callback only
RATE, PITCH = 1, 3  # espeak_PARAMETER
POSITION_CHARACTER, CHARACTERS_UTF8 = 1, 1


class Speaker:
    """espeak-ng in this process. Raises ImportError without `espeakng-loader`, OSError when it does not start."""

    def __init__(self) -> None:
        import espeakng_loader

        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        self._library.espeak_Synth.argtypes = [
            ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint, ctypes.c_uint,
            ctypes.c_void_p, ctypes.c_void_p,
        ]  # fmt: skip
        data = espeakng_loader.get_data_path().encode()
        self.rate = int(self._library.espeak_Initialize(AUDIO_SYNCHRONOUS, 0, data, 0))
        if self.rate <= 0:
            raise OSError(f"espeak-ng did not start: {self.rate}")
        self._parts: list[NDArray[np.int16]] = []
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self._callback = kind(self._take)  # kept, or it would be freed while the library still calls it
        self._library.espeak_SetSynthCallback(self._callback)

    def say(self, word: str, voice: str, speed: int, pitch: int) -> Waveform:
        """Samples between -1 and 1 at `rate` a second. voice: `en-us+f2` is an accent with the voice of a speaker."""
        self._parts.clear()
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice}")
        self._library.espeak_SetParameter(RATE, speed, 0)
        self._library.espeak_SetParameter(PITCH, pitch, 0)
        text = word.encode()
        self._library.espeak_Synth(text, len(text) + 1, 0, POSITION_CHARACTER, 0, CHARACTERS_UTF8, None, None)
        self._library.espeak_Synchronize()
        if not self._parts:
            raise ValueError(f"espeak-ng said nothing for {word!r} in {voice}")
        return np.concatenate(self._parts).astype(np.float32) / 32_768

    def _take(self, samples: ctypes._Pointer[ctypes.c_short], count: int, _events: int) -> int:
        if count > 0:
            self._parts.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0


@dataclass(frozen=True)
class Spoken:
    """frames: float32 [N, T, M]. words: int64 [N]. held_out: bool [N], true of the voices that are not trained on."""

    frames: NDArray[np.float32]
    words: NDArray[np.int64]
    held_out: NDArray[np.bool_]


def speak_all(takes: int, held_voices: int, seed: int = 0) -> Spoken:
    """Every word by every voice in every accent, `takes` times, at speeds and pitches drawn from the seed. The last
    `held_voices` voices, in an order drawn from it too, are held out.
    """
    rng = np.random.default_rng(seed)
    speaker = Speaker()
    held = set(rng.permutation(VOICES)[-held_voices:])
    frames, words, held_out = [], [], []
    for voice in VOICES:
        for accent in ACCENTS:
            for word, name in enumerate(WORDS):
                for _ in range(takes):
                    speed, pitch = int(rng.integers(*RATE_RANGE)), int(rng.integers(*PITCH_RANGE))
                    samples = speaker.say(name, f"{accent}+{voice}", speed, pitch)
                    frames.append(log_mel(samples, speaker.rate, rng))
                    words.append(word)
                    held_out.append(voice in held)
    return Spoken(np.stack(frames), np.array(words), np.array(held_out))


def log_mel(samples: Waveform, rate: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """[T, M]: log energies in mel bands, less their mean and over their deviation. The word begins at a place drawn
    from `rng`, in faint noise; what does not fit is cut off.
    """
    hop, window = round(HOP * rate), round(WINDOW * rate)
    length = (FRAMES - 1) * hop + window
    samples = samples[:length]
    start = int(rng.integers(0, length - len(samples) + 1))
    padded = rng.normal(0, 1e-3, length).astype(np.float32)
    padded[start : start + len(samples)] += samples
    cut = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop] * np.hanning(window).astype(np.float32)
    power = np.abs(np.fft.rfft(cut, _fft_size(window))) ** 2
    energies = np.log(power @ _mel_bands(rate, _fft_size(window)).T + 1e-6)
    return ((energies - energies.mean()) / energies.std()).astype(np.float32)


def _fft_size(window: int) -> int:
    return 1 << (window - 1).bit_length()


@cache
def _mel_bands(rate: int, size: int) -> NDArray[np.float64]:
    """[M, size / 2 + 1]: triangles evenly spaced in mel = 2595 log10(1 + f / 700), from 60 Hz to 7.6 kHz."""
    low, high = (2595 * np.log10(1 + f / 700) for f in (60, 7600))
    edges = 700 * (10 ** (np.linspace(low, high, BANDS + 2) / 2595) - 1)
    frequencies = np.arange(size // 2 + 1) * rate / size
    rising = (frequencies - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - frequencies) / (edges[2:] - edges[1:-1])[:, None]
    return np.maximum(0, np.minimum(rising, falling))
