"""Every cell of container x codec x feature that FFmpeg writes here: each frame's number is in its pixels.

Each codec's film is encoded once per coding (plain, B-frames, open groups of pictures, uneven times, wide pixels) and
then copied, packet by packet, into each container. Cells that cannot be written are listed by
`pytest tests/test_video_containers.py -rP -k cells`.
"""

import os
import sys
from contextlib import contextmanager, nullcontext
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from fourdthinker_hf.batch_inference import open_clip
from fourdthinker_hf.data.annotation.shots import _sample_frames
from fourdthinker_hf.data.records import Record
from fourdthinker_hf.demo.uploads import check_upload, open_in_subprocess
from fourdthinker_hf.evaluation.lmms import record_from_messages
from fourdthinker_hf.video_fourdthinker import VideoError, load_video

HEIGHT, WIDTH, NUM_BITS = 96, 128, 8
EVEN = [40 * i for i in range(48)]  # ms
UNEVEN = np.cumsum([0, *[40, 40, 120, 80, 40, 400, 40] * 7])[:48].tolist()
X264, X265 = "bframes=3:keyint=12:min-keyint=12:scenecut=0", "keyint=12:min-keyint=12:scenecut=0:log-level=none"
GROUPS = {"g": "12"}
CODECS = {  # name: encoder, pixel format, options
    "h264": ("libx264", "yuv420p", {"x264-params": X264.replace("bframes=3", "bframes=0"), "crf": "18"}),
    "hevc": ("libx265", "yuv420p", {"x265-params": X265 + ":bframes=0", "crf": "18", "preset": "ultrafast"}),
    "mpeg4": ("mpeg4", "yuv420p", GROUPS | {"qmax": "5"}),
    "mpeg2": ("mpeg2video", "yuv420p", GROUPS | {"qmax": "5"}),
    "vp8": ("libvpx", "yuv420p", GROUPS | {"crf": "10", "b": "1M", "deadline": "realtime", "cpu-used": "8"}),
    "vp9": ("libvpx-vp9", "yuv420p", GROUPS | {"crf": "20", "deadline": "realtime", "cpu-used": "8"}),
    "av1": ("libsvtav1", "yuv420p", GROUPS | {"crf": "30", "preset": "12"}),
    "theora": ("libtheora", "yuv420p", GROUPS),
    "mjpeg": ("mjpeg", "yuvj420p", {"qmax": "5"}),
    "prores": ("prores_ks", "yuv422p10le", {}),
    "gif": ("gif", "rgb8", {}),
    "webp": (None, None, None),  # Pillow writes it
    "h263": ("h263", "yuv420p", GROUPS | {"qmax": "5"}),
    "flv1": ("flv", "yuv420p", GROUPS | {"qmax": "5"}),
}
CODINGS = {  # options by codec, where a coding is not what the encoder does anyway
    "B-frames": {
        "h264": {"x264-params": X264},
        "hevc": {"x265-params": X265 + ":bframes=3:open-gop=0"},
        "mpeg4": {"bf": "2"},
        "mpeg2": {"bf": "2", "flags": "+cgop", "sc_threshold": "1000000000"},
        "vp8": {"auto-alt-ref": "1", "lag-in-frames": "16", "deadline": "good"},
        "vp9": {"auto-alt-ref": "1", "lag-in-frames": "16", "deadline": "good"},
    },
    "open groups": {
        "h264": {"x264-params": X264 + ":open-gop=1"},
        "hevc": {"x265-params": X265 + ":bframes=3:open-gop=1"},
        "mpeg2": {"bf": "2"},
    },
}
CONTAINERS = {  # extension: FFmpeg's muxer
    "mp4": "mp4",
    "mov": "mov",
    "mkv": "matroska",
    "webm": "webm",
    "avi": "avi",
    "mpg": "mpeg",
    "vob": "vob",
    "ts": "mpegts",
    "ogv": "ogg",
    "gif": "gif",
    "webp": "webp",
    "flv": "flv",
    "3gp": "3gp",
}
FEATURES = (
    "plain",
    "B-frames",
    "open groups",
    "uneven times",
    "wide pixels",
    "rotation 90",
    "rotation 180",
    "rotation 270",
    "edit list",
    "late first frame",
    "no duration",
    "cut short",
    "cover art",
    "audio longer than picture",
)
ISO = ("mp4", "mov", "3gp")
SOUND = dict.fromkeys(("mp4", "mov", "3gp", "mkv", "ts", "flv"), "aac") | dict.fromkeys(("avi", "mpg", "vob"), "mp2")
SOUND |= {"webm": "libopus", "ogv": "flac"}
WITHOUT_DURATION = dict.fromkeys(("mkv", "webm"), {"live": "1"}) | {"flv": {"flvflags": "no_duration_filesize"}}
WITHOUT_DURATION |= dict.fromkeys(ISO, {"movflags": "frag_keyframe+empty_moov"})  # a fragmented MP4
LATE, HIDDEN = 2000, 400  # ms
os.environ["SVT_LOG"] = "1"  # errors alone


