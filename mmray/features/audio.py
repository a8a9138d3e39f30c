"""Sound files to samples: any format that libsndfile reads, resampled by soxr, block by block in bounded memory.

Decoding: a file's content says what it is, not its name. Samples are float32 with full scale at ±1: 16 and 24 bit
integers are exact, 32 bit integers and float64 are rounded. A float file or a sum of channels may exceed ±1; nothing
is clipped.

Resampling: soxr's HQ quality (linear phase, 20 bits). It starts at sample 0 and has no delay: sample i of the output
stands at i / sample_rate_hz seconds. n samples give floor(n · to / from + 1/2). Where the rates agree nothing is done,
and the samples are the file's own, bit for bit.

What a header announces and what is there can differ. A file that is more than 0.1 s short is refused, where its format
lets one know: WAV, RF64, W64, AIFF, AU and CAF by the size of their data, FLAC by what is decoded, MP3 by the number of
frames in its Xing or Info header. An MP3 without such a header has an estimated length only, which is not held against
it. Vorbis and Opus miss what is damaged within, but a truncated file looks like a shorter one. libmpg123 writes its own
remarks about a damaged MP3 to stderr.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

Mix = Literal["mean", "sum", "left", "right"]
"""How channels become one: their mean, their sum, or the first or second one alone."""

SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".w64", ".rf64", ".au", ".caf")
"""Names of sound files in a folder end like this, in lower case."""

PathLike = str | os.PathLike[str]

_BLOCK_SAMPLES = 1 << 17  # of all channels, in or out: half a megabyte, which stays in a core's own cache
_LOST_S = 0.1  # less than this is a careless header, not a broken transfer
_UNKNOWN = 1 << 62  # libsndfile announces 2^63 - 1 frames where the header doesn't tell


@dataclass(frozen=True)
class Length:
    """How long a sound file is, before resampling."""

    seconds: float
    sample_rate_hz: int
    channels: int
    num_samples: int  # of each channel


def blocks(path: PathLike, sample_rate_hz: int, mix: Mix = "mean") -> Iterator[NDArray[np.float32]]:
    """The sound of one file as one channel, in blocks of shape (n,), n >= 1 and no more than some 131,072.

    ValueError, naming the file, as soon as iteration meets a reason: no such file, not a sound file or of an unknown
    codec, damaged or truncated, no samples, a sample that is not finite, or no channel that `mix` asks for.
    """
    if mix not in ("mean", "sum", "left", "right"):
        raise ValueError(f"mix={mix!r}; choose mean, sum, left or right")
    with _opened(path) as sound:
        if sound.channels == 1 and mix in ("left", "right"):
            raise ValueError(f"{path}: mix={mix!r} needs two channels, and the file has one; take mix='mean'")
        mono = (_mixed(block, mix) for block in _decoded(sound, path, sample_rate_hz))
        yield from _resampled(mono, sound, path, sample_rate_hz)


def read(path: PathLike, sample_rate_hz: int, mix: Mix = "mean") -> NDArray[np.float32]:
    """The sound of one file as one channel, shape (n,): all of `blocks`, with its errors."""
    return np.concatenate(list(blocks(path, sample_rate_hz, mix)))


def read_channels(path: PathLike, sample_rate_hz: int) -> NDArray[np.float32]:
    """Every channel of one file, shape (channels, n). The errors of `blocks`."""
    with _opened(path) as sound:
        decoded = _decoded(sound, path, sample_rate_hz)
        parts = [part.T for part in _resampled(decoded, sound, path, sample_rate_hz)]
    return np.concatenate(parts, axis=1)


def length(path: PathLike) -> Length:
    """The exact length of one file.

    From the header alone where that tells it; MP3, and FLAC written to a pipe, are decoded and counted. ValueError
    where the file can't be opened, is known to be truncated or has no samples; other damage shows in `blocks`.
    """
    with _opened(path) as sound:
        rate = sound.samplerate
        if sound.format == "MP3" or sound.frames > _UNKNOWN:
            num_samples = sum(len(block) for block in _decoded(sound, path, rate))
        else:
            num_samples = sound.frames
        return Length(num_samples / rate, rate, sound.channels, num_samples)


class _Forward(soundfile.SoundFile):  # type: ignore[misc]
    """A sound file that is only read onwards.

    soundfile seeks to where it stands after each read of a seekable file. That takes time, and it fails at the end of
    a FLAC file whose header doesn't tell its length.
    """

    def seekable(self) -> bool:
        return False


@contextmanager
def _opened(path: PathLike) -> Iterator[_Forward]:
    """The open file, not known to be truncated or empty. libsndfile's errors come out as ValueError."""
    try:
        file = open(path, "rb")  # noqa: SIM115 (its own errors, apart from those of the body)
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}; check the path and its permissions") from error
    with file:
        try:
            # By its number, not its name: soundfile takes a name that ends in .raw for samples without a header.
            sound = _Forward(file.fileno(), closefd=False)
        except soundfile.LibsndfileError as error:
            # libsndfile calls a broken MP3 a missing file.
            reason = "" if "does not exist" in error.error_string else f" ({_reason(error)})"
            raise ValueError(
                f"{path}: not a sound file that libsndfile reads{reason}; "
                "convert it to WAV or FLAC, fetch it again if it is damaged, or leave it out"
            ) from error
        with sound:
            if sound.frames == 0:
                raise ValueError(f"{path}: the file holds no samples; leave it out, or fetch it again")
            if sound.frames < _UNKNOWN:
                _check_whole(path, sound, sound.frames, _announced_frames(sound))
            yield sound


