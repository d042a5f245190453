"""Damages videos of every container and gives each to the demo's upload check and decoding process.

    nice -n 10 python bench/robustness/damaged_uploads.py --files 10000 --keep /tmp/kept

File number n is made from n alone: a source, and one to three damages to it (bytes or a big-endian number changed
anywhere or in the head, a part cut off, left out, repeated, zeroed, or taken from another source). Prints how many
were refused by their first bytes, read, refused by the reader, stopped by the limits on time and memory, and how often
the decoding process crashed or ended with another error than VideoError; with `--keep`, these files and those that
took over 10 s are kept there. Exits with 1 if the parent met anything but VideoError, if any file took longer than the
limit, or if a process is left.
"""

import argparse
import itertools
import os
import struct
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import psutil
from PIL import Image

from fourdthinker_hf.demo import uploads
from fourdthinker_hf.demo.uploads import MAX_DECODE_SECONDS, check_upload, open_in_subprocess
from fourdthinker_hf.video_fourdthinker import VideoError

INPUTS = Path(__file__).parents[2] / "tests" / "video_inputs"
REAL = ("mediarecorder_chromium.webm", "mpegps_shifted.mpg", "theora_noaudio.ogv", "hdr_hlg.mov", "ntsc_2997.mp4")
X265 = {"x265-params": "log-level=none"}
SOURCES = (  # extension, muxer, its options, encoder, pixel format, its options
    ("mp4", "mp4", {}, "libx264", "yuv420p", {}),
    ("mp4", "mp4", {"movflags": "frag_keyframe+empty_moov"}, "libx264", "yuv420p", {}),
    ("mp4", "mp4", {"movflags": "faststart"}, "libx265", "yuv420p", X265),
    ("mp4", "mp4", {}, "mpeg4", "yuv420p", {}),
    ("mov", "mov", {}, "prores_ks", "yuv422p10le", {}),
    ("mov", "mov", {}, "mjpeg", "yuvj420p", {}),
    ("mkv", "matroska", {}, "libx264", "yuv420p", {}),
    ("mkv", "matroska", {}, "libsvtav1", "yuv420p", {"preset": "12"}),
    ("webm", "webm", {}, "libvpx-vp9", "yuv420p", {"deadline": "realtime"}),
    ("webm", "webm", {"live": "1"}, "libvpx", "yuv420p", {"deadline": "realtime"}),
    ("avi", "avi", {}, "mpeg4", "yuv420p", {}),
    ("avi", "avi", {}, "libx264", "yuv420p", {}),
    ("mpg", "mpeg", {}, "mpeg2video", "yuv420p", {}),
    ("vob", "vob", {}, "mpeg2video", "yuv420p", {}),
    ("ts", "mpegts", {}, "libx264", "yuv420p", {}),
    ("ts", "mpegts", {}, "libx265", "yuv420p", X265),
    ("flv", "flv", {}, "libx264", "yuv420p", {}),
    ("flv", "flv", {}, "flv", "yuv420p", {}),
    ("3gp", "3gp", {}, "h263", "yuv420p", {}),
    ("gif", "gif", {}, "gif", "rgb8", {}),
)
os.environ["SVT_LOG"] = "1"  # errors alone


def write_sources(folder: Path) -> list[tuple[str, bytes]]:
    """Two seconds of a moving texture in each format, and the real files: name and content."""
    texture = np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
    images = [np.ascontiguousarray(texture[k : k + 144, 2 * k : 2 * k + 176]) for k in range(50)]
    sources = [(name, (INPUTS / name).read_bytes()) for name in REAL]
    scheduling = os.sched_getscheduler(0), os.sched_getparam(0)
    for number, (extension, muxer, muxing, encoder, pixels, options) in enumerate(SOURCES):
        path = folder / f"{number}_{encoder}.{extension}"
        with av.open(str(path), "w", format=muxer, options=muxing) as out:
            stream = out.add_stream(encoder, rate=25, options=options)
            stream.width, stream.height, stream.pix_fmt = 176, 144, pixels
            for pts, image in enumerate(images):
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts, frame.time_base = pts, Fraction(1, 25)
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
        os.sched_setscheduler(0, *scheduling)  # run by root, SVT-AV1 leaves it in a real-time class
        sources.append((path.name, path.read_bytes()))
    pages = [Image.fromarray(image) for image in images]
    pages[0].save(folder / "pillow.webp", save_all=True, append_images=pages[1:], duration=40)
    return [*sources, ("pillow.webp", (folder / "pillow.webp").read_bytes())]


