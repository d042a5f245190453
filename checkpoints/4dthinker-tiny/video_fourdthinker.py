"""Opens a video and samples frames with their real times: all that a model ever sees of one.

What is right is what a player built on FFmpeg shows, and PyAV is that: it demuxes, decodes and converts. Times are
seconds since the first displayed frame. Demuxing alone tells the display times of all frames. Where it cannot (an AVI
of H.264 has decoding times only, a raw stream has none, a packet may hold no picture), the whole file is decoded once
for them. A late frame is reached by a seek to the key frame before it. The packet found there is compared with the one
expected, by its place in the file and its size. If it is another one (the file's index is wrong), the file is decoded
forward from its start instead.

decord, which many projects use, is slower at this (bench/speed/read_video.py), returns other frames than were asked
for from an MPEG program stream, and refuses Theora and what a browser's MediaRecorder writes.
"""

import functools
import io
import itertools
import math
import os
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
from PIL import Image, ImageSequence

try:
    import av
    from av.stream import Disposition
    from av.video.reformatter import VideoReformatter
except ImportError:
    av = None

TIME_TOLERANCE = 1e-3  # a frame counts as displayed this many seconds early: many containers round times to 1 ms
FACTOR = 28  # Qwen2.5-VL's patch of 14 pixels, merged by 2: the sides of its frames are multiples of this
# The most that Qwen2.5-VL's processor in transformers makes of one frame, and of all frames (2 to a temporal patch).
MAX_PIXELS = 768 * FACTOR**2
MAX_TOTAL_PIXELS = 2 * int(128_000 * FACTOR**2 * 0.9)
MAX_RATIO = 200  # of a frame's sides: beyond it, Qwen2.5-VL's processor refuses the frame, without naming the file
SEEK_FRAMES = 32  # a seek has to save the decoding of this many frames
ONE_THREAD_PIXELS = 2**16  # frames of up to this many are decoded faster by one thread than by several
# Formats of FFmpeg that hold a film or sound. The others are playlists that name further files, pictures, or text.
FORMATS = (
    "mov,matroska,avi,mpeg,mpegts,mpegvideo,m4v,h264,hevc,obu,ivf,ogg,gif,apng,flv,live_flv,asf,mxf,nut,dv,rm,wtv,"
    "yuv4mpegpipe,h263,vc1,mp3,aac,flac,wav,aiff,caf,ac3,amr"
)
REMUX = "`ffmpeg -i IN -c copy OUT.mp4` may help"
# HDR to SDR. Linear light of 1.0 is the white of SDR: 203 cd/m2, or 0.75 of HLG's signal (ITU-R BT.2408).
PQ, HLG = 16, 18  # transfer functions, as ITU-T H.273 numbers them
BT2020_TO_BT709 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]])
KNEE = 0.8  # light above this is compressed, so that highlights keep their differences


class VideoError(ValueError):
    """A video cannot be read as asked. The message names the file and the cause."""


class Timestamps(np.ndarray):
    """Display times (T,) float64 in s that know how long a frame stands for: `seconds_per_frame`, for a whole film its
    duration over the number of frames, None where the times themselves say it best (see `second_per_grid`). `end` is
    where the part of the film ends that the frames are of, None if that is not known."""

    def __new__(cls, times, seconds_per_frame: float | None, end: float | None = None):
        timestamps = np.array(times, np.float64).view(cls)
        timestamps.seconds_per_frame, timestamps.end = seconds_per_frame, end
        return timestamps

    def __array_finalize__(self, source):
        self.seconds_per_frame = self.end = None


class _MissingFrameError(VideoError):
    """A frame that the packets announce does not come out of the decoder."""


