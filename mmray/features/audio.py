"""Sound files to samples: any format that libsndfile reads, resampled by soxr, block by block in bounded memory.

`blocks` and `read` take a file from its start to its end. `read_span` takes a piece out of it without decoding what
stands before it. The piece differs from the same samples of `read` only by the rounding of the resampler and of the MP3
decoder: less than 1e-6 of full scale.

Decoding: a file's content says what it is, not its name. Samples are float32 with full scale at ±1: 16 and 24 bit
integers are exact, 32 bit integers and float64 are rounded. A float file or a sum of channels may exceed ±1; nothing
is clipped.

Resampling: soxr's HQ quality (linear phase, 20 bits). It starts at sample 0 and has no delay: sample i of the output
stands at i / sample_rate_hz seconds. n samples give floor(n · to / from + 1/2). Where the rates agree nothing is done,
and the samples are the file's own, bit for bit.

What a header announces and what is there can differ. A file that is more than 0.1 s short is refused, where its format
lets one know: WAV, RF64, W64, AIFF, AU and CAF by the size of their data, FLAC by what is decoded, MP3 by the number of
frames in its Xing or Info header. Of an MP3 without such a header libsndfile estimates the length, and reads no
further; where that leaves more than 0.1 s of its frames, it is refused. Vorbis and Opus miss what is damaged within,
but a truncated file looks like a shorter one. libmpg123 writes its own remarks about a damaged MP3 to stderr.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import ceil, gcd
from typing import Literal

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from mmray.storage import at, fetched

Mix = Literal["mean", "sum", "left", "right"]
"""How channels become one: their mean, their sum, or the first or second one alone."""


SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".w64", ".rf64", ".au", ".caf")
"""Names of sound files in a folder end like this, in lower case."""

PathLike = str | os.PathLike[str]

_BLOCK_SAMPLES = 1 << 17  # of all channels, in or out: half a megabyte, which stays in a core's own cache
_LOST_S = 0.1  # less than this is a careless header, not a broken transfer
_FILTER_SAMPLES = 512  # more than half the length of soxr's HQ filter, in samples of the lower of the two rates
_MP3_MEMORY = 1 << 15  # more than the frames that share their bits, however small they are
_OGG_PAGE = 255 * 4096  # the most frames that a page holds
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
    with _opened(path) as sound:
        _check_mix(path, sound, mix)
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

    From the header alone where that tells it, and from the headers of its frames for an MP3. FLAC written to a pipe,
    and an MP3 with anything irregular in it, are decoded and counted. ValueError where the file can't be opened, is
    known to be truncated or has no samples; other damage shows in `blocks`.
    """
    with _opened(path) as sound:
        rate = sound.samplerate
        if sound.format == "MP3" or sound.frames > _UNKNOWN:
            counted = _mp3_samples(path, sound) if sound.format == "MP3" else None
            num_samples = counted or sum(len(block) for block in _decoded(sound, path, rate))
        else:
            num_samples = sound.frames
        return Length(num_samples / rate, rate, sound.channels, num_samples)


