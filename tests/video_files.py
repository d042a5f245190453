"""Video files for tests: frames whose brightness spells their index, and files that cannot be read."""

import io
import struct
from fractions import Fraction

import av
import numpy as np
from PIL import Image

CONSTANT = [40 * i for i in range(30)]  # milliseconds


def write_video(path, times_ms=CONSTANT, codec="libx264", options=None, mux=None, audio=False, size=(64, 48)):
    """One frame per time, of brightness 8 * index, with a lighter quarter at the top left."""
    width, height = size
    with av.open(str(path), "w", options=mux or {}) as out:
        stream = out.add_stream(codec, rate=25, options=options or {"crf": "8"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        stream.codec_context.gop_size = 12
        sound = out.add_stream("aac", rate=16000) if audio else None
        for i, time in enumerate(times_ms):
            image = np.full((height, width, 3), 8 * i, np.uint8)
            image[: height // 2, : width // 2] += 10
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
        if audio:
            out.mux(sound.encode(silence()) + sound.encode(None))
    return path


def silence():
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
    frame.rate = 16000
    return frame


def unreadable(tmp_path, kind):
    path = tmp_path / "clip.mp4"
    if kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("Good morning. " * 100)
    elif kind == "no index":
        data = write_video(path).read_bytes()
        path.write_bytes(data[: len(data) // 2])
    elif kind == "audio":
        with av.open(str(path), "w") as out:
            stream = out.add_stream("aac", rate=16000)
            out.mux(stream.encode(silence()) + stream.encode(None))
    elif kind == "20,000 pixels wide and high":
        whole = io.BytesIO()
        Image.new("L", (8, 8)).save(whole, "GIF")
        path.write_bytes(whole.getvalue().replace(struct.pack("<HH", 8, 8), struct.pack("<HH", 20_000, 20_000)))
    return path
