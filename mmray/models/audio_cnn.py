"""A convolutional network over a sequence of audio features.

The first of the three models of Sow and Eng, "Implementation of Music Emotion Classification using Deep Learning"
(2025), who print no sizes of layers; these are ours. Four convolutions of stride 2 see 61 frames (2 s at a hop of
32 ms); what is further apart than that is related by nothing but mean and maximum. At 27 features (20 MFCC, 7 of
spectral contrast) and 3 classes: 153,923 parameters.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from mmray.models._sequence import ConvConfig, SequenceClassifier


class Config(ConvConfig):
    """Hyper-parameters; see `ConvConfig` for the others."""

    name: Literal["audio_cnn"] = "audio_cnn"
    channels: tuple[PositiveInt, ...] = Field(default=(64, 64, 128, 128), min_length=1)
    """Of the convolutions, in order."""

    def build(self, input_size: int, num_classes: int) -> SequenceClassifier:
        """The model for `input_size` (D) features a frame and `num_classes` (K) classes."""
        return SequenceClassifier(self.convolutions(input_size), input_size, num_classes, self.dropout)