def read_span(path: PathLike, sample_rate_hz: int, start: int, stop: int, mix: Mix = "mean") -> NDArray[np.float32]:
    """The samples `start` to before `stop` of one file as one channel, at `sample_rate_hz`: shape (stop - start,).

    What stands before them is not decoded, but for a little, and for FLAC that was written to a pipe. ValueError where
    the file ends before `stop`, and for the reasons of `blocks` as far as they show in that piece.
    """
    if not 0 <= start < stop:
        raise ValueError(f"start={start}, stop={stop}; expected 0 <= start < stop")
    with _opened(path) as sound:
        _check_mix(path, sound, mix)
        if sample_rate_hz < 1:
            raise ValueError(f"sample_rate_hz={sample_rate_hz}; give at least 1")
        # Every `period` frames of the file a sample falls onto a frame. At one of these the resampler begins, far
        # enough before `start` for its filter, and so all samples stand where they stand in the whole file.
        divisor = gcd(sound.samplerate, sample_rate_hz)
        period, period_out = sound.samplerate // divisor, sample_rate_hz // divisor
        around = 0 if period == period_out else ceil(_FILTER_SAMPLES * max(1.0, sample_rate_hz / sound.samplerate))
        origin = max(0, start - around) // period_out
        last = -(-(stop + around) * period // period_out)
        decoded = _decoded_between(sound, path, sample_rate_hz, origin * period, last)
        parts = list(_resampled((_mixed(block, mix) for block in decoded), sound, path, sample_rate_hz))
    skipped = start - origin * period_out
    samples = np.concatenate(parts)[skipped : skipped + stop - start] if parts else np.empty(0, np.float32)
    if len(samples) < stop - start:
        raise ValueError(
            f"{path}: truncated or damaged: it ends at {(start + len(samples)) / sample_rate_hz:.2f} s or before, not "
            f"after {stop / sample_rate_hz:.2f} s; fetch it again, or leave it out"
        )
    return samples


class _Forward(soundfile.SoundFile):  # type: ignore[misc]
    """A sound file that soundfile takes for one that can't seek.

    soundfile seeks to where it stands after each read of a seekable file. That takes time, and it fails at the end of
    a FLAC file whose header doesn't tell its length. `seek` itself works nevertheless.
    """

    def seekable(self) -> bool:
        return False


@contextmanager
def _opened(path: PathLike) -> Iterator[_Forward]:
    """The open file, not known to be truncated or empty. libsndfile's errors come out as ValueError."""
    with ExitStack() as files:
        try:
            file = files.enter_context(files.enter_context(fetched(path)).open("rb"))
        except OSError as error:  # apart from those of the body
            raise ValueError(f"{path} can't be read: {error.strerror}; check the path and its permissions") from error
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


def _check_mix(path: PathLike, sound: _Forward, mix: Mix) -> None:
    if mix not in ("mean", "sum", "left", "right"):
        raise ValueError(f"mix={mix!r}; choose mean, sum, left or right")
    if sound.channels == 1 and mix in ("left", "right"):
        raise ValueError(f"{path}: mix={mix!r} needs two channels, and the file has one; take mix='mean'")


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
    block_frames = _block_frames(sound, sample_rate_hz)
    is_known = sound.frames < _UNKNOWN and sound.format != "MP3"
    num_frames = 0
    while True:
        # Not beyond a known end: what may stand there, such as an ID3v1 tag, is an error to the decoder of FLAC.
        wanted = min(block_frames, sound.frames - num_frames) if is_known else block_frames
        block = _block(sound, path, wanted, num_frames)
        if len(block) == 0:
            break
        num_frames += len(block)
        yield block
    if num_frames == 0:
        raise ValueError(f"{path}: nothing in the file can be decoded; fetch it again, or leave it out")
    if is_known or (sound.format == "MP3" and _has_frame_count(path)):
        _check_whole(path, sound, num_frames, sound.frames)
    elif sound.format == "MP3":
        _mp3_samples(path, sound)


def _decoded_between(
    sound: _Forward, path: PathLike, sample_rate_hz: int, first: int, last: int
) -> Iterator[NDArray[np.float32]]:
    """The file's own frames from `first` to before `last`, or to its end, as `_decoded` gives them."""
    block_frames = _block_frames(sound, sample_rate_hz)
    end = last if sound.format == "MP3" else min(last, sound.frames)  # of an MP3 the length may be an estimate
    if first >= end:
        return
    try:
        at = _go_before(sound, first)
    except soundfile.LibsndfileError as error:
        raise ValueError(
            f"{path}: {first / sound.samplerate:.2f} s of it can't be reached ({_reason(error)}); "
            "fetch it again, or leave it out"
        ) from error
    while at < end:
        block = _block(sound, path, min(block_frames, end - at), at)
        if len(block) == 0:
            break
        if (unwanted := max(0, first - at)) < len(block):
            yield block[unwanted:]
        at += len(block)


def _go_before(sound: _Forward, first: int) -> int:
    """Move a file that was just opened to frame `first`, or somewhat before; return where it stands.

    From there it decodes as from its start. This takes care of what libsndfile 1.2.2 gets wrong: after a seek in an MP3
    the first frames lack the bits that earlier ones hold for them, and a seek into the last page of Vorbis ends up
    elsewhere. A file that was read from before seeks less reliably still.
    """
    at = first
    if sound.frames > _UNKNOWN:
        at = 0
    elif sound.format == "MP3":
        at = min(first, sound.frames) - _MP3_MEMORY
    elif sound.format == "OGG":
        at = min(first, sound.frames - _OGG_PAGE)
    if at > 0:
        sound.seek(at)
    return max(0, at)


def _block_frames(sound: _Forward, sample_rate_hz: int) -> int:
    return max(1, int(_BLOCK_SAMPLES / (sound.channels * max(1.0, sample_rate_hz / sound.samplerate))))


def _block(sound: _Forward, path: PathLike, wanted: int, at: int) -> NDArray[np.float32]:
    """The next frames of the file, (n, channels), of which `at` is the first; none at its end."""
    try:
        block: NDArray[np.float32] = sound.read(wanted, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise ValueError(
            f"{path}: damaged after {at / sound.samplerate:.2f} s ({_reason(error)}); fetch it again, or leave it out"
        ) from error
    _check_finite(path, sound, block, at)
    return block


_MP3_KBITS = {  # of layer III, by the second byte's version bits and the third byte's upper half
    3: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0),
    0: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0),
}
_MP3_RATES_HZ = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}


