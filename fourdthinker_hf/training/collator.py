"""From records to one batch: the processor is called once, labels and masks are made by tensor operations."""

from dataclasses import dataclass

import torch
from PIL import Image

from ..data.records import open_frames
from ..processing_fourdthinker import OUTPUT_IMAGE, FourDThinkerProcessor

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
    `options=False` the options are left out of the question.
    """

    processor: FourDThinkerProcessor
    imagery: bool = True
    options: bool = True

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        texts, videos, times, imagery = [], [], [], []
        for row in rows:
            frames, timestamps = open_frames(self.processor, *(row.get(name) for name in CLIP))
            reasoning, targets = row.get("reasoning"), row.get("imagery") or []
            if reasoning and not self.imagery:
                reasoning, targets = reasoning.replace(f" {OUTPUT_IMAGE}", "").replace(OUTPUT_IMAGE, ""), []
            answer = completion_text(reasoning, row["answer"])
            messages = self.processor.conversation(
                frames, row["question"], row.get("options") if self.options else None, answer
            )
            texts.append(self.processor.apply_chat_template(messages, tokenize=False))
            videos.append(frames)
            times.append(timestamps)
            imagery.append([Image.open(path).convert("RGB") for path in targets])
        batch = self.processor(
            text=texts, videos=videos, video_timestamps=times, imagery=imagery,
            padding=True, padding_side="right", add_special_tokens=False, return_tensors="pt",
        )  # fmt: skip
        return {**batch, "labels": self.labels(batch["input_ids"], batch["attention_mask"])}

    def labels(self, input_ids: torch.LongTensor, attention_mask: torch.LongTensor) -> torch.LongTensor:
        """Targets `(batch, seq)` of the next-token loss: ids, or -100 where nothing is to be said."""
        token = self.processor.tokenizer.convert_tokens_to_ids
        role_length = len(self.processor.tokenizer("assistant", add_special_tokens=False)["input_ids"])
        places = torch.arange(input_ids.shape[1])
        last_turn = torch.where(input_ids == token("<|im_start|>"), places, -1).amax(1, keepdim=True)
        spoken = (places > last_turn + role_length) & attention_mask.bool() & (input_ids != token("<|latent_pad|>"))
        return input_ids.masked_fill(~spoken, IGNORED)
