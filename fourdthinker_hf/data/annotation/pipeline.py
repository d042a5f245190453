"""Turns raw videos into training records: shots, camera, objects, quality, questions, reasoning, records.

`OUT/parts/` has two files for each video that is done: its records and its report. A run annotates the videos that
have none, several at a time, in processes that may die without ending the run. A run that is killed, in whatever way,
loses only the videos in progress, and the same command resumes it. Shards share nothing but OUT: any number of
machines may run `--shard I/N` there, at the same time or not. At its end each run gathers all parts in
`records.jsonl`. There the records get their options, which depend on all of them.

A video that fails is reported with its stage and cause. Its records so far are kept, and the next run tries it again.
"""

import contextlib
import functools
import hashlib
import json
import math
import multiprocessing
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from ...output_files import WORK, claim, file_hash, files_hash, write_whole
from ...video_fourdthinker import Video, VideoError
from ..media import highlight, write_picture, write_video
from ..parts import end_with_parent
from ..records import Record, read_records, write_records
from .answer_options import add_options
from .camera_motion import CameraMotion, estimate_camera_motion
from .motion_tracking import find_moving_objects
from .questions import AnnotatedQuestion, make_questions
from .reasoning import ReasoningError, rewrite_reasoning, write_reasoning
from .run_page import write_run_page
from .shots import MAX_DURATION, SAMPLED_SECONDS, Shot, read_shots
from .tracking import Segmenter, Track
from .vlm_client import VLMClient

VIDEO_SUFFIXES = tuple(
    ".mp4 .m4v .mov .avi .webm .mkv .mpg .mpeg .vob .ts .mts .m2ts .wmv .asf .flv .ogv .ogg .3gp .3g2 .gif".split()
)
PARTS = "parts"
STAGES = ("shots", "camera", "objects", "quality", "questions", "reasoning", "records")
CHANGE_CELLS, MIN_CHANGE, MIN_CHANGED_CELLS = 80, 6.0, 3  # along the longer side; grey levels of a cell; cells
MIN_SHARPNESS = 12.0  # median over frames of the variance of the Laplacian, in squared grey levels


@dataclass(frozen=True)
class AnnotationSettings:
    """What determines the records, apart from the videos. By default only classical vision is used, offline.

    `sam3` is the folder or Hub id of a SAM 3 video model that finds the objects. `namer` and `reasoner` are models at
    the OpenAI-compatible address `server` that name the objects and word the reasoning.
    """

    seed: int = 0
    sam3: str | None = None
    server: str | None = None
    namer: str | None = None
    reasoner: str | None = None

    def __post_init__(self) -> None:
        if (self.namer or self.reasoner) and not self.server:
            raise ValueError("A namer or reasoner is a model on a server, so give the server's address as well.")
        if self.server and not (self.namer or self.reasoner):
            raise ValueError(f"Nothing is asked of the server {self.server}. Give a namer, a reasoner, or both.")


@dataclass(frozen=True)
class VideoJob:
    """A video to annotate, and where its results go."""

    video: Path
    name: str  # relative to the folder that was given
    out: Path
    settings: AnnotationSettings

    @property
    def key(self) -> str:
        """Identifies the video by its name and size, so that a changed video counts as a new one."""
        identity = f"{self.name}\0{self.video.stat().st_size}"
        stem = re.sub(r"[^A-Za-z0-9]+", "-", Path(self.name).stem).strip("-")[:40]
        return f"{stem or 'video'}-{hashlib.sha256(identity.encode()).hexdigest()[:10]}"

    @functools.cached_property
    def content(self) -> str:
        """Identifies the content of the video."""
        return _content(self.video)

    @property
    def stage_file(self) -> Path:
        """Names the stage that the video is in, and exists only while it is being annotated."""
        return self.out / PARTS / f"{self.key}.stage"

    @property
    def report_file(self) -> Path:
        return self.out / PARTS / f"{self.key}.json"

    @property
    def records_file(self) -> Path:
        return self.out / PARTS / f"{self.key}.jsonl"

    @property
    def is_done(self) -> bool:
        report = json.loads(self.report_file.read_text()) if self.report_file.is_file() else {}
        return report.get("cause", "") is None and report["content"] == self.content


