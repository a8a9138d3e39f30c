"""The melody of sound files of any length: which files, what is written for them, and the model run over each.

A file is read twice, a block at a time: once for the range that its CFP feature is scaled by, once for the model, which
sees it in windows. Each window brings as many frames on both sides as the model looks at, so the windows join without a
seam, and at the two ends of a file the model meets its real end: the result is that of the whole file in one piece.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mmray.features import audio
from mmray.features.cfp import Cfp, Range
from mmray.features.contour import Contour
from mmray.tasks._files import named_files

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Extraction:
    """The melody of a file: times in s, pitches in Hz (0 = none), and confidence, 0 to 1, of each frame: all (T,)."""

    times_s: NDArray[np.float64]
    f0_hz: NDArray[np.float64]
    confidence: Floats


def extract(
    model: nn.Module,
    cfp: Cfp,
    path: Path,
    device: torch.device,
    mix: audio.Mix = "mean",
    window_frames: int = 2048,
) -> Iterator[Floats]:
    """Posteriors of the frames of a sound file in order, in parts (t, F + 1): row 0 "no melody", row r pitch r.

    `model`, in evaluation mode and on `device`, maps (1, 3, F, t) to logits (1, F + 1, t) and says by `context_frames`
    how many frames on each side of a frame it looks at. Memory: the activations of `window_frames` frames and twice
    the context, whatever the length of the file; a model that normalises each clip by its own statistics gets the
    file in one piece. ValueError, naming the file, where it can't be read or has no frame.
    """
    num_inner, context = _window_size(model, window_frames)
    seen = Range()
    num_frames = 0
    for raw in _raw_cfp(cfp, path, mix):
        seen.add(raw)
        num_frames += len(raw)
    if num_frames == 0:
        settings = cfp.settings
        raise ValueError(
            f"{path}: too short for a frame of {settings.hop} samples at {settings.sample_rate_hz} Hz; leave it out"
        )
    scaled = (seen.scale(raw) for raw in _raw_cfp(cfp, path, mix))
    for window, first, last in _windows(scaled, num_inner, context):
        with torch.inference_mode():
            logits = _logits(model, torch.from_numpy(window).to(device))[:, first:last]
            part: Floats = logits.softmax(dim=0).T.contiguous().cpu().numpy()
        yield part


def logits_of_map(model: nn.Module, scaled: torch.Tensor, window_frames: int = 2048) -> torch.Tensor:
    """Logits (F + 1, T), float32, of a clip whose scaled CFP (T, 3, F) is there, window by window as in `extract`.

    What it takes beside its result is bounded by the window. The model and `scaled` are on one device.
    """
    num_inner, context = _window_size(model, window_frames)
    parts = []
    for first in range(0, len(scaled), num_inner):
        before = min(first, context)
        window = scaled[first - before : first + num_inner + context]
        parts.append(_logits(model, window)[:, before : before + num_inner])
    if not parts:
        raise ValueError("a clip without frames has no melody; leave it out")
    return torch.cat(parts, dim=1)


def _window_size(model: nn.Module, window_frames: int) -> tuple[int, int]:
    """Inner frames of a window, and frames of context on each side of them; ValueError where windows can't work."""
    if model.training:
        raise ValueError("the model is in training mode, where each window would change it; call model.eval() first")
    if window_frames < 1:
        raise ValueError(f"window_frames={window_frames}; expected 1 or more")
    if getattr(model, "batch_statistics", "running") == "clip":  # every frame depends on all of the clip
        return sys.maxsize, 0
    return window_frames, int(model.context_frames)  # type: ignore[arg-type]


def _logits(model: nn.Module, window: torch.Tensor) -> torch.Tensor:
    """Logits (F + 1, t), float32, of scaled CFP (t, 3, F)."""
    logits: torch.Tensor = model(window.permute(1, 2, 0)[None].contiguous())[0]
    return logits.float()


def extract_contour(
    model: nn.Module,
    cfp: Cfp,
    path: Path,
    device: torch.device,
    decode: Callable[[NDArray[np.floating]], Contour],
    mix: audio.Mix = "mean",
    window_frames: int = 2048,
) -> Extraction:
    """The melody of a sound file; `decode` makes a contour of posteriors (T, F + 1). Otherwise as `extract`.

    Decoders such as Viterbi's look at the whole file, so its posteriors are held: 64 KB a second at the defaults of the
    feature, 231 MB an hour, and twice that while they are joined. In float32, for float16 would make 0 of what is below
    3e-8, and so a path dearer that is only improbable.
    """
    parts = list(extract(model, cfp, path, device, mix, window_frames))
    posteriors = np.concatenate(parts)
    parts.clear()
    contour = decode(posteriors)
    return Extraction(cfp.settings.frame_times_s(len(posteriors)), contour.f0_hz, contour.confidence)


