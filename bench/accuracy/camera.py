"""The raw-video pipeline measured: camera motion against the simulator's truth, then speed and memory by stage.

    python bench/accuracy/camera.py                                   both
    python bench/accuracy/camera.py camera --seed 900001              clips of levels 1 and 2, of every camera motion
    python bench/accuracy/camera.py speed --seconds 20 --long 7200    a textured scene with noise, 480p and 1080p

A clip with one motion throughout is right if the estimate is one span of just that motion; a clip with several spans,
if the estimate is right for 80% of its time. An orbit is a truck with a pan the other way. Clips with pairs, orbits
and several spans are reported apart, and so is what a confidence of `--sure` keeps.
"""

import argparse
import itertools
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

import av
import cv2
import numpy as np
from annotated_questions import ORBITS

from fourdthinker_hf.data.annotation.camera import Camera, estimate_camera
from fourdthinker_hf.data.annotation.shots import Shot, shots
from fourdthinker_hf.data.simulation import generation
from fourdthinker_hf.data.simulation.rendering import FPS
from fourdthinker_hf.data.vocabulary import CAMERA_MOTIONS, DSR_TASKS, STATIC_CAMERA
from fourdthinker_hf.evaluation.statistics import wilson_interval

SINGLE = [name for name in CAMERA_MOTIONS if name not in ORBITS]
QUOTAS = {
    **dict.fromkeys(SINGLE, 4),
    STATIC_CAMERA: 2,
    "orbits": 5,
    "pairs": 15,
    "several spans": 10,
}  # clips of each level

# Camera


def named(motions: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(itertools.chain.from_iterable(ORBITS.get(name, (name,)) for name in motions)))


def kind_of(spans: tuple[tuple[float, float, tuple[str, ...]], ...]) -> str:
    names = {motions for _, _, motions in spans}
    if len(names) > 1:
        return "several spans"
    (motions,) = names
    return "pairs" if len(motions) > 1 else "orbits" if motions[0] in ORBITS else motions[0]


def clips(seed: int, level: int):
    """(kind, clip) of each kind until there are `QUOTAS`; level 1 has no pairs."""
    wanted = Counter({kind: num for kind, num in QUOTAS.items() if level > 1 or kind != "pairs"})
    for index in itertools.count():
        for task in DSR_TASKS:
            kind = kind_of(generation.simulate_question(seed, task, index, level).truth.camera_motions)
            if wanted[kind]:
                wanted[kind] -= 1
                yield kind, generation.simulate_clip(seed, task, index, level, mask_frames=())
        if not sum(wanted.values()):
            return


def share_right(camera: Camera, truth: tuple[tuple[float, float, tuple[str, ...]], ...]) -> float:
    """Share of the clip's time with the true motions."""
    moments = np.arange(0.025, truth[-1][1], 0.05)
    told = [next(span.motions for span in camera.spans if moment < span.end) for moment in moments]
    true = [next(named(motions) for _, end, motions in truth if moment < end) for moment in moments]
    return float(np.mean([a == b for a, b in zip(told, true, strict=True)]))


def measure_camera(seed: int, sure: float) -> None:
    rows: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    for level in (1, 2):
        for kind, clip in clips(seed, level):
            shot = Shot("clip", 0.0, len(clip.frames) / FPS, clip.frames, clip.timestamps)
            camera = estimate_camera(shot)
            share = share_right(camera, clip.truth.camera_motions)
            right = share >= 0.8 if kind == "several spans" else share == 1.0
            least = min(span.confidence for span in camera.spans)
            rows[kind].append((right, least >= sure))
            if not right:
                told = ", ".join(f"{s.start:.1f} {'+'.join(s.motions)} ({s.confidence:.2f})" for s in camera.spans)
                print(f"wrong, level {level}: {clip.truth.camera_motions} told as {told}", flush=True)
    print(f"\n| camera | clips | right | 95% interval | confident ({sure:g}) | right of these |\n|" + " - |" * 6)
    total = [row for kind in (*SINGLE, STATIC_CAMERA) for row in rows[kind]]
    for kind, some in [*((kind, rows[kind]) for kind in QUOTAS), ("one motion or none, all", total)]:
        right, kept = sum(a for a, _ in some), [a for a, confident in some if confident]
        low, high = wilson_interval(right, len(some))
        print(f"| {kind} | {len(some)} | {right} | {low:.0%} to {high:.0%} | {len(kept)} | {sum(kept)} |")


