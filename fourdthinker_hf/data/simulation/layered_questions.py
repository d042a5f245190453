"""Questions in a visitor's words about layered scenes, with options, reasoning in plain English, and target frames.

    write_questions(num_clips=1000, seed=1, out="data/layered", per_clip=4)

The truth comes from [`truth_of`]; what is not clear is not asked. For each task the answers come up about equally
often and the options are drawn evenly, so that a question without its video tells nothing. `held_out` takes wordings,
names and option texts that training never has.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from ...output_files import file_hash, files_hash, versions
from ...processing_fourdthinker import OUTPUT_IMAGE
from ..media import highlight, write_picture, write_video
from ..parts import make_records
from ..records import Record
from .cutouts import COLOURS, KINDS
from .layered_scenes import (
    CAMERA_AXES,
    FIRST_MOVER,
    OPPOSITE,
    Mover,
    MoverTruth,
    Rendering,
    Scene,
    X,
    Y,
    Z,
    camera_at,
    project,
    render,
    sample_scene,
    truth_of,
    view_from_above,
)
from .layered_scenes import _at as position_at
from .textures import folder_photos, make_textures, package_photos
from .wordings import (
    ANY_NOUNS,
    CONCLUSIONS,
    DESCRIPTIONS,
    HELD_OUT_OPTIONS,
    KIND_WORDS,
    OBJECT_WORDS,
    OPTIONS,
    QUESTIONS,
    UNANSWERABLE,
    UNANSWERABLE_OPTIONS,
    UNKNOWN_ANSWER,
    UNKNOWN_OPTIONS,
    expand,
)

SIZES = [(84, 168), (112, 140), (112, 112), (140, 112), (168, 84)]  # (height, width), as the processor makes them
SIZE_SHARES = [0.4, 0.2, 0.15, 0.1, 0.15]
NUM_PAIRS, PAIR_SECONDS = 8, 0.2
CAMERA = -1  # where a mover's number is expected
# What a mental image shows that is no frame of the clip, where a frame's number is expected: one second after the
# clip; the last frame without what stands in front; the scene at the end as seen from above.
LATER, UNCOVERED, FROM_ABOVE = -1, -2, -3
LEAST_TEXTURE = 2.5  # grey levels a pixel, down and across
UNKNOWN_SHARE = 0.1  # of the questions are such that the video does not answer them
# Keys that are not offered beside each other: nobody could tell them apart for certain.
CONFUSABLE = [
    {"pan left", "truck left"},
    {"pan right", "truck right"},
    {"tilt up", "pedestal up"},
    {"tilt down", "pedestal down"},
    {"dolly in", "zoom in"},
    {"dolly out", "zoom out"},
]
LINKS = (" and ", ", then ")  # between two motions of the camera: at once, in turn
SEEN_AS = {
    "static": "stays in its place",
    "pan left": "slides to the right",
    "truck left": "slides to the right",
    "pan right": "slides to the left",
    "truck right": "slides to the left",
    "tilt up": "slides down",
    "pedestal up": "slides down",
    "tilt down": "slides up",
    "pedestal down": "slides up",
    "roll left": "turns to the right",
    "roll right": "turns to the left",
    "dolly in": "spreads out",
    "zoom in": "spreads out",
    "dolly out": "draws together",
    "zoom out": "draws together",
    "many": "is in another place",
}
# How late a task has its turn, on average, where another has 1: what few scenes allow, or matters most, comes first.
TURNS = dict.fromkeys(("hidden_place", "leaves_first", "nearer_object", "side_of_mover"), 0.15)
TURNS |= dict.fromkeys(("when", "moves_first", "place_after", "stops", "starts", "faster_object"), 0.2)
TURNS |= dict.fromkeys(("camera_motion", "object_direction", "distance_change", "how_many_move", "what_moves"), 0.5)
EASY_TO_ASK = ("camera_moves", "place", "place_at_end")  # nearly every scene allows them: few scenes are asked
NUMBERS = ("none", "one", "two", "three")


@dataclass(frozen=True)
class AskedQuestion:
    """A question with its answer. `targets` are what its `<output_image>`s show: (mover or `CAMERA`, frame), the frame
    by its number or as `LATER`, `UNCOVERED` or `FROM_ABOVE`. `key` is the answer whatever its wording."""

    task: str
    key: str
    question: str
    options: list[str] | None
    answer: str
    reasoning: str
    targets: tuple[tuple[int, int], ...]


def pair_times(duration: float, num_pairs: int = NUM_PAIRS) -> np.ndarray:
    """Times `(2 * num_pairs,)` at which a clip is shown to the model: pairs `PAIR_SECONDS` apart, spread evenly."""
    return (np.linspace(0, duration - PAIR_SECONDS, num_pairs)[:, None] + [0, PAIR_SECONDS]).ravel()


class Asker:
    """Asks about one rendered scene after the other, and keeps the answers of each task in balance."""

    def __init__(self, rng: np.random.Generator, held_out: bool = False):
        self.rng, self.held_out, self.counts = rng, held_out, {}

    def ask(self, scene: Scene, clip: Rendering, most: int) -> list[AskedQuestion]:
        """Up to `most` questions about a scene, each of another task, and one that asks what happens."""
        self.scene, self.clip = scene, clip
        self.truths = [truth_of(scene, clip, index) for index in range(len(scene.movers))]
        self.clear = [self.is_clear(truth) for truth in self.truths]
        tasks = [task for task in (*QUESTIONS, "camera_two") if task not in EASY_TO_ASK or self.rng.random() < 0.3]
        turns = self.rng.exponential(size=len(tasks)) * [TURNS.get(task, 1.0) for task in tasks]
        tasks = [tasks[i] for i in turns.argsort()]
        asked = []
        for task in tasks:
            if len(asked) == most:
                break
            if (question := getattr(self, task)()) is not None:
                asked.append(question)
        if self.rng.random() < UNKNOWN_SHARE * len(asked):
            asked[self.rng.integers(len(asked))] = self.unanswerable()
        if (description := self.description()) is not None:
            asked.append(description)
        return asked

    @staticmethod
    def is_clear(truth: MoverTruth) -> bool:
        """Whether a thing is seen well enough, and long enough, to be asked about."""
        return bool((truth.visible > 0.5).mean() >= 0.7 and truth.visible[[0, -1]].max() > 0.4)

    @staticmethod
    def is_hidden(truth: MoverTruth) -> bool:
        """Whether a thing is seen well at first, and at the end is in the picture but covered."""
        inside = (truth.places[-1] > 0.08).all() and (truth.places[-1] < 0.92).all()
        return bool(inside and truth.visible[-2:].max() < 0.05 and (truth.visible > 0.5).mean() >= 0.25)

    # Words

    def pick(self, items: Sequence):
        return items[self.rng.integers(len(items))]

    def balanced(self, task: str, key: str, keys: int) -> bool:
        """Whether another question of this answer keeps the answers about even."""
        counts = self.counts.setdefault(task, Counter())
        if counts[key] > 1.1 * sum(counts.values()) / keys + 1:
            return False
        counts[key] += 1
        return True

    def words(self, task: str, **names: str) -> tuple[str, bool]:
        """A wording, and whether it asks for the opposite."""
        pattern = self.pick(QUESTIONS[task].patterns(self.held_out))
        names = {"it": "", "other": "", "way": "", "change": ""} | names
        text = self.pick(expand(pattern.lstrip("!"))).format(**names, It=_capital(names["it"]))
        return text, pattern.startswith("!")

    def option_texts(self, kind: str, keys: Sequence[str], distinct: bool = True) -> list[str] | None:
        """The keys in one style; `None` if two of them would be the same and should not be."""
        if self.held_out:
            texts = [self.pick(expand(HELD_OUT_OPTIONS[kind][key])) for key in keys]
        else:
            table = OPTIONS[kind]
            style = self.rng.integers(len(next(iter(table.values()))))
            which = self.rng.random()
            texts = []
            for key in keys:
                ways = expand(table[key][style])
                texts.append(ways[int(which * len(ways))])
        return texts if not distinct or len(set(texts)) == len(texts) else None

    def build(
        self, task: str, kind: str, key: str, question: str, reasoning: str, targets, it: str = "", most: int = 6
    ) -> AskedQuestion | None:
        """The question with its options, or without any."""
        others = [name for name in OPTIONS[kind] if name != key and {name, key} not in CONFUSABLE]
        conclusion = CONCLUSIONS[kind][key].format(it=it)
        reasoning = f"{reasoning} So {conclusion}." if kind != "yes_no" else reasoning
        count = min(self.option_count(), most, len(others) + 1)
        if count == 0:
            return AskedQuestion(task, key, question, None, _sentence(conclusion), reasoning, tuple(targets))
        for _ in range(6):
            chosen = [key]
            for name in self.by_frequency(task, others):
                if len(chosen) < count and not any({name, other} in CONFUSABLE for other in chosen):
                    chosen.append(name)
            order = self.rng.permutation(chosen).tolist()
            texts = self.option_texts(kind, order)
            if texts is not None:
                texts = self.with_capitals(texts)
                answer = texts[order.index(key)]
                if kind != "yes_no" and self.rng.random() < 0.08:
                    unknown = self.unknown_option()
                    texts.insert(self.rng.integers(len(texts) + 1), unknown)
                return AskedQuestion(task, key, question, texts, answer, reasoning, tuple(targets))
        return None

    def by_frequency(self, task: str, keys: list[str]) -> list[str]:
        """Keys in random order, those first that are often right: a key is then as often right as wrong."""
        counts = self.counts.get(task, {})
        lateness = self.rng.exponential(size=len(keys)) / [counts.get(key, 0) + 0.5 for key in keys]
        return [keys[i] for i in lateness.argsort()]

    def option_count(self) -> int:
        return int(self.rng.choice([0, 2, 3, 4, 5, 6], p=[0.2, 0.12, 0.13, 0.4, 0.08, 0.07]))

    def with_capitals(self, texts: list[str]) -> list[str]:
        """All options with a capital, or as they are; all with a full stop, or none."""
        capital, stop = self.rng.random() < 0.4, self.rng.random() < 0.15
        texts = [_capital(text) for text in texts] if capital else texts
        return [f"{text}." for text in texts] if stop else texts

    def unknown_option(self) -> str:
        pattern = HELD_OUT_OPTIONS["unknown"] if self.held_out else self.pick(UNKNOWN_OPTIONS)
        return self.pick(expand(pattern))

    def name(self, index: int, only: bool = True) -> str | None:
        """What a visitor would call a thing so that it is clear which is meant. `only`: it may be called by what it
        alone does or is, "it" or "the moving thing"."""
        movers, truths = self.scene.movers, self.truths
        mover, others = movers[index], [i for i in range(len(movers)) if i != index]
        kinds = self.kind_words(mover)
        taken = {word for i in others for part in KIND_WORDS[movers[i].cutout.kind] for word in part}
        kinds = [word for word in kinds if word not in taken]
        objects, colour = OBJECT_WORDS[self.held_out], mover.cutout.colour
        thing = self.pick(objects)
        found = []
        if kinds:
            word = self.pick(kinds)
            found += [
                f"the {word}" if word != "someone" else word,
                f"the {colour} {word}".replace("someone", "person"),
            ]
        if all(movers[i].cutout.colour != colour for i in others) and not self.scene.look.grey:
            found.append(f"the {colour} {thing}")
        first = [truth.places[0, 0] for truth in truths]
        if others and truths[index].visible[0] > 0.5:
            if all(first[index] < first[i] - 0.25 for i in others):
                found.append(f"the {thing} on the left")
            if all(first[index] > first[i] + 0.25 for i in others):
                found.append(f"the {thing} on the right")
            sizes = [truth.sizes.mean() for truth in truths]
            if all(sizes[index] > 1.5 * sizes[i] for i in others):
                found.append(self.pick([f"the larger {thing}", f"the big {thing}"]))
            if all(sizes[index] < sizes[i] / 1.5 for i in others):
                found.append(self.pick([f"the smaller {thing}", f"the small {thing}"]))
        if only and mover.moves and not any(movers[i].moves or movers[i].sways for i in others):
            found += [
                f"the moving {thing}",
                f"the {thing} that moves",
                "it",
                f"the {self.pick(ANY_NOUNS[self.held_out])}",
            ]
        elif only and not others:
            found.append("it")
        return self.pick(found) if found else None

    def kind_words(self, mover: Mover) -> tuple[str, ...]:
        """What things of its kind are called."""
        return KIND_WORDS[mover.cutout.kind][self.held_out] or KIND_WORDS[mover.cutout.kind][0]

    def place_words(self, place: np.ndarray) -> str:
        x, y = place
        side = "on the left" if x < 1 / 3 else "on the right" if x > 2 / 3 else "in the middle"
        height = " at the top" if y < 1 / 3 else " at the bottom" if y > 2 / 3 else ""
        return side + height

    def seen_frames(self, index: int) -> tuple[int, int] | None:
        """The first and the last frame in which a thing is seen."""
        seen = np.flatnonzero(self.truths[index].visible > 0.4)
        return (int(seen[0]), int(seen[-1])) if len(seen) else None

    def subjects(self, moving: bool | None = None, hidden: bool = False) -> list[int]:
        """The things that are seen well, or those that are seen well at first and `hidden` at the end, in random
        order."""
        fit = [self.is_hidden(truth) for truth in self.truths] if hidden else self.clear
        return [
            i
            for i in self.rng.permutation(len(self.scene.movers)).tolist()
            if fit[i] and (moving is None or (self.scene.movers[i].moves == moving))
        ]

    def first_and_last(self, index: int, it: str) -> tuple[str, list[tuple[int, int]]]:
        """A mental image of a thing at first and one in the end. Where it is is not said: a tiny model learns that far
        more slowly than which way things move."""
        first, last = self.seen_frames(index)
        text = f"At first {it} looks like this {OUTPUT_IMAGE}. In the end it looks like this {OUTPUT_IMAGE}."
        return text, [(index, first), (index, last)]

    # Tasks: each returns a question, or None where the scene does not give a clear one

    def camera_key(self) -> str | None:
        if not self.scene.motions:
            return "static"
        if not self.is_textured():
            return None
        return self.scene.motions[0] if len(self.scene.motions) == 1 else None

    def is_textured(self) -> bool:
        """Whether there is enough to see that a motion of the camera shows."""
        middle = self.clip.frames[len(self.clip.frames) // 2].mean(-1)
        return bool(np.abs(np.diff(middle, axis=0)).mean() + np.abs(np.diff(middle, axis=1)).mean() > LEAST_TEXTURE)

    def camera_motion(self) -> AskedQuestion | None:
        key = self.camera_key()
        if key is None or not self.balanced("camera_motion", key, 15):
            return None
        text, _ = self.words("camera_motion")
        reasoning, targets = self.camera_reasoning(key)
        return self.build("camera_motion", "camera", key, text, reasoning, targets)

    def camera_reasoning(self, key: str) -> tuple[str, list[tuple[int, int]]]:
        last = len(self.clip.times) - 1
        text = f"What is seen at first {OUTPUT_IMAGE} {SEEN_AS[key]} until the end {OUTPUT_IMAGE}."
        return text, [(CAMERA, 0), (CAMERA, last)]

    def camera_two(self) -> AskedQuestion | None:
        """A camera that makes two motions, at once or in turn."""
        motions = self.scene.motions
        if len(motions) != 2 or not self.is_textured():
            return None
        right = (*motions, LINKS[self.scene.in_turn])
        rows = [right]
        names = list(CONCLUSIONS["camera"])[1:]
        while len(rows) < max(2, min(self.option_count(), 5)):
            link = self.pick(LINKS)
            one, two = self.rng.permutation(names)[:2].tolist()
            one = self.pick([motions[0], one])
            row = (one, OPPOSITE[one] if link == LINKS[1] else two, link)
            clash = any({a, b} in CONFUSABLE or a == b for a in motions for b in row[:2]) and row[0] != motions[0]
            if row[0] != row[1] and not clash and {row[1], motions[1]} not in CONFUSABLE and row[:2] != motions:
                if len({frozenset(other) for other in (*rows, row)}) > len(rows):
                    rows.append(row)
        texts = self.option_texts("camera", [name for row in rows for name in row[:2]], distinct=False)
        joined = [a + row[2] + _without_subject(b) for row, a, b in zip(rows, texts[::2], texts[1::2], strict=True)]
        if len(set(joined)) < len(joined):
            return None
        order = self.rng.permutation(len(rows))
        joined = self.with_capitals(joined)
        last = len(self.clip.times) - 1
        seen = SEEN_AS[motions[0]] + right[2] + SEEN_AS[motions[1]]
        conclusion = self.camera_conclusion()
        reasoning = f"What is seen at first {OUTPUT_IMAGE} {seen} until the end {OUTPUT_IMAGE}. So {conclusion}."
        text, _ = self.words("camera_motion")
        options, answer = [joined[i] for i in order], joined[0]
        if self.option_count() == 0:
            options, answer = None, _sentence(conclusion)
        return AskedQuestion("camera_two", right[0], text, options, answer, reasoning, ((CAMERA, 0), (CAMERA, last)))

    def camera_conclusion(self) -> str:
        """What the camera does, with all its motions: "the camera pans to the left, then tilts up"."""
        first, *others = (CONCLUSIONS["camera"][name] for name in self.scene.motions or ("static",))
        return LINKS[self.scene.in_turn].join([first, *(text.removeprefix("the camera ") for text in others)])

    def larger_object(self) -> AskedQuestion | None:
        pair = self.subjects()[:2]
        if len(pair) < 2:
            return None
        sizes = [self.truths[i].sizes * max(self.scene.movers[i].cutout.extent) for i in pair]
        if max((sizes[0] / sizes[1]).min(), (sizes[1] / sizes[0]).min()) < 1.5:
            return None
        large = int(sizes[1].mean() > sizes[0].mean())
        return self.compare("larger_object", pair, large, "is larger", self.looks)

    def looks(self, index: int, name: str) -> tuple[str, list[tuple[int, int]]]:
        frame = int(self.truths[index].visible.argmax())
        return f"{_capital(name)} looks like this {OUTPUT_IMAGE}.", [(index, frame)]

    def moves_first(self) -> AskedQuestion | None:
        movers = self.scene.movers
        late = [i for i in self.subjects(moving=True) if (self.truths[i].start or 0) > 0.3 * self.scene.duration]
        soon = [
            i for i in self.subjects(moving=True) if movers[i].pace in ("steady", "stops", "speeds up", "slows down")
        ]
        if not late or not soon:
            return None
        pair = [late[0], soon[0]] if self.rng.random() < 0.5 else [soon[0], late[0]]

        def how(index: int, name: str) -> tuple[str, list[tuple[int, int]]]:
            text, targets = self.first_and_last(index, name)
            return f"{text} It {'stands still at first' if index in late else 'moves from the start'}.", targets

        return self.compare("moves_first", pair, pair.index(soon[0]), "moves first", how)

    def compare(self, task: str, pair: list[int], right: int, what: str, describe) -> AskedQuestion | None:
        """Which of two things is the right one; `describe(index, name)` gives the reasoning for one of them."""
        names = [self.name(i, only=False) for i in pair]
        if None in names or names[0] == names[1]:
            return None
        if task == "larger_object" and any(word in name for name in names for word in ("large", "big", "small")):
            return None
        if not self.balanced(task, str(right), 2):
            return None
        text, _ = self.words(task, it=names[0], other=names[1])
        parts = [describe(i, name) for i, name in zip(pair, names, strict=True)]
        reasoning = " ".join(part for part, _ in parts if part) + f" So {names[right]} {what}."
        targets = [target for _, some in parts for target in some]
        return self.choice(task, text, names[right], [names[1 - right]], reasoning, targets)

    def when(self) -> AskedQuestion | None:
        """At which second a thing starts or stops."""
        for index in self.subjects(moving=True):
            truth = self.truths[index]
            moment = truth.start if truth.start is not None else truth.stop
            if moment is None or truth.direction is None or (it := self.name(index)) is None:
                continue
            change = "start to move" if truth.start is not None else "stop"
            text, _ = self.words("when", it=it, change=change)
            text = text.replace("start to moves", "starts to move")
            step = max(1.0, 0.25 * self.scene.duration)
            others = [moment + k * step for k in range(-4, 5) if k and 0.3 < moment + k * step < self.scene.duration]
            if not others:
                continue
            chosen = [moment, *self.rng.permutation(others).tolist()][: max(2, min(5, self.option_count()))]
            style = self.pick(["after {} seconds", "at {} s", "{} s", "{} seconds", "about {} seconds in"])
            texts = [style.format(f"{value:.1f}") for value in chosen]
            order = np.argsort(chosen) if self.rng.random() < 0.5 else self.rng.permutation(len(chosen))
            reasoning, targets = self.first_and_last(index, it)
            reasoning += (
                f" It {change.replace('start', 'starts').replace('stop', 'stops')} after {moment:.1f} seconds."
            )
            if self.option_count() == 0:
                return AskedQuestion(
                    "when", change, text, None, f"After {moment:.1f} seconds.", reasoning, tuple(targets)
                )
            return AskedQuestion("when", change, text, [texts[i] for i in order], texts[0], reasoning, tuple(targets))
        return None

    def camera_moves(self) -> AskedQuestion | None:
        moves = bool(self.scene.motions)
        if moves and not self.is_textured():
            return None
        text, opposite = self.words("camera_moves")
        key = "yes" if moves != opposite else "no"
        if not self.balanced("camera_moves", key, 2):
            return None
        camera = self.camera_key()
        if camera is None:
            reasoning, targets = (
                f"What is seen at first {OUTPUT_IMAGE} is in another place in the end {OUTPUT_IMAGE}.",
                [(CAMERA, 0), (CAMERA, len(self.clip.times) - 1)],
            )
        else:
            reasoning, targets = self.camera_reasoning(camera)
        reasoning += " So the camera moves." if moves else " So the camera stays still."
        return self.build("camera_moves", "yes_no", key, text, reasoning, targets)

    def object_direction(self) -> AskedQuestion | None:
        for index in self.subjects():
            key = self.truths[index].direction
            if key is None or (it := self.name(index)) is None or not self.balanced("object_direction", key, 11):
                continue
            text, _ = self.words("object_direction", it=it)
            reasoning, targets = self.direction_reasoning(index, it, key)
            return self.build("object_direction", "direction", key, text, reasoning, targets, it)
        return None

    def direction_reasoning(self, index: int, it: str, key: str) -> tuple[str, list[tuple[int, int]]]:
        reasoning, targets = self.first_and_last(index, it)
        if key in ("toward", "away"):
            reasoning += f" It looks {'larger' if key == 'toward' else 'smaller'} than before."
        elif ", then " in key:
            reasoning += " It turns back on its way."
        if (camera := self.camera_key()) not in (None, "static"):
            reasoning += f" What is behind it {SEEN_AS[camera]}."
        return reasoning, targets

    def goes_that_way(self) -> AskedQuestion | None:
        for index in self.subjects():
            truth = self.truths[index].direction
            if truth not in ("left", "right", "up", "down", "toward", "away", "still"):
                continue
            if (it := self.name(index)) is None:
                continue
            ways = {"left": "to the left", "right": "to the right", "up": "up", "down": "down"}
            ways |= {"toward": "toward the camera", "away": "away from the camera"}
            right = truth != "still" and self.rng.random() < 0.5
            asked = truth if right else self.pick([way for way in ways if way != truth])
            key = "yes" if right else "no"
            if not self.balanced(f"goes_{asked}", key, 2):
                continue
            text, _ = self.words("goes_that_way", it=it, way=ways[asked])
            reasoning, targets = self.direction_reasoning(index, it, truth)
            reasoning += f" So {CONCLUSIONS['direction'][truth].format(it=it)}."
            return self.build("goes_that_way", "yes_no", key, text, reasoning, targets)
        return None

    def distance_change(self) -> AskedQuestion | None:
        for index in self.subjects():
            key = self.truths[index].distance
            if "zoom in" in self.scene.motions or "zoom out" in self.scene.motions:
                return None
            if key is None or (it := self.name(index)) is None or not self.balanced("distance_change", key, 5):
                continue
            text, _ = self.words("distance_change", it=it)
            reasoning, targets = self.size_reasoning(index, it, key)
            return self.build("distance_change", "distance", key, text, reasoning, targets, it)
        return None

    def size_reasoning(self, index: int, it: str, key: str) -> tuple[str, list[tuple[int, int]]]:
        first, last = self.seen_frames(index)
        size = {"closer": "larger", "farther": "smaller", "same": "as large as before"}
        change = {"larger": "larger", "smaller": "smaller"}
        if ", then " in key:
            sizes = self.truths[index].sizes
            middle = int(sizes.argmax() if key.startswith("closer") else sizes.argmin())
            words = ("larger", "smaller") if key.startswith("closer") else ("smaller", "larger")
            text = f"At first {it} looks like this {OUTPUT_IMAGE}. Then it looks {words[0]} {OUTPUT_IMAGE}"
            text += f", and then {words[1]} again."
            return text, [(index, first), (index, middle)]
        word = (size | change)[key]
        text = f"At first {it} looks like this {OUTPUT_IMAGE}. In the end it looks {word} {OUTPUT_IMAGE}."
        return text, [(index, first), (index, last)]

    def size_change(self) -> AskedQuestion | None:
        for index in self.subjects():
            key = self.truths[index].size
            if key is None or (it := self.name(index)) is None or not self.balanced("size_change", key, 3):
                continue
            text, _ = self.words("size_change", it=it)
            reasoning, targets = self.size_reasoning(index, it, key)
            return self.build("size_change", "size", key, text, reasoning, targets, it)
        return None

    def speed_change(self) -> AskedQuestion | None:
        for index in self.subjects(moving=True):
            key = self.truths[index].pace
            if key is None or (it := self.name(index)) is None or not self.balanced("speed_change", key, 3):
                continue
            text, _ = self.words("speed_change", it=it)
            reasoning, targets = self.first_and_last(index, it)
            ways = {
                "speeds up": "It goes less far in the first half than in the second.",
                "slows down": "It goes farther in the first half than in the second.",
                "steady": "It goes as far in the first half as in the second.",
            }
            return self.build("speed_change", "pace", key, text, f"{reasoning} {ways[key]}", targets, it)
        return None

    def faster_object(self) -> AskedQuestion | None:
        sideways = [
            i
            for i in self.subjects()
            if self.truths[i].direction in ("left", "right", "up", "down", "still")
            and not self.scene.movers[i].followed
        ]
        if len(sideways) < 2:
            return None
        one, two = sideways[:2]
        speeds = [self.truths[i].speed for i in (one, two)]
        if max(speeds) < 0.03 or max(speeds) < 1.7 * min(speeds):
            return None
        fast = int(speeds[1] > speeds[0])
        return self.compare("faster_object", [one, two], fast, "is faster", self.first_and_last)

    def choice(self, task, question, right, wrong, reasoning, targets) -> AskedQuestion:
        """A question whose options are things."""
        if self.option_count() == 0:
            return AskedQuestion(task, right, question, None, _sentence(right), reasoning, tuple(targets))
        texts = [right, *wrong]
        if task == "faster_object" and self.rng.random() < 0.4:
            texts.append(self.pick(["both are equally fast", "neither moves"]))
        shown = self.rng.permutation(len(texts))
        texts = self.with_capitals(texts)
        return AskedQuestion(task, right, question, [texts[i] for i in shown], texts[0], reasoning, tuple(targets))

    def what_moves(self) -> AskedQuestion | None:
        movers = self.scene.movers
        moving = [i for i in range(len(movers)) if movers[i].moves]
        still = [i for i in range(len(movers)) if not movers[i].moves and not movers[i].sways and self.clear[i]]
        if len(moving) != 1 or not self.clear[moving[0]] or self.truths[moving[0]].direction is None:
            return None
        name = f"the {movers[moving[0]].name}"
        if self.scene.look.grey:
            return None
        wrong = [f"the {movers[i].name}" for i in still]
        cutouts = [m.name for m in movers]
        while len(wrong) < 3:
            other = f"{self.pick(list(COLOURS))} {self.pick(list(KINDS))}"
            if other not in cutouts and f"the {other}" not in wrong:
                wrong.append(f"the {other}")
        text, _ = self.words("what_moves")
        reasoning, targets = self.first_and_last(moving[0], name)
        reasoning += f" So {name} moves."
        return self.choice("what_moves", text, name, wrong[: self.rng.integers(1, 4)], reasoning, targets)

    def how_many_move(self) -> AskedQuestion | None:
        movers = self.scene.movers
        if any(m.sways for m in movers) or self.scene.motions:
            return None
        moving = [i for i in range(len(movers)) if movers[i].moves]
        if any(not self.clear[i] or self.truths[i].direction is None for i in moving) or len(moving) > 3:
            return None
        key = NUMBERS[len(moving)]
        if not self.balanced("how_many_move", key, 4):
            return None
        text, _ = self.words("how_many_move")
        parts, targets = [], []
        for i in moving:
            parts.append(f"The {movers[i].name} moves {OUTPUT_IMAGE}.")
            targets.append((i, self.seen_frames(i)[1]))
        reasoning = " ".join(parts or ["Nothing moves."])
        reasoning += f" So {key} of the things move{'s' if len(moving) == 1 else ''}." if moving else ""
        if self.option_count() == 0:
            return AskedQuestion("how_many_move", key, text, None, _sentence(key), reasoning, tuple(targets))
        style = self.rng.integers(3)
        words = [NUMBERS, ("0", "1", "2", "3"), ("nothing", "one thing", "two things", "three things")][style]
        count = self.rng.integers(2, 5)
        keys = [key, *self.rng.permutation([n for n in NUMBERS if n != key]).tolist()][:count]
        order = sorted(keys, key=NUMBERS.index) if self.rng.random() < 0.5 else self.rng.permutation(keys).tolist()
        texts = self.with_capitals([words[NUMBERS.index(k)] for k in order])
        return AskedQuestion("how_many_move", key, text, texts, texts[order.index(key)], reasoning, tuple(targets))

    def place(self) -> AskedQuestion | None:
        return self.place_at("place", 0)

    def place_at_end(self) -> AskedQuestion | None:
        return self.place_at("place_at_end", len(self.clip.times) - 1)

    def place_at(self, task: str, frame: int) -> AskedQuestion | None:
        for index in self.subjects():
            truth = self.truths[index]
            key = _third(truth.places[frame, 0])
            if key is None or truth.visible[frame] < 0.6 or (it := self.name(index)) is None or "on the" in it:
                continue
            if not self.balanced(task, key, 3):
                continue
            text, _ = self.words(task, it=it)
            reasoning = f"Then {it} looks like this {OUTPUT_IMAGE}."
            return self.build(task, "place", key, text, reasoning, [(index, frame)], it)
        return None

    def place_after(self) -> AskedQuestion | None:
        scene = self.scene
        if scene.motions:
            return None
        moment = np.array([scene.duration + 1.0])
        for index in self.subjects(moving=True):
            truth, mover = self.truths[index], scene.movers[index]
            if truth.pace != "steady" or truth.visible[-1] < 0.7 or (it := self.name(index)) is None:
                continue
            place, _ = project(scene, camera_at(scene, moment), position_at(scene, mover.positions, moment))
            x, y = place[0] / [scene.width, scene.height]
            half = truth.sizes[-1] / 2
            gone = not -half < x < 1 + half or not -half < y < 1 + half
            key = "gone" if gone else _third(x)
            if key is None or not self.balanced("place_after", key, 4):
                continue
            text, _ = self.words("place_after", it=it)
            reasoning, targets = self.first_and_last(index, it)
            if not gone:
                reasoning += f" A second later it looks like this {OUTPUT_IMAGE}."
                targets.append((index, LATER))
            return self.build("place_after", "place", key, text, reasoning, targets, it)
        return None

    def hidden_place(self) -> AskedQuestion | None:
        """Where a thing is that went behind another."""
        for index in self.subjects(moving=True, hidden=True):
            truth = self.truths[index]
            key = _third(truth.places[-1, 0])
            if (
                key is None
                or (it := self.name(index, only=False)) is None
                or not self.balanced("hidden_place", key, 3)
            ):
                continue
            text, _ = self.words("hidden_place", it=it)
            first = self.seen_frames(index)[0]
            reasoning = (
                f"At first {it} is {self.place_words(truth.places[first])} {OUTPUT_IMAGE}. Then something covers it."
            )
            reasoning += f" Without that it looks like this {OUTPUT_IMAGE}."
            targets = [(index, first), (index, UNCOVERED)]
            return self.build("hidden_place", "place", key, text, reasoning, targets, it)
        return None

    def leaves_first(self) -> AskedQuestion | None:
        """Which of two things is out of the picture first if both go on as they do at the end."""
        if self.scene.motions:
            return None
        seconds, times = {}, self.clip.times
        late = len(times) * 3 // 4
        for i in self.subjects(moving=True):
            truth = self.truths[i]
            if truth.direction not in ("left", "right", "up", "down") or truth.visible[-1] < 0.7:
                continue
            place = truth.places[:, 0 if truth.direction in ("left", "right") else 1]
            speed = (place[-1] - place[late]) / (times[-1] - times[late])
            seconds[i] = (1 - place[-1] if speed > 0 else place[-1]) / max(abs(speed), 1e-6)
        if len(seconds) < 2:
            return None
        pair = list(seconds)[:2]
        first, second = (seconds[i] for i in pair)
        if max(first, second) < 1.5 * min(first, second) or not 0.3 < min(first, second) < 4:
            return None

        def goes_on(index: int, name: str) -> tuple[str, list[tuple[int, int]]]:
            text, targets = self.first_and_last(index, name)
            return f"{text} A second later it looks like this {OUTPUT_IMAGE}.", [*targets, (index, LATER)]

        return self.compare("leaves_first", pair, int(second < first), "is out of the picture first", goes_on)

    def nearer_object(self) -> AskedQuestion | None:
        """Which of two things is nearer in space: what a camera that travels shows by how far the pictures go."""
        scene = self.scene
        if len(scene.motions) != 1 or CAMERA_AXES[scene.motions[0]][0] not in (X, Y, Z):
            return None
        still = [
            i for i in self.subjects() if self.truths[i].direction == "still" and self.truths[i].visible.min() > 0.5
        ]
        if len(still) < 2:
            return None
        pair = still[:2]
        moment = np.array([scene.duration])
        depths = [
            project(scene, camera_at(scene, moment), position_at(scene, scene.movers[i].positions, moment))[1][0]
            for i in pair
        ]
        if max(depths) < 1.35 * min(depths):
            return None
        near = int(depths[1] < depths[0])
        return self.seen_from_above("nearer_object", pair, near, "is nearer to the camera")

    def side_of_mover(self) -> AskedQuestion | None:
        """On which side a thing is for one that comes toward the camera or goes away from it."""
        for index in self.subjects(moving=True):
            way = self.truths[index].direction
            others = [i for i in self.subjects() if i != index and self.truths[i].visible[-1] > 0.5]
            if way not in ("toward", "away") or not others or self.truths[index].visible[-1] < 0.5:
                continue
            other = others[0]
            aside = self.truths[other].places[-1, 0] - self.truths[index].places[-1, 0]
            names = [self.name(i, only=False) for i in (index, other)]
            if abs(aside) < 0.2 or None in names or names[0] == names[1]:
                continue
            key = "left" if (aside > 0) == (way == "toward") else "right"
            if not self.balanced("side_of_mover", key, 2):
                continue
            text, _ = self.words("side_of_mover", it=names[0], other=names[1])
            so = CONCLUSIONS["direction"][way].format(it=names[0])
            reasoning = f"{_capital(so)} {OUTPUT_IMAGE}. From above the scene looks like this {OUTPUT_IMAGE}."
            targets = [(index, self.seen_frames(index)[1]), (CAMERA, FROM_ABOVE)]
            return self.build("side_of_mover", "side", key, text, reasoning, targets, names[1])
        return None

    def seen_from_above(self, task: str, pair: list[int], right: int, what: str) -> AskedQuestion | None:
        """A comparison of which one image of the scene from above tells the answer."""

        def describe(index: int, name: str) -> tuple[str, list[tuple[int, int]]]:
            if index == pair[0]:
                return f"From above the scene looks like this {OUTPUT_IMAGE}.", [(CAMERA, FROM_ABOVE)]
            return "", []

        return self.compare(task, pair, right, what, describe)

    def stops(self) -> AskedQuestion | None:
        return self.begins_or_ends("stops", "stop", "It stands still in the end.", "It moves until the end.")

    def starts(self) -> AskedQuestion | None:
        return self.begins_or_ends("starts", "start", "It stands still at first.", "It moves from the start.")

    def begins_or_ends(self, task: str, field: str, yes: str, no: str) -> AskedQuestion | None:
        for index in self.subjects(moving=True):
            truth, mover = self.truths[index], self.scene.movers[index]
            if len(mover.path) != 1 or mover.pace == "eases" or truth.direction is None:
                continue
            if (it := self.name(index)) is None:
                continue
            so = getattr(truth, field) is not None
            text, opposite = self.words(task, it=it)
            key = "yes" if so != opposite else "no"
            if not self.balanced(f"{task}_{so}", key, 2) or not self.balanced(task, str(so), 2):
                continue
            reasoning, targets = self.first_and_last(index, it)
            return self.build(task, "yes_no", key, text, f"{reasoning} {yes if so else no}", targets)
        return None

    def turns_back(self) -> AskedQuestion | None:
        for index in self.subjects(moving=True):
            truth = self.truths[index]
            if truth.direction is None or (it := self.name(index)) is None:
                continue
            so = ", then " in truth.direction
            text, opposite = self.words("turns_back", it=it)
            key = "yes" if so != opposite else "no"
            if not self.balanced("turns_back", f"{so}", 2):
                continue
            reasoning, targets = self.direction_reasoning(index, it, truth.direction)
            reasoning += f" So {CONCLUSIONS['direction'][truth.direction].format(it=it)}."
            return self.build("turns_back", "yes_no", key, text, reasoning, targets)
        return None

    def description(self) -> AskedQuestion | None:
        """What happens, without options. From one answer a model learns about the camera and each thing at once."""
        motions, happens, places = self.scene.motions, [], []
        if len(motions) <= 2 and (not motions or self.is_textured()):
            happens.append(self.camera_conclusion())
        for index in self.subjects():
            mover, truth = self.scene.movers[index], self.truths[index]
            kind = self.pick(self.kind_words(mover))
            colour = "" if self.scene.look.grey else f"{mover.cutout.colour} "
            it = f"the {colour}{kind}"
            if truth.visible[0] > 0.4:
                places.append(f"{it} is {self.place_words(truth.places[0])}")
            changes = []
            if truth.direction is not None:
                changes.append(CONCLUSIONS["direction"][truth.direction])
            if truth.distance in ("closer", "farther") and truth.direction not in ("toward", "away"):
                changes.append(CONCLUSIONS["distance"][truth.distance])
            if changes:
                happens.append(
                    " and ".join([changes[0], *(text.removeprefix("{it} ") for text in changes[1:])]).format(it=it)
                )
        if not happens:
            return None
        text = self.pick(expand(self.pick(DESCRIPTIONS.patterns(self.held_out))))
        seen = f": {', '.join(places)}" if places else ""
        reasoning = f"At first it looks like this {OUTPUT_IMAGE}{seen}. In the end it looks like this {OUTPUT_IMAGE}."
        targets = ((CAMERA, 0), (CAMERA, len(self.clip.times) - 1))
        answer = " ".join(map(_sentence, happens))
        return AskedQuestion("description", "", text, None, answer, reasoning, targets)

    def unanswerable(self) -> AskedQuestion:
        """What no video tells, or a thing that is not there."""
        things = [m.name for m in self.scene.movers]
        it = f"the {self.pick(things)}" if things and self.rng.random() < 0.6 else self.pick(["it", "the thing"])
        text = self.pick(expand(self.pick(UNANSWERABLE.patterns(self.held_out)))).format(it=it)
        reasoning = "One cannot see that in the video."
        if self.option_count() == 0:
            return AskedQuestion("unanswerable", "unknown", text, None, UNKNOWN_ANSWER, reasoning, ())
        wrong = self.pick(UNANSWERABLE_OPTIONS).split("|")
        wrong = self.rng.permutation(wrong)[: self.rng.integers(1, 4)].tolist()
        answer = self.unknown_option()
        texts = self.rng.permutation([*wrong, answer]).tolist()
        return AskedQuestion("unanswerable", "unknown", text, texts, answer, reasoning, ())


def _third(x: float) -> str | None:
    """The third of the picture, well inside it."""
    for low, high, name in ((0, 0.29, "left"), (0.38, 0.62, "middle"), (0.71, 1, "right")):
        if low <= x <= high:
            return name
    return None


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _without_subject(text: str) -> str:
    return text.removeprefix("It ").removeprefix("The camera ")


def _sentence(text: str) -> str:
    return _capital(text) + "."


# Files


def target_picture(scene: Scene, clip: Rendering, mover: int, frame: int) -> np.ndarray:
    """What a mental image shows, the mover highlighted: see [`AskedQuestion`]."""
    if frame == FROM_ABOVE:
        return view_from_above(scene, scene.duration)
    if frame in (LATER, UNCOVERED):
        clean = replace(scene, look=replace(scene.look, fps=1000.0))
        moment = scene.duration + 1.0 if frame == LATER else clip.times[-1]
        clip = render(clean, np.array([moment]), hidden=() if frame == LATER else ("layers",))
        frame = 0
    picture = clip.frames[frame]
    return picture if mover == CAMERA else highlight(picture, clip.shown[frame] == FIRST_MOVER + mover)


def sample_clip(rng: np.random.Generator, textures: list[np.ndarray]) -> tuple[Scene, Rendering]:
    """A random scene and its rendering at [`pair_times`]."""
    size = SIZES[rng.choice(len(SIZES), p=SIZE_SHARES)]
    duration = float(np.exp(rng.uniform(np.log(1.9), np.log(9))))
    scene = sample_scene(rng, textures, size, duration)
    return scene, render(scene, pair_times(duration))


def write_questions(
    num_clips: int,
    seed: int,
    out: str | os.PathLike,
    per_clip: int = 4,
    held_out: bool = False,
    photos: str | os.PathLike | None = None,
    workers: int | None = None,
) -> Path:
    """Write about `num_clips * per_clip` records to `out/records.jsonl`, with `videos/` and `images/`. The
    clips are made in pieces, each by one process: what is written does not depend on `workers`. A run that was killed
    is continued by the same call. Raises `ValueError` if `out` holds other work."""
    out = Path(out).absolute()
    sources = folder_photos(photos) if photos else package_photos()
    work = {
        "command": "write_questions",
        **{"num_clips": num_clips, "seed": seed, "per_clip": per_clip, "held_out": held_out},
        "photos_sha256": files_hash(sources),
        **versions("numpy", "av"),
    }
    pieces = max(1, min(16, num_clips // 150))
    sizes = [len(part) for part in np.array_split(np.arange(num_clips), pieces)]
    jobs = [(seed, piece, size) for piece, size in enumerate(sizes)]
    make = partial(_write_piece, out=out, per_clip=per_clip, held_out=held_out, photos=photos)
    return make_records(out, work, jobs, make, workers or os.cpu_count() or 1, progress=True)


def _write_piece(job: tuple[int, int, int], out: Path, per_clip: int, held_out: bool, photos) -> list[Record]:
    seed, piece, size = job
    rng = np.random.default_rng((seed, piece))
    textures = make_textures(rng, 150, folder_photos(photos) if photos else package_photos())
    asker = Asker(rng, held_out)
    records = []
    for number in range(size):
        scene, clip = sample_clip(rng, textures)
        name = f"{piece:03d}_{number:05d}"
        asked = asker.ask(scene, clip, per_clip)
        if not asked:
            continue
        video = out / "videos" / f"{name}.mp4"
        write_video(video, clip.frames, times=pair_times(scene.duration))
        for k, question in enumerate(asked):
            imagery = []
            for mover, frame in question.targets:
                path = out / "images" / f"{name}_{mover}_{frame}.jpg"
                if not path.exists():
                    write_picture(path, target_picture(scene, clip, mover, frame), quality=92)
                imagery.append(str(path))
            source = {"generator": "layered", "seed": seed, "key": question.key, "held_out_words": held_out}
            source["video_sha256"] = file_hash(video)
            records.append(
                Record(
                    id=f"layered-{seed}-{name}-{k}",
                    question=question.question,
                    answer=question.answer,
                    options=question.options,
                    task=question.task,
                    reasoning=question.reasoning,
                    imagery=imagery,
                    video=str(video),
                    source=source,
                )
            )
    return records