def _reason(error: soundfile.LibsndfileError) -> str:
    text: str = error.error_string
    return text.removeprefix("Error : ").rstrip(". ")


_SIZE_LINE = re.compile(r"^ *(?:data|SSND|Data Size|riff) *: (\d+) \(should be (\d+)\)", re.MULTILINE)
_FRAMES_LINE = re.compile(r"Calculated frame count \d+ does not match value from 'ds64' chunk of (\d+)")


def _announced_frames(sound: _Forward) -> int:
    """The frames that the header announces, where libsndfile has cut them to what the file has room for.

    It tells so only in the log of its parser. Writers to a pipe, who can't know the size, put one next to 2^31 or 2^32.
    """
    log: str = sound.extra_info
    num_frames: int = sound.frames
    if found := _FRAMES_LINE.search(log):
        return int(found[1])
    if found := _SIZE_LINE.search(log):
        announced, actual = int(found[1]), int(found[2])
        if actual > 0 and all(abs(announced - limit) > 4096 for limit in (1 << 31, 1 << 32)):
            return num_frames * announced // actual
    return num_frames


def _check_whole(path: PathLike, sound: _Forward, num_frames: int, announced: int) -> None:
    """ValueError where more than a trifle is missing."""
    rate = sound.samplerate
    if (announced - num_frames) / rate > _LOST_S:
        raise ValueError(
            f"{path}: truncated or damaged: {num_frames / rate:.2f} s of the {announced / rate:.2f} s that its header "
            "announces; fetch it again, or convert it anew if it is meant to be that short"
        )


def _decoded(sound: _Forward, path: PathLike, sample_rate_hz: int) -> Iterator[NDArray[np.float32]]:
    """The file's own samples, (n, channels). The blocks are small enough for those at `sample_rate_hz`, too."""
    if sample_rate_hz < 1:
        raise ValueError(f"sample_rate_hz={sample_rate_hz}; give at least 1")
    most_of_one = sound.channels * max(1.0, sample_rate_hz / sound.samplerate)
    block_frames = max(1, int(_BLOCK_SAMPLES / most_of_one))
    is_known = sound.frames < _UNKNOWN and sound.format != "MP3"
    num_frames = 0
    while True:
        # Not beyond a known end: what may stand there, such as an ID3v1 tag, is an error to the decoder of FLAC.
        wanted = min(block_frames, sound.frames - num_frames) if is_known else block_frames
        try:
            block: NDArray[np.float32] = sound.read(wanted, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise ValueError(
                f"{path}: damaged after {num_frames / sound.samplerate:.2f} s ({_reason(error)}); "
                "fetch it again, or leave it out"
            ) from error
        if len(block) == 0:
            break
        _check_finite(path, sound, block, num_frames)
        num_frames += len(block)
        yield block
    if num_frames == 0:
        raise ValueError(f"{path}: nothing in the file can be decoded; fetch it again, or leave it out")
    if is_known or (sound.format == "MP3" and _has_frame_count(path)):
        _check_whole(path, sound, num_frames, sound.frames)


def _has_frame_count(path: PathLike) -> bool:
    """Whether an MP3 begins with a frame that tells how many follow (after an ID3v2 tag, if there is one)."""
    with open(path, "rb") as file:
        tag = file.read(10)
        size = 0
        if tag[:3] == b"ID3":
            for seven_bits in tag[6:10]:
                size = size << 7 | seven_bits
            size += len(tag)
        file.seek(size)
        frame = file.read(1024)
    return any(name in frame for name in (b"Xing", b"Info", b"VBRI"))


def _check_finite(path: PathLike, sound: _Forward, block: NDArray[np.float32], start: int) -> None:
    finite = np.isfinite(block)
    if not finite.all():
        frame, channel = np.argwhere(~finite)[0]
        at = start + int(frame)
        raise ValueError(
            f"{path}: sample {at} ({at / sound.samplerate:.4f} s) of channel {channel} is {block[frame, channel]}; "
            "write the file anew with finite samples, or leave it out"
        )


def _mixed(block: NDArray[np.float32], mix: Mix) -> NDArray[np.float32]:
    """(n, channels) to (n,)."""
    if mix in ("left", "right"):
        return np.ascontiguousarray(block[:, int(mix == "right")])
    total = block[:, 0]
    if block.shape[1] > 1:
        # Column by column: numpy's own sum along such a short axis takes many times as long.
        total = total + block[:, 1]
        for channel in range(2, block.shape[1]):
            total += block[:, channel]
        if mix == "mean":
            total /= np.float32(block.shape[1])
    return total


def _resampled(
    decoded: Iterator[NDArray[np.float32]], sound: _Forward, path: PathLike, sample_rate_hz: int
) -> Iterator[NDArray[np.float32]]:
    """The blocks, (n,) or (n, channels), at the rate asked for. At least one, and none of them empty."""
    if sample_rate_hz == sound.samplerate:
        yield from decoded
        return
    stream = None
    is_empty = True
    for block in decoded:
        if stream is None:
            num_channels = block.shape[1] if block.ndim == 2 else 1
            stream = soxr.ResampleStream(sound.samplerate, sample_rate_hz, num_channels, dtype="float32", quality="HQ")
            rest = block[:0]
        resampled = stream.resample_chunk(block)
        if len(resampled):
            is_empty = False
            yield resampled
    assert stream is not None  # a file without samples has been refused
    resampled = stream.resample_chunk(rest, last=True)
    if len(resampled):
        yield resampled
    elif is_empty:
        raise ValueError(
            f"{path}: too short: at {sound.samplerate} Hz it has samples, at {sample_rate_hz} Hz none; leave it out"
        )
