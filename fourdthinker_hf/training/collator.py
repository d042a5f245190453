"""Turns records into one batch. Videos and target frames are opened in the dataloader's workers, the processor is
called once for the batch, and labels and masks are made by tensor operations."""

from dataclasses import dataclass

import torch
from PIL import Image

from ..data.records import open_frames, open_image
from ..processing_fourdthinker import LATENT_END, LATENT_START, OUTPUT_IMAGE, FourDThinkerProcessor

IGNORE_INDEX = -100
VIDEO_COLUMNS = ("video", "frames", "timestamps")


def completion_text(reasoning: str | None, answer: str) -> str:
    """What the assistant says: `<think>reasoning</think><answer>answer</answer>`, or the answer without reasoning."""
    if not reasoning:
        return f"<answer>{answer}</answer>"
    return f"<think>{reasoning}</think><answer>{answer}</answer>"


@dataclass
class DIFTCollator:
    """Collates records (see `fourdthinker_hf.data.records`) into a batch for [`DIFTTrainer`].

    The labels are the assistant's tokens: everything after `<|im_start|>assistant` of the last turn, with its newline,
    as in the published training. `<|latent_start|>` and `<|latent_end|>` are targets; `<|latent_pad|>` and padding are
    -100. Padding is on the right. With `imagery=False` every `<output_image>` is left out of the reasoning, with
    `reasoning=False` the whole reasoning, and with `options=False` the options of the question. Frames and target
    frames may be paths, PIL images or arrays.

    With `forget_video=True` the labels end with the first token after a row's first mental images (those with no text
    between them), and the batch has an entry `without_video`: ids, mask and labels of the same conversations without
    the video, for the rows that have mental images. Its labels begin after the first images, so what is said there is
    learnt from the mental images alone.
    """

    processor: FourDThinkerProcessor
    imagery: bool = True
    reasoning: bool = True
    options: bool = True
    forget_video: bool = False

    def open(self, row: dict) -> dict:
        """Reads the files of a row and adds `clip` (frames and times; None for a row with neither a video nor frames)
        and `targets` (PIL images). Raises `ValueError`
        or `OSError` for a file that cannot be read, or a target frame that has fewer features than latents."""
        source = [row.get(name) for name in VIDEO_COLUMNS]
        clip = None if source[0] is None and source[1] is None else open_frames(self.processor, *source)
        targets = [Image.fromarray(open_image(image)) for image in self.target_frames(row)]
        image_processor = self.processor.image_processor
        for number, frame in enumerate(targets, start=1):
            num_patches = image_processor.get_number_of_image_patches(frame.height, frame.width)
            self.check_num_features(number, num_patches // image_processor.merge_size**2)
        return {**row, "clip": clip, "targets": targets}

    def target_frames(self, row: dict) -> list:
        """The target frames of a row, in the order of its mental images."""
        return row.get("imagery") or [] if self.imagery and self.reasoning else []

    def check_num_features(self, number: int, num_features: int) -> None:
        """Raises `ValueError` if target frame `number` of a row has fewer features than a mental image has latents."""
        if num_features < (size := self.processor.latent_size):
            raise ValueError(
                f"target frame {number} has {num_features} features but a mental image needs {size}: give a larger one"
            )

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor | dict]:
        rows = [row if "clip" in row else self.open(row) for row in rows]
        batch = self.model_inputs([self.conversation_text(row) for row in rows], rows)
        batch["labels"] = self.labels(batch["input_ids"], batch["attention_mask"])
        if self.forget_video:
            after_images = self.after_first_images(batch["input_ids"])
            batch["labels"][after_images.roll(1, 1) & after_images] = IGNORE_INDEX
            # A batch without mental images keeps one row, without labels: every process must run as many forwards.
            batch["without_video"] = self.batch_without_video([row for row in rows if row["targets"]] or rows[:1])
        batch["num_skipped"] = torch.tensor(sum(row.get("num_skipped", 0) for row in rows))
        return batch

    def batch_without_video(self, rows: list[dict]) -> dict[str, torch.LongTensor]:
        """Ids, mask and labels of `rows` without their video; the labels begin after the first mental images."""
        texts = [
            self.conversation_text(row, with_video=False).replace(OUTPUT_IMAGE, self.processor.latent_block)
            for row in rows
        ]
        batch = dict(
            self.processor.tokenizer(
                texts, padding=True, padding_side="right", add_special_tokens=False, return_tensors="pt"
            )
        )
        after_images = self.after_first_images(batch["input_ids"])
        return batch | {"labels": self.labels(**batch).masked_fill(~after_images, IGNORE_INDEX)}

    def conversation_text(self, row: dict, with_video: bool = True) -> str:
        """The conversation about a row in the chat template, with `<output_image>` for each mental image."""
        reasoning = row.get("reasoning") if self.reasoning else None
        if reasoning and not self.imagery:
            reasoning = reasoning.replace(f" {OUTPUT_IMAGE}", "").replace(OUTPUT_IMAGE, "")
        answer = completion_text(reasoning, row["answer"])
        messages = self.processor.conversation(
            row["clip"] and row["clip"][0], row["question"], row.get("options") if self.options else None, answer
        )
        if not with_video or row["clip"] is None:
            del messages[0]["content"][0]
        return self.processor.apply_chat_template(messages, tokenize=False)

    def model_inputs(self, texts: list[str], rows: list[dict]) -> dict[str, torch.Tensor]:
        """The model's inputs for the conversations `texts` about the opened `rows`."""
        clips = [row["clip"] for row in rows if row["clip"] is not None]
        videos = {"videos": [clip[0] for clip in clips], "video_timestamps": [clip[1] for clip in clips]}
        return dict(
            self.processor(
                text=texts,
                **(videos if clips else {}),
                imagery=[row["targets"] for row in rows],
                padding=True,
                padding_side="right",
                add_special_tokens=False,
                return_tensors="pt",
            )
        )

    def after_first_images(self, input_ids: torch.LongTensor) -> torch.BoolTensor:
        """Mask `(batch, seq)` of what follows a row's first mental images; all False for a row that has none."""
        start, end = map(self.processor.tokenizer.convert_tokens_to_ids, (LATENT_START, LATENT_END))
        is_last = (input_ids == end) & (input_ids.roll(-1, 1) != start)
        return (is_last.cumsum(1) > 0) & ~(is_last & (is_last.cumsum(1) == 1))

    def labels(self, input_ids: torch.LongTensor, attention_mask: torch.LongTensor) -> torch.LongTensor:
        """Labels `(batch, seq)` of the next-token loss: the ids of the assistant's tokens, -100 elsewhere."""
        token_id = self.processor.tokenizer.convert_tokens_to_ids
        role_length = len(self.processor.tokenizer("assistant", add_special_tokens=False)["input_ids"])
        positions = torch.arange(input_ids.shape[1])
        last_turn = torch.where(input_ids == token_id("<|im_start|>"), positions, -1).amax(1, keepdim=True)
        is_assistant = positions > last_turn + role_length
        is_label = is_assistant & attention_mask.bool() & (input_ids != token_id("<|latent_pad|>"))
        return input_ids.masked_fill(~is_label, IGNORE_INDEX)
