"""Objects found in simulated clips' pixels, held against the simulator's masks.

    python bench/accuracy/tracking.py --level 1 --level 2 --clips 52 --seed 880001

An object counts if its mask has more than 100 pixels in 4 frames or more; it moves if it gets 0.3 m in those frames.
Its overlap is the intersection over the union with the track that suits it best, the mean over those frames: 0 where
the track shows nothing, and 0 if that track is not said to move. It switches where another track than before covers it
best, by half or more. A track said to move is false if most of it lies on nothing that moves or turns.
"""

import argparse
import os
import platform
import subprocess
import time

import numpy as np

from fourdthinker_hf.data.annotation.camera import estimate_camera
from fourdthinker_hf.data.annotation.measurement import SURE
from fourdthinker_hf.data.annotation.shots import Shot
from fourdthinker_hf.data.annotation.tracking import Track, find_objects
from fourdthinker_hf.data.simulation import generation
from fourdthinker_hf.data.simulation.rendering import FPS, Clip
from fourdthinker_hf.data.simulation.scenes import SPLITS
from fourdthinker_hf.data.vocabulary import DSR_TASKS

PIXELS, FRAMES, FAR, RESTS = 100, 4, 0.3, 0.03  # pixels, frames, m, m


def overlaps(clip: Clip, tracks: list[Track], i: int) -> np.ndarray:
    """(tracks, frames that show object i)."""
    masks = clip.masks == i + 1
    shown = np.nonzero(masks.sum((1, 2)) > PIXELS)[0]
    both = [(track.masks & masks).sum((1, 2))[shown] for track in tracks]
    either = [(track.masks | masks).sum((1, 2))[shown] for track in tracks]
    return np.array(both).reshape(-1, len(shown)) / np.array(either).reshape(-1, len(shown))


def is_false(clip: Clip, track: Track) -> bool:
    """Whether a moving track lies on nothing that moves or turns."""
    truth, num = clip.truth, len(clip.frames)
    places, turns = truth.positions[:num], truth.quaternions[:num]
    goes = np.linalg.norm(places - places[0], axis=-1).max(0) > RESTS
    goes |= np.abs((turns * turns[0]).sum(-1)).min(0) < np.cos(np.radians(5) / 2)
    on = [(track.masks & (clip.masks == i + 1)).sum() for i in range(len(goes)) if goes[i]]
    return max(on, default=0) < 0.5 * track.masks.sum()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--level", type=int, action="append", choices=generation.LEVELS)
    parser.add_argument("--clips", type=int, default=52, help="of each level, the 13 tasks in turn")
    parser.add_argument("--seed", type=int, default=880001)
    parser.add_argument("--split", choices=list(SPLITS), default="train")
    args = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    print(f"commit {commit}, {platform.machine()}, {os.cpu_count()} cores; {vars(args)}")
    tasks = DSR_TASKS
    for level in args.level or [1, 2]:
        moved, switches, resting, wrong, sure_wrong, false, sure_false, sure, spent, length = ([], *[0] * 9)
        for number in range(args.clips):
            task, index = tasks[number % len(tasks)], number // len(tasks)
            clip = generation.simulate_clip(args.seed, task, index, level, split=args.split)
            shot = Shot("simulated", 0.0, len(clip.frames) / FPS, clip.frames, clip.timestamps)
            camera, begin = estimate_camera(shot), time.process_time()
            tracks = find_objects(shot, camera)
            spent, length = spent + time.process_time() - begin, length + shot.end
            for track in tracks:
                sure += track.moving and track.confidence >= SURE
                if track.moving and is_false(clip, track):
                    false, sure_false = false + 1, sure_false + (track.confidence >= SURE)
            for i in range(len(clip.scene.objects)):
                shown = np.nonzero((clip.masks == i + 1).sum((1, 2)) > PIXELS)[0]
                if len(shown) < FRAMES:
                    continue
                path = clip.truth.positions[shown, i]
                far = np.linalg.norm(path - path[0], axis=-1).max()
                parts = overlaps(clip, tracks, i)
                best = int(parts.mean(1).argmax()) if tracks else None
                if far >= FAR:
                    found = best is not None and tracks[best].moving
                    moved.append(parts[best].mean() if found else 0.0)
                    holders = [int(part.argmax()) for part in parts.T if len(part) and part.max() >= 0.5]
                    switches += sum(a != b for a, b in zip(holders, holders[1:], strict=False))
                elif far < RESTS and best is not None and parts[best].mean() >= 0.3:
                    resting += 1
                    if tracks[best].moving:
                        wrong, sure_wrong = wrong + 1, sure_wrong + (tracks[best].confidence >= SURE)
        moved = np.array(moved)
        print(
            f"level {level}, {args.clips} clips: {len(moved)} moving objects, median overlap {np.median(moved):.3f}, "
            f"mean {moved.mean():.3f}, below 0.3: {(moved < 0.3).mean():.1%}, {switches} identity switches\n"
            f"  moving tracks of confidence {SURE}: {sure}, false {sure_false} (of any confidence {false}); of "
            f"{resting} objects found that rest, {wrong} are said to move, {sure_wrong} of them surely\n"
            f"  {length / spent:.1f} s of video a second of one core",
            flush=True,
        )


if __name__ == "__main__":
    main()