def _mp3_samples(path: PathLike, sound: _Forward) -> int | None:
    """How many samples of each channel an MP3 decodes to; None where only decoding can tell.

    Its frames are walked from header to header: about a second for ten hours of music. What libsndfile announces is
    exact where the file begins with a frame that tells how many follow, and all of them are there. Elsewhere it is an
    estimate by the first frame's bit rate, and libsndfile reads no further: ValueError where much is left.
    """
    announced: int = sound.frames
    with (
        fetched(path) as here,
        here.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        at = _after_id3v2(data[:10])
        start = data[at : at + 1024]
        sizes: dict[bytes, int] = {}
        kinds: set[tuple[int, int]] = set()
        num_frames, end = 0, len(data)
        while at < end:
            header = data[at : at + 4]
            size = sizes.get(header)
            if size is None:
                if header[:3] == b"TAG" and at + 128 == end:  # ID3v1, the last of all
                    break
                if data[at : at + 8] == b"APETAGEX":
                    at += 32 + int.from_bytes(data[at + 12 : at + 16], "little")
                    continue
                kind, size = _mp3_frame(header)
                if not size:
                    return None
                kinds.add(kind)
                sizes[header] = size
            at += size
            num_frames += 1
    if at > end or len(kinds) != 1 or b"VBRI" in start:
        return None
    ((version, _),) = kinds
    samples_a_frame = 1152 if version == 3 else 576
    if b"Xing" in start or b"Info" in start:
        return announced if 0 < announced <= (num_frames - 1) * samples_a_frame else None
    total = num_frames * samples_a_frame
    if (total - announced) / sound.samplerate > _LOST_S:
        raise ValueError(
            f"{path}: an MP3 of varying bit rate that does not tell its length: libsndfile would read "
            f"{announced / sound.samplerate:.2f} s of its {total / sound.samplerate:.2f} s; convert it to FLAC, or "
            "have a tool write its Xing header"
        )
    return min(total, announced)


def _mp3_frame(header: bytes) -> tuple[tuple[int, int], int]:
    """(version, sampling rate) and bytes of a frame of layer III by its first four bytes; 0 bytes for anything else."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return (0, 0), 0
    version, rate = header[1] >> 3 & 3, header[2] >> 2 & 3
    if version == 1 or rate == 3:
        return (0, 0), 0
    kbits, rate_hz = _MP3_KBITS[version][header[2] >> 4], _MP3_RATES_HZ[version][rate]
    size = (144_000 if version == 3 else 72_000) * kbits // rate_hz + (header[2] >> 1 & 1)
    return (version, rate_hz), size if kbits else 0


def _after_id3v2(start: bytes) -> int:
    """Where the sound begins behind an ID3v2 tag, by the first ten bytes of a file; 0 without one."""
    size = 0
    if start[:3] == b"ID3":
        for seven_bits in start[6:10]:
            size = size << 7 | seven_bits
        size += len(start)
    return size


def _has_frame_count(path: PathLike) -> bool:
    """Whether an MP3 begins with a frame that tells how many follow (after an ID3v2 tag, if there is one)."""
    with at(path).open("rb") as file:
        file.seek(_after_id3v2(file.read(10)))
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