def damage(number: int, sources: list[tuple[str, bytes]]) -> tuple[str, bytes]:
    """Name and content of file `number`."""
    random = np.random.default_rng(number)
    name, content = sources[number % len(sources)]
    data = bytearray(content)
    for kind in random.integers(0, 8, random.integers(1, 4)):
        end = min(len(data), 2000) if random.random() < 0.5 else len(data)
        place = int(random.integers(0, max(end, 1)))
        part = slice(place, place + int(2 ** random.uniform(0, 12)))
        if kind in (0, 1):
            for changed in random.integers(0, max(end, 1), random.integers(1, 40)):
                data[changed : changed + 1] = random.bytes(1)
        elif kind in (2, 3):
            extreme = random.choice([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, int(random.integers(2**32))])
            data[place : place + 4] = struct.pack(">I", extreme)
        elif kind == 4:
            del data[max(place, 1) :]
        elif kind == 5:
            del data[part]
        elif kind == 6:
            data[place:place] = data[part] * int(random.integers(1, 4))
        else:
            _, other = sources[random.integers(len(sources))]
            begin = int(random.integers(0, len(other)))
            data[part] = random.choice([bytes(part.stop - part.start), other[begin : begin + part.stop - part.start]])
    return f"{number:05d}_{name}", bytes(data)


def judge(path: Path, open_video) -> tuple[str, float]:
    """What became of a file, and the seconds that it took."""
    began = time.monotonic()
    try:
        check_upload(str(path))
    except VideoError:
        return "refused by its first bytes", time.monotonic() - began
    try:
        open_video(str(path))
        found = "read"
    except VideoError as error:
        found = "refused by the reader"
        if "was not read within" in str(error):
            found = "stopped: time"
        elif "do not fit into the memory" in str(error):
            found = "stopped: memory"
        elif "the decoder failed at it" in str(error):
            found = "crashed, or another error than VideoError"
    except Exception as error:
        found = f"THE PARENT met {error!r}"
    return found, time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="the number of the first file")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no file after so many")
    parser.add_argument("--workers", type=int, default=2, help="files at a time")
    parser.add_argument("--keep", type=Path, help="a folder for what crashed, was stopped or took over 10 s")
    args = parser.parse_args()
    began, counts, slowest, leftover = time.monotonic(), Counter(), (0.0, ""), 0
    open_video = open_in_subprocess(SimpleNamespace(fps=8.0, max_frames=16, pair_seconds=None))
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.workers) as pool:
        folder = Path(folder)
        sources = write_sources(folder)

        def run(number: int):
            if time.monotonic() - began > 60 * args.minutes:
                return None
            name, data = damage(number, sources)
            path = folder / name
            path.write_bytes(data)
            found, seconds = judge(path, open_video)
            if args.keep and (found.startswith(("crashed", "stopped", "THE")) or seconds > 10):
                args.keep.mkdir(parents=True, exist_ok=True)
                (args.keep / name).write_bytes(data)
            path.unlink()
            return name, found, seconds

        for done in itertools.takewhile(bool, pool.map(run, range(args.first, args.first + args.files))):
            name, found, seconds = done
            counts[found] += 1
            slowest = max(slowest, (seconds, name))
            if found.startswith(("crashed", "stopped", "THE")):
                print(f"{name}: {found}, {seconds:.1f} s", flush=True)
            if counts.total() % 500 == 0:
                print(f"{counts.total()} files, {time.monotonic() - began:.0f} s: {dict(counts)}", flush=True)
        leftover = len([child for child in psutil.Process().children() if uploads.DECODE_PROGRAM in child.cmdline()])
    print(f"\n| {counts.total()} files | |\n| --- | ---: |")
    for found, count in counts.most_common():
        print(f"| {found} | {count} |")
    print(f"slowest: {slowest[0]:.1f} s ({slowest[1]}); processes left: {leftover}")
    is_wrong = any(found.startswith("THE") for found in counts)
    sys.exit(is_wrong or leftover > 0 or slowest[0] > MAX_DECODE_SECONDS + 10)


if __name__ == "__main__":
    main()
