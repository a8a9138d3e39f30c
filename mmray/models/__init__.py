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

For "frames", quantised frames of which rows have any number, also none:

- `Config.inputs`: the columns of frames that are concatenated frame by frame, in this order; None = all. The task does
  it;
- `Config.by_length`: whether rows of like length are computed in less time together than mixed with others, to the same
  result: see `mmray.training.feed.micro_batches`;
- `Config.build(input_size, num_classes) -> nn.Module`: D features a frame, C classes. On the meta device too;
- `forward(frames, offsets) -> logits`: the frames of all rows one after another, (N, D) uint8, which the model itself
  dequantises (`mmray.features.quantization`); those of row i are `frames[offsets[i]:offsets[i + 1]]`, offsets (B + 1,)
  int64; logits (B, C) float32, log-odds. Rows don't depend on one another in eval mode. What a model draws in training
  comes from torch's global generator;
- `loss(frames, offsets, labels) -> scalar`, where the model has a better way, as above;
- `embed(frames, offsets) -> (B, E)` float32, what the classifier reads; E is the attribute `embedding_size`.

For "words", titles or keywords, of which rows have any number, also none:

- `Config.inputs`: the columns of word numbers that a row's words are taken from, one after the other;
- `Config.words`: what x is: "vectors", or "numbers" for a model that tells words apart by number alone;
- `Config.build(vector_size, num_classes) -> nn.Module`: word vectors of V numbers, C classes. On the meta device too;
- `forward(x, offsets) -> logits`: the words of all rows one after another, x (N, V) float or (N,) whole numbers; those
  of row i are `x[offsets[i]:offsets[i + 1]]`, offsets (B + 1,); logits (B, C), log-odds. A row without words is legal.
  Rows don't depend on one another in eval mode;
- `loss(x, offsets, labels) -> scalar`, where the model has a better way, as above;
- `embed(x, offsets) -> (B, E)` float32, what the classifier reads; E is the attribute `embedding_size`;
- `fit(rows)` and `is_fitted`, where a model counts instead of descending gradients: the task calls it once before the
  first loss, in every process, with all training rows as an iterable of (x, offsets, labels).

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

For an "image":

- `Config.build(image_size, num_classes) -> nn.Module`: for images of (height, width) pixels and K classes. On the meta
  device too, then without loading weights;
- `Config.pretrained`: weights to start from: true for those of the library's own hub, or the path of a file that timm,
  torchvision or mmray has saved, or of an mmray checkpoint. The backbone must fit; a head that doesn't (of another
  number of classes, above all) starts afresh, and a line says so. Names and shapes of parameters don't depend on it;
- `forward(x) -> logits`: x (B, 3, H, W) float, normalised as the task says; logits (B, K) float32, whose softmax is the
  probability of each class. In eval mode images don't depend on one another;
- `embed(x) -> (B, E)` float32, what the last linear layer, `head.classifier`, reads; E is `embedding_size`;
- `feature_layer`: dotted name of the module whose output (B, C, h, w) heat maps are made of; None where there is none;
- parameters are called `backbone.*` or `head.*`.

Parameters are float32. Autocast is the caller's choice: matrix products follow it, all that adds up or exponentiates
stays float32. Initial weights depend on torch's global generator alone.
"""
