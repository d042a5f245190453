"""Measures how well camera motion is estimated in simulated clips, and the speed and memory of annotation by stage.

    python bench/accuracy/camera.py                                   both
    python bench/accuracy/camera.py camera --seed 900001              clips of levels 1 and 2, of every camera motion
    python bench/accuracy/camera.py speed --seconds 20 --long 7200    a textured scene with noise, 480p and 1080p

A clip with one motion throughout is right if the estimate is one span of just this motion. A clip with several spans
is right if the estimate is right for 80% of its time. An orbit counts as a truck with the opposite pan. Clips with
pairs, orbits and several spans are reported apart. The last columns are of clips whose spans are all estimated with a
confidence of `--sure` or more.
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
from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np

from fourdthinker_hf.data.annotation.camera_motion import CameraMotion, estimate_camera_motion
from fourdthinker_hf.data.annotation.shots import read_shots
from fourdthinker_hf.data.ground_truth import ORBIT_PARTS, clip_to_shot
from fourdthinker_hf.data.question_vocabulary import CAMERA_MOTIONS, DSR_TASKS, STATIC_CAMERA
from fourdthinker_hf.data.simulation import generate_records
from fourdthinker_hf.data.simulation.rendering import Clip
from fourdthinker_hf.evaluation.statistics import wilson_interval

SINGLE_MOTIONS = [name for name in CAMERA_MOTIONS if name not in ORBIT_PARTS]
NUM_CLIPS = {  # of each kind and level
    **dict.fromkeys(SINGLE_MOTIONS, 4),
    STATIC_CAMERA: 2,
    "orbits": 5,
    "pairs": 15,
    "several spans": 10,
}

# Camera


def split_orbits(motions: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(itertools.chain.from_iterable(ORBIT_PARTS.get(name, (name,)) for name in motions)))


def kind_of_clip(spans: tuple[tuple[float, float, tuple[str, ...]], ...]) -> str:
    different = {motions for _, _, motions in spans}
    if len(different) > 1:
        return "several spans"
    (motions,) = different
    return "pairs" if len(motions) > 1 else "orbits" if motions[0] in ORBIT_PARTS else motions[0]


def simulate_clips(seed: int, level: int) -> Iterator[tuple[str, Clip]]:
    """(kind, clip), `NUM_CLIPS` of each kind; level 1 has no pairs."""
    wanted = Counter({kind: num for kind, num in NUM_CLIPS.items() if level > 1 or kind != "pairs"})
    for index in itertools.count():
        for task in DSR_TASKS:
            kind = kind_of_clip(generate_records.simulate_question(seed, task, index, level).truth.camera_motions)
            if wanted[kind]:
                wanted[kind] -= 1
                yield kind, generate_records.simulate_clip(seed, task, index, level, mask_frames=())
        if not sum(wanted.values()):
            return


def share_right(camera: CameraMotion, truth: tuple[tuple[float, float, tuple[str, ...]], ...]) -> float:
    """The share of the clip's time in which the estimated motions are the true ones."""
    times = np.arange(0.025, truth[-1][1], 0.05)
    estimated = [next(span.motions for span in camera.spans if time < span.end) for time in times]
    true = [next(split_orbits(motions) for _, end, motions in truth if time < end) for time in times]
    return float(np.mean([a == b for a, b in zip(estimated, true, strict=True)]))


def measure_camera(seed: int, min_confidence: float) -> None:
    by_kind: dict[str, list[tuple[bool, bool]]] = defaultdict(list)  # (is right, is confident)
    for level in (1, 2):
        for kind, clip in simulate_clips(seed, level):
            camera = estimate_camera_motion(clip_to_shot(clip))
            share = share_right(camera, clip.truth.camera_motions)
            is_right = share >= 0.8 if kind == "several spans" else share == 1.0
            is_confident = min(span.confidence for span in camera.spans) >= min_confidence
            by_kind[kind].append((is_right, is_confident))
            if not is_right:
                spans = [f"{span.start:.1f} {'+'.join(span.motions)} ({span.confidence:.2f})" for span in camera.spans]
                print(f"wrong, level {level}: {clip.truth.camera_motions}, estimated {', '.join(spans)}", flush=True)
    print(f"\n| camera | clips | right | 95% interval | confident ({min_confidence:g}) | right of these |")
    print("|" + " - |" * 6)
    single = [clip for kind in (*SINGLE_MOTIONS, STATIC_CAMERA) for clip in by_kind[kind]]
    for kind, clips in [*((kind, by_kind[kind]) for kind in NUM_CLIPS), ("one motion or none, all", single)]:
        num_right = sum(is_right for is_right, _ in clips)
        confident = [is_right for is_right, is_confident in clips if is_confident]
        low, high = wilson_interval(num_right, len(clips))
        interval = f"{low:.0%} to {high:.0%}"
        print(f"| {kind} | {len(clips)} | {num_right} | {interval} | {len(confident)} | {sum(confident)} |")


# Speed and memory


def write_scene(path: Path, width: int, height: int, seconds: float, rate: int = 30) -> None:
    """Write a video with a sensor's noise, in which the camera pans over a textured wall and three objects move."""
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
    """Write a video that repeats `source`, by copying its packets, until it has `seconds`."""
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


# Prints the seconds of video in shots, the processor's seconds, and the peak memory in MB before and after.
READ_SHOTS = """
import resource, sys, time
from fourdthinker_hf.data.annotation.shots import read_shots
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before, start = peak(), time.process_time()
print(sum(shot.end - shot.start for shot in read_shots(sys.argv[1])), time.process_time() - start, before, peak())
"""


def time_stages(path: Path) -> tuple[float, Counter]:
    """The seconds of video in shots, and the processor's seconds of each stage."""
    video_seconds, spent, start = 0.0, Counter(), time.process_time()
    for shot in read_shots(path):
        found = time.process_time()
        estimate_camera_motion(shot)
        spent["shots"] += found - start
        spent["camera"] += time.process_time() - found
        video_seconds += shot.end - shot.start
        start = time.process_time()
    spent["shots"] += time.process_time() - start
    return video_seconds, spent


def measure_speed(seconds: float, long: float) -> None:
    print("\n| video | seconds of it a processor second | by stage |\n| - | - | - |")
    with tempfile.TemporaryDirectory() as folder:
        for height, width in ((480, 854), (1080, 1920)):
            path = Path(folder) / f"{height}.mp4"
            write_scene(path, width, height, seconds)
            video_seconds, spent = time_stages(path)
            stages = ", ".join(f"{name} {video_seconds / value:.1f}" for name, value in spent.items())
            print(f"| {height}p, {seconds:g} s | {video_seconds / spent.total():.1f} | {stages} |", flush=True)
        for length in (60.0, long):
            whole = Path(folder) / "long.mp4"
            repeat(path, whole, length)
            start = time.perf_counter()
            command = [sys.executable, "-c", READ_SHOTS, str(whole)]
            output = subprocess.run(command, check=True, capture_output=True).stdout
            video_seconds, spent, before, after = map(float, output.split())
            elapsed = time.perf_counter() - start
            speed = f"{video_seconds:.0f} s of shots in {spent:.0f} processor seconds, {elapsed:.0f} s"
            memory = f"peak {after:.0f} MB, {before:.0f} of them for imports"
            print(f"| 1080p, {length:g} s, shots alone | {speed} | {memory} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["camera", "speed"], help="camera, speed")
    parser.add_argument("--seed", type=int, default=900001)
    parser.add_argument("--sure", type=float, default=0.5, help="confidence of the last columns' clips")
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
