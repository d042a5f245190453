"""Raw videos in, training records out: shots, camera, objects, quality, questions, reasoning, records.

`OUT/parts/` has two files for each video once it is done: its records, and a report of it. A run goes over the videos
that have none, several at a time, in processes that may die without taking the run along; so a run that is killed, in
whatever way, loses the videos in hand, and the same command goes on. Shards share nothing but OUT: any number of
machines may each run `--shard I/N` there, at the same time or not. At its end every run gathers the parts that there
are to `records.jsonl`, where options are given: they depend on all records.

A video that fails is reported with its stage and cause; what was made of it before stays. The next run tries it again.
"""

import functools
import hashlib
import json
import multiprocessing
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import wait
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from ..media import highlight, write_video
from ..records import Record, read_records, write_records
from ..vocabulary import STATIC_CAMERA
from . import reasoning
from .camera import Camera, estimate_camera
from .options import add_options
from .questions import Asked, ask
from .shots import Shot, shots
from .tracking import Segmenter, Track, find_objects
from .vlm_client import Chat

SUFFIXES = (
    ".mp4",
    ".m4v",
    ".mov",
    ".avi",
    ".webm",
    ".mkv",
    ".mpg",
    ".mpeg",
    ".ts",
    ".mts",
    ".wmv",
    ".flv",
    ".ogv",
    ".3gp",
    ".gif",
)
STAGES = ("shots", "camera", "objects", "quality", "questions", "reasoning", "records")
SHARP = 12.0  # median over frames of the Laplacian's variance: grey levels squared; below, a shot is a blur


@dataclass(frozen=True)
class Settings:
    """What makes the records, beside the videos. `sam3` is a folder or Hub id; `namer` and `reasoner` are models at
    the OpenAI-compatible address `server`. With none of them nothing but classical vision is used, offline."""

    seed: int = 0
    sam3: str | None = None
    server: str | None = None
    namer: str | None = None
    reasoner: str | None = None

    def __post_init__(self) -> None:
        if (self.namer or self.reasoner) and not self.server:
            raise ValueError("a namer or reasoner is a model at a server: give the server's address as well")
        if self.server and not (self.namer or self.reasoner):
            raise ValueError(f"what is asked of the server {self.server}? Give a namer, a reasoner, or both")


@dataclass(frozen=True)
class Job:
    video: Path
    name: str  # relative to the folder that was given
    out: Path
    settings: Settings

    @property
    def key(self) -> str:
        """Of the video's name and size: a changed video is another one."""
        told = f"{self.name}\0{self.video.stat().st_size}"
        stem = re.sub(r"[^A-Za-z0-9]+", "-", Path(self.name).stem).strip("-")[:40]
        return f"{stem or 'video'}-{hashlib.sha256(told.encode()).hexdigest()[:10]}"

    @property
    def now(self) -> Path:
        """Holds the stage that the video is in, while it is in hand."""
        return self.out / "parts" / f"{self.key}.now"

    @property
    def report(self) -> Path:
        return self.out / "parts" / f"{self.key}.json"

    @property
    def done(self) -> bool:
        return self.report.is_file() and json.loads(self.report.read_text())["cause"] is None


