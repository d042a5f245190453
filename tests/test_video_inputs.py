"""Files of the kinds that people have, each with what a player shows: times and pixels are FFmpeg's, read forward."""

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from video_files import write_video

from fourdthinker_hf.video_fourdthinker import MAX_PIXELS, Video, VideoError, load_video, video_size

INPUTS = Path(__file__).parent / "video_inputs"
ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["mpegps_shifted.mpg", "mediarecorder_chromium.webm", "theora_noaudio.ogv"])
def test_frames_are_those_that_ffmpeg_shows(name):
    with av.open(str(INPUTS / name)) as video:
        expected = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in video.decode(video=0)]
    times = np.array([time for time, _ in expected]) - expected[0][0]
    frames, found = load_video(INPUTS / name, fps=3)
    indices = [np.flatnonzero(times <= k / 3 + 1e-3)[-1] for k in range(int(times[-1] * 3) + 1)]
    assert found == pytest.approx(times[indices], abs=1e-5)
    np.testing.assert_array_equal(frames, [expected[index][1] for index in indices])


def test_pixels_are_square():
    assert video_size(INPUTS / "anamorphic_sar16_11.mp4") == (4.0, 465, 240)
    frames, _ = load_video(INPUTS / "anamorphic_sar16_11.mp4", num_frames=2)
    assert frames.shape == (2, 240, 465, 3)


def test_a_frame_that_the_model_does_not_take_is_refused_by_name():
    with pytest.raises(VideoError, match="wide_205to1.mp4: is 4096 x 20 pixels, one side over 200 times the other"):
        load_video(INPUTS / "wide_205to1.mp4")


def test_hdr_looks_like_the_same_scene_in_sdr():
    hdr, sdr = (load_video(INPUTS / name)[0] for name in ("hdr_hlg.mov", "hdr_reference_sdr.mp4"))
    assert np.abs(hdr - sdr.astype(int)).mean() < 2  # 31 where the transfer function is ignored


