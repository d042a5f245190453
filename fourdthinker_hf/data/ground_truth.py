"""Checks annotation on simulated clips: what its stages should find, and which of its answers are right.

Only the benchmarks in `bench/accuracy/` and the tests use this.
"""

import itertools

import numpy as np

from .annotation.camera_motion import CameraMotion, CameraMotionSpan
from .annotation.questions import CAMERA_MOVES, AnnotatedQuestion
from .annotation.shots import Shot
from .annotation.tracking import Track
from .question_vocabulary import OBJECT_DIRECTIONS, STATIC_CAMERA, sequence_text
from .simulation import template_questions
from .simulation.rendering import FPS, Clip, Truth
from .simulation.scenes import CAMERA
from .simulation.template_questions import QuestionSpec
from .value_changes import find_runs

ORBIT_PARTS = {"orbit left": ("truck left", "pan right"), "orbit right": ("truck right", "pan left")}
MAX_ANGLE = 35.0  # degrees between a displacement and the direction of its answer; the next direction is 55 away


def clip_to_shot(clip: Clip) -> Shot:
    return Shot("simulated", 0.0, len(clip.frames) / FPS, clip.frames, clip.timestamps)


def true_annotation(clip: Clip) -> tuple[CameraMotion, list[Track]]:
    """What estimating the camera and tracking objects would find if they made no mistake.

    The homographies are those of the ground. The tracks are of all objects that move, and of the largest one that does
    not. `clip` must have masks of all its frames.
    """
    truth, size = clip.truth, clip.frames.shape[1]
    focal = clip.scene.focal
    intrinsics = np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
    right_down_ahead = np.diag([1.0, -1.0, -1.0])  # from the camera's right, up and backward
    from_ground = []  # (T, 3, 3), from points (x, y, 1) of the ground to pixels
    for position, rotation in zip(truth.camera_positions, truth.camera_rotations, strict=True):
        to_camera = right_down_ahead @ rotation.T
        from_ground.append(intrinsics @ np.column_stack([to_camera[:, 0], to_camera[:, 1], -to_camera @ position]))
    homographies = np.stack([after @ np.linalg.inv(before) for before, after in itertools.pairwise(from_ground)])
    spans = [CameraMotionSpan(start, end, tuple(sorted(names)), 1.0) for start, end, names in truth.camera_motions]
    tracks = []
    for i, body in enumerate(clip.scene.objects):
        moving = np.ptp(truth.positions[:, i], axis=0).max() > 0.3
        tracks.append(Track(clip.masks == i + 1, f"the {body.name}", 1.0, bool(moving)))
    movers = [track for track in tracks if track.moving]
    landmarks = sorted((track for track in tracks if not track.moving), key=lambda track: -track.masks.sum())
    return CameraMotion(spans, homographies), movers + landmarks[:1]


def match_object(track: Track, masks: np.ndarray) -> int | None:
    """The index of the object that a track shows, or None. `masks` (T, H, W) has i + 1 where object i is.

    It is the object that the track overlaps most, if their intersection is a third of their union, or if it holds 70%
    of the track, which may then be a part of it.
    """
    shared = np.bincount(masks[track.masks], minlength=int(masks.max()) + 1)[1:]
    if not shared.any():
        return None
    sizes, best = np.bincount(masks.ravel())[1:], int(shared.argmax())
    overlap = shared[best] / (sizes[best] + track.masks.sum() - shared[best])
    return best if overlap >= 1 / 3 or shared[best] >= 0.7 * track.masks.sum() else None


def is_answer_right(truth: Truth, question: AnnotatedQuestion, objects: list[int | None]) -> bool:
    """Whether a question's answer follows from the simulator's state; `objects` are the matches of its tracks.

    The functions of simulated questions decide, and what is ambiguous to them counts as wrong. An orbit counts as what
    it consists of: a truck with the opposite pan.
    """
    start, end = question.start, question.end
    overlapping = {names for a, b, names in truth.camera_motions if min(b, end) - max(a, start) > 0.3}
    if question.task == "camera_moves":
        wanted = question.answer == CAMERA_MOVES[1]
        return all((names != (STATIC_CAMERA,)) == wanted for names in overlapping)
    if question.task == "camera_motion":
        if len(overlapping) != 1:
            return False
        parts = {part for name in overlapping.pop() for part in ORBIT_PARTS.get(name, (name,))}
        return parts == set(question.answer.split(" and "))
    if None in objects:
        return False

    def spec(task: str, x: int, y: int | None = None) -> QuestionSpec:
        return QuestionSpec(task, CAMERA, x, y, start, start, end)

    if question.task == "picture_direction":
        seen = []
        for frame in (round(start * FPS), round(end * FPS)):
            offset = truth.positions[frame, objects[0]] - truth.camera_positions[frame]
            right, up, back = offset @ truth.camera_rotations[frame]
            seen.append(np.array([right, -up]) / -back)
        right, down = (seen[1] - seen[0]).tolist()
        ways = {"to the left": (-1, 0), "to the right": (1, 0), "up": (0, -1), "down": (0, 1)}
        along = np.dot((right, down), ways[question.answer])
        return bool(along >= np.cos(np.radians(MAX_ANGLE)) * max(np.hypot(right, down), 0.02))
    if question.task == "object_direction":
        positions = template_questions.position_from_agent(
            truth, spec("abs_dir", objects[0]), objects[0]
        )  # front, left, up
        displacement = positions[round(end * FPS)] - positions[round(start * FPS)]
        axes = dict(zip(OBJECT_DIRECTIONS, ((0, 1, 0), (0, -1, 0), (-1, 0, 0), (1, 0, 0)), strict=True))
        min_length = np.cos(np.radians(MAX_ANGLE)) * max(np.linalg.norm(displacement), 0.1)
        return bool(displacement @ axes[question.answer] >= min_length)
    if question.task == "spatial_description":
        span, angles = slice(round(start * FPS), round(end * FPS) + 1), []
        for i in objects:
            front, left, _ = template_questions.position_from_agent(truth, spec("rel_dir", i), i)[span].T
            angles.append(np.arctan2(left, front))
        differences = np.degrees(angles[0] - angles[1]).tolist()
        sides = [None if abs(angle) < 1 else ("left", "right")[angle < 0] for angle in differences]
        return sequence_text(find_runs(sides) or ()) == question.answer
    task = {"distance_change": "rel_dis", "speed_change": "abs_spd", "faster_object": "abs_spd_comp"}[question.task]
    answer = template_questions.find_answer(truth, spec(task, *objects))
    return sequence_text(answer or ()) == question.answer