def annotate(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    shard: tuple[int, int] = (1, 1),
    workers: int | None = None,
    settings: AnnotationSettings = AnnotationSettings(),  # noqa: B008  (frozen)
    progress: bool = True,
) -> dict | None:
    """Make the records of a video, or of all videos in a folder and its subfolders, in `out`, and return the report.

    `shard` (I, N) takes every Nth video from the Ith on; `workers` videos are annotated at a time, by default one for
    each core. The processes that `accelerate launch` started share the shard; the main one returns the report. Raises
    `ValueError` if `source` has no video, `out` has records of other videos or made with other settings, or another
    command annotates some of these videos there.
    """
    index, count = shard
    if not 1 <= index <= count:
        raise ValueError(f"Shard {index}/{count} does not exist: it must be from 1/{count} to {count}/{count}.")
    out = Path(out).absolute()
    videos, num_others = find_videos(source, out)
    distributed, cores = None, os.cpu_count() or 1
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        from ...distributed import DistributedState  # it imports PyTorch

        distributed = DistributedState()
        progress = progress and distributed.is_main_process
        cores = max(cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)), 1)
    work, results = {"command": "annotate", **asdict(settings)}, [out / PARTS, out / "records.jsonl"]
    if settings.sam3 and Path(settings.sam3).is_dir():
        work["sam3_sha256"] = files_hash(sorted(path for path in Path(settings.sam3).iterdir() if path.is_file()))
    with claim(out / WORK, work, results, shared=True), ExitStack() as stack:
        if distributed is None or distributed.is_main_process:
            stack.enter_context(claim(out / PARTS / f"shard-{index}-of-{count}.lock", {"shard": list(shard)}))
            _refuse_overlap(out, shard)
        for folder in (PARTS, "videos", "images"):
            (out / folder).mkdir(exist_ok=True)
        _refuse_other_videos(out, videos)
        jobs = [VideoJob(path, name, out, settings) for path, name in videos[index - 1 :: count]]
        own = jobs if distributed is None else jobs[distributed.rank :: distributed.world_size]
        todo = [job for job in own if not job.is_done]
        for job in todo:
            job.records_file.unlink(missing_ok=True)  # they may be of a video of the same name and size
        with tqdm(total=len(own), initial=len(own) - len(todo), unit="video", disable=not progress) as bar:
            for _ in _annotate_videos(todo, workers or cores):
                bar.update()
        if distributed is not None:
            distributed.wait_for_everyone()
            if not distributed.is_main_process:
                return None
        return _gather(out, shard, settings.seed, jobs, num_others)


def _refuse_overlap(out: Path, shard: tuple[int, int]) -> None:
    """Raise `ValueError` if another process annotates a shard of another number of shards that has some of the same
    videos. Each process has claimed its own shard before: of two that begin at once, at least one finds the other."""
    index, count = shard
    for path in sorted((out / PARTS).glob("shard-*-of-*.lock")):
        other = list(map(int, re.findall(r"\d+", path.name)))
        if other != list(shard) and (other[0] - index) % math.gcd(other[1], count) == 0:
            with claim(path, {"shard": other}):
                pass


def find_videos(
    source: str | os.PathLike[str], out: str | os.PathLike[str] | None = None
) -> tuple[list[tuple[Path, str]], int]:
    """(path, name) of each video at or below `source`, sorted by path, and the number of files that are no videos.

    What lies in `out`, where clips are written, is left out. Links to folders are not followed. Raises `ValueError` if
    there is no video, or clips would be written among the videos.
    """
    source = Path(source)
    if source.is_file():
        return [(source, source.name)], 0
    if not source.is_dir():
        raise ValueError(f"{source}: no such file or folder")
    files = sorted(path for path in source.rglob("*") if path.is_file())
    if out is not None:
        root, out = source.resolve(), Path(out).resolve()
        if root in (out, out / "videos"):
            raise ValueError(f"{out}: clips would be written among the videos of {source}: choose another folder")
        if out.is_relative_to(root):
            files = [path for path in files if not path.is_relative_to(source / out.relative_to(root))]
    videos = [(path, path.relative_to(source).as_posix()) for path in files if path.suffix.lower() in VIDEO_SUFFIXES]
    if not videos:
        raise ValueError(f"{source}: it has no video ({', '.join(VIDEO_SUFFIXES)}) among {len(files)} files")
    return videos, len(files) - len(videos)


def _refuse_other_videos(out: Path, videos: list[tuple[Path, str]]) -> None:
    """Raise `ValueError` if there are records of videos in `out`, and none of these is among `videos`."""
    reports = [json.loads(path.read_text()) for path in sorted((out / PARTS).glob("*.json"))]
    annotated = {(report["video"], report["content"]) for report in reports}
    names = {name for name, _ in annotated}
    if annotated and not any((name, _content(path)) in annotated for path, name in videos if name in names):
        raise ValueError(f"{out} has records of other videos ({', '.join(sorted(names)[:3])}): choose another folder")