@pytest.mark.parametrize("colour", [(200, 60, 30), (40, 90, 160), (120, 120, 120)])
def test_pq_looks_like_the_same_colour_in_sdr(tmp_path, colour):
    """Light of SDR, whose white is 203 cd/m2, in BT.2020 and the signal of SMPTE ST 2084, and back."""
    code = np.array(colour) / 255
    light = np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4)  # IEC 61966-2-1
    to_bt2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])  # BT.2087
    power = (to_bt2020 @ light * 203 / 10000) ** (2610 / 16384)
    red, green, blue = ((3424 + 32 * 2413 * power) / (4096 + 32 * 2392 * power)) ** (2523 / 32)
    luma = 0.2627 * red + 0.6780 * green + 0.0593 * blue
    chroma = [(blue - luma) / 1.8814, (red - luma) / 1.4746]
    frame = av.VideoFrame(64, 48, "yuv420p10le")
    for plane, value in zip(
        frame.planes, [4 * (16 + 219 * luma), *(4 * (128 + 224 * c) for c in chroma)], strict=True
    ):
        plane.update(np.full(plane.buffer_size // 2, round(value), "u2"))
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as out:
        tags = "colormatrix=bt2020nc:colorprim=bt2020:transfer=smpte2084"
        stream = out.add_stream("libx264", rate=25, options={"crf": "1", "x264-params": tags})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p10le"
        context = stream.codec_context
        context.colorspace, context.color_range, context.color_trc, context.color_primaries = 9, 1, 16, 9
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        out.mux(stream.encode(frame) + stream.encode(None))
    frames, _ = load_video(path)
    assert np.abs(frames[0, 8:40, 8:56] - np.array(colour)).max() <= 4


def test_the_end_of_the_sound_is_the_end_of_the_picture():
    path = INPUTS / "audio_longer_than_video.mp4"
    assert load_video(path, num_frames=3, end=5)[1].tolist() == load_video(path, num_frames=3, end=4)[1].tolist()
    with pytest.raises(VideoError, match="end=5.1 s is outside the clip, which runs from 0 to 4.000 s"):
        load_video(path, end=5.1)


def peak_memory(name):
    """MB of a process that reads the file whole at 2 frames a second."""
    program = (
        "import sys; sys.path.insert(0, 'fourdthinker_hf'); from video_fourdthinker import load_video;"
        f"load_video({str(INPUTS / name)!r}, fps=2);"
        "print(next(int(line.split()[1]) / 1000 for line in open('/proc/self/status') if 'VmHWM' in line))"
    )
    return float(subprocess.check_output([sys.executable, "-c", program], cwd=ROOT))


def test_memory_does_not_grow_with_the_resolution():
    """66 frames of 3840 x 2160 take 1,642 MB whole; scaled, 112."""
    if sys.platform == "linux":
        assert peak_memory("uhd_33s.mp4") < peak_memory("ntsc_2997.mp4") + 600
    frames, _ = load_video(INPUTS / "uhd_33s.mp4", num_frames=2)
    assert frames.shape == (2, 560, 1008, 3) and 560 * 1008 <= MAX_PIXELS
    assert load_video(INPUTS / "uhd_33s.mp4", num_frames=1, max_pixels=None)[0].shape == (1, 2160, 3840, 3)


@pytest.mark.parametrize("matrix, name", [(1, "bt709"), (6, "smpte170m"), (9, "bt2020nc")])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("pixels", ["yuv420p", "yuv420p10le"])
def test_colour_matrix_and_range(tmp_path, matrix, name, full, pixels):
    """The luma and chroma of one colour by ITU-R BT.709, BT.601 and BT.2020, limited and full range, 8 and 10 bits."""
    red, green, blue = np.array(colour := (200, 60, 30)) / 255
    kr, kb = {1: (0.2126, 0.0722), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}[matrix]
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    chroma = [(blue - luma) / (2 - 2 * kb), (red - luma) / (2 - 2 * kr)]
    scale, top = (4, 1023) if "10" in pixels else (1, 255)
    values = [luma * top, *(c * top + 128 * scale for c in chroma)]
    if not full:
        values = [scale * (16 + 219 * luma), *(scale * (128 + 224 * c) for c in chroma)]
    frame = av.VideoFrame(64, 48, pixels)
    for plane, value in zip(frame.planes, values, strict=True):
        plane.update(np.full(plane.buffer_size // (2 if scale == 4 else 1), round(value), f"u{1 + (scale == 4)}"))
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as out:
        tags = f"colormatrix={name}:fullrange={'on' if full else 'off'}"
        stream = out.add_stream("libx264", rate=25, options={"crf": "1", "x264-params": tags})
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 1 + full
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        out.mux(stream.encode(frame) + stream.encode(None))
    frames, _ = load_video(path)
    assert np.abs(frames[0, 8:40, 8:56] - np.array(colour)).max() <= 3


@pytest.mark.parametrize("pixels", ["gray", "yuv422p", "yuv444p", "yuv444p12le", "bgr0"])
def test_pixel_formats(tmp_path, pixels):
    path, image = tmp_path / "a.mkv", np.tile(np.arange(0, 256, 4, dtype=np.uint8)[:, None], (48, 1, 3))
    with av.open(str(path), "w") as out:
        stream = out.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        out.mux(stream.encode(frame) + stream.encode(None))
    assert np.abs(load_video(path)[0][0] - image.astype(int)).max() <= 3


def test_transparent_parts_are_black(tmp_path):
    path = tmp_path / "a.mov"
    image = np.full((48, 64, 4), 200, np.uint8)
    image[..., 3] = np.repeat([0, 255], 32)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("qtrle", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "argb"
        frame = av.VideoFrame.from_ndarray(image, format="rgba")
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        out.mux(stream.encode(frame) + stream.encode(None))
    (frame,), _ = load_video(path)
    assert (frame[:, :32] == 0).all() and (frame[:, 32:] == 200).all()


def test_interlaced_frames_have_no_combs(tmp_path):
    """A bar that moves 8 pixels from field to field: woven together, the lines would differ."""
    path = tmp_path / "a.mpg"
    with av.open(str(path), "w", format="vob") as out:
        stream = out.add_stream("mpeg2video", rate=25, options={"flags": "+ildct+ilme", "qmax": "2"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(5):
            image = np.zeros((48, 64, 3), np.uint8)
            image[0::2, 4 * number : 4 * number + 16] = 200
            image[1::2, 4 * number + 8 : 4 * number + 24] = 200
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    frames, _ = load_video(path, fps=25)
    assert len(frames) == 5 and np.abs(np.diff(frames[:, 4:-4].astype(int), axis=1)).max() < 20


def test_mirrored_frames_are_mirrored(tmp_path):
    path = tmp_path / "a.mov"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.set_display_rotation(0, hflip=True)
        image = np.zeros((48, 64, 3), np.uint8)
        image[:, :16] = 200
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        out.mux(stream.encode(frame) + stream.encode(None))
    (frame,), _ = load_video(path)
    assert frame[:, 50:].mean() > 180 and frame[:, :40].mean() < 10


@pytest.mark.parametrize("kind", ["mp4", "mp3"])
def test_a_sound_with_a_cover_picture_is_no_video(tmp_path, kind):
    path = tmp_path / f"clip.{kind}"
    with av.open(str(path), "w") as out:
        sound = out.add_stream("aac" if kind == "mp4" else "libmp3lame", rate=44100)
        cover = out.add_stream("mjpeg")
        cover.width, cover.height, cover.pix_fmt, cover.disposition = 64, 64, "yuvj420p", 1024
        picture = cover.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), 99, np.uint8), "rgb24"))
        out.mux(picture + cover.encode(None))
        size = sound.codec_context.frame_size or 1152
        for number in range(40):
            frame = av.AudioFrame(format=sound.codec_context.format.name, layout="stereo", samples=size)
            for plane in frame.planes:
                plane.update(bytes(plane.buffer_size))
            frame.rate, frame.pts, frame.time_base = 44100, size * number, Fraction(1, 44100)
            out.mux(sound.encode(frame))
        out.mux(sound.encode(None))
    path = path.rename(tmp_path / "clip.mp4")
    with pytest.raises(VideoError, match="clip.mp4: has no video stream"):
        load_video(path)


@pytest.mark.parametrize(
    "text",
    ["#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nb.ts\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile b.ts\n"],
)
def test_a_playlist_is_no_video(tmp_path, text):
    """It names files of its choice."""
    write_video(tmp_path / "b.ts")
    (tmp_path / "a.mp4").write_text(text)
    with pytest.raises(VideoError, match="a.mp4: is not a video file"):
        load_video(tmp_path / "a.mp4")


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.avi", "a.flv"])
@pytest.mark.parametrize("lie", [False, True])
def test_late_frames_are_reached_by_seeking(tmp_path, monkeypatch, name, lie):
    """A film of 4 minutes; where the file's index lies, it is decoded forward."""
    times = [40 * i for i in range(6000)]
    path = tmp_path / name
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=25, options={"g": "50"}) if name == "a.avi" else None
        stream = stream or out.add_stream("libx264", rate=25, options={"preset": "ultrafast", "g": "50"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(len(times)):
            image = np.full((48, 64, 3), number // 24, np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    decoded, decode = [], Video._decode

    def counted(self, *args):
        for frame in decode(self, *args):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(Video, "_decode", counted)
    if lie:
        read = Video._read_packets

        def read_packets(self):
            read(self)
            self._places = [(0, 0)] * len(self._places)

        monkeypatch.setattr(Video, "_read_packets", read_packets)
    frames, found = load_video(path, num_frames=4, start=120, end=200)
    assert found == pytest.approx(np.linspace(120, 200, 4), abs=0.041)
    assert np.abs(frames.mean((1, 2, 3)) - found * 25 / 24).max() < 4
    assert len(decoded) > 4000 if lie else len(decoded) < 4 * 60
