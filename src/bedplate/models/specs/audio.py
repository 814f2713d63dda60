"""An audio tower as data: a spectrogram, a stem of convolutions, an encoder over its frames (Whisper, 2212.04356)."""

from __future__ import annotations

from dataclasses import dataclass

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.specs.checks import at_least, refuse
from bedplate.models.specs.transformer import TransformerSpec


@dataclass(frozen=True)
class AudioSpec:
    """Whisper's encoder: two convolutions over time (the second of stride `stride`), then `tower`.

    mel_bins: features of one frame of the spectrogram. kernel: frames that a convolution sees. A window of
    `window_seconds` is always computed whole; shorter sound is padded to it.
    """

    tower: TransformerSpec
    mel_bins: int
    kernel: int = 3
    stride: int = 2
    window_seconds: float = 30.0
    frames_per_second: float = 100.0

    def __post_init__(self) -> None:
        refuse(self.tower.kind != "tower", f"the audio tower's kind is {self.tower.kind!r}: it must be 'tower'")
        at_least(self, 1, "mel_bins", "kernel", "stride")
        if self.window_seconds <= 0 or self.frames_per_second <= 0:
            raise UnsupportedModelError("window_seconds and frames_per_second must be over 0")

    @property
    def frames(self) -> int:
        """Frames of a window's spectrogram."""
        return round(self.window_seconds * self.frames_per_second)

    @property
    def window_tokens(self) -> int:
        """Tokens that the tower makes of one window."""
        return -(-self.frames // self.stride)
