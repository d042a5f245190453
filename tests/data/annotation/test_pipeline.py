"""The annotation pipeline on real files and in real processes: what it writes, what fails, and what a kill loses."""

import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fourdthinker_hf.cli import app
from fourdthinker_hf.data.annotation import pipeline
from fourdthinker_hf.data.annotation.pipeline import (
    AnnotationSettings,
    VideoJob,
    annotate,
    annotate_video,
    estimate_cost,
    find_flaw,
    find_videos,
    format_summary,
)
from fourdthinker_hf.data.annotation.shots import Shot
from fourdthinker_hf.data.records import read_records
from fourdthinker_hf.output_files import claim
from fourdthinker_hf.processing_fourdthinker import OUTPUT_IMAGE
from fourdthinker_hf.video_fourdthinker import load_video

GROUND = cv2.GaussianBlur(np.random.default_rng(0).integers(40, 200, (400, 600, 3)).astype(np.uint8), (0, 0), 3)


def slide(seconds=4.0, speed=3.0, seed=0, size=(160, 224)):
    """Frames (T, H, W, 3), 8 a second, in which a red box moves to the right over a textured ground."""
    height, width = size
    frames = np.repeat(GROUND[None, seed : seed + height, seed : seed + width], round(8 * seconds), 0).copy()
    for k, frame in enumerate(frames):
        x = 20 + round(speed * k) % (width - 60)
        frame[60:92, x : x + 32] = (220, 20, 20)
    return frames


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_video):
    """Three videos, one of them in a subfolder, a file that only has the name of a video, and a text file."""
    path = tmp_path_factory.mktemp("videos")
    write_video(path / "one.mp4", slide())
    (path / "below").mkdir()
    write_video(path / "below" / "two.MP4", slide(seed=40))
    write_video(path / "three.mp4", slide(seed=80, speed=-3))
    (path / "broken.mp4").write_bytes(b"no video at all" * 100)
    (path / "notes.txt").write_text("notes")
    return path


