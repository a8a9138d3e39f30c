"""Convolutions over a sequence of audio features, then a GRU along time.

The third of the three models of Sow and Eng, "Implementation of Music Emotion Classification using Deep Learning"
(2025), who print no sizes of layers; these are ours. Three convolutions of stride 2 find short events and leave one
frame in eight (256 ms at a hop of 32 ms); the GRU relates what is seconds apart. At 27 features (20 MFCC, 7 of
spectral contrast) and 3 classes: 146,115 parameters.
"""

from __future__ import annotations

from typing import Literal

from torch import nn

from mmray.models._sequence import RecurrentConfig, SequenceClassifier


class Config(RecurrentConfig):
    """Hyper-parameters; see `RecurrentConfig`."""

    name: Literal["audio_cnn_gru"] = "audio_cnn_gru"

    def build(self, input_size: int, num_classes: int) -> SequenceClassifier:
        """The model for `input_size` (D) features a frame and `num_classes` (K) classes."""
        return SequenceClassifier(self.recurrence(input_size, nn.GRU), input_size, num_classes, self.dropout)