def _content(video: Path) -> str:
    """SHA-256 of the size of a file and of its first and last million bytes: a whole film would take minutes."""
    with open(video, "rb") as file:
        digest, size = hashlib.sha256(file.read(1_000_000)), os.fstat(file.fileno()).st_size
        file.seek(max(0, size - 1_000_000))
        digest.update(file.read() + str(size).encode())
    return digest.hexdigest()


def _write_json(path: Path, content: object) -> None:
    write_whole(path, json.dumps(content, indent=1), claimed=True)


# Many videos, in processes


def _annotate_videos(jobs: Sequence[VideoJob], workers: int) -> Iterator[VideoJob]:
    """Annotate all videos. If a process dies, the videos in progress are tried again alone, to find the cause."""
    waiting = list(jobs)
    while waiting:
        try:
            for job in _run_in_pool(waiting, workers):
                waiting.remove(job)
                yield job
        except BrokenProcessPool:
            done = [job for job in waiting if job.report_file.is_file() and not job.stage_file.is_file()]
            suspects = [job for job in waiting if job.stage_file.is_file()]
            if not suspects:
                raise
            for job in suspects:
                try:
                    list(_run_in_pool([job], 1))
                except BrokenProcessPool:
                    cause = "the process died: it was killed, perhaps for lack of memory, or a library crashed"
                    report = _empty_report(job) | {"stage": job.stage_file.read_text(), "cause": cause}
                    _write_json(job.report_file, report)
                    job.stage_file.unlink()
            for job in [*done, *suspects]:
                waiting.remove(job)
                yield job


def _run_in_pool(jobs: Sequence[VideoJob], workers: int) -> Iterator[VideoJob]:
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, initializer=_start_worker)
    try:
        futures = {pool.submit(annotate_video, job): job for job in jobs}
        for future in as_completed(futures):
            future.result()
            yield futures[future]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _start_worker() -> None:
    """Let a worker use one core."""
    cv2.setNumThreads(1)
    end_with_parent()


# One video


class StageTimer:
    """Keeps which stage a video is in, also in a file in case the process dies, and the seconds spent in each."""

    def __init__(self, file: Path) -> None:
        self.file, self.stage = file, ""
        self.seconds: Counter = Counter()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self.stage, begin = stage, time.perf_counter()
        self.file.write_text(stage)
        yield
        self.seconds[stage] += time.perf_counter() - begin


def _empty_report(job: VideoJob) -> dict:
    return {
        "video": job.name,
        "content": job.content,
        "shots": 0,
        "video_seconds": 0.0,
        "refused": Counter(),
        "records": 0,
        "stage": None,
        "cause": None,
        "seconds": {},
    }


def annotate_video(job: VideoJob) -> None:
    """Write the records and the report of one video. An error is written in the report, not raised."""
    timer = StageTimer(job.stage_file)
    report = _empty_report(job)
    records: list[Record] = []
    try:
        for number, shot in enumerate(_timed(read_shots(job.video), timer)):
            report["shots"] += 1
            report["video_seconds"] += shot.end - shot.start
            records += annotate_shot(job, number, shot, timer, report["refused"])
    except Exception as error:  # whatever it is, this video has failed and the others go on
        report |= {"stage": timer.stage, "cause": " ".join(f"{type(error).__name__}: {error}".split())}
    write_records(job.records_file, records)
    _write_json(job.report_file, report | {"records": len(records), "seconds": timer.seconds})
    job.stage_file.unlink(missing_ok=True)


def _timed(shots: Iterator[Shot], timer: StageTimer) -> Iterator[Shot]:
    while True:
        with timer("shots"):
            shot = next(shots, None)
        if shot is None:
            return
        yield shot


@functools.cache
def _get_segmenter(sam3: str | None) -> Segmenter:
    if sam3 is None:
        return find_moving_objects
    from .sam3 import Sam3Segmenter

    return Sam3Segmenter(sam3)


def annotate_shot(job: VideoJob, number: int, shot: Shot, timer: StageTimer, refused: Counter) -> list[Record]:
    """The records of one shot. Questions that are refused are counted in `refused`, by their reasons."""
    settings = job.settings
    with timer("camera"):
        camera = estimate_camera_motion(shot)
    with timer("objects"):
        tracks = _get_segmenter(settings.sam3)(shot, camera)
        if settings.namer:
            from .object_naming import name_tracks

            tracks = name_tracks(shot, tracks, VLMClient(settings.server, settings.namer))
    return make_shot_records(job, number, shot, camera, tracks, timer, refused)