# Speed and memory


def write_scene(path: Path, width: int, height: int, seconds: float, rate: int = 30) -> None:
    """A camera pans over a textured wall before which three things move; with a sensor's noise."""
    rng = np.random.default_rng(0)
    wall = sum(
        cv2.resize(rng.integers(0, 256, (height // k, 2 * width // k, 3)).astype(np.float32), (2 * width, height)) / 5
        for k in (64, 16, 4)
    )
    noise = rng.normal(0, 3, (height, width, 3)).astype(np.float32)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=rate, options={"preset": "veryfast", "crf": "28"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for t in np.arange(round(seconds * rate)) / rate:
            x = (1 + np.sin(0.2 * t)) / 2 * width
            frame = cv2.getRectSubPix(wall, (width, height), (x + width / 2, height / 2))
            for k in range(3):
                left, top = int((0.1 * t * (k + 1) % 1) * width * 0.9), int(height * (0.2 + 0.2 * k))
                frame[top : top + height // 8, left : left + width // 10] = (60 * k, 200 - 60 * k, 90)
            frame += np.roll(noise, rng.integers(height), 0)
            pixels = np.clip(frame, 0, 255).astype(np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        out.mux(stream.encode())


def repeat(source: Path, path: Path, seconds: float) -> None:
    """`source` again and again, its packets copied."""
    with av.open(str(path), "w") as out:
        shift, stream = 0, None
        while stream is None or shift * stream.time_base < seconds:
            with av.open(str(source)) as once:
                video = once.streams.video[0]
                stream = stream or out.add_stream_from_template(video)
                for packet in once.demux(video):
                    if packet.dts is not None:
                        packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, stream
                        out.mux(packet)
                shift += video.duration


ALONE = """
import resource, sys, time
from fourdthinker_hf.data.annotation.shots import shots
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before, start = peak(), time.process_time()
print(sum(shot.end - shot.start for shot in shots(sys.argv[1])), time.process_time() - start, before, peak())
"""


def stages(path: Path) -> tuple[float, dict[str, float]]:
    """Seconds of video looked at, and the processor's seconds by stage."""
    looked, spent, start = 0.0, Counter(), time.process_time()
    for shot in shots(path):
        spent["shots"] += time.process_time() - start
        looked += shot.end - shot.start
        for name, stage in (("camera", estimate_camera),):
            start = time.process_time()
            stage(shot)
            spent[name] += time.process_time() - start
        start = time.process_time()
    spent["shots"] += time.process_time() - start
    return looked, spent


def measure_speed(seconds: float, long: float) -> None:
    print("\n| video | seconds of it a processor second | by stage |\n| - | - | - |")
    with tempfile.TemporaryDirectory() as folder:
        for height, width in ((480, 854), (1080, 1920)):
            path = Path(folder) / f"{height}.mp4"
            write_scene(path, width, height, seconds)
            looked, spent = stages(path)
            parts = ", ".join(f"{name} {looked / value:.1f}" for name, value in spent.items())
            print(f"| {height}p, {seconds:g} s | {looked / sum(spent.values()):.1f} | {parts} |", flush=True)
        for length in (60.0, long):
            whole = Path(folder) / "long.mp4"
            repeat(path, whole, length)
            started = time.perf_counter()
            told = subprocess.run([sys.executable, "-c", ALONE, str(whole)], check=True, capture_output=True).stdout
            looked, spent, before, after = map(float, told.split())
            took = f"{looked:.0f} s looked at in {spent:.0f} processor seconds, {time.perf_counter() - started:.0f} s"
            memory = f"peak {after:.0f} MB, {before:.0f} of them for imports"
            print(f"| 1080p, {length:g} s, shots alone | {took} | {memory} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["camera", "speed"], help="camera, speed")
    parser.add_argument("--seed", type=int, default=900001)
    parser.add_argument("--sure", type=float, default=0.5)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--long", type=float, default=7200.0)
    arguments = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    print(f"commit {commit or 'unknown'}, {os.cpu_count()} cores, {platform.machine()}, OpenCV {cv2.__version__}")
    if "camera" in arguments.what:
        measure_camera(arguments.seed, arguments.sure)
    if "speed" in arguments.what:
        measure_speed(arguments.seconds, arguments.long)


if __name__ == "__main__":
    main()
