"""Architectures, for one device: no module here knows of other processes. One architecture a module; the module's name
is its name in a run file.

Every module here offers `Config`, a pydantic model (unknown keys rejected, frozen) with the hyper-parameters, whose
`name` is the module's name, and `Config.takes`, which says what it works on. For a classifier of "vectors":

- `Config.inputs`: the modalities whose vectors are concatenated into x, in this order; None = all. The task does it;
- `Config.build(input_size, num_classes) -> nn.Module`: D numbers in, C classes out. On `torch.device("meta")` too;
- `forward(x) -> logits`: x (B, D) float, logits (B, C). A logit is the log-odds of the class: its sigmoid is the
  probability. Rows don't depend on one another in eval mode;
- `loss(x, labels) -> scalar`, where the model has a better way than through its logits or a penalty to add: labels
  (B, C) bool; the mean over rows of the binary cross-entropy summed over classes. `mmray.losses.multilabel_loss` calls
  it, or falls back on the logits.

For a "pitch_map", the pitch of a melody over time:

- `Config.build(num_bins) -> nn.Module`: also on `torch.device("meta")`;
- `forward(x) -> logits`: x (B, 3, F, T) float, F = num_bins, any T >= 1; logits (B, F + 1, T), whose softmax over rows
  is the probability of no melody (row 0) and of each pitch (row r: min_hz 2^(r / bins_per_octave));
- `context_frames`: so many frames on each side, and no more, bear on the output of a frame in eval mode;
- `rename_published(state) -> state`: the parameters of the authors' released weights by this module's names;
  ValueError where they are of another model.

For a "feature_sequence", features over time of which rows have different lengths:

- `Config.build(input_size, num_classes) -> nn.Module`: D features a frame in, K classes out. On the meta device too;
- `forward(x, lengths) -> logits`: x (B, T, D) float as prepared, for the model standardises it itself; lengths (B,)
  whole numbers from 1 to T; logits (B, K) float32, whose softmax is the probability of each class. What x holds
  beyond a row's length, be it NaN, has no influence, nor has it in training. In eval mode rows don't depend on one
  another;
- `embed(x, lengths) -> (B, E)` float32, what the classifier reads; E is the attribute `embedding_size`.

Parameters are float32. Autocast is the caller's choice: matrix products follow it, all that adds up or exponentiates
stays float32. Initial weights depend on torch's global generator alone.
"""