def _raw_cfp(cfp: Cfp, path: Path, mix: audio.Mix) -> Iterator[Floats]:
    """The frames of a file, not yet scaled; every ValueError names the file."""
    try:
        yield from cfp.stream(audio.blocks(path, cfp.settings.sample_rate_hz, mix))
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: {error}") from error


def _windows(frames: Iterator[Floats], num_inner: int, context: int) -> Iterator[tuple[Floats, int, int]]:
    """Pieces of a sequence of frames (t, ...), and which frames of each are its inner ones, `first` to `last` - 1.

    The inner frames, `num_inner` a piece and fewer in the last, follow each other without gap or overlap. A piece has
    `context` frames before and after them, or all there are.
    """
    held: list[Floats] = []
    num_held, first = 0, 0
    for chunk in frames:
        held.append(chunk)
        num_held += len(chunk)
        while num_held >= first + num_inner + context:
            piece = np.concatenate(held) if len(held) > 1 else held[0]
            last = first + num_inner
            yield piece[: last + context], first, last
            held = [piece[max(0, last - context) :]]
            num_held = len(held[0])
            first = min(context, last)
    if num_held > first:
        yield np.concatenate(held), first, num_held


# ---- Which files


EXTRAS = ("midi", "sonification")
"""What can be written for a file beside the contour."""


def audio_files(source: str | Path) -> list[Path]:
    """The sound files that `source` names, sorted; see `named_files`."""
    return named_files(source, audio.SUFFIXES, "sound")


def outputs(files: Sequence[Path], out: Path, extras: Collection[str] = ()) -> list[dict[str, Path]]:
    """What is written for each sound file, by kind: "contour", and those of `EXTRAS` that are asked for.

    | out | contour | midi | sonification |
    |---|---|---|---|
    | `song.csv`, or `song.txt` for MIREX's form; for one file only | `song.csv` | `song.mid` | `song.melody.wav` |
    | a folder | `<stem>.melody.csv` | `<stem>.melody.mid` | `<stem>.melody.wav` |

    In a folder, files of several folders keep their place below the folder that they have in common. No name but `out`
    itself is one that corpora give to the label beside a song, so labels are not replaced.
    ValueError for another kind, where an output is an input, two inputs have one output, several are to go into one
    table, `out` is no table and no folder, or where the sonifications of several files would lie among these: a later
    run would take them for songs.
    """
    unknown = sorted(set(extras) - set(EXTRAS))
    if unknown:
        raise ValueError(f"{unknown[0]!r} is nothing that can be written for a song; choose from {', '.join(EXTRAS)}")
    suffix = out.suffix.lower()
    names: list[tuple[Path, Path, Path]] = []
    if suffix in (".csv", ".txt") and not out.is_dir():
        if len(files) > 1:
            raise ValueError(f"{out} is one table, but there are {len(files)} sound files; give a folder instead")
        names += [(out, out.with_suffix(".mid"), out.with_name(f"{out.stem}.melody.wav")) for _ in files]
    else:
        if out.is_file() or (suffix in (".mid", *audio.SUFFIXES) and not out.is_dir()):
            raise ValueError(f"{out} is no place for tables; give a folder, or a table that ends in .csv or .txt")
        root = files[0].absolute().parent
        while not all(file.absolute().is_relative_to(root) for file in files):
            root = root.parent
        if "sonification" in extras and len(files) > 1 and out.resolve().is_relative_to(root.resolve()):
            raise ValueError(
                f"{out} lies in {root}, where a later run would take the sonifications for songs; give a folder outside"
            )
        for file in files:
            folder, base = out / file.absolute().parent.relative_to(root), f"{file.stem}.melody"
            names.append((folder / f"{base}.csv", folder / f"{base}.mid", folder / f"{base}.wav"))
    result = [
        {kind: path for kind, path in zip(("contour", *EXTRAS), paths, strict=True) if kind in ("contour", *extras)}
        for paths in names
    ]
    inputs = {file.resolve() for file in files}
    taken: dict[Path, Path] = {}
    for file, of_file in zip(files, result, strict=True):
        other = taken.setdefault(of_file["contour"], file)
        if other is not file:
            raise ValueError(
                f"{other} and {file} would both be written to {of_file['contour']}; rename one, or run them one by one "
                "with tables of their own"
            )
        for path in of_file.values():
            if path.resolve() in inputs:
                raise ValueError(f"{path} is a sound file that is to be read; choose another place than {out}")
    return result
