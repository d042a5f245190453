"""Shots of video files. Ten squares in each frame spell its number in binary, so that a wrong frame is noticed."""

import struct
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

av = pytest.importorskip("av")
pytest.importorskip("cv2")

from video_files import unreadable  # noqa: E402

from fourdthinker_hf.data.annotation import shots as shots_module  # noqa: E402
from fourdthinker_hf.data.annotation.shots import _sampling_windows, _split_evenly, read_shots  # noqa: E402
from fourdthinker_hf.video_fourdthinker import VideoError, load_video  # noqa: E402

RNG = np.random.default_rng(0)
SCENES = RNG.integers(0, 256, (3, 12, 20, 3)).repeat(4, 1).repeat(4, 2).astype(np.uint8)  # 48 x 80
EVEN = [40 * i for i in range(100)]  # milliseconds


def picture(number, scene=0):
    frame = SCENES[scene].copy()
    for bit in range(10):
        frame[:8, 8 * bit : 8 * bit + 8] = 255 * (number >> bit & 1)
    return frame


def number_of(frame):
    return sum(int(frame[2:6, 8 * bit + 2 : 8 * bit + 6].mean() > 127) << bit for bit in range(10))


def write_file(path, times=EVEN, pictures=picture, codec="libx264", options=None, mux=None, aspect=None):
    with av.open(str(path), "w", options=mux or {}) as out:
        stream = out.add_stream(codec, rate=25, options=options or {})
        height, width = pictures(0).shape[:2]
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size = 12
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if not path.suffix == ".avi":
            stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for i, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(pictures(i), format="rgb24")
            unit = 40 if path.suffix == ".avi" else 1
            frame.pts, frame.time_base = time // unit, Fraction(unit, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def spans(path):
    return [(round(shot.start, 3), round(shot.end, 3), len(shot.times)) for shot in read_shots(path)]


def check(shot, times):
    """Each frame is the one that is displayed at its time."""
    assert shot.frames.dtype == np.uint8 and shot.frames.shape == (len(shot.times), 48, 80, 3)
    assert shot.times.dtype == np.float64
    assert [times[number_of(frame)] for frame in shot.frames] == (1000 * shot.times).round().tolist()


def test_about_eight_frames_a_second(tmp_path):
    (shot,) = read_shots(write_file(tmp_path / "a.mp4"))
    assert (shot.video, shot.start, shot.end) == (str(tmp_path / "a.mp4"), 0.0, 4.0)
    check(shot, EVEN)
    expected = [next(time for time in EVEN if time >= 125 * k) / 1000 for k in range(32)]
    assert shot.times.tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {"x264-params": "open-gop=1:bframes=3:keyint=10:min-keyint=10:scenecut=0"}),
        ("a.mkv", "libx265", {"x265-params": "open-gop=1:bframes=3:keyint=10:min-keyint=10:log-level=none"}),
        ("a.webm", "libvpx-vp9", {"crf": "20"}),
        ("a.mov", "libx264", None),
        ("a.avi", "mpeg4", {"qmin": "2", "qmax": "3"}),
        ("a.ts", "libx264", None),
    ],
)
def test_kinds_of_file_whole_and_in_windows(tmp_path, monkeypatch, name, codec, options):
    path = write_file(tmp_path / name, [40 * i for i in range(400)], codec=codec, options=options)
    times = [40 * i for i in range(400)]
    for shot in (whole := list(read_shots(path))):
        check(shot, times)
    assert [round(shot.start) for shot in whole] == [0, 8] and whole[1].end == pytest.approx(16, abs=0.05)
    monkeypatch.setattr(shots_module, "SAMPLED_SECONDS", 6.0)
    monkeypatch.setattr(shots_module, "WINDOW", 2.5)
    found = list(read_shots(path))
    assert [round(shot.start, 1) for shot in found] == [0.0, 13.5] and all(2 <= s.end - s.start < 2.6 for s in found)
    for shot in found:
        check(shot, times)


def test_variable_rate_and_gaps(tmp_path):
    gaps = [*[30, 50] * 30, 700, *[100] * 25, 350, *[20] * 20]
    times = np.cumsum([0, *gaps]).tolist()
    found = list(read_shots(write_file(tmp_path / "a.mp4", times)))
    assert [(shot.start, shot.end) for shot in found] == [(0.0, 3.1), (3.1, pytest.approx(6.37, abs=0.01))]
    for shot in found:
        check(shot, times)


def test_240_frames_a_second(tmp_path):
    times = [round(1000 * i / 240) for i in range(600)]
    (shot,) = read_shots(write_file(tmp_path / "a.mp4", times))
    check(shot, times)
    assert len(shot.times) == 20


@pytest.mark.parametrize("scene_two", [1, 2])
def test_cut(tmp_path, scene_two):
    path = write_file(tmp_path / "a.mp4", [40 * i for i in range(120)], lambda i: picture(i, scene_two * (i >= 58)))
    assert spans(path) == [(0.0, 2.4, 19), (2.4, 4.8, 20)]  # cut at 2.32 s; the next sample is at 2.4 s