def load_video(
    path: str | os.PathLike,
    fps: float | None = None,
    num_frames: int | None = None,
    start: float | None = None,
    end: float | None = None,
    max_frames: int | None = None,
    max_pixels: int | None = MAX_PIXELS,
    pair_seconds: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Decode frames of `path`, chosen by display time within `start` to `end` (by default first to last frame).

    `fps` (2 if neither is given) takes the frame displayed at `start + k / fps` for each k in the span, none twice.
    `num_frames` takes that many at evenly spaced times, or every frame of a span that has fewer. Of more than
    `max_frames`, that many are kept, evenly. With `pair_seconds`, which `num_frames` ignores, frames come in pairs
    whose two frames are that far apart: `fps / 2` pairs a second, evenly spaced, at most `max_frames // 2` of them. So
    a temporal patch of two frames sees a small motion, however long the video is. An `end` behind the last picture,
    but not behind the last sound, means the end of the last picture. Frames hidden by an edit list are left out.

    Frames are shown as a player shows them: upright (rotated and mirrored as the file says), with square pixels (the
    width is scaled), in the file's colour matrix and range (BT.601 where it names none, as FFmpeg does), HLG and PQ
    mapped to SDR, transparent parts over black, interlaced frames deinterlaced, each from its own two fields.
    Frames of more than `max_pixels`, or than their share of `MAX_TOTAL_PIXELS`, are scaled down while they are
    decoded, to the size that Qwen2.5-VL's processor would give them. With `max_pixels=None` they stay whole.

    Returns frames (uint8, shape (T, H, W, 3), RGB) and timestamps (float64, shape (T,)), in source seconds: since
    its first displayed frame, whatever `start` is. Raises VideoError if `path` is missing, empty, a folder, a picture,
    no video, sound only (with or without a cover picture), truncated or damaged where frames are needed, too
    narrow (200:1), or the arguments do not fit it.
    """
    video = Video(path)
    sampling = (fps, num_frames, start, end, max_frames, pair_seconds)
    try:
        return _load(video, sampling, max_pixels)
    except _MissingFrameError:
        video.index_by_decoding()
        return _load(video, sampling, max_pixels)


def _load(video: "Video", sampling: tuple, max_pixels: int | None) -> tuple[np.ndarray, np.ndarray]:
    try:
        indices = _sample(video.times, video.duration, *sampling, container_end=video.container_end)
    except ValueError as error:
        raise VideoError(f"{video.path}: {error}") from None
    video.check_intact(*sampling[2:4])
    height, width = video.height, video.width
    if max_pixels is not None:
        height, width = bounded_size(height, width, min(max_pixels, MAX_TOTAL_PIXELS // len(indices)))
    frames = np.empty((len(indices), height, width, 3), np.uint8)
    for place, frame in enumerate(video.frames(indices, height, width)):
        frames[place] = frame
    end = video.duration if sampling[3] is None else min(sampling[3], video.duration)
    return frames, Timestamps(video.times[indices], _seconds_per_frame(video, indices, *sampling), end)


def _seconds_per_frame(video: "Video", indices, fps, num_frames, start, end, max_frames, pair_seconds) -> float | None:
    """What `Timestamps` know of frames of an even rate; None for pairs and for a variable rate, whose real times
    count."""
    times, steps = video.times[indices], np.diff(video.times)
    in_pairs = pair_seconds is not None and num_frames is None
    if in_pairs or len(steps) == 0 or steps.max() > 1.5 * np.median(steps):
        return None
    if (start, end) == (None, None):
        return video.duration / len(times)
    if num_frames is not None or len(times) == 1:
        return None
    fps, start = (
        2.0 if fps is None else fps,
        start or 0.0,
    )  # moments, since a frame is displayed a little before its own
    last_moment = start + math.ceil((times[-1] - start - TIME_TOLERANCE) * fps) / fps
    return (last_moment - start) / (len(times) - 1)


def video_size(path: str | os.PathLike) -> tuple[float, int, int]:
    """Seconds, width and height of `path` as displayed. VideoError for what `load_video` refuses whole."""
    video = Video(path)
    video.check_intact()
    return video.duration, video.width, video.height


def check_header(path: str | os.PathLike) -> None:
    """VideoError for what the head of a file shows without decoding: it is missing, empty or no video, its index is
    missing, or its frames are too narrow."""
    path = os.fspath(path)
    container, stream = _open(path, _find_source(path))
    with container:
        codec, aspect = stream.codec_context, float(stream.sample_aspect_ratio or 1)
        if codec.width and codec.height:  # some formats tell them only with the first frame
            _check_ratio(path, codec.height, max(round(codec.width * aspect), 1))


def second_per_grid(timestamps: np.ndarray, temporal_patch_size: int = 2) -> float:
    """Seconds from one temporal patch to the next: its size times what a frame stands for.

    That is what `Timestamps` know (for a whole film the same as in transformers' Qwen2_5_VLProcessor: duration over
    number of frames), else the mean spacing of `timestamps` (T,), in seconds. A single frame without either gives 1.0.
    Raises ValueError unless there are timestamps and they increase.
    """
    seconds_per_frame = getattr(timestamps, "seconds_per_frame", None)
    timestamps = np.asarray(timestamps, dtype=np.float64)
    if timestamps.ndim != 1 or len(timestamps) == 0 or not (np.diff(timestamps) > 0).all():
        raise ValueError(f"timestamps must be an increasing list of seconds, not {timestamps.tolist()}")
    if seconds_per_frame is None:
        return float(np.diff(timestamps).mean()) * temporal_patch_size if len(timestamps) > 1 else 1.0
    return seconds_per_frame * temporal_patch_size


def bounded_size(height: int, width: int, max_pixels: int) -> tuple[int, int]:
    """The size, or what `smart_resize` of Qwen2-VL (transformers) makes of it if it has more than `max_pixels`."""
    if height * width <= max_pixels:
        return height, width
    scale = math.sqrt(height * width / max_pixels)
    return tuple(max(FACTOR, math.floor(side / scale / FACTOR) * FACTOR) for side in (height, width))


class Video:
    """A video file: the times of its frames, and the frames.

    `times` (N,) float64 are the frames' display times in seconds since the first, `duration` is when the last one
    leaves the screen, `container_end` when the sound ends, if that is later. `height` and `width` are pixels as
    displayed. Raises VideoError as `load_video` does. A damaged file has the times of what is intact, and
    `check_intact` raises.
    """

    def __init__(self, path: str | os.PathLike):
        if av is None:
            raise ImportError("reading videos needs PyAV: `pip install av`")
        self.path = os.fspath(path)
        self._source = _find_source(self.path)
        self._damage, self._missing_from = [], None  # s
        self._thread_type = "NONE"  # for the first frame
        self._read_packets()
        first = next(self._decode(), None)
        if first is None:
            raise VideoError(
                f"{self.path}: has no visible frame; it is empty, truncated, damaged, or larger than FFmpeg decodes "
                f"(some 16,000 x 16,000 pixels); {REMUX}"
            )
        self.height, self.width, self._matrix = _displayed_shape(first, self._pixel_aspect)
        _check_ratio(self.path, self.height, self.width)
        self._thread_type = "NONE" if self.height * self.width <= ONE_THREAD_PIXELS else "AUTO"
        shown = np.sort(self._pts[self._shown]) if self._is_indexed else ()
        if first.pts in shown:
            self._set_times(shown[shown >= first.pts], self._last_duration)
        else:
            self.index_by_decoding()

    def check_intact(self, start: float | None = None, end: float | None = None) -> None:
        """VideoError if frames between `start` and `end`, in s, are known to be missing or broken."""
        start, end = start or 0.0, math.inf if end is None else end
        if self._missing_from is not None and end > self._missing_from:
            raise VideoError(
                f"{self.path}: is truncated or damaged: the frames from {self._missing_from:.3f} s on are missing; "
                "what comes before can be read with an earlier `end`"
            )
        if broken := [time for time in self._damage if start <= time <= end]:
            raise VideoError(f"{self.path}: is truncated or damaged at {broken[0]:.3f} s; {REMUX}")

    def frames(self, indices, height: int | None = None, width: int | None = None) -> Iterator[np.ndarray]:
        """Yield the frames (height, width, 3) uint8 at increasing `indices` of `times` as they are decoded, by default
        in the size in which they are displayed. Raises VideoError at the first that is broken."""
        size = height or self.height, width or self.width
        picture = functools.partial(_picture, VideoReformatter(), self._transfer, self._matrix, *size)
        wanted = set(self._display_pts[indices].tolist()) if self._is_indexed else None
        decoded, reached = None, -1
        for index in np.asarray(indices).tolist():
            packet, key_index = self._key_before(index)
            if decoded is None or key_index - reached > SEEK_FRAMES:
                decoded = self._decode_from(packet, key_index, wanted)
                reached, frame = next(decoded)
            while reached < index:
                reached, frame = next(decoded)
            if reached > index:
                cause = f"the frame at {self.times[index]:.3f} s cannot be decoded"
                raise _MissingFrameError(f"{self.path}: is truncated or damaged: {cause}; {REMUX}")
            if frame.is_corrupt:
                raise VideoError(f"{self.path}: is truncated or damaged at {self.times[index]:.3f} s; {REMUX}")
            yield picture(frame)

    def index_by_decoding(self) -> None:
        """Take the times from the decoded frames instead of from the packets; from then on, frames are counted."""
        self._is_indexed, self._damage = False, []
        pts, duration, broken = [], 0, []
        for frame in self._decode(broken=broken):
            pts.append(frame.pts)
            duration = frame.duration or duration
        if self._turns and len(self._turns) == len(pts) and pts != sorted(pts):
            pts = self._turns
        if None in pts:  # a raw stream: shown at its rate, or at 25 frames a second, as by FFmpeg
            duration = 1 / (self._time_base * (self._rate or 25))
            pts = [round(duration * number) for number in range(len(pts))]
        steps = np.diff(np.array(pts, np.int64))
        usual = max(int(np.median(steps)), 1) if len(steps) else 1
        joined = steps * self._time_base < -1  # where files have been joined, the clock starts again
        # Where times are mixed up within a second, the frames take turns at them in the order in which they come.
        pts = np.sort(np.cumsum([pts[0], *np.where(joined, usual, steps).tolist()]))
        ticks = np.arange(len(pts))
        self._set_times(np.maximum.accumulate(pts - ticks) + ticks, int(duration))
        self._damage = [float(self.times[number]) for number in broken if 0 < number < len(pts)]

    def _set_times(self, pts: np.ndarray, last_duration: int) -> None:
        self._display_pts = pts
        self.times = ((pts - pts[0]) * float(self._time_base)).round(6)
        if last_duration <= 0:
            last_duration = np.median(np.diff(pts)) if len(pts) > 1 else 1 / (self._time_base * (self._rate or 25))
        self.duration = round(float(pts[-1] - pts[0] + last_duration) * float(self._time_base), 6)
        zero = float(pts[0] * self._time_base)
        self._damage = [time - zero for time in self._damage]
        if self._missing_from is not None:
            self._missing_from = max(self._missing_from - zero, 0.0)
            self.duration = max(self.duration, self._promised_end - zero)
        self.container_end = max(self.duration, self._container_end - zero)

    def _key_before(self, index: int) -> tuple[int, int]:
        """The packet of the last key frame displayed no later than frame `index`, and the index of that key frame."""
        if not self._is_indexed:
            return 0, 0
        place = int(np.searchsorted(self._key_pts, self._display_pts[index], side="right")) - 1
        if place <= 0:
            return 0, 0
        return int(self._keys[place]), int(np.searchsorted(self._display_pts, self._key_pts[place]))

    def _read_packets(self) -> None:
        """What demuxing tells. `_is_indexed` is whether the packets' times are those of the frames."""
        container, stream = _open(self.path, self._source)
        packets, errors = [], []
        with container:
            is_vp8 = stream.codec_context.name == "vp8"
            for packet in _packets(container, stream, errors):
                is_hidden = packet.is_discard or (is_vp8 and not bytes(packet)[0] & 16)  # the bit show_frame
                row = packet.pts, packet.dts, (packet.pos, packet.size), packet.duration or 0
                packets.append((*row, packet.is_keyframe, not is_hidden))
            if not packets:
                raise VideoError(f"{self.path}: is truncated or damaged, it has no intact frame; {REMUX}")
            pts, dts, self._places, durations, keys, shown = zip(*packets, strict=True)
            self._time_base, self._rate = stream.time_base, stream.average_rate or stream.guessed_rate
            self._pixel_aspect = float(stream.sample_aspect_ratio or 1)
            self._transfer = stream.codec_context.color_trc
            self._container_end = ((container.duration or 0) + (container.start_time or 0)) / av.time_base
            # An AVI tells decoding times only. If FFmpeg's guess is out of order, frames take turns at these times.
            self._turns = sorted(dts) if container.format.name == "avi" and None not in dts and pts != dts else None
            known = [time for time in dts if time is not None]
            is_increasing = all(a <= b for a, b in zip(known, known[1:], strict=False))
            self._is_indexed = None not in pts and len(set(pts)) == len(pts) and is_increasing and not self._turns
            if not self._is_indexed:
                return
            self._seek_times = [display if time is None else time for time, display in zip(dts, pts, strict=True)]
            self._pts, self._shown = np.array(pts, np.int64), np.array(shown)
            self._last_duration = durations[int(self._pts.argmax())]
            # An MP4 tells in front how many frames it has, and how long it is once edited.
            missing = self._seek_times[-1] + durations[-1]
            is_cut = "mp4" in container.format.name and stream.frames > len(pts)
            is_cut = is_cut and missing - self._seek_times[0] < (stream.duration or 0)
            self._damage = [float(pts[number] * self._time_base) for number in errors if 0 < number < len(pts)]
            if is_cut:
                self._shown &= self._pts < missing  # of later ones, those before in decoding order may be missing
                self._missing_from = float(missing * self._time_base)
                self._promised_end = float(((stream.start_time or 0) + (stream.duration or 0)) * self._time_base)
        keys = np.flatnonzero(keys)
        self._keys = keys[np.argsort(self._pts[keys])]
        self._key_pts = self._pts[self._keys]

    def _decode(
        self, first: int = 0, wanted: set | None = None, broken: list | None = None
    ) -> Iterator["av.VideoFrame"]:
        """Frames in display order from packet `first` on; none if that packet is not found.

        A frame whose pts is not in `wanted` and that no other frame needs may be left out. Into `broken` goes the
        number of frames before each packet that cannot be decoded.
        """
        container, stream = _open(self.path, self._source)
        with container:
            stream.thread_type, count, broken = self._thread_type, 0, [] if broken is None else broken
            packets = _packets(container, stream, broken)
            if first:
                container.seek(self._seek_times[first], stream=stream)
                packets = itertools.dropwhile(lambda packet: (packet.pos, packet.size) != self._places[first], packets)
            packets = itertools.islice(packets, len(self._places) - first)  # a damaged file may show others on a seek
            for number, packet in enumerate(itertools.chain(packets, [None]), first):
                if packet is not None and self._is_indexed:
                    packet.pts = int(self._pts[number])  # after a seek, FFmpeg may guess another
                    if wanted is not None:
                        stream.codec_context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
                try:
                    frames = stream.decode(packet)
                except av.error.FFmpegError as error:
                    if isinstance(error, MemoryError):
                        raise
                    frames = []
                    broken.append(count)
                yield from frames
                count += len(frames)

    def _decode_from(self, packet: int, key_index: int, wanted: set | None) -> Iterator[tuple[int, "av.VideoFrame"]]:
        """Frames with their index in `times`, from a key frame or, if the seek fails, from the start of the file."""
        if packet:
            frames = self._numbered(self._decode(packet, wanted))
            index, frame = next(frames)
            while index < key_index:  # what an open group of pictures shows before its key frame
                index, frame = next(frames)
            if index == key_index and frame.key_frame:
                yield index, frame
                yield from frames
                return
            self._keys, self._key_pts = self._keys[:1], self._key_pts[:1]  # the file's index is wrong: no more seeks
        yield from self._numbered(self._decode(0, wanted))

    def _numbered(self, frames: Iterator["av.VideoFrame"]) -> Iterator[tuple[int, "av.VideoFrame"]]:
        """The displayed ones among decoded frames, each with its index in `times`; then an index that is too high."""
        last = -1
        for count, frame in enumerate(frames):
            index = count
            if self._is_indexed:
                index = int(np.searchsorted(self._display_pts, frame.pts))
                if index == len(self.times) or self._display_pts[index] != frame.pts:
                    continue
                if index <= last:
                    raise _MissingFrameError(f"{self.path}: its display times are not in order; {REMUX}")
                last = index
            yield index, frame
        yield len(self.times), None


def _check_ratio(path: str, height: int, width: int) -> None:
    if max(height, width) > MAX_RATIO * min(height, width):
        raise VideoError(f"{path}: is {width} x {height} pixels, one side over {MAX_RATIO} times the other; crop it")


def _find_source(path: str) -> str | bytes:
    """What FFmpeg opens: the file's name, or the content of a converted one. VideoError if there is no such file."""
    if not os.path.isfile(path):
        raise VideoError(f"{path}: {'is a folder, not a video' if os.path.isdir(path) else 'no such file'}")
    with open(path, "rb") as file:
        head = file.read(16)
    if not head:
        raise VideoError(f"{path}: is empty (0 bytes)")
    return _webp_as_matroska(path) if head[:4] == b"RIFF" and head[8:12] == b"WEBP" else f"file:{path}"


def _open(path: str, source: str | bytes) -> tuple["av.container.InputContainer", "av.VideoStream"]:
    """The file and its film. VideoError, with the cause, for what is none."""
    try:
        options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        container = av.open(file, container_options=options, metadata_errors="ignore")
    except av.error.FFmpegError as error:
        if isinstance(error, MemoryError):
            raise
        with open(path, "rb") as file:
            head = file.read(16)
        cause = "is not a video file"
        if head[4:8] in (b"ftyp", b"moov", b"mdat") or head[:4] == b"\x1a\x45\xdf\xa3":
            cause = f"is truncated or damaged, its index or frames are missing; {REMUX}"
        raise VideoError(f"{path}: {cause}") from error
    films = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    best = container.streams.best("video")
    stream = best if best in films else next(iter(films), None)
    if stream is None or stream.codec_context is None:
        container.close()
        cause = (
            "has no video stream (audio only?)" if stream is None else "is of a codec that FFmpeg does not decode here"
        )
        raise VideoError(f"{path}: {cause}")
    return container, stream


def _webp_as_matroska(path: str) -> bytes:
    """An animated WebP, which FFmpeg does not decode, as a file of the same frames that it does."""
    file, time = io.BytesIO(), 0
    try:
        with Image.open(path) as image, av.open(file, "w", format="matroska") as container:
            if getattr(image, "n_frames", 1) == 1:
                raise VideoError(f"{path}: is a picture, not a video")
            stream = container.add_stream("ffv1", rate=1000)
            stream.width, stream.height, stream.pix_fmt = *image.size, "bgr0"
            for page in ImageSequence.Iterator(image):
                opaque = Image.alpha_composite(Image.new("RGBA", image.size, "black"), page.convert("RGBA"))
                frame = av.VideoFrame.from_image(opaque.convert("RGB"))
                frame.pts, frame.time_base = time, Fraction(1, 1000)
                (packet,) = stream.encode(frame)
                packet.duration = page.info["duration"] or 100  # as browsers show a frame of 0 ms
                time += packet.duration
                container.mux(packet)
            container.mux(stream.encode(None))
    except (OSError, SyntaxError, EOFError) as error:
        raise VideoError(f"{path}: is truncated or damaged ({error})") from error
    return file.getvalue()


def _packets(container, stream, errors: list[int]) -> Iterator["av.Packet"]:
    """The film's intact packets. Into `errors` goes the number of those before each one that is not intact."""
    count = 0
    try:
        for packet in container.demux(stream):
            if packet.is_corrupt:
                errors.append(count)
            elif packet.size:  # an empty one repeats the picture before, or ends the file
                yield packet
                count += 1
    except MemoryError:
        raise
    except (av.error.FFmpegError, IndexError):  # IndexError: PyAV at a packet of a stream that appears late
        errors.append(count)


def _displayed_shape(frame: "av.VideoFrame", pixel_aspect: float) -> tuple[int, int, tuple[int, int, int, int]]:
    """Height and width as displayed, and the matrix (a, b, c, d) that maps x, y to a x + c y, b x + d y."""
    matrix = 1, 0, 0, 1
    if side_data := [data for data in frame.side_data if data.type.name == "DISPLAYMATRIX"]:
        numbers = np.frombuffer(bytes(side_data[0]), np.int32)[[0, 1, 3, 4]]
        matrix = tuple((np.sign(numbers) * (np.abs(numbers) > np.abs(numbers).max() / 2)).tolist())  # to quarter turns
    height, width = frame.height, max(round(frame.width * pixel_aspect), 1)
    return (width, height, matrix) if matrix[0] == 0 else (height, width, matrix)


def _picture(reformatter, transfer: int, matrix, height: int, width: int, frame: "av.VideoFrame") -> np.ndarray:
    """The frame (height, width, 3) uint8 as a player shows it."""
    if frame.interlaced_frame:
        frame = _deinterlace(frame)
    size = (height, width) if matrix[0] == 0 else (width, height)
    is_hdr = transfer in (PQ, HLG)
    has_alpha = any(component.is_alpha for component in frame.format.components)
    form = "rgb48le" if is_hdr else "rgba" if has_alpha else "rgb24"
    # Named in full, because PyAV before 17 leaves the conversion out where the target is not named.
    colours = {"dst_colorspace": "ITU601", "src_color_range": int(frame.color_range), "dst_color_range": "JPEG"}
    pixels = reformatter.reformat(frame, *size, format=form, interpolation="BICUBIC", **colours).to_ndarray()
    if is_hdr:
        pixels = _tone_map(pixels, transfer)
    elif has_alpha:
        pixels = (pixels[..., :3] * (pixels[..., 3:] / np.float32(255))).round().astype(np.uint8)
    a, b, c, d = matrix
    if a == 0:
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return pixels[:: d or 1, :: a or 1]


def _deinterlace(frame: "av.VideoFrame") -> "av.VideoFrame":
    """The first field of a frame, the lines of the other filled in along its edges."""
    graph = av.filter.Graph()
    graph.link_nodes(
        graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000)),
        graph.add("estdif", "mode=frame"),
        graph.add("buffersink"),
    ).configure()
    graph.push(frame)
    graph.push(None)
    return graph.pull()


