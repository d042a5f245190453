"""Opens a video and samples frames with their real times: all that a model ever sees of one.

Times are presentation timestamps (right on variable frame rate), in seconds since the first displayed frame. decord
decodes, only ever forward from the first frame: its random access silently returns other frames for open-GOP H.264 and
H.265 and for MPEG-4 with B-frames. At a model's frame rates that costs nothing; a late `start` in a long video does.
"""

import math
import os

import numpy as np

try:
    import decord

    DECORD_ERRORS = (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError, AssertionError, StopIteration)
except ImportError:
    decord = None

# A frame counts as displayed this many seconds early: containers round times to 1 ms, decord reports them in float32.
TIME_TOLERANCE = 1e-3
REMUX = "`ffmpeg -i IN -c copy OUT.mp4` may help"


class VideoError(ValueError):
    """A video cannot be read as asked. The message names the file and the cause."""


def load_video(
    path: str | os.PathLike,
    fps: float | None = None,
    num_frames: int | None = None,
    start: float | None = None,
    end: float | None = None,
    max_frames: int | None = None,
    pair_seconds: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Decode frames of `path`, chosen by display time within `start` to `end` (by default first to last frame).

    `fps` (2 if neither is given) takes the frame displayed at `start + k / fps` for each k in the span, none twice.
    `num_frames` takes that many at evenly spaced times, or every frame of a span that has fewer. Of more than
    `max_frames`, that many are kept, evenly. With `pair_seconds`, which needs `fps`, frames come in pairs that far
    apart, `fps / 2` pairs a second and at most `max_frames // 2` of them, evenly: so a temporal patch of two frames
    sees a small motion, however long the video is. Rotation metadata is applied; frames hidden by an edit list are left out.

    Returns frames (uint8, shape (T, H, W, 3), RGB) and timestamps (float64, shape (T,)), in source seconds: since
    its first displayed frame, whatever `start` is. Raises VideoError if `path` is missing, empty, a folder, no video,
    audio only, truncated where frames are needed (or just behind: decord decodes ahead), or of a kind that decord
    misreads, or the arguments do not fit it.
    """
    reader = _open(path)
    times, duration = _frame_times(path, reader)
    try:
        indices = _sample(times, duration, fps, num_frames, start, end, max_frames, pair_seconds)
    except ValueError as error:
        raise VideoError(f"{path}: {error}") from None
    return np.stack(_read_forward(path, reader, indices)), times[indices]


def video_size(path: str | os.PathLike) -> tuple[float, int, int]:
    """Seconds, width and height of `path`, by its first frame. VideoError for what `load_video` refuses whole."""
    reader = _open(path)
    _, duration = _frame_times(path, reader)
    (frame,) = _read_forward(path, reader, np.array([0]))
    return duration, frame.shape[1], frame.shape[0]


def second_per_grid(timestamps: np.ndarray, temporal_patch_size: int = 2) -> float:
    """Seconds from one temporal patch to the next: the mean spacing of `timestamps` (T,), in seconds, times its size.

    A single frame has no spacing and gives 1.0. Raises ValueError unless there are timestamps and they increase.
    """
    timestamps = np.asarray(timestamps, dtype=np.float64)
    if timestamps.ndim != 1 or len(timestamps) == 0 or not (np.diff(timestamps) > 0).all():
        raise ValueError(f"timestamps must be an increasing list of seconds, not {timestamps.tolist()}")
    return float(np.diff(timestamps).mean()) * temporal_patch_size if len(timestamps) > 1 else 1.0


def _sample(times, duration, fps, num_frames, start, end, max_frames, pair_seconds=None) -> np.ndarray:
    """The rule of `load_video` on display times (N,), the last shown until `duration`: increasing int64 indices."""
    start, end = _check_span(times, duration, start, end)
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
    """Indices of pairs of frames; a span of fewer frames than that gives all of its frames."""
    first, last = _displayed(times, np.array([start, end]))
    num_pairs = math.floor((end - start + TIME_TOLERANCE) * fps / 2) + 1
    num_pairs = max(1, min(num_pairs, (max_frames or 2 * num_pairs) // 2, (last - first + 1) // 2))
    starts = np.linspace(start, max(start, end - pair_seconds), num_pairs)
    moments = (starts[:, None] + [0.0, pair_seconds]).ravel()
    return _distinct(_displayed(times, np.minimum(moments, end))[: last - first + 1], last)


def _distinct(indices: np.ndarray, last: int) -> np.ndarray:
    """Increasing indices up to `last`: a long frame is taken once, then its successors."""
    steps = np.arange(len(indices))
    return np.minimum(np.maximum.accumulate(indices - steps) + steps, last - steps[::-1])


def _displayed(times: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Index of the frame on screen at each moment: the last whose time is not later."""
    return np.maximum(np.searchsorted(times, moments + TIME_TOLERANCE, side="right") - 1, 0)


def _check_span(times, duration, start, end) -> tuple[float, float]:
    clip_end = max(duration, float(times[-1]))
    for name, value in (("start", start), ("end", end)):
        if value is not None and not -TIME_TOLERANCE <= value <= clip_end + TIME_TOLERANCE:  # false for nan, too
            raise ValueError(f"{name}={value} s is outside the clip, which runs from 0 to {clip_end:.3f} s")
    low, high = 0.0 if start is None else float(start), clip_end if end is None else float(end)
    if low >= high and (start, end) != (None, None):
        raise ValueError(f"start={low} s is not before end={high} s")
    return low, max(low, float(times[-1])) if end is None else high


def _open(path: str | os.PathLike) -> "decord.VideoReader":
    if decord is None:
        raise ImportError("reading videos needs decord: `pip install decord2`")
    if not os.path.isfile(path):
        raise VideoError(f"{path}: {'is a folder, not a video' if os.path.isdir(path) else 'no such file'}")
    with open(path, "rb") as file:
        head = file.read(768)
    if not head:
        raise VideoError(f"{path}: is empty (0 bytes)")
    if len(head) == 768 and b"GGGG" in (head[:752:188], head[4::192]):  # sync bytes of TS and of M2TS
        raise VideoError(f"{path}: is an MPEG transport stream, which decord misreads; {REMUX}")
    try:
        return decord.VideoReader(os.fspath(path), fault_tol=1e-9)  # never a neighbour for a frame that fails
    except DECORD_ERRORS as error:
        cause = "is not a video file"
        if "video stream" in str(error):
            cause = "has no video stream (audio only?)"
        elif head[4:8] in (b"ftyp", b"moov", b"mdat") or head[:4] == b"\x1a\x45\xdf\xa3":
            cause = f"is truncated or damaged, its index or frames are missing; {REMUX}"
        raise VideoError(f"{path}: {cause}") from error


def _frame_times(path: str | os.PathLike, reader: "decord.VideoReader") -> tuple[np.ndarray, float]:
    """Display times (N,) of the visible frames, and the time at which the last one leaves the screen."""
    spans = reader.get_frame_timestamp(range(len(reader))).astype(np.float64).round(6)  # (frames, [from, to])
    if not (np.abs(spans) < 1e6).all():  # decord shows a missing timestamp as some -1e15
        raise VideoError(f"{path}: its frames carry no timestamps (AVI or MPEG?); re-encode it, for example to MP4")
    visible = spans[spans[:, 0] > -TIME_TOLERANCE]  # an edit list hides the others, and the decoder never yields them
    if len(visible) == 0 or reader.get_key_indices()[:1] != [0]:
        raise VideoError(f"{path}: has no visible frame, or does not start at a key frame (cut without re-encoding?)")
    return visible[:, 0], float(visible[-1, 1])


def _read_forward(path: str | os.PathLike, reader: "decord.VideoReader", indices: np.ndarray) -> list[np.ndarray]:
    wanted, frames = set(indices.tolist()), []
    try:
        for position in range(indices[-1] + 1):
            frame = reader.next()
            if position in wanted:
                height, width = frame.shape[:2]  # at some widths (48, 96, ...) decord takes row padding for channels
                frames.append(frame.asnumpy().reshape(height, -1)[:, : 3 * width].reshape(height, width, 3))
    except DECORD_ERRORS as error:
        raise VideoError(f"{path}: frame {position} cannot be decoded; the file is truncated or damaged") from error
    return frames
