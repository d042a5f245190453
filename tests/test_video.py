"""Brightness spells each frame's index, so that a wrong frame shows; expected times are those that were written."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from video_files import CONSTANT, unreadable, write_video

from fourdthinker_hf.video_fourdthinker import VideoError, _sample, load_video, second_per_grid

VARIABLE = [0, 40, 80, 280, 300, 800, 833, 866, 1866, 1906, 1946]
OPEN_GOP = "open-gop=1:bframes=3:keyint=10:min-keyint=10:scenecut=0"


def indices_of(frames):
    return [round(float(frame[30:, 40:].mean()) / 8) for frame in frames]


def read(path, **kwargs):
    frames, times = load_video(path, **kwargs)
    assert frames.dtype == np.uint8 and frames.shape == (len(times), 48, 64, 3) and times.dtype == np.float64
    return indices_of(frames), times.tolist()


def test_constant_rate_by_fps(tmp_path):
    path = write_video(tmp_path / "a.mp4")
    assert read(path) == ([0, 12, 25], [0.0, 0.48, 1.0])  # 2 fps; the frame at 0.48 s is still shown at 0.5 s
    assert read(path, fps=5) == ([0, 5, 10, 15, 20, 25], [0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert read(path, fps=250) == (list(range(30)), [t / 1000 for t in CONSTANT])


def test_variable_rate(tmp_path):
    path = write_video(tmp_path / "a.mp4", VARIABLE)
    assert read(path, fps=5) == ([0, 2, 4, 5, 7], [0.0, 0.08, 0.3, 0.8, 0.866])
    assert read(path, num_frames=3) == ([0, 7, 10], [0.0, 0.866, 1.946])
    assert read(path, num_frames=99) == (list(range(11)), [t / 1000 for t in VARIABLE])


def test_span_keeps_the_times_of_the_source(tmp_path):
    path = write_video(tmp_path / "a.mp4")
    assert read(path, fps=5, start=0.4, end=0.8) == ([10, 15, 20], [0.4, 0.6, 0.8])
    assert read(path, num_frames=2, start=0.41, end=0.5) == ([10, 12], [0.4, 0.48])
    assert read(path, fps=2, end=1.2) == ([0, 12, 25], [0.0, 0.48, 1.0])  # the last frame leaves the screen at 1.2 s
    assert read(path, start=1.19) == ([29], [1.16])
    assert read(path, fps=25, max_frames=3) == ([0, 14, 29], [0.0, 0.56, 1.16])
    assert read(path, num_frames=20, max_frames=2) == ([0, 29], [0.0, 1.16])


def test_one_frame(tmp_path):
    path = write_video(tmp_path / "a.mp4", [0])
    assert read(path) == read(path, num_frames=4) == ([0], [0.0])


@pytest.mark.parametrize(
    ("name", "codec", "options", "audio"),
    [
        ("a.mp4", "libx264", {"crf": "8", "x264-params": OPEN_GOP}, False),
        ("a.mkv", "libx265", {"crf": "8", "x265-params": OPEN_GOP + ":log-level=none"}, False),
        ("a.webm", "libvpx-vp9", {"crf": "8"}, False),
        ("a.mov", "libx264", None, True),
    ],
)
def test_frames_are_the_ones_asked_for(tmp_path, name, codec, options, audio):
    """A reader that counts frames from a key frame returns other frames of files with open groups of pictures."""
    path = write_video(tmp_path / name, codec=codec, options=options, audio=audio)
    for num_frames in (2, 3, 5, 7, 30):
        indices, times = read(path, num_frames=num_frames)
        assert indices == [round(25 * t) for t in times] and len(indices) == num_frames


def test_late_first_timestamp_counts_as_zero(tmp_path):
    path = write_video(tmp_path / "a.mkv", [2000 + t for t in CONSTANT])
    assert read(path, fps=1) == ([0, 25], [0.0, 1.0])


def test_frames_hidden_by_an_edit_list_are_left_out(tmp_path):
    source, path = write_video(tmp_path / "a.mp4"), tmp_path / "cut.mp4"
    with av.open(str(source)) as old, av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                shift = int(Fraction(1, 5) / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
                new.mux(packet)
    assert read(path, fps=5) == ([5, 10, 15, 20, 25], [0.0, 0.2, 0.4, 0.6, 0.8])
    assert read(path, fps=50) == (list(range(5, 30)), [t / 1000 for t in CONSTANT[:25]])


def test_rotation_is_applied(tmp_path):
    path = write_video(tmp_path / "a.mp4")
    upright, _ = load_video(path, num_frames=1)
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 44
    one = 1 << 16
    data[matrix : matrix + 36] = struct.pack(
        ">9i", 0, one, 0, -one, 0, 0, 0, 0, 1 << 30
    )  # display a quarter clockwise
    path.write_bytes(data)
    turned, _ = load_video(path, num_frames=1)
    assert np.abs(turned[0].astype(int) - np.rot90(upright[0], -1)).max() <= 2


@pytest.mark.parametrize("width", [16, 24, 48, 50, 96, 112])
def test_narrow_frames(tmp_path, width):
    """Rows are padded in memory, which must not show."""
    path = write_video(tmp_path / "a.mp4", size=(width, 32))
    frames, _ = load_video(path, num_frames=2)
    with av.open(str(path)) as video:
        expected = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert frames.shape == (2, 32, width, 3)
    assert np.abs(frames - np.stack([expected[0], expected[-1]]).astype(int)).max() <= 2


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("missing", "no such file"),
        ("folder", "is a folder"),
        ("empty", "0 bytes"),
        ("text", "is not a video"),
        ("no index", "truncated"),
        ("audio", "audio only"),
        ("20,000 pixels wide and high", "larger than FFmpeg decodes"),
    ],
)
def test_unreadable_files_name_file_and_cause(tmp_path, kind, cause):
    with pytest.raises(VideoError, match=cause) as error:
        load_video(unreadable(tmp_path, kind))
    assert "clip.mp4" in str(error.value)


def test_truncated_data_is_read_up_to_the_cut(tmp_path):
    """The index stands first and promises 30 frames; the data ends early. What is asked behind the cut is an error."""
    whole = write_video(tmp_path / "a.mp4", mux={"movflags": "faststart"}).read_bytes()
    path, cuts = tmp_path / "cut.mp4", []
    for percent in range(84, 100, 3):
        path.write_bytes(whole[: len(whole) * percent // 100])
        with pytest.raises(
            VideoError, match=r"cut.mp4: is truncated or damaged: the frames from \d\.\d+ s on"
        ) as error:
            load_video(path)
        cuts.append(float(str(error.value).split("from ")[1].split(" s on")[0]))
        indices, times = read(path, num_frames=30, end=cuts[-1])
        assert indices == list(range(len(indices))) == [round(25 * t) for t in times]
        assert len(indices) == pytest.approx(25 * cuts[-1], abs=1)
    assert cuts == sorted(cuts) and 0 < cuts[0] < cuts[-1] < 1.2


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"fps": 2, "num_frames": 4}, "fps=2, num_frames=4"),
        ({"fps": 0}, "not 0"),
        ({"fps": float("nan")}, "not nan"),
        ({"fps": float("inf")}, "not inf"),
        ({"num_frames": 0}, "num_frames must be at least 1, not 0"),
        ({"max_frames": -1}, "max_frames must be at least 1, not -1"),
        ({"start": -1}, "start=-1 s is outside .* from 0 to 1.200 s"),
        ({"end": 1.3}, "end=1.3 s is outside"),
        ({"start": 9.0}, "start=9.0 s is outside"),
        ({"end": float("nan")}, "end=nan s is outside"),
        ({"start": float("inf")}, "start=inf s is outside"),
        ({"start": 0.5, "end": 0.5}, "start=0.5 s is not before end=0.5 s"),
        ({"start": 0.6, "end": 0.5}, "start=0.6 s is not before end=0.5 s"),
        ({"end": 0.0}, "start=0.0 s is not before end=0.0 s"),
    ],
)
def test_arguments_that_do_not_fit(tmp_path, kwargs, message):
    with pytest.raises(VideoError, match=message) as error:
        load_video(write_video(tmp_path / "a.mp4"), **kwargs)
    assert "a.mp4" in str(error.value)


# Times on a 10 ms grid: a grid point is at a frame's time or further from it than the 1 ms tolerance.
clips = st.lists(st.integers(1, 60), max_size=40).map(lambda gaps: np.cumsum([0, *gaps]) / 100)
spans = st.tuples(st.floats(0, 0.9), st.floats(0.05, 1)).map(lambda s: (s[0], s[0] + s[1] * (1 - s[0])))


@settings(deadline=None)
@given(clips, st.sampled_from([0.1, 1, 2, 3, 4, 5, 10, 20, 25, 30, 100]))
def test_fps_rule(times, fps):
    expected, k = [], 0
    while k / fps <= times[-1] + 1e-3:
        shown = [i for i, time in enumerate(times) if time <= k / fps + 1e-3][-1]
        if shown not in expected:
            expected.append(shown)
        k += 1
    assert _sample(times, times[-1] + 0.04, fps, None, None, None, None).tolist() == expected


@settings(deadline=None)
@given(clips, spans, st.integers(1, 50))
def test_num_frames_rule(times, span, num_frames):
    duration = times[-1] + 0.04
    start, end = span[0] * duration, span[1] * duration
    shown = [
        i for i in range(len(times)) if times[i] <= end + 1e-3 and (i + 1 == len(times) or times[i + 1] > start + 1e-3)
    ]
    indices = _sample(times, duration, None, num_frames, start, end, None).tolist()
    assert (
        len(indices) == min(num_frames, len(shown)) and set(indices) <= set(shown) and indices == sorted(set(indices))
    )
    assert indices[0] == shown[0] and (num_frames == 1 or indices[-1] == shown[-1])


@settings(deadline=None)
@given(clips, spans, st.sampled_from([0.5, 2, 7, 50]), st.integers(1, 10))
def test_max_frames_rule(times, span, fps, max_frames):
    duration = times[-1] + 0.04
    start, end = span[0] * duration, span[1] * duration
    free = _sample(times, duration, fps, None, start, end, None).tolist()
    held = _sample(times, duration, fps, None, start, end, max_frames).tolist()
    assert len(held) == min(len(free), max_frames) and set(held) <= set(free) and held == sorted(set(held))
    assert held[0] == free[0] and (max_frames == 1 or held[-1] == free[-1])


def test_second_per_grid():
    assert second_per_grid([0.0, 0.5, 1.0, 1.5]) == 1.0
    assert second_per_grid(np.array([3.0, 3.1, 3.6]), temporal_patch_size=3) == pytest.approx(0.9)
    assert second_per_grid([7.0]) == 1.0
    for wrong in ([], [1.0, 1.0], [2.0, 1.0], [0.0, float("nan")]):
        with pytest.raises(ValueError, match="increasing"):
            second_per_grid(wrong)


def test_pairs_of_frames_stay_close_however_long_the_video(tmp_path):
    """`pair_seconds`: a temporal patch sees a small motion, and a span of few frames gives each of them once."""
    for seconds, num_frames in ((0.2, 2), (1.0, 8), (3.0, 16), (40.0, 16)):
        times = np.arange(0, seconds + 1e-9, 0.05)
        indices = _sample(times, seconds, 8, None, None, None, 16, 0.2)
        assert len(indices) == num_frames or seconds < 1.01
        assert (np.diff(indices) > 0).all() and indices[-1] == len(times) - 1
        assert np.allclose(np.diff(times[indices])[::2], 0.2, atol=0.051)
    few = np.array([0.0, 0.5, 1.0])
    assert _sample(few, 1.5, 8, None, None, None, 16, 0.2).tolist() == [0, 1]


def test_a_grid_of_pairs_takes_the_real_times(tmp_path):
    """Not the film's duration over the number of frames, which is what evenly spaced frames stand for."""
    path = write_video(tmp_path / "a.mp4")
    frames, times = load_video(path, fps=8, max_frames=4, pair_seconds=0.1)
    assert len(frames) == 4 and times.seconds_per_frame is None
    assert second_per_grid(times) == pytest.approx(2 * np.diff(times).mean())
    pairs, even = (load_video(path, num_frames=4, pair_seconds=pair)[1] for pair in (0.1, None))
    assert pairs.tolist() == even.tolist() and pairs.seconds_per_frame == even.seconds_per_frame