def barcode(number):
    frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    frame[HEIGHT // 2 :] = 96 + (np.arange(WIDTH)[:, None] + 2 * number) % 64
    for bit in range(NUM_BITS):
        frame[: HEIGHT // 2, 16 * bit : 16 * bit + 16] = 255 * (number >> bit & 1)
    return frame


def number_of(frame):
    squares = np.array_split(frame[4:40], NUM_BITS, axis=1)
    return sum(int(square[:, 4:-4].mean() > 127) << bit for bit, square in enumerate(squares))


class CannotBeWritten(Exception):
    """FFmpeg has no encoder for this codec, the container does not take it, or has no place for the feature."""


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Writes a codec's film in one coding, once, and returns its file and its packets."""
    folder, films = tmp_path_factory.mktemp("films"), {}

    def write(codec, coding):
        coding = coding if coding in (*CODINGS, "uneven times", "wide pixels") else "plain"
        if (codec, coding) not in films:
            extension = {"prores": "mov", "av1": "mkv"}.get(codec, "nut")
            films[codec, coding] = encode(folder / f"{codec} {coding}.{extension}", codec, coding)
        return films[codec, coding]

    return write


@contextmanager
def kept_scheduling():
    """Restores the caller's scheduling. Run by root, SVT-AV1 leaves it in a real-time class: whatever the process does
    or starts later, such as a browser, would starve all others."""
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)


def encode(path, codec, coding):
    encoder, pixels, options = CODECS[codec]
    if coding in CODINGS and codec not in CODINGS[coding]:
        return None
    try:
        av.codec.Codec(encoder, "w")
    except av.codec.codec.UnknownCodecError:
        return None
    packets = []
    scheduling = kept_scheduling() if codec == "av1" and sys.platform == "linux" else nullcontext()
    with scheduling, av.open(str(path), "w") as out:
        stream = out.add_stream(encoder, rate=25, options=options | CODINGS.get(coding, {}).get(codec, {}))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pixels
        if coding == "wide pixels":
            stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        for number, time in enumerate(UNEVEN if coding == "uneven times" else EVEN):
            frame = av.VideoFrame.from_ndarray(barcode(number), format="rgb24")
            frame.pts, frame.time_base = time // 40, Fraction(1, 25)
            packets += stream.encode(frame)
        packets += stream.encode(None)
        rows = [(bytes(packet), packet.pts, packet.dts, packet.is_keyframe, packet.time_base) for packet in packets]
        out.mux(packets)
    return path, rows


def write_cell(path, extension, codec, feature, film):
    """Writes the file; returns the numbers of its visible frames and their times in ms, or raises CannotBeWritten."""
    times = UNEVEN if feature == "uneven times" else EVEN
    if (codec == "webp") != (extension == "webp") or (codec == "gif") != (extension == "gif"):
        raise CannotBeWritten
    if codec == "webp":
        return write_webp(path, feature, times)
    source = film(codec, feature)
    if source is None:
        raise CannotBeWritten
    options = WITHOUT_DURATION.get(extension, {}) if feature == "no duration" else {}
    needs = {
        "no duration": [*WITHOUT_DURATION, "ts"],
        "edit list": ISO,
        "late first frame": ("mkv", "webm", "ts", "flv", "mp4", "mov", "3gp", "vob"),
        "cover art": ("mp4", "mov", "mkv"),
        "audio longer than picture": SOUND,
    }
    if extension not in needs.get(feature, [extension]) or "rotation" in feature and extension not in (*ISO, "mkv"):
        raise CannotBeWritten
    shift = {"edit list": -HIDDEN, "late first frame": LATE}.get(feature, 0)
    options |= {"avoid_negative_ts": "disabled"} if feature == "edit list" else {}
    try:
        with av.open(str(source[0])) as old, av.open(path, "w", format=CONTAINERS[extension], options=options) as new:
            stream = new.add_stream_from_template(old.streams.video[0], opaque=codec == "av1")  # two codecs of a name
            stream.time_base = Fraction(1, 25)
            if "rotation" in feature:
                stream.set_display_rotation(int(feature.split()[1]))
            sound = new.add_stream(SOUND[extension], rate=48000) if "audio" in feature else None
            cover = new.add_stream("mjpeg") if feature == "cover art" else None
            if cover:
                cover.width, cover.height, cover.pix_fmt, cover.disposition = 64, 64, "yuvj420p", 1024
            for data, pts, dts, is_key, time_base in source[1]:
                packet, ticks = av.Packet(data), round(Fraction(shift, 1000) / time_base)
                packet.pts, packet.dts, packet.time_base = pts + ticks, dts + ticks, time_base
                packet.is_keyframe = is_key
                packet.stream, packet.duration = stream, round(Fraction(40, 1000) / time_base)
                new.mux(packet)
            if cover:
                new.mux(cover.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), 99, np.uint8), "rgb24")))
                new.mux(cover.encode(None))
            if sound:
                write_silence(new, sound, times[-1] / 1000 + 2)
        with av.open(path) as file:
            best = file.streams.best("video")
            frames = list(file.decode(best))
            decoded = [number_of(frame.to_ndarray(format="rgb24")) for frame in frames]
            decoded_times = [1000 * (frame.time - frames[0].time) for frame in frames]
    except (av.error.FFmpegError, ValueError, AttributeError, TypeError) as error:
        raise CannotBeWritten from error
    first = HIDDEN // 40 if feature == "edit list" else 0
    numbers = list(range(first, len(times)))
    if decoded != numbers:  # FFmpeg wrote what it does not read back
        raise CannotBeWritten
    if (
        extension in ("avi", "mpg", "vob", "ogv")
        and feature == "uneven times"
        and decoded_times != pytest.approx(times)
    ):
        raise CannotBeWritten  # these do not have a display time for each frame
    if feature == "cut short":
        data = path_bytes(path)
        with open(path, "wb") as file:
            file.write(data[: len(data) * 6 // 10])
    return numbers, [time - times[first] for time in times[first:]]


def path_bytes(path):
    with open(path, "rb") as file:
        return file.read()


def write_webp(path, feature, times):
    if feature not in ("plain", "uneven times", "cut short"):
        raise CannotBeWritten
    pages = [Image.fromarray(barcode(number)) for number in range(len(times))]
    durations = np.diff([*times, times[-1] + 40]).tolist()
    pages[0].save(path, save_all=True, append_images=pages[1:], duration=durations, lossless=True, method=0)
    if feature == "cut short":
        data = path_bytes(path)
        with open(path, "wb") as file:
            file.write(data[: len(data) * 6 // 10])
    return list(range(len(times))), times


def write_silence(container, stream, seconds):
    size = stream.codec_context.frame_size or 1024
    for number in range(int(seconds * 48000 / size)):
        layout, form = stream.codec_context.layout.name, stream.codec_context.format.name
        frame = av.AudioFrame(format=form, layout=layout, samples=size)
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        frame.rate, frame.pts, frame.time_base = 48000, number * size, Fraction(1, 48000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def read(path, feature, **kwargs):
    frames, times = load_video(path, **kwargs)
    turns = int(feature.split()[1]) // 90 if "rotation" in feature else 0
    frames = [np.rot90(frame, -turns) for frame in frames]  # rotations are counter-clockwise
    return [number_of(frame) for frame in frames], [1000 * time for time in times], frames[0].shape


def shown(numbers, times, moments):
    """The rule, told again: what is on screen at each moment (ms), each frame once."""
    return sorted({max(n for n, time in zip(numbers, times, strict=True) if time <= moment + 1) for moment in moments})


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("extension", CONTAINERS)
def test_cells(tmp_path, film, extension, codec):
    missing = []
    for feature in FEATURES:
        path = str(tmp_path / f"{feature}.{extension}")
        try:
            numbers, times = write_cell(path, extension, codec, feature, film)
        except CannotBeWritten:
            missing.append(feature)
            continue
        if feature == "cut short":
            check_cut_short(path, numbers, times)
            continue
        found, found_times, shape = read(path, feature, num_frames=99)
        assert found == numbers, feature
        assert found_times == pytest.approx(times, abs=11 if extension == "gif" else 2), feature
        with av.open(path) as file:
            assert shape == (HEIGHT, round(WIDTH * (file.streams.best("video").sample_aspect_ratio or 1)), 3)
        assert read(path, feature, fps=3)[0] == shown(numbers, times, np.arange(0, times[-1] + 1, 1000 / 3)), feature
        moments = np.arange(0, times[-1] - 599, 100) + 600
        assert read(path, feature, fps=10, start=0.6)[0] == shown(numbers, times, moments), feature
        if "audio" in feature:
            assert read(path, feature, num_frames=99, end=times[-1] / 1000 + 1.5)[0] == numbers
    print(f"{codec} in {extension}: cannot be written: {', '.join(missing) or 'none'}")
    if len(missing) == len(FEATURES):
        pytest.skip(f"{codec} in {extension} cannot be written")


def check_cut_short(path, numbers, times):
    """Either the right frames, or an error; what is left can always be read by its times, if anything is."""
    try:
        found, found_times, _ = read(path, "cut short", num_frames=99)
    except VideoError as error:
        assert "truncated" in str(error)
    else:
        assert found == numbers[: len(found)] and found_times == pytest.approx(times[: len(found)], abs=11)


def write_first(path, extension, film):
    """`write_cell` with the first codec that the container takes."""
    for codec in CODECS:
        try:
            return write_cell(path, extension, codec, "plain", film)
        except CannotBeWritten:
            continue


@pytest.mark.parametrize("extension", CONTAINERS)
def test_every_door_opens_the_same_frames(tmp_path, film, processor, extension):
    """A message to the processor, evaluation, annotation, the demo's upload and lmms-eval."""
    path = str(tmp_path / f"a.{extension}")
    numbers, times = write_first(path, extension, film)
    expected = shown(numbers, times, np.arange(0, times[-1] + 1, 500))

    check_upload(path)
    record = record_from_messages([{"role": "user", "content": [{"type": "video", "url": path}]}])
    for frames, found in (
        processor.open_video(path),
        open_in_subprocess(processor)(path),
        open_clip(processor, Record("1", "q", "a", video=path)),
        open_clip(processor, record),
    ):
        assert [number_of(frame) for frame in frames] == expected
        assert 1000 * found == pytest.approx([times[numbers.index(number)] for number in expected], abs=11)
    message = {"role": "user", "content": [{"type": "video", "video": path}]}
    settings = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    batch = processor.apply_chat_template([[message]], **settings)
    again = processor(text=["<|video_pad|>"], videos=[frames], video_timestamps=[found], return_tensors="pt")
    for name in ("pixel_values_videos", "video_grid_thw", "second_per_grid_ts"):
        assert batch[name].equal(again[name]), name
    samples = [(1000 * time, number_of(frame)) for time, frame in _sample_frames(path) if frame is not None]
    assert len(samples) >= 15  # 8 a second
    assert [time for time, _ in samples] == pytest.approx([times[number] for _, number in samples], abs=11)


@pytest.mark.parametrize("extension", CONTAINERS)
def test_a_damaged_upload_is_read_or_refused(tmp_path, film, processor, extension):
    """bench/robustness/damaged_uploads.py does it 10,000 times."""
    path = str(tmp_path / f"a.{extension}")
    write_first(path, extension, film)
    data, random = np.frombuffer(path_bytes(path), np.uint8), np.random.default_rng(0)
    for _ in range(3):
        damaged, places = data.copy(), random.integers(0, len(data), 20)
        damaged[places] = random.integers(0, 256, len(places))
        with open(path, "wb") as file:
            file.write(damaged[: random.integers(len(data) // 2, len(data) + 1)].tobytes())
        try:
            frames, found = open_in_subprocess(processor)(path)
            assert len(frames) == len(found) > 0
        except VideoError as error:
            assert "the decoder failed" not in str(error)