def _tone_map(pixels: np.ndarray, transfer: int) -> np.ndarray:
    """RGB (H, W, 3) uint16 of BT.2020 in PQ or HLG as SDR uint8 with BT.709's primaries and the curve of sRGB.

    HLG is taken as light of the scene (ITU-R BT.2408, section 5.1.3.2), without a display's system gamma. Hues stay.
    """
    light = _light_of_codes(transfer)[pixels] @ BT2020_TO_BT709.T.astype(np.float32)
    peak = np.maximum(light.max(-1, keepdims=True), 1e-6)
    over = np.maximum(peak - KNEE, 0) / (1 - KNEE)
    light = np.clip(light * (np.minimum(peak, KNEE) + (1 - KNEE) * over / (1 + over)) / peak, 0, 1)
    return _srgb_codes()[(light * 65535).round().astype(np.uint16)]


@functools.cache
def _light_of_codes(transfer: int) -> np.ndarray:
    """Light (65536,) float32 of each code of PQ (SMPTE ST 2084) or HLG (ARIB STD-B67), in units of SDR's white."""
    signal = np.arange(65536) / 65535
    if transfer == PQ:
        power = signal ** (32 / 2523)
        light = (np.maximum(power - 107 / 128, 0) / (2413 / 128 - 2392 / 128 * power)) ** (8192 / 1305)
        return (light * 10000 / 203).astype(np.float32)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    light = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    return (light / light[round(0.75 * 65535)]).astype(np.float32)


