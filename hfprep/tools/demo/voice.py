"""Synthesises voice-like audio: glottal pulses and breath noise through moving formants.

Provides `Speaker` and `speak`. There are no words, but the properties that the models respond to: pitch, formants,
syllables, pauses, noise.
"""

from dataclasses import dataclass

import numpy as np

VOWELS: tuple[tuple[float, float, float], ...] = (
    (730.0, 1090.0, 2440.0),
    (530.0, 1840.0, 2480.0),
    (300.0, 2250.0, 2950.0),
    (570.0, 860.0, 2410.0),
    (320.0, 880.0, 2240.0),
    (490.0, 1350.0, 1690.0),
)
"""First three formants (Hz) of six vowels, for an average adult."""
FORMANT_WIDTHS = np.array([80.0, 110.0, 170.0])  # Hz
FORMANT_LEVELS = np.array([1.0, 0.5, 0.25])
SYLLABLE_SECONDS = (0.12, 0.28)
PAUSE_SECONDS = (0.08, 0.22)
PAUSE_SHARE = 0.18
FRAME_SECONDS = 0.020  # of the time-varying filter; frames overlap by half
VIBRATO_HZ = 5.3
BREATH_LEVEL = 0.015
PEAK = 0.6


@dataclass(frozen=True, slots=True)
class Speaker:
    """A voice: mean pitch (Hz), formants relative to `VOWELS`, vibrato depth and breathiness."""

    name: str
    pitch: float
    formant_scale: float
    vibrato: float
    breathiness: float


SPEAKERS = (
    Speaker("alto", 196.0, 1.12, 0.012, 1.0),
    Speaker("baritone", 104.0, 0.92, 0.008, 0.5),
    Speaker("child", 290.0, 1.28, 0.015, 1.6),
    Speaker("tenor", 138.0, 0.98, 0.010, 0.8),
    Speaker("elder", 122.0, 1.02, 0.028, 2.5),
)


@dataclass(frozen=True, slots=True)
class _Syllable:
    start: float
    end: float
    vowel: int
    stress: float
    noisy: bool


def speak(speaker: Speaker, seconds: float, sampling_rate: int, generator: np.random.Generator) -> np.ndarray:
    """Synthesise an utterance: float64 (round(seconds * sampling_rate),), peak 0.6.

    `sampling_rate` is in Hz. The same generator state gives the same audio.
    """
    num_samples = round(seconds * sampling_rate)
    syllables = _plan(seconds, generator)
    time = np.arange(num_samples) / sampling_rate
    drift = np.interp(time, [0.0, seconds], [1.08, 0.88])
    shake = 1.0 + speaker.vibrato * np.sin(2 * np.pi * VIBRATO_HZ * time + generator.uniform(0, 2 * np.pi))
    phase = np.cumsum(speaker.pitch * drift * shake / sampling_rate)
    pulses = np.diff(np.floor(phase), prepend=0.0) - speaker.pitch / sampling_rate  # without DC
    breath = generator.standard_normal(num_samples)
    voiced, noise, vowels = np.zeros(num_samples), np.zeros(num_samples), np.zeros((num_samples, 3))
    for syllable in syllables:
        inside = slice(round(syllable.start * sampling_rate), round(syllable.end * sampling_rate))
        shape = np.sin(np.linspace(0, np.pi, len(time[inside]))) ** 0.6
        voiced[inside] = syllable.stress * shape
        noise[inside] = BREATH_LEVEL * speaker.breathiness * shape
        if syllable.noisy:  # a fricative at its start
            onset = slice(inside.start, inside.start + len(time[inside]) // 4)
            voiced[onset], noise[onset] = 0.0, 0.1 * syllable.stress
        vowels[inside] = np.array(VOWELS[syllable.vowel]) * speaker.formant_scale
    source = pulses * voiced + breath * noise
    sound = _through_formants(source, vowels, sampling_rate)
    sound += 2e-4 * np.max(np.abs(sound)) * generator.standard_normal(num_samples)  # background noise
    return sound * (PEAK / np.max(np.abs(sound)))


def _plan(seconds: float, generator: np.random.Generator) -> list[_Syllable]:
    syllables: list[_Syllable] = []
    position = min(0.05, seconds / 10)
    while True:
        length = generator.uniform(*SYLLABLE_SECONDS)
        vowel, stress = int(generator.integers(len(VOWELS))), generator.uniform(0.5, 1.0)
        noisy = bool(generator.random() < 0.35)
        pause = generator.uniform(*PAUSE_SECONDS) if generator.random() < PAUSE_SHARE else 0.0
        if position + length > seconds and syllables:
            return syllables
        syllables.append(_Syllable(position, min(position + length, seconds), vowel, stress, noisy))
        position += length + pause


def _through_formants(source: np.ndarray, vowels: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Filter overlapping windows, each with the formants (num_samples, 3) at its centre."""
    hop = round(FRAME_SECONDS * sampling_rate) // 2
    window = np.hanning(2 * hop + 1)[:-1]
    num_frames = len(source) // hop + 1
    padded = np.pad(source, (hop, 2 * hop))
    frames = np.lib.stride_tricks.sliding_window_view(padded, 2 * hop)[::hop][:num_frames] * window
    frequencies = np.fft.rfftfreq(4 * hop, 1 / sampling_rate)
    centres = vowels[np.minimum(np.arange(num_frames) * hop, len(source) - 1)][:, :, None]  # (frames, 3, 1)
    resonance = FORMANT_LEVELS[:, None] / (1 + ((frequencies - centres) / FORMANT_WIDTHS[:, None]) ** 2)
    tilt = 1 / (1 + (frequencies / 500.0) ** 2)  # the glottal source falls by 12 dB per octave
    spectrum = np.fft.rfft(frames, 4 * hop) * (resonance.sum(axis=1) + 0.02) * (0.05 + tilt)
    filtered = np.fft.irfft(spectrum, 4 * hop)
    sound = np.zeros((num_frames + 4) * hop)
    for part in range(4):  # the filtered frames are four hops long and start one hop apart
        sound[part * hop : (part + num_frames) * hop] += filtered[:, part * hop : (part + 1) * hop].ravel()
    return sound[hop : hop + len(source)]
