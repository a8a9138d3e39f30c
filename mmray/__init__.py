"""mmray: train and tune multimodal models at scale with Ray."""

__version__ = "0.1.0"