def annotate(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    shard: tuple[int, int] = (1, 1),
    workers: int | None = None,
    settings: Settings = Settings(),  # noqa: B008  (frozen)
    progress: bool = True,
) -> dict:
    """Make records of a video, or of every one in a folder and those below, in `out`; returns what came of it.

    `shard` (I, N) takes every Nth video, from the Ith. `ValueError` if `source` holds no video, or `out` holds records
    made with other settings.
    """
    index, count = shard
    if not 1 <= index <= count:
        raise ValueError(f"shard {index}/{count}: it must be from 1/{count} to {count}/{count}")
    out = Path(out).absolute()
    videos, others = find_videos(source)
    for folder in ("parts", "videos", "images"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    _keep_settings(out, settings)
    jobs = [Job(path, name, out, settings) for path, name in videos[index - 1 :: count]]
    todo = [job for job in jobs if not job.done]
    with tqdm(total=len(jobs), initial=len(jobs) - len(todo), unit="video", disable=not progress) as bar:
        for _ in _run(todo, workers or os.cpu_count() or 1):
            bar.update()
    return _gather(out, shard, settings.seed, [job.key for job in jobs], others)


def find_videos(source: str | os.PathLike[str]) -> tuple[list[tuple[Path, str]], int]:
    """Videos and their names below `source`, by name; and the number of files there that are none."""
    source = Path(source)
    if source.is_file():
        return [(source, source.name)], 0
    if not source.is_dir():
        raise ValueError(f"{source}: no such file or folder")
    files = sorted(path for path in source.rglob("*") if path.is_file())
    videos = [(path, path.relative_to(source).as_posix()) for path in files if path.suffix.lower() in SUFFIXES]
    if not videos:
        raise ValueError(f"{source}: has no video ({', '.join(SUFFIXES)}) among {len(files)} files")
    return videos, len(files) - len(videos)


def _keep_settings(out: Path, settings: Settings) -> None:
    path, mine = out / "settings.json", asdict(settings)
    if path.is_file() and (kept := json.loads(path.read_text())) != mine:
        other = ", ".join(
            f"{name} {kept.get(name)!r}, not {mine[name]!r}" for name in mine if kept.get(name) != mine[name]
        )
        raise ValueError(f"{out} holds records made with other settings ({other}); give another folder")
    _write(path, mine)


def _write(path: Path, content: object) -> None:
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    aside.write_text(json.dumps(content, indent=1))
    os.replace(aside, path)


# Many videos


def _run(jobs: Sequence[Job], workers: int) -> Iterator[Job]:
    """Annotate all; if a process dies, those in hand are tried again, each alone, to know which one it was."""
    waiting = list(jobs)
    while waiting:
        try:
            for job in _pool(waiting, workers):
                waiting.remove(job)
                yield job
        except BrokenProcessPool:
            done = [job for job in waiting if job.report.is_file() and not job.now.is_file()]
            suspects = [job for job in waiting if job.now.is_file()]
            if not suspects:
                raise
            for job in suspects:
                try:
                    list(_pool([job], 1))
                except BrokenProcessPool:
                    cause = "the process died: killed, perhaps for want of memory, or by a library's crash"
                    _write(job.report, _failed(job, job.now.read_text(), cause))
                    job.now.unlink()
            for job in [*done, *suspects]:
                waiting.remove(job)
                yield job


def _pool(jobs: Sequence[Job], workers: int) -> Iterator[Job]:
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, initializer=_start)
    try:
        futures = {pool.submit(annotate_video, job): job for job in jobs}
        for future in as_completed(futures):
            future.result()
            yield futures[future]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _start() -> None:
    """In a worker: one core each, and no life beyond the process that started it, however that ended."""
    cv2.setNumThreads(1)
    parent = multiprocessing.parent_process().sentinel
    threading.Thread(target=lambda: (wait([parent]), os._exit(1)), daemon=True).start()


@functools.cache
def _segmenter(sam3: str | None) -> Segmenter:
    if sam3 is None:
        return find_objects
    from .sam3 import Sam3Segmenter

    return Sam3Segmenter(sam3)


# One video


class Stages:
    """Where a video is and how long it was there, in s; told to the file `now`, should the process die."""

    def __init__(self, now: Path) -> None:
        self.now, self.name = now, ""
        self.seconds: Counter = Counter()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.name, begin = name, time.perf_counter()
        self.now.write_text(name)
        yield
        self.seconds[name] += time.perf_counter() - begin


def annotate_video(job: Job) -> None:
    """Make the records and the report of one video. What goes wrong is told in the report, not raised."""
    stage = Stages(job.now)
    report = {"video": job.name, "shots": 0, "video_seconds": 0.0, "refused": Counter()}
    records: list[Record] = []
    cause = None
    try:
        for number, shot in enumerate(_staged(shots(job.video), stage)):
            report["shots"] += 1
            report["video_seconds"] += shot.end - shot.start
            records += annotate_shot(job, number, shot, stage, report["refused"])
    except Exception as error:  # whatever it is, this video has failed and the rest go on
        cause = " ".join(f"{type(error).__name__}: {error}".split())
    write_records(job.report.with_suffix(".jsonl"), records)
    report |= {
        "records": len(records),
        "stage": stage.name if cause else None,
        "cause": cause,
        "seconds": stage.seconds,
    }
    _write(job.report, report)
    job.now.unlink(missing_ok=True)


def _failed(job: Job, stage: str, cause: str) -> dict:
    return {
        "video": job.name,
        "shots": 0,
        "video_seconds": 0.0,
        "refused": {},
        "records": 0,
        "stage": stage,
        "cause": cause,
        "seconds": {},
    }


def _staged(found: Iterator[Shot], stage: Stages) -> Iterator[Shot]:
    while True:
        with stage("shots"):
            shot = next(found, None)
        if shot is None:
            return
        yield shot


def annotate_shot(job: Job, number: int, shot: Shot, stage: Stages, refused: Counter) -> list[Record]:
    """The records of one shot; why questions were refused is counted in `refused`."""
    settings = job.settings
    with stage("camera"):
        camera = estimate_camera(shot)
    with stage("objects"):
        tracks = _segmenter(settings.sam3)(shot, camera)
        if settings.namer:
            from .naming import name_tracks

            tracks = name_tracks(shot, tracks, Chat(settings.server, settings.namer))
    return tell(job, number, shot, camera, tracks, stage, refused)


