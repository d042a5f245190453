"""How people ask about a video and how they word the options: many wordings of one question.

A pattern such as `"[Which way|Where] does {it} [go|move]?"` stands for all its expansions; `{it}` is the thing asked
about. Each list has a part to train on and a part that is held out, a third of it, with words that the training part
does not have: how well the held-out part is answered says how far the words carry. A pattern that begins with `!` asks
for the opposite: its yes is the others' no.
"""

import functools
import re
from dataclasses import dataclass
from pydoc_data.topics import topics

import numpy as np

from .cutouts import COLOURS

_CHOICE = re.compile(r"\[([^\[\]]*)\]")


@functools.cache
def expand(pattern: str) -> tuple[str, ...]:
    """All texts of a pattern, in order; doubled spaces, and those before a mark, are taken out.

    >>> expand("[Which way|Where] does it [go|move]?")[:2]
    ('Which way does it go?', 'Which way does it move?')
    """
    match = _CHOICE.search(pattern)
    if match is None:
        return (re.sub(r" (?=[?.,])", "", " ".join(pattern.split())),)
    before, after = pattern[: match.start()], pattern[match.end() :]
    return tuple(text for part in match[1].split("|") for text in expand(before + part + after))


@dataclass(frozen=True)
class Wordings:
    """Patterns to train on and patterns held out."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]

    def patterns(self, held_out: bool) -> tuple[str, ...]:
        return self.held_out if held_out else self.train

    def texts(self, held_out: bool) -> list[str]:
        return [text for pattern in self.patterns(held_out) for text in expand(pattern)]


QUESTIONS = {
    "camera_motion": Wordings(
        (
            "How does the camera move?",
            "[What|How] is the camera [doing|moving]?",
            "[Which|What] camera [motion|movement] [is this|do you see|is shown]?",
            "What does the camera do [in this video|here|]?",
            "[In which direction|Which way] does the camera [move|go|turn]?",
            "Describe the [motion|movement] of the camera.",
            "How does the [view|viewpoint] change [during the clip|]?",
            "How was the camera moved?",
            "Does the camera move, and if so, how?",
        ),
        (
            "[Tell me|Say] how the [cameraman|person filming] moves the shot.",
            "Which [technique|kind of shot] was used for filming this scene?",
            "What [best describes|characterises] the camera work?",
            "Where is the lens heading?",
            "In what manner is the footage shot?",
        ),
    ),
    "camera_moves": Wordings(
        (
            "Does the camera move?",
            "Is the camera moving?",
            "!Is the camera [still|standing still]?",
            "Did the camera move [during the video|in this clip|]?",
            "!Did the camera [stay where it is|stay still] [during the video|in this clip|]?",
            "Was this filmed with a camera that moves?",
            "!Was this filmed with a camera that does not move?",
            "Does the [view|viewpoint] change?",
            "!Does the [view|viewpoint] stay the same?",
        ),
        (
            "!Is this [footage|shot] taken from a [tripod|stationary position]?",
            "Would you say the cameraman shifted the shot?",
            "!Would you say the cameraman held the shot?",
            "!Is the framing [fixed|constant]?",
        ),
    ),
    "object_direction": Wordings(
        (
            "[Which way|In which direction|Where] does {it} [move|go]?",
            "[Which way|In which direction] is {it} [moving|going]?",
            "[How|Where to] does {it} move?",
            "What is the direction of {it}?",
            "[Where|Which way] did {it} go [in the video|]?",
            "What does {it} do?",
            "{It} moves. Which way?",
            "Tell me where {it} is going.",
        ),
        (
            "[Toward|Towards] which side is {it} [heading|travelling]?",
            "What course does {it} [take|follow]?",
            "Describe the path that {it} travels along.",
            "Whither is {it} bound?",
            "Along which line does {it} advance?",
        ),
    ),
    "goes_that_way": Wordings(
        (
            "Does {it} [move|go] {way}?",
            "Is {it} [moving|going] {way}?",
            "Did {it} [move|go] {way} [in the video|in this clip|]?",
            "Can you see {it} [move|go] {way}?",
            "Is it right that {it} moves {way}?",
        ),
        (
            "Would you agree that {it} is [heading|travelling] {way}?",
            "True or not: {it} [advances|travels] {way}.",
            "Has {it} been heading {way}?",
        ),
    ),
    "distance_change": Wordings(
        (
            "Does {it} come closer or go farther away?",
            "Is {it} [coming closer|getting closer|getting nearer] or [going away|getting farther away]?",
            "How does the distance [between the camera and {it}|from the camera to {it}] change?",
            "Does the distance to {it} change?",
            "Does {it} [come nearer|get nearer|move closer] [to the camera|] [during the clip|]?",
            "How far away is {it} at the end, compared with the start?",
            "What happens to the distance of {it}?",
        ),
        (
            "Is {it} approaching or receding?",
            "Does {it} [draw near|withdraw] as time passes?",
            "How does the [gap|space] between us and {it} evolve?",
            "By the finish, is {it} at closer range than before?",
        ),
    ),
    "size_change": Wordings(
        (
            "Does {it} [look|get|become] larger or smaller?",
            "How does the size of {it} [in the picture|on the screen|] change?",
            "Is {it} larger or smaller at the end [than at the start|]?",
            "What happens to the size of {it}?",
            "Does {it} [grow|shrink] in the picture?",
        ),
        (
            "Does {it} [fill|occupy] more or less of the frame as time passes?",
            "How does the apparent [extent|scale] of {it} evolve?",
            "Is {it} magnified or reduced by the finish?",
        ),
    ),
    "speed_change": Wordings(
        (
            "Does {it} [speed up|get faster] or [slow down|get slower]?",
            "How does the speed of {it} change?",
            "Is {it} getting faster or slower?",
            "Does the speed of {it} [change|stay the same]?",
            "Does {it} move faster at the end or at the start?",
            "What happens to the speed of {it}?",
        ),
        (
            "Is {it} [accelerating|decelerating] or neither?",
            "How does the [pace|velocity] of {it} evolve?",
            "Does {it} brake or hurry as time passes?",
        ),
    ),
    "faster_object": Wordings(
        (
            "Which [moves|is|goes] faster, {it} or {other}?",
            "[Which one|Which of the two] is faster: {it} or {other}?",
            "Is {it} faster than {other}, or [is it slower|the other way round]?",
            "What moves faster, {it} or {other}?",
            "Compare the speed of {it} and {other}. Which is faster?",
        ),
        (
            "Out of {it} and {other}, what travels [quicker|more swiftly]?",
            "Between {it} and {other}, name the one at the higher velocity.",
            "Who would win a race, {it} or {other}?",
        ),
    ),
    "larger_object": Wordings(
        (
            "Which [looks|is] larger, {it} or {other}?",
            "[Which one|Which of the two] is [larger|bigger] in the picture: {it} or {other}?",
            "Is {it} larger than {other}, or the other way round?",
            "What is bigger, {it} or {other}?",
            "Compare the size of {it} and {other}. Which is larger?",
        ),
        (
            "Out of {it} and {other}, what fills more of the frame?",
            "Between {it} and {other}, name the one with the greater extent.",
        ),
    ),
    "moves_first": Wordings(
        (
            "Which [moves|starts|starts to move] first, {it} or {other}?",
            "[Which one|Which of the two] [moves|starts] first: {it} or {other}?",
            "Does {it} start to move before {other}, or the other way round?",
            "What moves first, {it} or {other}?",
            "{It} and {other} both move. Which starts earlier?",
        ),
        (
            "Out of {it} and {other}, what sets off earliest?",
            "Between {it} and {other}, name the one that gets going sooner.",
        ),
    ),
    "when": Wordings(
        (
            "When does {it} {change}?",
            "After how many seconds does {it} {change}?",
            "[At what time|At which time|At which moment] does {it} {change}?",
            "How long does it take until {it} {change}s?",
            "At which second does {it} {change}?",
        ),
        ("How much time passes before {it} {change}s?", "Give the instant at which {it} {change}s."),
    ),
    "what_moves": Wordings(
        (
            "[What|Which thing|Which object] [moves|is moving]?",
            "[What|Which thing] moves [in this video|in the picture|]?",
            "Which of these [moves|is moving]?",
            "What can you see moving?",
            "Name the thing that moves.",
        ),
        (
            "Which item is in motion?",
            "What fails to remain where it was?",
            "Identify whatever [travels|shifts] through the scene.",
        ),
    ),
    "how_many_move": Wordings(
        (
            "How many [things|objects] [move|are moving]?",
            "How many things move [in this video|in the picture|]?",
            "What is the number of [things that move|moving things|moving objects]?",
            "Count the [things that move|moving things].",
            "How many of the things do not stay where they are?",
        ),
        (
            "How many items are in motion?",
            "Give the total of everything that travels through the scene.",
            "What quantity of objects shift their position?",
        ),
    ),
    "place": Wordings(
        (
            "Where is {it} [at the start|at the beginning|at first|when the video starts]?",
            "On which side is {it} [at the start|at the beginning|at first]?",
            "In which part of the picture is {it} [at the start|at first]?",
        ),
        ("Initially, what [region|area] of the frame holds {it}?", "Where does {it} appear as the footage opens?"),
    ),
    "place_at_end": Wordings(
        (
            "Where is {it} [at the end|in the end|when the video ends]?",
            "On which side is {it} [at the end|in the end]?",
            "In which part of the picture is {it} [at the end|in the end]?",
        ),
        ("Finally, what [region|area] of the frame holds {it}?", "Where does {it} appear as the footage closes?"),
    ),
    "place_after": Wordings(
        (
            "Where will {it} be one second later?",
            "Where is {it} going to be [a second|one second] after the video ends?",
            "The video stops. Where is {it} a second later?",
            "[Guess|Say] where {it} will be next.",
        ),
        (
            "Predict the position of {it} shortly after the footage closes.",
            "If nothing interferes, what region will {it} have reached a moment on?",
        ),
    ),
    "hidden_place": Wordings(
        (
            "Where is {it} [at the end|now], [although|while] it cannot be seen?",
            "{It} is hidden at the end. Where is it?",
            "Something covers {it} [at the end|]. Where is {it}?",
            "Where is {it} hidden?",
            "Where did {it} go when it [disappeared|went out of sight]?",
            "[Behind what part of the picture|On which side] is {it} hidden at the end?",
        ),
        ("{It} got occluded; what region of the frame holds it?", "Which area conceals {it} as the footage closes?"),
    ),
    "leaves_first": Wordings(
        (
            "Which will [leave the picture|be out of sight|be gone] first, {it} or {other}?",
            "[Which one|Which of the two] [reaches|will reach] the edge of the picture first: {it} or {other}?",
            "If both go on like this, which leaves the picture first, {it} or {other}?",
            "{It} and {other} go on as they do. Which is [out of the picture|gone] first?",
            "Does {it} leave the picture before {other}, or the other way round?",
        ),
        (
            "Out of {it} and {other}, what exits the frame earliest?",
            "Between {it} and {other}, name the one that vanishes past a border sooner.",
        ),
    ),
    "nearer_object": Wordings(
        (
            "Which is [nearer|closer] to the camera, {it} or {other}?",
            "[Which one|Which of the two] is [nearer|closer]: {it} or {other}?",
            "Is {it} nearer than {other}, or the other way round?",
            "What is [nearer|closer] to us, {it} or {other}?",
            "Compare how far away {it} and {other} are. Which is [nearer|closer]?",
        ),
        (
            "Out of {it} and {other}, what sits at shorter range?",
            "Between {it} and {other}, name the one with the smaller depth.",
        ),
    ),
    "side_of_mover": Wordings(
        (
            "[As seen from|Seen from|From the place of] {it}, on which side is {other}?",
            "{It} looks where it goes. [On which side of it|On which of its sides] is {other}?",
            "Is {other} on the left or on the right [of someone who rides on|as seen from] {it}?",
            "[Sitting|Riding] on {it} and looking ahead, [where|on which side] do you see {other}?",
            "On which side does {it} have {other}?",
        ),
        (
            "From the perspective of {it}, facing its heading, what flank is {other} on?",
            "Put yourself in the driver's seat of {it}: {other} lies to which hand?",
        ),
    ),
    "stops": Wordings(
        (
            "Does {it} [stop|come to rest|stand still at the end]?",
            "Does {it} stop moving [before the end|]?",
            "!Is {it} still moving at the end?",
            "!Does {it} move until the end?",
            "!Does {it} keep moving [to the end|all the time]?",
        ),
        ("Does {it} [halt|pause] before the footage closes?", "!Is {it} in motion right up to the finish?"),
    ),
    "starts": Wordings(
        (
            "!Does {it} move from the [start|beginning]?",
            "Is {it} still at first?",
            "Does {it} [start to move|begin to move] only later?",
            "Does {it} stand still at first and then move?",
            "!Does {it} move right away?",
        ),
        ("!Is {it} in motion from the outset?", "Does {it} set off after a pause?"),
    ),
    "turns_back": Wordings(
        (
            "Does {it} [turn back|turn around|change its direction|change direction]?",
            "Does {it} [come back|go back]?",
            "!Does {it} keep its direction?",
            "!Does {it} move the same way all the time?",
        ),
        ("Does {it} reverse its course?", "!Is the heading of {it} constant?"),
    ),
}

# What an answer's key is called as an option, in styles: within one question all options have the same style, so that
# the wording says nothing about which is right.
CAMERA_OPTIONS = {
    "static": (
        "[It|The camera] [stays still|does not move|stays where it is|stands still]",
        "[still|no motion|nowhere]",
        "[no movement|static|a still shot]",
        "[It|The camera] [is fixed|is static|is stationary]",
    ),
    "pan left": (
        "[It|The camera] [pans|turns] [left|to the left]",
        "left",
        "[pan|panning] left",
        "[It|The camera] [swings|rotates] [left|to the left]",
    ),
    "pan right": (
        "[It|The camera] [pans|turns] [right|to the right]",
        "right",
        "[pan|panning] right",
        "[It|The camera] [swings|rotates] [right|to the right]",
    ),
    "tilt up": (
        "[It|The camera] tilts [up|upward]",
        "up",
        "[tilt|tilting] up",
        "[It|The camera] [looks up|swings up]",
    ),
    "tilt down": (
        "[It|The camera] tilts [down|downward]",
        "down",
        "[tilt|tilting] down",
        "[It|The camera] [looks down|swings down]",
    ),
    "roll left": (
        "[It|The camera] rolls [left|to the left]",
        "rolling left",
        "[roll|rolling] to the left",
        "[It|The camera] rolls [counterclockwise|anticlockwise]",
    ),
    "roll right": (
        "[It|The camera] rolls [right|to the right]",
        "rolling right",
        "[roll|rolling] to the right",
        "[It|The camera] rolls clockwise",
    ),
    "truck left": (
        "[It|The camera] moves [left|to the left|sideways to the left]",
        "left",
        "moving left",
        "[It|The camera] [slides|travels|trucks] [left|to the left]",
    ),
    "truck right": (
        "[It|The camera] moves [right|to the right|sideways to the right]",
        "right",
        "moving right",
        "[It|The camera] [slides|travels|trucks] [right|to the right]",
    ),
    "pedestal up": (
        "[It|The camera] [rises|moves up|goes up]",
        "up",
        "moving up",
        "[It|The camera] [climbs|is lifted]",
    ),
    "pedestal down": (
        "[It|The camera] [sinks|moves down|goes down]",
        "down",
        "moving down",
        "[It|The camera] [descends|is lowered]",
    ),
    "dolly in": (
        "[It|The camera] moves [forward|forwards|ahead|closer|straight on]",
        "forward",
        "moving forward",
        "[It|The camera] [drives forward|approaches|travels ahead]",
    ),
    "dolly out": (
        "[It|The camera] moves [back|backward|backwards|away]",
        "back",
        "moving back",
        "[It|The camera] [drives back|retreats|backs away]",
    ),
    "zoom in": (
        "[It|The camera] zooms in",
        "in",
        "[zoom|zooming] in",
        "[It|The camera] [magnifies the picture|zooms closer]",
    ),
    "zoom out": (
        "[It|The camera] zooms out",
        "out",
        "[zoom|zooming] out",
        "[It|The camera] [widens the picture|zooms away]",
    ),
}
DIRECTION_OPTIONS = {
    "left": (
        "[left|to the left]",
        "It [moves|goes] [left|to the left]",
        "leftward",
        "from right to left",
        "[toward the left side|off to the left]",
    ),
    "right": (
        "[right|to the right]",
        "It [moves|goes] [right|to the right]",
        "rightward",
        "from left to right",
        "[toward the right side|off to the right]",
    ),
    "up": (
        "[up|upward|upwards]",
        "It [moves|goes] [up|upward]",
        "upward",
        "from the bottom to the top",
        "[it rises|it climbs]",
    ),
    "down": (
        "[down|downward|downwards]",
        "It [moves|goes] [down|downward]",
        "downward",
        "from the top to the bottom",
        "[it falls|it sinks]",
    ),
    "toward": (
        "[toward us|toward the camera|closer]",
        "It [comes closer|comes toward the camera]",
        "forward",
        "from far to near",
        "it approaches",
    ),
    "away": (
        "[away|away from the camera]",
        "It [goes away|moves away from the camera]",
        "backward",
        "from near to far",
        "it recedes",
    ),
    "still": (
        "nowhere",
        "It [stays where it is|does not move]",
        "in no direction",
        "it stays in one place",
        "[it rests|it stands still]",
    ),
    "left, then right": (
        "left, then right",
        "It [goes left and comes back|moves left, then right]",
        "leftward, then rightward",
        "from right to left and back",
        "off to the left and back",
    ),
    "right, then left": (
        "right, then left",
        "It [goes right and comes back|moves right, then left]",
        "rightward, then leftward",
        "from left to right and back",
        "off to the right and back",
    ),
    "toward, then away": (
        "closer, then away",
        "It [comes closer and goes away again|comes closer, then goes away]",
        "forward, then backward",
        "from far to near and back",
        "it approaches, then recedes",
    ),
    "away, then toward": (
        "away, then closer",
        "It [goes away and comes closer again|goes away, then comes closer]",
        "backward, then forward",
        "from near to far and back",
        "it recedes, then approaches",
    ),
}
DISTANCE_OPTIONS = {
    "closer": (
        "[closer|nearer]",
        "It [comes|gets] [closer|nearer]",
        "the distance gets smaller",
        "[It approaches|It draws nearer]",
    ),
    "farther": (
        "[farther|farther away|away]",
        "It [goes away|gets farther away]",
        "the distance gets larger",
        "[It recedes|It draws away]",
    ),
    "same": (
        "[the same|no change]",
        "It [stays as far away|stays at the same distance|keeps its distance]",
        "the distance stays the same",
        "It stays where it is",
    ),
    "closer, then farther": (
        "closer, then farther",
        "It comes closer, then goes [away|back]",
        "the distance gets smaller, then larger",
        "It approaches, then recedes",
    ),
    "farther, then closer": (
        "farther, then closer",
        "It goes [away|back], then comes closer",
        "the distance gets larger, then smaller",
        "It recedes, then approaches",
    ),
}
SIZE_OPTIONS = {
    "larger": (
        "[larger|bigger]",
        "It [gets|becomes] [larger|bigger]",
        "it grows",
        "[it expands|it fills more of the picture]",
    ),
    "smaller": ("smaller", "It [gets|becomes] smaller", "it shrinks", "[it contracts|it fills less of the picture]"),
    "same": (
        "[the same|no change]",
        "It [keeps its size|stays as large as it is]",
        "it stays the same",
        "[it is constant|it fills as much of the picture]",
    ),
}
PACE_OPTIONS = {
    "speeds up": ("[faster|it gets faster]", "It [speeds up|gets faster]", "the speed gets higher", "It accelerates"),
    "slows down": (
        "[slower|it gets slower]",
        "It [slows down|gets slower]",
        "the speed gets lower",
        "It [decelerates|brakes]",
    ),
    "steady": (
        "[the same|as fast as before]",
        "It keeps its speed",
        "the speed stays the same",
        "Its speed is constant",
    ),
}
PLACE_OPTIONS = {
    "left": ("[left|on the left]", "[on the left side|in the left part]", "It is on the left"),
    "middle": ("[middle|in the middle]", "[in the middle part|in the centre]", "It is in the middle"),
    "right": ("[right|on the right]", "[on the right side|in the right part]", "It is on the right"),
    "gone": ("[out of sight|not in the picture]", "it cannot be seen", "It is out of the picture"),
}
SIDE_OPTIONS = {
    "left": ("[left|on the left]", "[on its left side|to its left]", "It is on the left"),
    "right": ("[right|on the right]", "[on its right side|to its right]", "It is on the right"),
}
YES_NO_OPTIONS = {"yes": ("yes", "Yes, it does"), "no": ("no", "No, it does not")}
UNKNOWN_OPTIONS = (
    "[It cannot be told|You cannot tell] [from the video|from this|]",
    "[The video does not show that|not shown]",
    "[unknown|I cannot tell|cannot be told]",
)

# Held out: other words around what the training part calls left, up, closer and so on.
HELD_OUT_OPTIONS = {
    "camera": {
        "static": "There is [hardly any|zero] camera motion, it is still",
        "pan left": "A pan towards the left-hand side",
        "pan right": "A pan towards the right-hand side",
        "tilt up": "A tilt directed upwards",
        "tilt down": "A tilt directed downwards",
        "roll left": "A roll towards the left-hand side",
        "roll right": "A roll towards the right-hand side",
        "truck left": "A sideways glide leftwards",
        "truck right": "A sideways glide rightwards",
        "pedestal up": "A vertical lift, up",
        "pedestal down": "A vertical drop, down",
        "dolly in": "A [ride|walk] forward",
        "dolly out": "A [ride|walk] backward",
        "zoom in": "A zoom going in",
        "zoom out": "A zoom going out",
    },
    "direction": {
        "left": "It heads leftwards",
        "right": "It heads rightwards",
        "up": "It heads upwards",
        "down": "It heads downwards",
        "toward": "It heads closer towards the viewer",
        "away": "It heads away from the viewer",
        "still": "It does not leave its place",
        "left, then right": "It heads leftwards, then returns to the right",
        "right, then left": "It heads rightwards, then returns to the left",
        "toward, then away": "It heads closer, then returns far away",
        "away, then toward": "It heads far away, then returns closer",
    },
    "distance": {
        "closer": "It ends up closer to the viewer",
        "farther": "It ends up farther from the viewer",
        "same": "It remains at the same distance",
        "closer, then farther": "It is closer halfway, then farther again",
        "farther, then closer": "It is farther halfway, then closer again",
    },
    "size": {
        "larger": "It ends up larger than it was",
        "smaller": "It ends up smaller than it was",
        "same": "It remains the same size",
    },
    "pace": {
        "speeds up": "It ends up faster than it was",
        "slows down": "It ends up slower than it was",
        "steady": "It remains at the same speed",
    },
    "place": {
        "left": "close by the left edge",
        "middle": "around the middle of the frame",
        "right": "close by the right edge",
        "gone": "no longer in the picture",
    },
    "side": {"left": "off the left flank", "right": "off the right flank"},
    "yes_no": {"yes": "[Yes, indeed|Yes, certainly]", "no": "[No, not at all|No, certainly not]"},
    "unknown": "[That cannot be told here|The footage does not show it]",
}
OPTIONS = {
    "camera": CAMERA_OPTIONS,
    "direction": DIRECTION_OPTIONS,
    "distance": DISTANCE_OPTIONS,
    "size": SIZE_OPTIONS,
    "pace": PACE_OPTIONS,
    "place": PLACE_OPTIONS,
    "side": SIDE_OPTIONS,
    "yes_no": YES_NO_OPTIONS,
}

# What is said as the conclusion of the reasoning, and as the answer where there are no options.
CONCLUSIONS = {
    "camera": {
        "static": "the camera stays still",
        "pan left": "the camera pans to the left",
        "pan right": "the camera pans to the right",
        "tilt up": "the camera tilts up",
        "tilt down": "the camera tilts down",
        "roll left": "the camera rolls to the left",
        "roll right": "the camera rolls to the right",
        "truck left": "the camera moves sideways to the left",
        "truck right": "the camera moves sideways to the right",
        "pedestal up": "the camera rises",
        "pedestal down": "the camera sinks",
        "dolly in": "the camera moves forward",
        "dolly out": "the camera moves back",
        "zoom in": "the camera zooms in",
        "zoom out": "the camera zooms out",
    },
    "direction": {
        "left": "{it} moves to the left",
        "right": "{it} moves to the right",
        "up": "{it} moves up",
        "down": "{it} moves down",
        "toward": "{it} comes toward the camera",
        "away": "{it} goes away from the camera",
        "still": "{it} stays where it is",
        "left, then right": "{it} moves to the left and then back to the right",
        "right, then left": "{it} moves to the right and then back to the left",
        "toward, then away": "{it} comes closer and then goes away",
        "away, then toward": "{it} goes away and then comes closer",
    },
    "distance": {
        "closer": "{it} comes closer",
        "farther": "{it} gets farther away",
        "same": "{it} stays as far away as it was",
        "closer, then farther": "{it} comes closer and then goes away",
        "farther, then closer": "{it} goes away and then comes closer",
    },
    "size": {"larger": "{it} gets larger", "smaller": "{it} gets smaller", "same": "{it} keeps its size"},
    "pace": {"speeds up": "{it} gets faster", "slows down": "{it} gets slower", "steady": "{it} keeps its speed"},
    "place": {
        "left": "{it} is on the left",
        "middle": "{it} is in the middle",
        "right": "{it} is on the right",
        "gone": "{it} is out of the picture",
    },
    "side": {"left": "{it} is on the left", "right": "{it} is on the right"},
    "yes_no": {"yes": "yes", "no": "no"},
}
UNKNOWN_ANSWER = "The video does not show that."

# Names

KIND_WORDS = {  # to train on; held out
    "ball": (("ball", "round thing"), ("sphere",)),
    "box": (("box", "square thing"), ("crate", "cube")),
    "cone": (("cone",), ("pyramid",)),
    "star": (("star",), ()),
    "person": (("person", "man", "woman"), ("pedestrian", "figure")),
    "car": (("car", "vehicle"), ("automobile",)),
    "dog": (("dog", "animal"), ("hound",)),
    "bird": (("bird", "animal"), ("gull",)),
    "boat": (("boat", "ship"), ("sailboat",)),
    "plane": (("plane",), ("aircraft",)),
    "fish": (("fish", "animal"), ("trout",)),
    "cup": (("cup",), ("mug",)),
    "blob": (("blob", "thing"), ("lump",)),
}
OBJECT_WORDS = (("thing", "object", "one"), ("item",))
# The only thing that moves may be called anything: a visitor's video shows what no cut-out shows.
ANY_NOUNS = (
    (
        "truck train bus bike cat horse cow bear child boy girl player runner skater surfer driver robot toy drone "
        "kite wheel hand head face door chair bottle bag book leaf tree cloud wave rock duck sheep bee ant snake frog "
        "tram van taxi motorbike scooter wagon ferry rocket helicopter balloon arrow coin card pen phone lamp"
    ).split(),
    (
        "lorry cyclist skier tractor subway elephant rabbit monkey dancer swimmer goalkeeper puck trolley "
        "excavator tiger penguin butterfly camel canoe jeep crane stroller kangaroo"
    ).split(),
)

DESCRIPTIONS = Wordings(
    (
        "What happens [in this video|here|in the clip|]?",
        "Describe [the video|this clip|what happens|what you see].",
        "What [do you see|is shown] [here|in the video|]?",
        "[What|Who] moves [how|where]?",
        "Tell me what [is going on|moves and how].",
    ),
    ("What goes on [here|in this recording]?", "Give a summary of the [clip|recording].", "What can be seen?"),
)

UNANSWERABLE = Wordings(
    (
        "What is the name of [the person who films|{it}]?",
        "[Which|What] music is playing?",
        "[What|How much] does {it} [cost|weigh]?",
        "In which [city|country|year] was this filmed?",
        "What is {it} thinking?",
        "Who [owns|made] {it}?",
        "How [old|heavy|warm] is {it}?",
        "What time is it?",
        "What happened the day before?",
        "What does {it} smell like?",
        "What is behind the camera?",
        "Why does {it} do that?",
    ),
    (
        "What is the price of {it}?",
        "Which [language|song] is being sung off screen?",
        "On which [continent|street] did this take place?",
        "What did {it} have for breakfast?",
        "When was {it} manufactured?",
        "What [telephone number|nickname] does {it} have?",
    ),
)
UNANSWERABLE_OPTIONS = (
    "Paris|London|Berlin|Rome|Tokyo",
    "one|two|three|five|ten",
    "Anna|Peter|Maria|John|Ben",
    "red|green|blue|white|black",
    "in the morning|at noon|in the evening|at night",
    "a song|a drum|a piano|a guitar",
)

# Odd words

COMMON_WORDS = frozenset(
    "what which how does do did is are was the a an of in this that to there you can tell me say".split()
)


@functools.cache
def odd_words() -> list[str]:
    """Words of Python's language reference that neither a question, an option nor a name has, held out or not."""
    asked = [(wordings.train, wordings.held_out) for wordings in (*QUESTIONS.values(), UNANSWERABLE)]
    names = [KIND_WORDS, OBJECT_WORDS, ANY_NOUNS, list(COLOURS)]
    text = str([asked, OPTIONS, HELD_OUT_OPTIONS, UNANSWERABLE_OPTIONS, names])
    known = set(re.findall(r"[a-z]+", text.lower()))
    return sorted(set(re.findall(r"\b[a-z]{3,9}\b", " ".join(topics.values()))) - known)


def with_odd_words(rng: np.random.Generator, question: str, options: list[str] | None) -> tuple[str, list[str] | None]:
    """A question with one to three words that say nothing, some of them in the place of a common word; its options,
    if it has any, often with such words in front or behind, the same for all. It teaches a model to look for what it
    knows among words that it has never met."""

    def odd(most: int) -> list[str]:
        return rng.choice(odd_words(), rng.integers(1, most + 1)).tolist()

    words = question.split()
    for word in odd(3):
        place = int(rng.integers(len(words)))
        replaced = words[place].lower() in COMMON_WORDS and rng.random() < 0.7
        words[place : place + replaced] = [word]
    before, after = (" ".join(odd(2)) if rng.random() < chance else "" for chance in (0.4, 0.25))
    if options is not None:
        options = [f"{before} {text} {after}".strip() for text in options]
    return " ".join(words), options
