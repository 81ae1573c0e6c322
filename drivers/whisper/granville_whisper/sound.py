"""A recording as Whisper hears it: 16 kHz, one channel, read a piece at a time out of a file of any common format."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import av
import av.error
import numpy as np
import numpy.typing as npt
from av.audio.resampler import AudioResampler
from granville_speech.turns import JobError

RATE = 16_000
"""Hz."""
MIN_RATE, MAX_RATE = 1_000, 768_000
"""Hz, of a file: at less, a few bytes could stand for hours; at more, resampling takes gigabytes."""
FORMATS = (
    "wav", "w64", "aiff", "au", "caf", "flac", "mp3", "ogg", "aac", "ac3", "eac3", "amr", "mov", "mp4", "m4a", "3gp",
    "matroska", "webm", "mpegts", "mpeg", "avi", "asf", "flv", "wv", "tta", "ape",
)  # fmt: skip
"""What FFmpeg may take a file for. None of them is a list of other files or of addresses, which it would open."""
MAX_DAMAGED = 1_000
"""Packets that cannot be decoded, before the rest of the file is given up."""

Samples = npt.NDArray[np.float32]


class Sound:
    """A recording that is read from its beginning to its end. Raises JobError for what is none."""

    def __init__(self, source: bytes | Path) -> None:
        self.read_samples = 0
        """At RATE, so far."""
        self.damaged = 0
        """Packets that could not be decoded."""
        self._good = 0
        self._left: list[Samples] = []
        self._left_samples = 0
        self._file = _opened(source)
        try:
            self._container = av.open(
                self._file, "r", options={"format_whitelist": ",".join(FORMATS)}, metadata_errors="ignore"
            )
        except (av.error.FFmpegError, ValueError):
            self._file.close()
            raise _unreadable() from None
        try:
            if not self._container.streams.audio:
                raise JobError("bad_request", "there is no sound in this file, only other streams")
            self._stream = self._container.streams.audio[0]
            self._pieces = self._decoded()
        except BaseException:
            self.close()
            raise

    def read(self, count: int) -> Samples:
        """The next `count` samples; fewer are the last ones."""
        while self._left_samples < count:
            try:
                piece = next(self._pieces, None)
            except av.error.FFmpegError:  # of the resampler: a rate or channels that cannot be
                raise _unreadable() from None
            if piece is None:
                break
            self._left.append(piece)
            self._left_samples += len(piece)
        whole = np.concatenate(self._left) if self._left else np.zeros(0, np.float32)
        self._left, self._left_samples = [whole[count:]], max(0, len(whole) - count)
        self.read_samples += min(count, len(whole))
        return whole[:count].copy()

    def close(self) -> None:
        self._container.close()
        self._file.close()

    def _decoded(self) -> Iterator[Samples]:
        resampler: AudioResampler | None = None
        known: tuple[object, ...] = ()
        for frame in self._frames():
            if not MIN_RATE <= frame.sample_rate <= MAX_RATE:
                rates = f"it can be {MIN_RATE} to {MAX_RATE}"
                raise JobError("bad_request", f"the audio has a rate of {frame.sample_rate} Hz; {rates}")
            frame.pts = None  # of no use here, and sometimes wrong
            described = (frame.format.name, frame.layout.name, frame.sample_rate)
            if resampler is None or described != known:  # a stream may change in the middle
                yield from _resampled(resampler, None)
                resampler, known = AudioResampler("s16", "mono", RATE), described
            yield from _resampled(resampler, frame)
        yield from _resampled(resampler, None)
        if self.damaged > self._good:
            raise JobError("bad_request", f"the audio is damaged: {self.damaged} of its packets cannot be decoded")

    def _frames(self) -> Iterator[av.AudioFrame]:
        packets = self._container.demux(self._stream)
        while self.damaged <= MAX_DAMAGED:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError:  # the file ends in the middle, or is damaged from here on
                if not self._good:
                    raise _unreadable() from None
                self.damaged += 1
                return
            if packet is None:
                return
            try:
                frames = packet.decode()
            except av.error.FFmpegError:
                self.damaged += 1
                continue
            for frame in frames:
                if isinstance(frame, av.AudioFrame) and frame.samples:
                    self._good += 1
                    yield frame


def _resampled(resampler: AudioResampler | None, frame: av.AudioFrame | None) -> Iterator[Samples]:
    """Through whole numbers: a file of floating-point samples may hold some that are none."""
    if resampler is not None:
        for one in resampler.resample(frame):
            yield one.to_ndarray().reshape(-1).astype(np.float32) / np.float32(32768)


def _opened(source: bytes | Path) -> BinaryIO:
    if isinstance(source, bytes):
        if not source:
            raise JobError("bad_request", "the audio is empty: 0 bytes")
        return io.BytesIO(source)
    try:
        # A pipe would wait for somebody to write into it.
        fd = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise JobError("bad_request", f"audio_path: {source} cannot be read: {reason}") from None
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
        os.close(fd)
        what = "is empty" if stat.S_ISREG(status.st_mode) else "is no file"
        raise JobError("bad_request", f"audio_path: {source} {what}")
    return os.fdopen(fd, "rb")


def _unreadable() -> JobError:
    return JobError(
        "bad_request", "the audio is of no format that is known here, or damaged; send WAV, FLAC, MP3, OGG or M4A"
    )
