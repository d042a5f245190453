"""Measures how well objects are tracked in simulated clips, by the simulator's masks.

    python bench/accuracy/tracking.py --level 1 --level 2 --clips 52 --seed 880001

An object counts if its mask has more than 100 pixels in 4 frames or more, and it moves if it gets 0.3 m far in these
frames. Its overlap is the mean over these frames of the intersection over the union with its best track; it is 0 where
the track is empty, and 0 if that track is not said to move. Its identity switches where another track than before
covers it best, by half or more. A track said to move is false if most of it lies on nothing that moves or turns.
"""

import argparse
import itertools
import os
import platform
import subprocess
import time
from collections import Counter

import numpy as np

from fourdthinker_hf.data.annotation.camera_motion import estimate_camera_motion
from fourdthinker_hf.data.annotation.motion_measurement import MIN_CONFIDENCE
from fourdthinker_hf.data.annotation.motion_tracking import find_moving_objects
from fourdthinker_hf.data.annotation.tracking import Track
from fourdthinker_hf.data.ground_truth import clip_to_shot
from fourdthinker_hf.data.question_vocabulary import DSR_TASKS
from fourdthinker_hf.data.simulation import generate_records
from fourdthinker_hf.data.simulation.rendering import Clip
from fourdthinker_hf.data.simulation.scenes import SPLITS

MIN_PIXELS, MIN_FRAMES = 100, 4  # of an object that counts
MIN_MOTION, MAX_REST = 0.3, 0.03  # m: an object that gets this far moves; one that stays within this rests


def visible_frames(clip: Clip, i: int) -> np.ndarray:
    return np.nonzero((clip.masks == i + 1).sum((1, 2)) > MIN_PIXELS)[0]


def overlaps(clip: Clip, tracks: list[Track], i: int) -> np.ndarray:
    """The intersection over the union of each track with object i, (tracks, frames in which object i is visible)."""
    masks, frames = clip.masks == i + 1, visible_frames(clip, i)
    intersections = [(track.masks & masks).sum((1, 2))[frames] for track in tracks]
    unions = [(track.masks | masks).sum((1, 2))[frames] for track in tracks]
    return np.array(intersections).reshape(-1, len(frames)) / np.array(unions).reshape(-1, len(frames))


def is_false(clip: Clip, track: Track) -> bool:
    """Whether a track that is said to move lies on nothing that moves or turns."""
    truth, num = clip.truth, len(clip.frames)
    positions, quaternions = truth.positions[:num], truth.quaternions[:num]
    moves = np.linalg.norm(positions - positions[0], axis=-1).max(0) > MAX_REST
    moves |= np.abs((quaternions * quaternions[0]).sum(-1)).min(0) < np.cos(np.radians(5) / 2)
    shared = [(track.masks & (clip.masks == i + 1)).sum() for i in range(len(moves)) if moves[i]]
    return max(shared, default=0) < 0.5 * track.masks.sum()


def measure(level: int, num_clips: int, seed: int, split: str) -> None:
    overlaps_of_movers: list[float] = []
    count: Counter = Counter()
    for number in range(num_clips):
        task, index = DSR_TASKS[number % len(DSR_TASKS)], number // len(DSR_TASKS)
        clip = generate_records.simulate_clip(seed, task, index, level, split=split)
        shot = clip_to_shot(clip)
        camera, start = estimate_camera_motion(shot), time.process_time()
        tracks = find_moving_objects(shot, camera)
        count["processor seconds"] += time.process_time() - start
        count["video seconds"] += shot.end
        is_sure = [track.confidence >= MIN_CONFIDENCE for track in tracks]
        for track, sure in zip(tracks, is_sure, strict=True):
            if track.moving:
                false = is_false(clip, track)
                count["sure"] += sure
                count["false"] += false
                count["false, sure"] += false and sure
        for i in range(len(clip.scene.objects)):
            frames = visible_frames(clip, i)
            if len(frames) < MIN_FRAMES:
                continue
            positions = clip.truth.positions[frames, i]
            distance = np.linalg.norm(positions - positions[0], axis=-1).max()
            shares = overlaps(clip, tracks, i)
            best = int(shares.mean(1).argmax()) if tracks else None
            if distance >= MIN_MOTION:
                found = best is not None and tracks[best].moving
                overlaps_of_movers.append(shares[best].mean() if found else 0.0)
                covering = [int(share.argmax()) for share in shares.T if len(share) and share.max() >= 0.5]
                count["switches"] += sum(a != b for a, b in itertools.pairwise(covering))
            elif distance < MAX_REST and best is not None and shares[best].mean() >= 0.3:
                count["resting"] += 1
                count["resting, said to move"] += tracks[best].moving
                count["resting, surely said to move"] += tracks[best].moving and is_sure[best]
    moved = np.array(overlaps_of_movers)
    print(
        f"level {level}, {num_clips} clips: {len(moved)} moving objects, median overlap {np.median(moved):.3f}, "
        f"mean {moved.mean():.3f}, below 0.3: {(moved < 0.3).mean():.1%}, {count['switches']} identity switches\n"
        f"  tracks said to move with confidence {MIN_CONFIDENCE}: {count['sure']}, {count['false, sure']} false "
        f"({count['false']} of any confidence); of {count['resting']} objects found that rest, "
        f"{count['resting, said to move']} are said to move, {count['resting, surely said to move']} of them with "
        f"confidence\n"
        f"  {count['video seconds'] / count['processor seconds']:.1f} s of video a second of one core",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--level", type=int, action="append", choices=generate_records.LEVELS)
    parser.add_argument("--clips", type=int, default=52, help="clips of each level, of the 13 tasks in turn")
    parser.add_argument("--seed", type=int, default=880001)
    parser.add_argument("--split", choices=list(SPLITS), default="train")
    args = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    print(f"commit {commit}, {platform.machine()}, {os.cpu_count()} cores; {vars(args)}")
    for level in args.level or [1, 2]:
        measure(level, args.clips, args.seed, args.split)


if __name__ == "__main__":
    main()
