"""Time and memory of `fourdthinker annotate`, by stage, on a folder of videos.

    python bench/speed/annotate.py my_clips/videos                  every video once
    python bench/speed/annotate.py my_clips/videos --num 1000    over and over, to see whether memory grows

Every video is annotated in this one process, as a worker of `annotate` does it, into a temporary folder. Processor
seconds count, since other work on a machine changes the wall clock. Memory is what the process holds (VmRSS, on Linux)
after a tenth of the videos and after all.
"""

import argparse
import itertools
import json
import os
import platform
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

import cv2

from fourdthinker_hf.data.annotation.pipeline import AnnotationSettings, VideoJob, annotate_video, find_videos
from fourdthinker_hf.data.records import read_records


def resident_megabytes() -> float:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) / 1000 for line in status.splitlines() if line.startswith("VmRSS"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path)
    parser.add_argument("--num", type=int, help="videos to annotate, by default each once")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    print(f"commit {commit or 'unknown'}, {os.cpu_count()} cores, {platform.machine()}, OpenCV {cv2.__version__}")
    videos, _ = find_videos(args.videos)
    num = args.num or len(videos)
    stages: Counter = Counter()
    video_seconds, num_records, memory = 0.0, 0, []
    with tempfile.TemporaryDirectory() as folder:
        for part in ("parts", "videos", "images"):
            (Path(folder) / part).mkdir()
        start = time.process_time()
        for k, (path, name) in enumerate(itertools.islice(itertools.cycle(videos), num)):
            job = VideoJob(path, f"{k}/{name}", Path(folder), AnnotationSettings())
            annotate_video(job)
            report = json.loads(job.report_file.read_text())
            stages.update(report["seconds"])
            video_seconds += report["video_seconds"]
            num_records += len(read_records(job.records_file))
            memory.append(resident_megabytes())
        spent = time.process_time() - start
    shares = ", ".join(f"{stage} {seconds / stages.total():.0%}" for stage, seconds in stages.most_common())
    print(f"{num} videos, {video_seconds:.0f} s of shots, {num_records} records in {spent:.0f} processor seconds")
    print(
        f"{3600 * num / spent:.0f} videos an hour and core; {video_seconds / spent:.2f} s of video a second; {shares}"
    )
    print(f"memory after a tenth of the videos {memory[len(memory) // 10]:.0f} MB, after all {memory[-1]:.0f} MB")


if __name__ == "__main__":
    main()