def make_shot_records(
    job: VideoJob,
    number: int,
    shot: Shot,
    camera: CameraMotion,
    tracks: Sequence[Track],
    timer: StageTimer,
    refused: Counter,
) -> list[Record]:
    """The records of one shot whose camera motion and objects are known."""
    settings = job.settings
    with timer("quality"):
        if flaw := find_flaw(shot):
            refused[f"shot: {flaw}"] += 1
            return []
    with timer("questions"):
        questions, reasons = make_questions(shot, camera, tracks)
        refused.update(reasons)
    rng = np.random.default_rng([settings.seed, number, *job.key.encode()])
    answered = []
    with timer("reasoning"):
        for question in (question.reword(rng) for question in questions):
            reasoning = write_reasoning(question, rng)
            if settings.reasoner:
                client = VLMClient(settings.server, settings.reasoner)
                try:
                    reasoning = rewrite_reasoning(question, reasoning, client, int(rng.integers(2**31)))
                except ReasoningError:
                    refused[f"{question.task}: reasoning in a wrong format"] += 1
                    continue
            answered.append((question, reasoning))
    with timer("records"):
        return _write_shot(job, f"{job.key}-{number:03d}", shot, tracks, answered) if answered else []


def find_flaw(shot: Shot) -> str | None:
    """The reason why nothing should be asked about a shot; None if there is none."""
    greys = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in shot.frames]
    if np.median([cv2.Laplacian(grey, cv2.CV_64F).var() for grey in greys]) < MIN_SHARPNESS:
        return "blurred"
    return None if has_change(greys) else "nothing moves"