def tell(
    job: Job, number: int, shot: Shot, camera: Camera, tracks: Sequence[Track], stage: Stages, refused: Counter
) -> list[Record]:
    """The records of one shot of which is known how the camera moves and what is seen."""
    settings = job.settings
    with stage("quality"):
        if flaw := find_flaw(shot, camera, tracks):
            refused[f"shot: {flaw}"] += 1
            return []
    with stage("questions"):
        asked, why = ask(shot, camera, tracks)
        refused.update(why)
    rng = np.random.default_rng([settings.seed, number, *job.key.encode()])
    told = []
    with stage("reasoning"):
        for question in asked:
            text = reasoning.write(question, rng)
            if settings.reasoner:
                try:
                    chat = Chat(settings.server, settings.reasoner)
                    text = reasoning.rewrite(question, text, chat, int(rng.integers(2**31)))
                except reasoning.FormatError:
                    refused[f"{question.task}: reasoning in a wrong format"] += 1
                    continue
            told.append((question, text))
    with stage("records"):
        return _records(job, f"{job.key}-{number:03d}", shot, tracks, told) if told else []


def find_flaw(shot: Shot, camera: Camera, tracks: Sequence[Track]) -> str | None:
    """Why nothing should be asked about a shot; None if there is no reason."""
    greys = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in shot.frames]
    if np.median([cv2.Laplacian(grey, cv2.CV_64F).var() for grey in greys]) < SHARP:
        return "blurred"
    still = all(span.motions == (STATIC_CAMERA,) for span in camera.spans)
    return "nothing moves" if still and not any(track.moving for track in tracks) else None


def _records(
    job: Job, name: str, shot: Shot, tracks: Sequence[Track], told: Sequence[tuple[Asked, str]]
) -> list[Record]:
    """Write the clip and the target frames, and say what was asked; the options come with all the records."""
    height, width = (side // 2 * 2 for side in shot.frames.shape[1:3])  # H.264 wants them even
    video = str(job.out / "videos" / f"{name}.mp4")
    write_video(video, shot.frames[:, :height, :width], times=shot.times)
    images = {}
    for track, frame in {look for asked, _ in told for look in asked.looks}:
        images[track, frame] = str(job.out / "images" / f"{name}-{track}-{frame}.jpg")
        picture = Image.fromarray(highlight(shot.frames[frame], tracks[track].masks[frame]))
        picture.save(images[track, frame], quality=92)
    made = []
    for number, (asked, text) in enumerate(told):
        source = {
            "generator": "annotate",
            "video": job.name,
            "start": round(shot.start, 3),
            "end": round(shot.end, 3),
            "span": [asked.start, asked.end],
            "targets": [
                {"object": asked.names[asked.tracks.index(track)], "time": time}
                for (track, _), time in zip(asked.looks, asked.times, strict=True)
            ],
        }
        made.append(
            Record(
                id=f"{name}-{number}",
                question=asked.question,
                answer=asked.answer,
                task=asked.task,
                reasoning=text,
                imagery=[images[look] for look in asked.looks],
                video=video,
                source=source,
            )
        )
    return made


# What came of it


def _gather(out: Path, shard: tuple[int, int], seed: int, keys: Sequence[str], others: int) -> dict:
    """Gather all parts to `records.jsonl`; returns, and writes, a summary of this shard."""
    parts = sorted((out / "parts").glob("*.jsonl"))
    found = [record for part in parts for record in read_records(part)]
    kept = add_options(found, seed)
    name = f"{shard[0]}-of-{shard[1]}"
    write_records(out / f"records-{name}.jsonl", kept)  # under a name of its own: other shards may end right now
    os.replace(out / f"records-{name}.jsonl", out / "records.jsonl")
    reports = [json.loads((out / "parts" / f"{key}.json").read_text()) for key in keys]
    summary = {
        "videos": len(reports),
        "not videos": others,
        "shots": sum(report["shots"] for report in reports),
        "video_seconds": round(sum(report["video_seconds"] for report in reports), 2),
        "records": sum(report["records"] for report in reports),
        "all records": len(found),
        "kept": len(kept),
        "seconds": dict(sum((Counter(report["seconds"]) for report in reports), Counter())),
        "refused": dict(sum((Counter(report["refused"]) for report in reports), Counter()).most_common()),
        "failed": [
            {name: report[name] for name in ("video", "stage", "cause")} for report in reports if report["cause"]
        ],
    }
    _write(out / f"report-{name}.json", summary)
    return summary


def describe(summary: dict) -> str:
    """A summary in a few lines."""
    spent = ", ".join(f"{stage} {summary['seconds'].get(stage, 0):.1f} s" for stage in STAGES)
    lines = [
        f"{summary['videos']} videos, {summary['shots']} shots of {summary['video_seconds']:.0f} s: "
        f"{summary['records']} records ({summary['not videos']} other files left out)",
        f"spent: {spent}",
        f"records.jsonl: {summary['kept']} of {summary['all records']}, the others' answers being too frequent",
    ]
    lines += [f"refused {num}: {reason}" for reason, num in summary["refused"].items()]
    lines += [f"failed: {one['video']}, stage {one['stage']}: {one['cause']}" for one in summary["failed"]]
    return "\n".join(lines)