@functools.cache
def _srgb_codes() -> np.ndarray:
    """Codes (65536,) uint8 of light from 0 to 1 (IEC 61966-2-1)."""
    light = np.arange(65536) / 65535
    curve = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return (255 * curve).round().astype(np.uint8)


def _sample(
    times, duration, fps, num_frames, start, end, max_frames, pair_seconds=None, container_end=None
) -> np.ndarray:
    """The rule of `load_video` on display times (N,), the last shown until `duration`: increasing int64 indices."""
    start, end = _check_span(times, duration, container_end, start, end)
    if fps is not None and num_frames is not None:
        raise ValueError(f"give fps or num_frames, not both (fps={fps}, num_frames={num_frames})")
    for name, count in (("num_frames", num_frames), ("max_frames", max_frames)):
        if count is not None and count < 1:
            raise ValueError(f"{name} must be at least 1, not {count}")
    if num_frames is None:
        fps = 2.0 if fps is None else fps
        if not 0 < fps <= 1000:
            raise ValueError(f"fps must be above 0 and at most 1000, not {fps}")
        if pair_seconds is not None:
            return _sample_pairs(times, fps, start, end, max_frames, pair_seconds)
        num_points = math.floor((end - start + TIME_TOLERANCE) * fps) + 1
        indices = np.unique(_displayed(times, start + np.arange(num_points) / fps))
        num_kept = min(len(indices), max_frames or len(indices))
        return indices[np.linspace(0, len(indices) - 1, num_kept).round().astype(np.int64)]
    first, last = _displayed(times, np.array([start, end]))
    num_frames = min(num_frames, max_frames or num_frames, last - first + 1)
    return _distinct(_displayed(times, np.linspace(start, end, num_frames)), last)