def has_change(greys: Sequence[np.ndarray]) -> bool:
    """Whether anything in grey pictures (H, W) changes by more than noise, anywhere and at any time.

    Means over cells, `CHANGE_CELLS` along the longer side, are compared with those of the first picture and of the
    one half a shot away. Light that changes counts as well: "nothing moves" is said only if it is true.
    """
    scale = CHANGE_CELLS / max(greys[0].shape)
    size = tuple(max(1, round(side * scale)) for side in greys[0].shape[::-1])
    cells = np.stack([cv2.resize(grey, size, interpolation=cv2.INTER_AREA) for grey in greys]).astype(np.float32)
    changes = np.maximum(np.abs(cells - cells[0]), np.abs(cells - np.roll(cells, len(cells) // 2, 0)))
    return bool((changes > MIN_CHANGE).sum((1, 2)).max() >= MIN_CHANGED_CELLS)


def _write_shot(
    job: VideoJob, name: str, shot: Shot, tracks: Sequence[Track], answered: Sequence[tuple[AnnotatedQuestion, str]]
) -> list[Record]:
    """Write the clip and the target frames of a shot, and return its records, which have no options yet."""
    height, width = (side // 2 * 2 for side in shot.frames.shape[1:3])  # H.264 needs even sides
    video = str(job.out / "videos" / f"{name}.mp4")
    write_video(video, shot.frames[:, :height, :width], times=shot.times)
    images = {}
    for track, frame in {target for question, _ in answered for target in question.targets}:
        label = "view" if track is None else track
        images[track, frame] = str(job.out / "images" / f"{name}-{label}-{frame}.jpg")
        picture = shot.frames[frame] if track is None else highlight(shot.frames[frame], tracks[track].masks[frame])
        write_picture(images[track, frame], picture, quality=92)
    records = []
    for number, (question, reasoning) in enumerate(answered):
        source = {
            "generator": "annotate",
            "video": job.name,
            "start": round(shot.start, 3),
            "end": round(shot.end, 3),
            "span": [question.start, question.end],
            "targets": [
                {"object": "view" if track is None else question.names[question.tracks.index(track)], "time": time}
                for (track, _), time in zip(question.targets, question.target_times, strict=True)
            ],
            "video_sha256": file_hash(video),
        }
        records.append(
            Record(
                id=f"{name}-{number}",
                question=question.question,
                answer=question.answer,
                task=question.task,
                reasoning=reasoning,
                imagery=[images[target] for target in question.targets],
                video=video,
                source=source,
            )
        )
    return records


# The results of a run


def _gather(out: Path, shard: tuple[int, int], seed: int, jobs: Sequence[VideoJob], num_others: int) -> dict:
    """Gather all parts in `records.jsonl`, then write and return the report of this shard."""
    found = [record for part in sorted((out / PARTS).glob("*.jsonl")) for record in read_records(part)]
    kept = add_options(found, seed)
    name = f"{shard[0]}-of-{shard[1]}"
    write_records(out / f"records-{name}.jsonl", kept)  # a name of its own: other shards may end at the same time
    os.replace(out / f"records-{name}.jsonl", out / "records.jsonl")
    reports = [json.loads(job.report_file.read_text()) for job in jobs]
    summary = {
        "videos": len(reports),
        "not videos": num_others,
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
    summary["with records"] = sum(report["records"] > 0 for report in reports)
    summary["by task"] = dict(Counter(record.task for record in kept).most_common())
    _write_json(out / f"report-{name}.json", summary)
    everything = [json.loads(path.read_text()) for path in sorted((out / "parts").glob("*.json"))]
    write_run_page(out / "index.html", format_summary(summary).splitlines(), everything, found, kept)
    return summary


# What may be done about a reason of refusal, by what the reason begins with.
ADVICE = {
    "shot: blurred": "use sharper videos",
    "shot: nothing moves": "these need no question",
    "camera_motion: unsure": "the camera's motion is shaky, mixed or hidden by what moves before it",
    "camera_moves: unsure": "the same",
    "camera_motion: too short": "the camera holds one motion for less than a second and a half",
    "reasoning in a wrong format": "use another reasoner",
    "unsure of the camera": "the object is asked about only where the camera's motion is known",
    "the camera moves": "directions in the picture are asked only while the camera stands still",
    "not seen long enough": "the object is cut by the picture's edge, hidden, or lost",
}
MAX_REASONS = 8  # of refusal, in a summary


def format_summary(summary: dict) -> str:
    """A summary in a few lines of text, from how much was made to the main reasons why there is not more."""
    seconds = ", ".join(f"{stage} {summary['seconds'].get(stage, 0):.1f} s" for stage in STAGES)
    num_thinned = summary["all records"] - summary["kept"]
    lines = [
        f"{summary['videos']} videos, {summary['shots']} shots of {summary['video_seconds']:.0f} s: "
        f"{summary['records']} records, from {summary['with records']} videos. "
        f"{summary['not videos']} other files were left out.",
        f"Seconds by stage: {seconds}.",
        f"records.jsonl has {summary['kept']} of {summary['all records']} records. {num_thinned} were left out, "
        "because their answers are too frequent.",
    ]
    if summary["by task"]:
        lines.append("By task: " + ", ".join(f"{task} {num}" for task, num in summary["by task"].items()) + ".")
    for reason, num in list(summary["refused"].items())[:MAX_REASONS]:
        advice = next((text for key, text in ADVICE.items() if key in reason), None)
        lines.append(f"not asked, {num} times: {reason}" + (f" ({advice})" if advice else ""))
    for failed in summary["failed"]:
        lines.append(f"failed: {failed['video']}, stage {failed['stage']}: {failed['cause']}")
    return "\n".join(lines)


# What a run costs

# Rough guesses: objects and questions of a shot, and the tokens of a request and of its reply; a picture of 480 pixels
# has about 300 tokens in Qwen2.5-VL.
OBJECTS_PER_SHOT, QUESTIONS_PER_SHOT = 2, 4
NAMING_TOKENS, REASONING_TOKENS = (380, 8), (450, 200)


def estimate_cost(
    source: str | os.PathLike[str], out: str | os.PathLike[str], shard: tuple[int, int], settings: AnnotationSettings
) -> str | None:
    """What the run will ask of the server, in words, before it starts; None if it asks nothing.

    The videos that are done cost nothing. The length of the others is read from their headers.
    """
    if not settings.server:
        return None
    videos, _ = find_videos(source, out)
    jobs = [VideoJob(path, name, Path(out).absolute(), settings) for path, name in videos[shard[0] - 1 :: shard[1]]]
    todo = [job for job in jobs if not job.is_done]
    num_shots = 0
    for job in todo:
        with contextlib.suppress(VideoError):  # the run names what is wrong with it
            num_shots += math.ceil(min(Video(job.video).duration, SAMPLED_SECONDS) / MAX_DURATION)
    requests, sent, received = 0, 0, 0
    for model, per_shot, (prompt, reply) in (
        (settings.namer, OBJECTS_PER_SHOT, NAMING_TOKENS),
        (settings.reasoner, QUESTIONS_PER_SHOT, REASONING_TOKENS),
    ):
        if model:
            requests += per_shot * num_shots
            sent, received = sent + per_shot * num_shots * prompt, received + per_shot * num_shots * reply
    return (
        f"{settings.server} will be asked about {requests} times for {len(todo)} videos with about {num_shots} shots: "
        f"{sent:,} tokens sent and {received:,} received, up to three times as many if its replies are refused."
    )