def test_a_fast_camera_is_no_cut(tmp_path):
    wall = np.random.default_rng(1).integers(0, 256, (6, 120, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
    # The picture moves by 12 of 80 pixels from sample to sample.
    path = write_file(tmp_path / "a.mp4", pictures=lambda i: wall[:, 4 * i : 4 * i + 80])
    assert spans(path) == [(0.16, 4.0, 31)]  # its first change might be a cut


def test_black_frames_are_left_out(tmp_path):
    def pictures(i):
        return picture(i) if 10 <= i < 75 else np.zeros((48, 80, 3), np.uint8)

    assert spans(write_file(tmp_path / "a.mp4", pictures=pictures)) == [(0.4, 3.0, 21)]
    with pytest.raises(VideoError, match="a.mp4: shows no shot of 2 s"):
        list(read_shots(write_file(tmp_path / "a.mp4", pictures=lambda i: np.zeros((48, 80, 3), np.uint8))))


@pytest.mark.parametrize("times", [[40 * i for i in range(5)], [1000 * i for i in range(20)]], ids=["5", "1 fps"])
def test_too_short_or_too_sparse(tmp_path, times):
    with pytest.raises(
        VideoError, match="a.mp4: shows no shot of 2 s, once cuts, blank frames and gaps of over 0.5 s"
    ):
        list(read_shots(write_file(tmp_path / "a.mp4", times)))


def test_nothing_moves(tmp_path):
    (shot,) = read_shots(write_file(tmp_path / "a.mp4", pictures=lambda i: picture(0)))
    assert (shot.start, shot.end, len(shot.times)) == (0.0, 4.0, 32)


@pytest.mark.parametrize("turn", [1, 2, 3])
def test_rotation_is_applied_as_load_video_does(tmp_path, turn):
    path = write_file(tmp_path / "a.mp4")
    data = bytearray(path.read_bytes())
    matrix, (cos, sin) = data.index(b"tkhd") + 44, {1: (0, 1), 2: (-1, 0), 3: (0, -1)}[turn]
    one = 1 << 16
    data[matrix : matrix + 36] = struct.pack(">9i", cos * one, sin * one, 0, -sin * one, cos * one, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    (shot,) = read_shots(path)
    upright, _ = load_video(path, num_frames=1)
    assert shot.frames.shape[1:] == upright.shape[1:] == ((80, 48, 3) if turn % 2 else (48, 80, 3))
    assert np.abs(shot.frames[0].astype(int) - upright[0]).max() <= 4


@pytest.mark.parametrize(
    ("size", "aspect", "expected"),
    [((360, 640), None, (270, 480)), ((640, 360), None, (480, 270)), ((96, 96), Fraction(4, 3), (96, 128))],
)
def test_size(tmp_path, size, aspect, expected):
    small = np.random.default_rng(2).integers(0, 256, (size[0] // 8, size[1] // 8, 3)).astype(np.uint8)
    path = write_file(tmp_path / "a.mp4", pictures=lambda i: small.repeat(8, 0).repeat(8, 1), aspect=aspect)
    (shot,) = read_shots(path)
    assert shot.frames.shape[1:3] == expected


def test_times_count_from_the_first_frame(tmp_path):
    path = write_file(tmp_path / "a.mkv", [2000 + time for time in EVEN])
    (shot,) = read_shots(path)
    assert shot.start == 0.0 and shot.times[1] == pytest.approx(0.16) and number_of(shot.frames[1]) == 4


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("missing", "no such file"),
        ("folder", "is a folder"),
        ("empty", "0 bytes"),
        ("text", "not a video file"),
        ("no index", "truncated or damaged"),
        ("audio", "audio only"),
    ],
)
def test_unreadable_files_name_file_and_cause(tmp_path, kind, cause):
    path = unreadable(tmp_path, kind)
    with pytest.raises(VideoError, match=cause) as error:
        list(read_shots(path))
    assert "clip.mp4" in str(error.value)


def test_shots_before_the_damage_are_handed_out(tmp_path):
    """The index comes first and the data ends early: within a frame or, unnoticed by the decoder, between two."""
    path, times, found = tmp_path / "a.mp4", [40 * i for i in range(700)], []
    data = write_file(path, times, mux={"movflags": "faststart"}).read_bytes()
    with av.open(str(path)) as video:
        between = next(packet.pos for packet in video.demux(video=0) if (packet.pts or 0) * packet.time_base > 25)
    for size in (between, len(data) * 6 // 10, len(data) // 5):
        path.write_bytes(data[:size])
        with pytest.raises(VideoError, match="a.mp4: is truncated"):
            for shot in read_shots(path):
                check(shot, times)
                found.append(shot.end)
    assert found == [10.0, 20.0]


@given(st.floats(0, 1e5))
def test_sampling_windows_rule(length):
    windows = _sampling_windows(length)
    assert windows[0][0] == 0 and sum(end - begin for begin, end in windows) == pytest.approx(
        shots_module.SAMPLED_SECONDS
    )
    if length > shots_module.SAMPLED_SECONDS:
        assert windows[-1][1] == pytest.approx(length)
        assert all(a[1] <= b[0] + 1e-6 for a, b in zip(windows, windows[1:], strict=False))


@settings(deadline=None)
@given(st.lists(st.integers(2, 50), min_size=1, max_size=200))
def test_split_evenly_rule(gaps):
    """Frames at least 20 ms and at most half a second apart: shots are 2 to 10.5 s long, and at most 2 s are lost."""
    times = (np.cumsum([0, *gaps]) / 100).tolist()
    parts, end = _split_evenly(times), 0
    lengths = [times[b] - times[a] for a, b in parts]
    assert all(2 - 1e-9 <= length <= 10.5 for length in lengths)
    assert all(a < b for a, b in parts) and all(a[1] == b[0] for a, b in zip(parts, parts[1:], strict=False))
    assert (sum(lengths) == pytest.approx(times[-1])) if times[-1] >= 4 or parts else times[-1] < 2 + end