def _sample_pairs(times, fps, start, end, max_frames, pair_seconds) -> np.ndarray:
    """The indices of pairs of frames. None is taken twice, so a span of few frames gives fewer pairs."""
    first, last = _displayed(times, np.array([start, end]))
    num_pairs = math.floor((end - start + TIME_TOLERANCE) * fps / 2) + 1
    num_pairs = max(1, min(num_pairs, (max_frames or 2 * num_pairs) // 2, (last - first + 1) // 2))
    starts = np.linspace(start, max(start, end - pair_seconds), num_pairs)
    moments = (starts[:, None] + [0.0, pair_seconds]).ravel()
    return _distinct(_displayed(times, np.minimum(moments, end))[: last - first + 1], last)


def _distinct(indices: np.ndarray, last: int) -> np.ndarray:
    """Increasing indices up to `last`: a frame that is displayed for long is taken once, then its successors."""
    steps = np.arange(len(indices))
    return np.minimum(np.maximum.accumulate(indices - steps) + steps, last - steps[::-1])


def _displayed(times: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Index of the frame on screen at each moment: the last whose time is not later."""
    return np.maximum(np.searchsorted(times, moments + TIME_TOLERANCE, side="right") - 1, 0)


def _check_span(times, duration, container_end, start, end) -> tuple[float, float]:
    clip_end = max(duration, float(times[-1]))
    limits = clip_end, max(clip_end, container_end or 0)
    for name, value, limit in (("start", start, limits[0]), ("end", end, limits[1])):
        if value is not None and not -TIME_TOLERANCE <= value <= limit + TIME_TOLERANCE:  # false for nan, too
            raise ValueError(f"{name}={value} s is outside the clip, which runs from 0 to {clip_end:.3f} s")
    low, high = 0.0 if start is None else float(start), clip_end if end is None else min(float(end), clip_end)
    if low >= high and (start, end) != (None, None):
        raise ValueError(f"start={low} s is not before end={high} s")
    return low, max(low, float(times[-1])) if end is None else high
