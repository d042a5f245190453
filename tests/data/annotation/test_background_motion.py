"""The background's motion: what is plain is named, even if people pass and a hand shakes, and no more."""

import cv2
import numpy as np
import pytest

from fourdthinker_hf.data.annotation.background_motion import find_plain_span, measure_background
from fourdthinker_hf.data.annotation.shots import Shot

HEIGHT, WIDTH, T = 180, 320, 24
rng = np.random.default_rng(3)
WALL = cv2.GaussianBlur(rng.integers(0, 256, (900, 1600, 3)).astype(np.uint8), (0, 0), 2.5)
WALL = cv2.normalize(WALL, None, 20, 235, cv2.NORM_MINMAX)


def film(centre=lambda t: (800, 450), scale=lambda t: 1.0, people=0, shake=0.0, walls=((WALL, 1.0),)):
    """A shot of walls, from top to bottom, each of which shifts by a factor of its own."""
    frames, jitter = [], np.random.default_rng(4).normal(0, shake, (T, 2))
    for t in range(T):
        frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        for k, (wall, factor) in enumerate(walls):
            x, y = 800 + factor * (np.array(centre(t)) - 800)[0], 450 + factor * (np.array(centre(t)) - 450)[1]
            s = scale(t)
            matrix = np.float64([[s, 0, WIDTH / 2 - s * x + jitter[t, 0]], [0, s, HEIGHT / 2 - s * y + jitter[t, 1]]])
            part = slice(round(HEIGHT * k / len(walls)), None)
            frame[part] = cv2.warpAffine(wall, matrix, (WIDTH, HEIGHT))[part]
        for k in range(people):
            x = int((40 + 100 * k + (-1) ** k * 5 * t) % (WIDTH - 40))
            frame[70:, x : x + 36] = WALL[200 * k : 200 * k + 110, 40 : 40 + 36]
        frames.append(frame)
    return Shot("film.mp4", 0.0, T / 8, np.stack(frames), np.arange(T) / 8)


def car_park():
    """Few marks on a plain ground. A white car comes, so the camera, which drifts a bit, lets in less light."""
    noise, frames = np.random.default_rng(5), []
    for t in range(T):
        frame = np.full((HEIGHT, WIDTH, 3), 110, np.float32)
        for x, y in ((20, 10), (90, 12), (240, 14), (300, 20), (8, 70), (60, 126), (230, 120), (310, 165), (150, 8)):
            frame[y : y + 4, x + t // 12 : x + 8 + t // 12] = 230
        y = int(np.clip(180 - 9 * t, 0, 180))
        frame[y : y + 90, 110:190] = cv2.resize(WALL[:60, :60], (80, 90))[: len(frame[y : y + 90])] // 4 + 190
        light = np.interp(t, (4, 16), (1, 0.55))
        frames.append(np.clip(cv2.GaussianBlur(frame * light, (0, 0), 1) + noise.normal(0, 3, frame.shape), 0, 255))
    return Shot("car_park.mp4", 0.0, T / 8, np.stack(frames).astype(np.uint8), np.arange(T) / 8)


CASES = {
    "static": (film(people=3), ("static",)),
    "static, held in a hand": (film(people=2, shake=0.4), ("static",)),
    "pan left": (film(lambda t: (900 - 4 * t, 450), people=2, shake=1.5), ("pan left",)),
    "tilt down": (film(lambda t: (800, 400 + 4 * t), people=1, shake=1.0), ("tilt down",)),
    "two at once": (film(lambda t: (700 + 5 * t, 500 - 4 * t)), ("pan right", "tilt up")),
    "dolly in": (film(scale=lambda t: 1.015**t, people=2), ("dolly in",)),
    "dolly out": (film(scale=lambda t: 1.5 * 0.985**t, people=1, shake=0.3), ("dolly out",)),
    "near shifts more than far": (film(lambda t: (700 + 4 * t, 450), walls=[(WALL, f) for f in (0.3, 1, 2)]), None),
    "shaking alone": (film(shake=8.0), None),
    "there and back": (film(lambda t: (800 + 40 * np.sin(t / 23 * 2 * np.pi), 450)), None),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_plain_is_named_and_nothing_else(name):
    shot, motions = CASES[name]
    found = find_plain_span(measure_background(shot))
    if name == "there and back":  # half of it is plain
        assert found is None or found[0].stop - found[0].start <= 16
    else:
        assert (found and found[1].motions) == motions


def test_a_camera_that_sets_its_exposure_anew_stands_still_all_the_time():
    frames, named = find_plain_span(measure_background(car_park()))
    assert (frames, named.motions) == (slice(0, T), ("static",))


def test_a_span_begins_and_ends_with_the_motion():
    frames, named = find_plain_span(measure_background(film(lambda t: (800 - 8 * np.clip(t - 6, 0, 12), 450))))
    assert named.motions == ("pan left",) and abs(frames.start - 6) <= 1 and abs(frames.stop - 1 - 18) <= 1


def test_the_shift_between_two_frames():
    background = measure_background(film(lambda t: (800 - 4 * t, 450 + t)))
    right, down, growth = background.between(slice(0, 21))
    assert (right, down, growth) == pytest.approx((80 / 320, -20 / 320, 0), abs=0.004)


def test_a_blank_shot_is_not_plain():
    blank = Shot("blank.mp4", 0.0, 3.0, np.full((T, 90, 160, 3), 90, np.uint8), np.arange(T) / 8)
    assert find_plain_span(measure_background(blank)) is None
