"""From records to one batch: rows are opened in the loader's workers, the processor is called once, labels and masks
are made by tensor operations."""

from dataclasses import dataclass

import torch
from PIL import Image

from ..data.records import open_frames, open_image
from ..processing_fourdthinker import LATENT_END, LATENT_START, OUTPUT_IMAGE, FourDThinkerProcessor

IGNORED = -100
CLIP = ("video", "frames", "timestamps")  # columns


def completion_text(reasoning: str | None, answer: str) -> str:
    """What the assistant says: `<think>reasoning</think><answer>answer</answer>`, or the answer without reasoning."""
    if not reasoning:
        return f"<answer>{answer}</answer>"
    return f"<think>{reasoning}</think><answer>{answer}</answer>"


@dataclass
class DIFTCollator:
    """Rows of records (see `fourdthinker_hf.data.records`) to a batch for [`DIFTTrainer`].

    Labels are the assistant's tokens: everything after `<|im_start|>assistant` of the last turn, its newline too, as
    the published training has it; `<|latent_start|>` and `<|latent_end|>` are targets, `<|latent_pad|>` and padding
    are -100. Padding is on the right. With `imagery=False` every `<output_image>` is left out of the reasoning, with
    `reasoning=False` all of it, with `options=False` the options are left out of the question. Frames and target
    frames of a row may be paths, PIL images or arrays.

    With `forget_video=True` labels end with the word behind a row's first mental images (those with no word between
    them), and the batch has another one in it, `forgetting`: ids, mask and labels of the same conversations without
    the video, of those that picture anything. Its labels begin behind the first images: what is said there is learnt
    from what was pictured alone, by any path.
    """

    processor: FourDThinkerProcessor
    imagery: bool = True
    reasoning: bool = True
    options: bool = True
    forget_video: bool = False

    def open(self, row: dict) -> dict:
        """The row with what its files hold: `clip` (frames and times) and `targets` (PIL images). `ValueError` or
        `OSError` for a file that cannot be read, or a target frame that has fewer features than latents."""
        clip = open_frames(self.processor, *(row.get(name) for name in CLIP))
        targets = [Image.fromarray(open_image(image)) for image in self.pictured(row)]
        images = self.processor.image_processor
        for number, frame in enumerate(targets, start=1):
            num_patches = images.get_number_of_image_patches(frame.height, frame.width)
            self.check_size(number, num_patches // images.merge_size**2)
        return {**row, "clip": clip, "targets": targets}

    def pictured(self, row: dict) -> list:
        """The target frames of a row."""
        return row.get("imagery") or [] if self.imagery and self.reasoning else []

    def check_size(self, number: int, num_features: int) -> None:
        """`ValueError` if target frame `number` of a row has fewer features than a mental image has latents."""
        if num_features < (size := self.processor.latent_size):
            raise ValueError(
                f"target frame {number} has {num_features} features but a mental image needs {size}: give a larger one"
            )

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor | dict]:
        rows = [row if "clip" in row else self.open(row) for row in rows]
        batch = self.batch([self.text(row) for row in rows], rows)
        batch["labels"] = self.labels(batch["input_ids"], batch["attention_mask"])
        if self.forget_video:
            first_word = self.behind_first_images(batch["input_ids"])
            batch["labels"][first_word.roll(1, 1) & first_word] = IGNORED
            batch["forgetting"] = self.forgetting([row for row in rows if row["targets"]] or rows[:1])
        batch["num_skipped"] = torch.tensor(sum(row.get("num_skipped", 0) for row in rows))
        return batch

    def forgetting(self, rows: list[dict]) -> dict[str, torch.LongTensor]:
        """What is learnt of `rows` without their video. (A row without imagery has no labels here: it only lets every
        process run as many forwards.)"""
        texts = [self.text(row, with_video=False).replace(OUTPUT_IMAGE, self.processor.latent_block) for row in rows]
        batch = dict(
            self.processor.tokenizer(
                texts, padding=True, padding_side="right", add_special_tokens=False, return_tensors="pt"
            )
        )
        behind = self.behind_first_images(batch["input_ids"])
        return batch | {"labels": self.labels(**batch).masked_fill(~behind, IGNORED)}

    def text(self, row: dict, with_video: bool = True) -> str:
        """The conversation about a row, in the chat template, with `<output_image>` where something is pictured."""
        reasoning = row.get("reasoning") if self.reasoning else None
        if reasoning and not self.imagery:
            reasoning = reasoning.replace(f" {OUTPUT_IMAGE}", "").replace(OUTPUT_IMAGE, "")
        answer = completion_text(reasoning, row["answer"])
        messages = self.processor.conversation(
            row["clip"][0], row["question"], row.get("options") if self.options else None, answer
        )
        if not with_video:
            del messages[0]["content"][0]
        return self.processor.apply_chat_template(messages, tokenize=False)

    def batch(self, texts: list[str], rows: list[dict]) -> dict[str, torch.Tensor]:
        """The model's inputs for `texts` and the opened `rows` that they are about."""
        frames, times = zip(*(row["clip"] for row in rows), strict=True)
        return dict(
            self.processor(
                text=texts,
                videos=list(frames),
                video_timestamps=times,
                imagery=[row["targets"] for row in rows],
                padding=True,
                padding_side="right",
                add_special_tokens=False,
                return_tensors="pt",
            )
        )

    def behind_first_images(self, input_ids: torch.LongTensor) -> torch.BoolTensor:
        """`(batch, seq)`: what stands behind a row's first mental images; nothing in a row that has none."""
        start, end = map(self.processor.tokenizer.convert_tokens_to_ids, (LATENT_START, LATENT_END))
        is_last = (input_ids == end) & (input_ids.roll(-1, 1) != start)
        return (is_last.cumsum(1) > 0) & ~(is_last & (is_last.cumsum(1) == 1))

    def labels(self, input_ids: torch.LongTensor, attention_mask: torch.LongTensor) -> torch.LongTensor:
        """Targets `(batch, seq)` of the next-token loss: ids, or -100 where nothing is to be said."""
        token = self.processor.tokenizer.convert_tokens_to_ids
        role_length = len(self.processor.tokenizer("assistant", add_special_tokens=False)["input_ids"])
        places = torch.arange(input_ids.shape[1])
        last_turn = torch.where(input_ids == token("<|im_start|>"), places, -1).amax(1, keepdim=True)
        spoken = (places > last_turn + role_length) & attention_mask.bool() & (input_ids != token("<|latent_pad|>"))
        return input_ids.masked_fill(~spoken, IGNORED)
