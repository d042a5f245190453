"""The examples with the bundled model's answers to them, stored with the example clips so that the page opens on a
finished result before any model is loaded. `python -m fourdthinker_hf.demo.stored_answers` makes them anew."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..checkpoints import shipped
from ..question_answer import Answer, MentalImage
from ..video_fourdthinker import load_video

if TYPE_CHECKING:
    from ..qa import VideoQA

EXAMPLES_FOLDER = shipped("examples")
EXAMPLES = json.loads((EXAMPLES_FOLDER / "examples.json").read_text())
ANSWERS = EXAMPLES_FOLDER / "answers.json"
SAMPLING = ("fps", "max_frames", "pair_seconds")  # settings of the processor by which frames are chosen
FIELDS = ("text", "reasoning", "words", "answer", "option", "chosen_by", "probabilities", "truncated", "reason", "end")
THUMBNAIL_HEIGHT = 90  # pixels


def example_video(example: dict) -> str:
    return str(EXAMPLES_FOLDER / example["video"])


def thumbnail(example: dict) -> str:
    return str((EXAMPLES_FOLDER / example["video"]).with_suffix(".jpg"))


def store(qa: VideoQA) -> dict:
    """The answers to all examples as JSON data."""
    return {
        "sampling": {name: getattr(qa.processor, name) for name in SAMPLING},
        "temporal_patch_size": qa.processor.video_processor.temporal_patch_size,
        "answers": [_to_json(qa.ask(example_video(row), row["question"], row["options"])) for row in EXAMPLES],
    }


def stored_answer(number: int) -> Answer:
    """The stored answer to an example, with the frames of its video. Its mental images have no latents."""
    stored = json.loads(ANSWERS.read_text())
    frames, timestamps = load_video(example_video(EXAMPLES[number]), **stored["sampling"])
    data = stored["answers"][number]
    images = [
        MentalImage(
            None,
            image["maps"] and np.array(image["maps"], np.float32),
            image["best_step"],
            image["time"],
            image["picture"] and Image.fromarray(np.array(image["picture"], np.uint8)),
        )
        for image in data["images"]
    ]
    fields = {name: data[name] for name in FIELDS}
    return Answer(frames, timestamps, images=images, temporal_patch_size=stored["temporal_patch_size"], **fields)


def _to_json(answer: Answer) -> dict:
    images = [
        {
            "time": image.time,
            "best_step": image.best_step,
            "picture": None if image.picture is None else np.asarray(image.picture).tolist(),
            "maps": None if image.maps is None else np.round(image.maps.astype(float), 3).tolist(),
        }
        for image in answer.images
    ]
    data = {name: getattr(answer, name) for name in FIELDS}
    if answer.probabilities is not None:
        data["probabilities"] = [round(probability, 4) for probability in answer.probabilities]
    return data | {"images": images}


def main() -> None:
    from ..qa import VideoQA

    qa = VideoQA.from_pretrained()
    part = ANSWERS.with_suffix(".part")
    part.write_text(json.dumps(store(qa)) + "\n")
    part.replace(ANSWERS)
    for row in EXAMPLES:
        frames, _ = qa.processor.open_video(example_video(row))
        picture = Image.fromarray(frames[len(frames) // 2])
        picture.thumbnail((10 * THUMBNAIL_HEIGHT, THUMBNAIL_HEIGHT))
        picture.save(thumbnail(row), quality=85)
    print(ANSWERS)


if __name__ == "__main__":
    main()
