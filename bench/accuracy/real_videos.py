"""Measures annotation on real videos whose truth a person has written down: precision and yield of each kind.

    fourdthinker annotate my_clips/videos --out outputs/my_clips
    python bench/accuracy/real_videos.py outputs/my_clips my_clips/truth.json
    python bench/accuracy/real_videos.py camera my_clips/videos my_clips/truth.json     precision by confidence

`truth.json` is a list with one entry for each clip:

    {"clip": "dog.mp4", "camera": "static", "camera_confidence": 5,
     "objects": [{"desc": "the dog", "direction": "right", "size": null}]}

`camera` is a motion of the whole clip in the words of `question_vocabulary.py` ("pan left", "dolly in", "static"), or
"other"; `direction` is left, right, up, down, away, toward or null, `size` larger, smaller or null. Questions about a
clip whose truth says nothing of what is asked are counted as not judged and printed, for a person to look at, and so
are all that are wrong. Of a clip with several objects any that fits counts. Intervals are Wilson's, of 95%.
"""

import argparse
import json
import os
import platform
import subprocess
from collections import defaultdict
from pathlib import Path

import cv2

from fourdthinker_hf.data.annotation.background_motion import measure_background, name_motion
from fourdthinker_hf.data.annotation.pipeline import find_videos
from fourdthinker_hf.data.annotation.questions import CAMERA_MOVES, TASKS
from fourdthinker_hf.data.annotation.shots import read_shots
from fourdthinker_hf.data.records import Record, read_records
from fourdthinker_hf.evaluation.statistics import wilson_interval

CAMERA_TASKS = ("camera_motion", "camera_moves")
THRESHOLDS = (0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7)
# What each answer about an object may be called in the truth: what goes away from a camera above it rises as well.
DIRECTIONS = {
    "to the left": {"left"},
    "to the right": {"right"},
    "up": {"up", "away"},
    "down": {"down", "toward"},
    "away from the camera": {"away"},
    "toward the camera": {"toward"},
}
SIZES = {"grows": "smaller", "shrinks": "larger"}  # of a distance, and of the thing in the picture


def judge(record: Record, truth: dict) -> bool | None:
    """Whether an answer is right; None if the truth does not say."""
    if record.task in CAMERA_TASKS:
        if truth["camera"] == "other":
            return None
        if record.task == "camera_moves":
            return record.answer == CAMERA_MOVES[truth["camera"] != "static"]
        return record.answer == truth["camera"]
    objects = truth["objects"]
    if record.task in ("picture_direction", "object_direction"):
        known = {one["direction"] for one in objects} - {None}
        return bool(DIRECTIONS[record.answer] & known) if known else None
    if record.task == "distance_change":
        known = {one["size"] for one in objects} - {None}
        return SIZES.get(record.answer) in known if known else None
    return None


def share(num: int, total: int) -> str:
    if not total:
        return "none"
    low, high = wilson_interval(num, total)
    return f"{num} of {total}, {num / total:.1%} ({low:.1%} to {high:.1%})"


def measure_records(out: Path, truths: dict[str, dict]) -> None:
    asked = [record for part in sorted((out / "parts").glob("*.jsonl")) for record in read_records(part)]
    kept = {record.id for record in read_records(out / "records.jsonl")}
    judged, unjudged, clips = defaultdict(list), defaultdict(int), defaultdict(set)
    for record in asked:
        clip = record.source["video"]
        is_right = judge(record, truths[clip])
        clips[record.task].add(clip)
        if is_right is None:
            unjudged[record.task] += 1
        else:
            judged[record.task].append(is_right)
        if not is_right:
            word = "not judged" if is_right is None else "wrong"
            print(f"{word}: {clip}: {record.question} -> {record.answer} (truth: {truths[clip]['camera']})")
    print(f"\n{len(asked)} questions about {len(truths)} clips, {len(kept)} of them kept for balance")
    print("| task | clips | right, of those judged | not judged |\n| --- | --- | --- | --- |")
    for task in TASKS:
        if clips[task]:
            right = share(sum(judged[task]), len(judged[task]))
            print(f"| {task} | {len(clips[task])} | {right} | {unjudged[task]} |")
    clear = {clip for clip, truth in truths.items() if truth["camera"] not in ("other", "static")}
    still = {clip for clip, truth in truths.items() if truth["camera"] == "static"}
    movers = {
        clip for clip, truth in truths.items() if any(one["direction"] or one["size"] for one in truth["objects"])
    }
    about_camera = set().union(*(clips[task] for task in CAMERA_TASKS))
    about_motion = set().union(*(found for task, found in clips.items() if task not in CAMERA_TASKS))
    print(f"\na camera question, of the clips whose camera moves in a clear way: {share_of(about_camera, clear)}")
    print(f"a camera question, of the clips whose camera is static: {share_of(about_camera, still)}")
    print(f"a question about an object, of the clips with a clear mover: {share_of(about_motion, movers)}")
    kept_clips = {record.source["video"] for record in asked if record.id in kept}
    print(f"a record that is kept: {share_of(kept_clips, set(truths))}")
    reports = [json.loads(path.read_text()) for path in sorted((out / "parts").glob("*.json"))]
    num_still = sum(report["refused"].get("shot: nothing moves", 0) for report in reports)
    print(f'"nothing moves" was said of {num_still} shots')


def share_of(found: set[str], wanted: set[str]) -> str:
    return share(len(found & wanted), len(wanted))


def measure_camera(folder: Path, truths: dict[str, dict]) -> None:
    named = []
    for path, name in find_videos(folder)[0]:
        truth = truths[name]["camera"]
        for shot in read_shots(path):
            motion = name_motion(measure_background(shot), slice(0, len(shot.frames)))
            is_right = " and ".join(motion.motions) == truth
            named.append((motion.confidence, is_right, truth != "other"))
            print(
                f"{name}: {'right' if is_right else 'wrong'}, {motion.motions} {motion.confidence:.2f}, truth {truth}"
            )
    print("\n| confidence | named | right, if the truth is one motion | right, of all |\n| --- | --- | --- | --- |")
    for threshold in THRESHOLDS:
        sure = [(right, clear) for confidence, right, clear in named if confidence >= threshold]
        clear = [right for right, is_clear in sure if is_clear]
        every = share(sum(right for right, _ in sure), len(sure))
        print(f"| {threshold:.2f} | {len(sure)} of {len(named)} | {share(sum(clear), len(clear))} | {every} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arguments", nargs="+", metavar="[camera] FOLDER TRUTH")
    *what, folder, truth = parser.parse_args().arguments
    if what not in ([], ["camera"]):
        parser.error(f"{' '.join(what)}: it must be nothing, or camera")
    cv2.setNumThreads(1)
    truths = {entry["clip"]: entry for entry in json.loads(Path(truth).read_text())}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    print(f"commit {commit or 'unknown'}, {os.cpu_count()} cores, {platform.machine()}, OpenCV {cv2.__version__}\n")
    (measure_camera if what else measure_records)(Path(folder), truths)


if __name__ == "__main__":
    main()
