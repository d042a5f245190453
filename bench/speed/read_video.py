"""Time and memory of reading videos, against the readers that others use, as ratios within one run.

    python bench/speed/read_video.py        # about five minutes on two cores; writes its films into a temporary folder

Three questions. Frames at 2 a second of a film of 30 s, 1920 x 1080, H.264: `load_video` against decord (if installed)
and against PyAV's plain decoding. 16 frames of an hour-long film: `load_video` against PyAV's seek to the key frame
before each, and against torchcodec (if it loads here). Peak memory (VmHWM, on Linux) of a process that reads at 2
frames a second, by resolution and by length. Each time is the smallest of three; processor seconds stand beside it,
since other work on a machine changes the wall clock. Exits with 1 if the hour takes more than twice PyAV's seeks, or
any peak is above 1 GB.
"""

import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from fourdthinker_hf.video_fourdthinker import load_video

ROOT = Path(__file__).parents[2]
PEAK = (
    "import sys; sys.path.insert(0, 'fourdthinker_hf'); from video_fourdthinker import load_video;"
    "load_video(sys.argv[1], fps=2);"  # not ru_maxrss, which a process inherits from the one that started it
    "print(next(int(line.split()[1]) / 1000 for line in open('/proc/self/status') if 'VmHWM' in line))"
)


def write_film(path: Path, width: int, height: int, seconds: int, rate: int) -> Path:
    """A smooth texture that the camera wanders over."""
    noise = np.random.default_rng(0).integers(0, 256, (height // 8 + 40, width // 8 + 40, 3)).astype(np.uint8)
    texture = noise.repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=rate, options={"preset": "veryfast", "crf": "26"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(seconds * rate):
            x, y = int(160 + 150 * np.sin(number / 40)), int(160 + 150 * np.cos(number / 55))
            image = np.ascontiguousarray(texture[y : y + height, x : x + width])
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode(None))
    return path


def repeat(source: Path, path: Path, times: int) -> Path:
    """The same film many times over, without encoding it again."""
    with av.open(str(path), "w") as out:
        stream, offset = None, 0
        for _ in range(times):
            with av.open(str(source)) as film:
                video = film.streams.video[0]
                stream = stream or out.add_stream_from_template(video)
                for packet in film.demux(video):
                    if packet.dts is not None:
                        packet.pts, packet.dts, packet.stream = packet.pts + offset, packet.dts + offset, stream
                        out.mux(packet)
                offset += video.duration
    return path


def timed(read) -> tuple[float, float]:
    """Wall and processor seconds, the smallest of three."""
    found = []
    for _ in range(3):
        wall, processor = time.perf_counter(), time.process_time()
        read()
        found.append((time.perf_counter() - wall, time.process_time() - processor))
    return min(wall for wall, _ in found), min(processor for _, processor in found)


def plain(path: Path, every: int) -> None:
    with av.open(str(path)) as film:
        film.streams.video[0].thread_type = "AUTO"
        for number, frame in enumerate(film.decode(video=0)):
            if number % every == 0:
                frame.to_ndarray(format="rgb24")


def decord_frames(path: Path, every: int) -> None:
    import decord

    reader = decord.VideoReader(str(path))
    for number in range(len(reader)):
        frame = reader.next()
        if number % every == 0:
            frame.asnumpy()


def seeks(path: Path, count: int) -> None:
    with av.open(str(path)) as film:
        video = film.streams.video[0]
        video.thread_type = "AUTO"
        for moment in np.linspace(0, float(video.duration * video.time_base) - 0.1, count):
            film.seek(int(Fraction(moment) / video.time_base), stream=video)
            frame = next(frame for frame in film.decode(video) if frame.time >= moment - 0.041)
            frame.to_ndarray(format="rgb24")


def torchcodec_frames(path: Path, count: int) -> None:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(str(path))
    decoder.get_frames_at(np.linspace(0, len(decoder) - 1, count).astype(int).tolist())


def report(title: str, readers: dict) -> dict[str, float]:
    print(f"\n{title}\n| reader | wall s | processor s | of load_video's processor s |\n| --- | ---: | ---: | ---: |")
    found = {}
    for name, read in readers.items():
        try:
            found[name] = timed(read)
        except (ImportError, RuntimeError, OSError) as error:
            print(f"| {name} | not here: {str(error).splitlines()[0][:60]} | | |")
            continue
        ratio = found[name][1] / found["load_video"][1]
        print(f"| {name} | {found[name][0]:.2f} | {found[name][1]:.2f} | {ratio:.2f} |", flush=True)
    return {name: processor for name, (_, processor) in found.items()}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        hd = write_film(folder / "hd.mp4", 1920, 1080, 30, 30)
        readers = {"load_video": lambda: load_video(hd, fps=2, max_pixels=None)}
        readers |= {"load_video, scaled": lambda: load_video(hd, fps=2)}
        readers |= {"decord, forward": lambda: decord_frames(hd, 15), "PyAV, forward": lambda: plain(hd, 15)}
        report("2 frames a second of 30 s of 1920 x 1080", readers)
        hour = repeat(write_film(folder / "minute.mp4", 640, 360, 60, 25), folder / "hour.mp4", 60)
        readers = {"load_video": lambda: load_video(hour, num_frames=16), "PyAV, 16 seeks": lambda: seeks(hour, 16)}
        readers |= {"torchcodec": lambda: torchcodec_frames(hour, 16)}
        readers |= {"load_video, start=3590": lambda: load_video(hour, num_frames=16, start=3590)}
        found = report("16 frames of an hour of 640 x 360", readers)
        print("\npeak memory of a process at 2 frames a second\n| film | MB |\n| --- | ---: |")
        peaks = []
        for width, height in ((320, 180), (1280, 720), (3840, 2160)):
            film = write_film(folder / f"{height}.mp4", width, height, 10, 10)
            for count in (1, 60) if height in (180, 2160) else (1,):
                path = repeat(film, folder / f"{height}-{count}.mp4", count)
                output = subprocess.check_output([sys.executable, "-c", PEAK, str(path)], cwd=ROOT)
                peaks.append(float(output))
                print(f"| {width} x {height}, {10 * count} s | {peaks[-1]:.0f} |", flush=True)
    sys.exit(found["load_video"] > 2 * found["PyAV, 16 seeks"] or max(peaks) > 1000)


if __name__ == "__main__":
    main()