@pytest.fixture(scope="module")
def made(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("made")
    return out, annotate(folder, out, workers=1, progress=False)


def test_videos_become_records(made):
    out, summary = made
    assert (summary["videos"], summary["not videos"], summary["shots"]) == (4, 1, 3)
    records = read_records(out / "records.jsonl")  # raises an error for records that cannot be trained on
    assert len(records) == summary["kept"] >= 1
    for record in records:
        assert record.reasoning.count(OUTPUT_IMAGE) == len(record.imagery) >= 2
        assert record.answer in record.options and len(record.options) >= 2
        assert record.source["generator"] == "annotate" and record.task
    assert len({record.id for record in records}) == len(records)
    assert {record.source["video"] for record in records} <= {"one.mp4", "below/two.MP4", "three.mp4"}


def test_a_clip_has_its_times_and_a_target_shows_its_object(made):
    found = [record for part in sorted((made[0] / "parts").glob("*.jsonl")) for record in read_records(part)]
    record = next(record for record in found if not record.task.startswith("camera"))
    frames, times = load_video(record.video, fps=8)
    assert frames.shape == (32, 160, 224, 3)
    np.testing.assert_allclose(times, np.arange(32) / 8, atol=1e-3)
    for path, target in zip(record.imagery, record.source["targets"], strict=True):
        picture, frame = np.asarray(Image.open(path)).astype(int), frames[round(8 * target["time"])].astype(int)
        outside = np.ptp(picture, axis=-1) < 25  # grey
        assert outside.mean() > 0.5
        assert picture[outside].mean() < 0.5 * frame[outside].mean()


def test_a_failure_is_reported_with_stage_and_cause_and_the_others_go_on(made):
    out, summary = made
    (failed,) = summary["failed"]
    assert failed["video"] == "broken.mp4" and failed["stage"] == "shots"
    assert failed["cause"].startswith("VideoError: ") and "not a video" in failed["cause"]
    assert json.loads((out / "report-1-of-1.json").read_text()) == summary
    assert not list((out / "parts").glob("*.stage")) and not list(out.rglob("*.tmp"))


def test_the_page_of_a_run_shows_every_video_question_and_picture(made):
    out, summary = made
    page = (out / "index.html").read_text()
    for video in ("one.mp4", "below/two.MP4", "three.mp4", "broken.mp4"):
        assert f"<h2>{video}: " in page
    assert "Failed at the stage shots: VideoError" in page
    records = read_records(out / "records.jsonl")
    for record in records:
        assert html.escape(record.question) in page and html.escape(record.reasoning) in page
    sources = re.findall(r"src='([^']+)'", page)
    assert sources and all((out / source).is_file() for source in sources)  # whatever folder it is moved to
    assert page.count("class='right'") == page.count("<article>") == summary["all records"]


def test_the_summary_names_the_main_reasons_in_words():
    summary = {"videos": 9, "shots": 12, "video_seconds": 60.0, "not videos": 0, "records": 5, "with records": 4}
    summary |= {"all records": 5, "kept": 5, "seconds": {}, "by task": {"camera_motion": 5}, "failed": []}
    summary["refused"] = {"shot: blurred": 3, **{f"task {k}: unsure": 1 for k in range(20)}}
    lines = format_summary(summary).splitlines()
    assert lines[0] == "9 videos, 12 shots of 60 s: 5 records, from 4 videos. 0 other files were left out."
    assert "By task: camera_motion 5." in lines
    assert "not asked, 3 times: shot: blurred (use sharper videos)" in lines
    assert sum(line.startswith("not asked") for line in lines) == 8


def test_a_run_says_what_it_would_cost_before_it_starts(folder, tmp_path):
    assert estimate_cost(folder, tmp_path, (1, 1), AnnotationSettings()) is None
    settings = AnnotationSettings(server="http://127.0.0.1:9/v1", namer="a", reasoner="b")
    assert estimate_cost(folder, tmp_path, (1, 1), settings) == (  # one of the four videos cannot be read
        "http://127.0.0.1:9/v1 will be asked about 18 times for 4 videos with about 3 shots: 7,680 tokens sent and "
        "2,448 received, up to three times as many if its replies are refused."
    )


def test_a_second_run_makes_nothing_again(made, folder):
    out, summary = made
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/*") if "broken" not in path.name}
    text = (out / "records.jsonl").read_bytes()
    again = annotate(folder, out, workers=1, progress=False)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (out / "records.jsonl").read_bytes() == text
    assert again["failed"] == summary["failed"]


@pytest.mark.slow
@pytest.mark.timeout(2000)
def test_shards_make_the_same(made, folder, tmp_path):
    for shard in ((2, 3), (1, 3), (3, 3)):
        summary = annotate(folder, tmp_path, shard, workers=1, progress=False)
    assert summary["videos"] == 1 and summary["kept"] == made[1]["kept"]
    assert (tmp_path / "records.jsonl").read_bytes() == (made[0] / "records.jsonl").read_bytes()


def test_a_changed_video_counts_as_a_new_one(folder, tmp_path):
    job = VideoJob(folder / "one.mp4", "one.mp4", tmp_path, AnnotationSettings())
    other = tmp_path / "one.mp4"
    other.write_bytes((folder / "one.mp4").read_bytes() + b"0")
    assert job.key != replace(job, video=other).key
    assert job.key != replace(job, name="below/one.mp4").key
    assert job.key.startswith("one-") and len(job.key) == 14


def test_other_settings_need_another_folder(made, folder):
    with pytest.raises(ValueError, match=r"holds another run \(seed was 0, now 1\)"):
        annotate(folder, made[0], settings=AnnotationSettings(seed=1))


def test_other_videos_need_another_folder(made, folder, tmp_path):
    """Also if they have the names and sizes of those that were annotated."""
    for path in folder.rglob("*.[mM][pP]4"):
        other = tmp_path / path.relative_to(folder)
        other.parent.mkdir(exist_ok=True)
        other.write_bytes(path.read_bytes()[::-1])
    before = (made[0] / "records.jsonl").read_bytes()
    with pytest.raises(ValueError, match="has records of other videos .below/two.MP4, broken.mp4, one.mp4."):
        annotate(tmp_path, made[0], workers=1, progress=False)
    assert (made[0] / "records.jsonl").read_bytes() == before


def test_a_video_of_the_same_size_with_other_content_is_annotated_again(made, folder, tmp_path):
    out = Path(shutil.copytree(made[0], tmp_path / "out"))
    job = VideoJob(folder / "one.mp4", "one.mp4", out, AnnotationSettings())
    assert job.is_done
    other = tmp_path / "one.mp4"
    data = bytearray((folder / "one.mp4").read_bytes())
    data[-1] ^= 1
    other.write_bytes(data)
    assert replace(job, video=other).key == job.key and not replace(job, video=other).is_done


def test_bad_requests_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="no such file or folder"):
        find_videos(tmp_path / "nothing")
    with pytest.raises(ValueError, match="has no video .* among 0 files"):
        find_videos(tmp_path)
    with pytest.raises(ValueError, match="Shard 0/2 does not exist: it must be from 1/2 to 2/2"):
        annotate(folder, tmp_path, (0, 2))
    with pytest.raises(ValueError, match="give the server's address"):
        AnnotationSettings(namer="some-model")
    with pytest.raises(ValueError, match="Nothing is asked of the server"):
        AnnotationSettings(server="http://127.0.0.1:1/v1")


def test_clips_in_the_source_are_no_videos_of_it_and_loops_of_links_end(folder, tmp_path):
    source, out = tmp_path / "source", tmp_path / "source" / "out"
    shutil.copytree(folder, source)
    before = find_videos(source, out)
    (out / "videos").mkdir(parents=True)
    shutil.copy(folder / "one.mp4", out / "videos")
    (source / "below" / "loop").symlink_to("..")
    (source / "round.mp4").symlink_to("about.mp4")
    (source / "about.mp4").symlink_to("round.mp4")
    assert find_videos(source, out) == before and len(before[0]) == 4
    assert find_videos(source / "below" / "loop", source / "below" / "loop" / "out")[0][0][1] == "below/two.MP4"
    assert len(find_videos(source / "below", source)[0]) == 1
    for other in (out / "videos", out):
        with pytest.raises(ValueError, match="out: clips would be written among the videos of .*: choose another"):
            annotate(other, out)
    with pytest.raises(ValueError, match="round.mp4: no such file or folder"):
        find_videos(source / "round.mp4")


@pytest.mark.skipif(sys.platform == "win32", reason="needs fcntl")
def test_shards_that_overlap_are_refused_while_one_is_made(folder, tmp_path):
    reader, writer = os.pipe()
    with claim(tmp_path / "work.json", {"command": "annotate", **asdict(AnnotationSettings())}, shared=True):
        pass
    with claim(tmp_path / "parts" / "shard-2-of-4.lock", {"shard": [2, 4]}):
        if (child := os.fork()) == 0:  # locks are between processes
            try:
                for disjoint in ((1, 2), (1, 4)):
                    pipeline._refuse_overlap(tmp_path, disjoint)
                with pytest.raises(ValueError, match="shard-2-of-4.lock: another process is at this work"):
                    pipeline._refuse_overlap(tmp_path, (2, 2))
                with pytest.raises(ValueError, match="shard-2-of-4.lock: another process is at this work"):
                    annotate(folder, tmp_path, (1, 3), workers=1, progress=False)
                os.write(writer, b"right")
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        os.close(writer)
        assert os.read(reader, 5) == b"right"
    pipeline._refuse_overlap(tmp_path, (2, 2))


def test_the_command(folder, tmp_path):
    arguments = ["annotate", str(folder / "one.mp4"), "--out", str(tmp_path / "out"), "--workers", "1"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "1 videos, 1 shots of 4 s" in result.stdout
    assert (tmp_path / "out" / "records.jsonl").is_file()
    result = CliRunner().invoke(app, [*arguments, "--shard", "1of2"])
    assert (result.exit_code, result.stdout) == (2, "") and "--shard 1of2: it must be I/N" in result.stderr


def test_a_video_that_fails_is_named_and_the_exit_status_tells(tmp_path):
    shutil.copy(Path(__file__).parents[2] / "video_inputs/wide_205to1.mp4", tmp_path / "wide.mp4")
    result = CliRunner().invoke(app, ["annotate", str(tmp_path), "--out", str(tmp_path / "out"), "--workers", "1"])
    assert result.exit_code == 3 and "failed: wide.mp4, stage shots" in result.stdout
    assert "wide.mp4: VideoError: " in result.stderr and "is 4096 x 20 pixels, one side over 200" in result.stderr


def test_a_server_that_is_not_there_fails_the_video_at_its_stage(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("fourdthinker_hf.data.annotation.vlm_client.PAUSE", 0.0)
    settings = AnnotationSettings(server="http://127.0.0.1:9/v1", reasoner="some-model")
    job = VideoJob(folder / "one.mp4", "one.mp4", tmp_path, settings)
    for name in ("parts", "videos", "images"):
        (tmp_path / name).mkdir()
    annotate_video(job)
    report = json.loads(job.report_file.read_text())
    assert report["stage"] == "reasoning" and "VLMError: http://127.0.0.1:9/v1" in report["cause"]
    assert not job.is_done and read_records(job.records_file) == []


def test_without_opencv_the_command_names_what_to_install(folder, tmp_path):
    code = "import sys; sys.modules['cv2'] = None; from fourdthinker_hf.cli import app; app()"
    command = [sys.executable, "-c", code, "annotate", str(folder), "--out", str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert 'pip install "fourdthinker-hf[annotate]"' in line


# Quality


def a_shot(frames):
    return Shot("made", 0.0, len(frames) / 8, frames, np.arange(len(frames)) / 8)


def test_flaws():
    frames = slide()
    assert find_flaw(a_shot(frames)) is None
    smeared = a_shot(np.stack([cv2.GaussianBlur(frame, (0, 0), 9) for frame in frames]))
    assert find_flaw(smeared) == "blurred"


@pytest.mark.parametrize("side", [0, 12])
def test_nothing_moves_is_said_only_of_a_still_picture(side):
    """A sensor's noise is no motion; one thing of 12 pixels in 224 that shifts by 6 once is."""
    noise = np.random.default_rng(1).normal(0, 5, (32, *GROUND[:160, :224].shape))
    frames = np.clip(GROUND[:160, :224] + noise, 0, 255).astype(np.uint8)
    for t, frame in enumerate(frames):
        frame[60 : 60 + side, 30 + 6 * (t > 20) :][:, :side] = (220, 20, 20)
    assert find_flaw(a_shot(frames)) == (None if side else "nothing moves")


# Kills, of real processes

COMMAND = [sys.executable, "-c", "from fourdthinker_hf.cli import app; app()", "annotate"]


def start(source, out):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])}
    arguments = [*COMMAND, str(source), "--out", str(out), "--workers", "1"]
    return subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def children(pid: int) -> list[int]:
    """Processes whose parent is `pid`, by /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def until(condition, seconds=500):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)
    return found


@pytest.fixture
def many(tmp_path, write_video):
    path = tmp_path / "many"
    path.mkdir()
    for k in range(4):
        write_video(path / f"{k}.mp4", slide(seconds=5, seed=10 * k))
    return path


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


@pytest.mark.slow
@pytest.mark.timeout(2000)
@needs_proc
def test_a_killed_run_loses_only_the_video_in_progress(many, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    expected = annotate(many, whole, workers=1, progress=False)
    process = start(many, out)
    reports = until(lambda: (r := list((out / "parts").glob("*.json"))) and len(r) >= 2 and r)
    workers = children(process.pid)
    assert workers
    process.send_signal(signal.SIGKILL)
    process.wait()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), 20)  # no worker lives on
    done = {path: path.stat().st_mtime_ns for path in (out / "parts").glob("*.json")}
    assert len(reports) <= len(done) < 4 and not (out / "records.jsonl").exists()
    process = start(many, out)
    output, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
    assert "4 videos" in output
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert len(list((out / "parts").glob("*.json"))) == 4 and not list((out / "parts").glob("*.stage"))
    assert (out / "records.jsonl").read_bytes() == (whole / "records.jsonl").read_bytes()
    assert expected["failed"] == []


@pytest.mark.slow
@pytest.mark.timeout(2000)
@needs_proc
def test_a_video_that_kills_its_process_is_reported_and_the_others_go_on(many, tmp_path):
    out = tmp_path / "out"
    process = start(many, out)
    for _ in range(2):  # the second time it is tried alone
        until(lambda: list((out / "parts").glob("0-*.stage")))
        (worker,) = until(lambda: [pid for pid in children(process.pid) if b"spawn_main" in _command(pid)])
        os.kill(worker, signal.SIGKILL)
        until(lambda pid=worker: not Path(f"/proc/{pid}/cmdline").exists() or not _command(pid))
    output, errors = process.communicate(timeout=900)
    assert process.returncode == 3, errors
    summary = json.loads((out / "report-1-of-1.json").read_text())
    (failed,) = summary["failed"]
    assert failed["video"] == "0.mp4" and failed["stage"] in pipeline.STAGES and "the process died" in failed["cause"]
    assert f"failed: 0.mp4, stage {failed['stage']}: the process died" in output
    assert summary["videos"] == 4 and len(list((out / "parts").glob("*.json"))) == 4
    counts = Counter(record.source["video"] for record in read_records(out / "records.jsonl"))
    assert "0.mp4" not in counts and len(counts) >= 1


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
