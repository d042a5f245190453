"""Positions follow Qwen2.5-VL's rule, written out in `rule`, in prompts and while decoding, and use real times."""

from fractions import Fraction
from functools import partial

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessor, Qwen2_5_VLModel, Qwen2_5_VLProcessor
from video_files import write_video

from fourdthinker_hf import FourDThinkerProcessor

MERGE, TOKENS_PER_SECOND = 2, 2
IRREGULAR = [0, 300, 900, 2500, 2600, 5200, 5300, 9100]  # milliseconds


def rule(row):
    """Positions `[(t, h, w), ...]` of a row, and the next one. A row is a list of `("text", names of tokens)`,
    `("image", grid)`, `("video", grid, seconds)`: each begins one past the largest position of all before it."""
    positions, start = [], 0
    for kind, content, *seconds in row:
        if kind == "text":
            positions += [(start + i,) * 3 for i in range(len(content))]
        else:
            second_per_grid = np.float32(seconds[0] if seconds else 0)
            for t in range(content[0]):
                for h in range(content[1] // MERGE):
                    for w in range(content[2] // MERGE):
                        time = int(np.float32(t) * second_per_grid * np.float32(TOKENS_PER_SECOND))
                        positions.append((start + time, start + h, start + w))
        start = max(max(position) for position in positions) + 1
    return positions, start


def make_batch(rows, config, side):
    """Arguments of `get_rope_index`, padded on `side`, for rows as `rule` has them."""
    ids, grids, seconds = [[] for _ in rows], {"image": [], "video": []}, []
    for line, (kind, content, *time) in [(ids[i], part) for i, row in enumerate(rows) for part in row]:
        if kind == "text":
            line += [getattr(config, name, 5) for name in content]
        else:
            line += [getattr(config, f"{kind}_token_id")] * (content[0] * content[1] * content[2] // MERGE**2)
            grids[kind].append(content)
            seconds += time
    width = max(map(len, ids)) + 1  # the longest row is padded, too

    def pad(values, by):
        gap = [by] * (width - len(values))
        return gap + values if side == "left" else values + gap

    tensors = {"image_grid_thw": grids["image"], "video_grid_thw": grids["video"], "second_per_grid_ts": seconds}
    return {
        "input_ids": torch.tensor([pad(line, 0) for line in ids]),
        "attention_mask": torch.tensor([pad([1] * len(line), 0) for line in ids]),
        **{name: torch.tensor(values) if values else None for name, values in tensors.items()},
    }


def separate(parts):
    """Two pictures in a row are told apart by the end of one and the start of the next."""
    row = parts[:1]
    for part in parts[1:]:
        if part[0] != "text" and row[-1][0] != "text":
            row.append(("text", ["vision_end_token_id", "vision_start_token_id"]))
        row.append(part)
    return row


side = st.sampled_from([2, 4, 6, 14])
seconds = st.sampled_from([0.5, 1.0, 2.0, 0.7, 1 / 3, 2.6]) | st.floats(0.02, 12)
block = ["latent_start_id"] + ["latent_token_id"] * 4 + ["latent_end_id"]
text = st.tuples(st.just("text"), st.just(block) | st.integers(1, 6).map(lambda count: ["word"] * count))
image = st.tuples(st.just("image"), st.tuples(st.just(1), side, side))
video = st.tuples(st.just("video"), st.tuples(st.integers(1, 6), side, side), seconds)
layout = st.lists(text | image | video, min_size=1, max_size=7).map(separate)


@settings(deadline=None, max_examples=150, derandomize=True)
@given(st.lists(layout, min_size=1, max_size=3), st.sampled_from(["left", "right"]))
def test_positions_follow_the_rule_on_any_layout(model, rows, padding):
    batch = make_batch(rows, model.config, padding)
    positions, deltas = model.model.get_rope_index(**batch)
    assert positions.shape == (3, *batch["input_ids"].shape)
    for i, row in enumerate(rows):
        expected, following = rule(row)
        keep = batch["attention_mask"][i].bool()
        assert positions[:, i, keep].T.tolist() == [list(position) for position in expected]
        assert (positions[:, i, ~keep] == 1).all()
        assert deltas[i].tolist() == [following - len(expected)]


def test_a_video_without_times_has_a_second_a_grid(model):
    row = [("text", ["word"]), ("video", (3, 4, 2), 1.0), ("text", ["word"])]
    batch = make_batch([row], model.config, "left") | {"second_per_grid_ts": None}
    positions, _ = model.model.get_rope_index(**batch)
    assert positions[:, 0, 1:].T.tolist() == [list(position) for position in rule(row)[0]]
    assert positions[0, 0, 1:].tolist() == [0, 1, 1, 3, 3, 5, 5, 6]


class Write(LogitsProcessor):
    """Every row writes one word over and over, and `start` at (row, step)."""

    def __init__(self, word: int, start: int, schedule, prompt_length: int):
        self.word, self.start, self.schedule, self.prompt_length = word, start, schedule, prompt_length

    def __call__(self, input_ids, scores):
        step = input_ids.shape[1] - self.prompt_length
        tokens = [self.start if (row, step) in self.schedule else self.word for row in range(len(scores))]
        return torch.full_like(scores, -torch.inf).scatter(1, torch.tensor(tokens)[:, None], 0.0)


def test_decoding_goes_on_from_the_largest_position_of_each_prompt(model, processor):
    """A left-padded batch of different videos, through blocks opened at different steps."""
    videos = [np.zeros((count, 56, 84, 3), np.uint8) for count in (4, 8, 2)]
    times = [[0.0, 0.5, 1.0, 1.5], [2.1 * i for i in range(8)], [0.0, 3.3]]
    questions = ["where", "which way does it move", "?"]
    asked = [processor.conversation(video, question) for video, question in zip(videos, questions, strict=True)]
    prompts = [processor.apply_chat_template(m, tokenize=False, add_generation_prompt=True) for m in asked]
    inputs = processor(text=prompts, videos=videos, video_timestamps=times, padding=True, return_tensors="pt")
    length, steps, seen = inputs["input_ids"].shape[1], 14, []
    write = Write(5, model.config.latent_start_id, {(0, 1), (0, 8), (1, 3)}, length)
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["position_ids"][-3:]), with_kwargs=True
    )
    ids = model.generate(**inputs, max_new_tokens=steps, do_sample=False, logits_processor=[write])
    hook.remove()
    assert (ids == model.config.latent_token_id).sum(1).tolist() == [8, 4, 0]
    assert len(set(inputs["attention_mask"].sum(1).tolist())) == 3
    fed = torch.cat(seen, -1)  # of all tokens but the last, which is never fed
    largest = seen[0].amax((0, 2))
    assert largest.tolist() == [rows.max().item() for rows in fed[:, :, :length].unbind(1)]
    expected = largest[:, None] + torch.arange(1, steps)
    assert torch.equal(fed[:, :, length:], expected.expand(3, -1, -1))
    mask = F.pad(inputs["attention_mask"], (0, steps), value=1)
    vision = {name: inputs[name] for name in ("video_grid_thw", "second_per_grid_ts")}
    whole, _ = model.model.get_rope_index(ids, attention_mask=mask, **vision)
    assert torch.equal(fed, whole[:, :, :-1])


def ask(processor, model, path, seconds, **span):
    """Put a file to the processor: the prompt, and t of each grid past the video's start. The positions of the whole
    prompt are those of a video of `seconds` a grid."""
    chat = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    inputs = processor.apply_chat_template([processor.conversation(str(path), "where", **span)], **chat)
    assert inputs["second_per_grid_ts"].tolist() == pytest.approx([seconds], abs=1e-6)
    names = ("input_ids", "attention_mask", "video_grid_thw", "second_per_grid_ts")
    positions, _ = model.model.get_rope_index(**{name: inputs[name] for name in names})
    is_video = inputs["input_ids"][0] == model.config.video_token_id
    before, after = (["word"] * int(mask.int().argmax()) for mask in (is_video, is_video.flip(0)))
    expected, _ = rule([("text", before), ("video", inputs["video_grid_thw"][0].tolist(), seconds), ("text", after)])
    assert positions[:, 0].T.tolist() == [list(position) for position in expected]
    prompt = processor.tokenizer.decode(inputs["input_ids"][0], skip_special_tokens=True)
    return prompt, (positions[0, 0, is_video].unique() - len(before)).tolist()


def test_a_variable_rate_file_is_placed_by_its_mean_real_spacing(model, processor, tmp_path):
    path = write_video(tmp_path / "a.mp4", IRREGULAR)
    # On screen every half second: the frames of 0, 0.3, 0.9, 2.5, 2.6 and 5.3 s, 2 a grid.
    prompt, t = ask(processor, model, path, 5.3 / 5 * 2)
    assert t == [0, 4, 8]
    assert prompt == "user\nwhere\nassistant\n"


def test_a_trimmed_clip_starts_at_its_start_and_the_prompt_says_where_that_is(model, processor, tmp_path):
    path = write_video(tmp_path / "a.mp4", IRREGULAR)
    # From 1 s on: the frames of 0.9, 2.5, 2.6 and 5.3 s.
    prompt, t = ask(processor, model, path, (5.3 - 0.9) / 3 * 2, start=1.0, end=6.0)
    assert t == [0, 5]
    assert prompt == "user\nThe video shows 1 s to 6 s.\nwhere\nassistant\n"


def test_a_checkpoint_with_fixed_seconds_gets_them_whatever_the_times(model, processor, tmp_path):
    parts = processor.image_processor, processor.tokenizer, processor.video_processor, processor.chat_template
    FourDThinkerProcessor(*parts, second_per_grid=1.0).save_pretrained(tmp_path)
    fixed = FourDThinkerProcessor.from_pretrained(tmp_path)
    assert ask(fixed, model, write_video(tmp_path / "a.mp4", IRREGULAR), 1.0)[1] == [0, 2, 4]


@pytest.mark.parametrize("rate", ["24", "24000/1001", "25", "30000/1001", "30", "50", "60000/1001", "15"])
@pytest.mark.parametrize("num_frames", [100, 107, 121])
def test_times_and_positions_are_those_of_the_stock_processor(model, processor, tmp_path, rate, num_frames):
    """transformers' own processor of Qwen2.5-VL, told the same frames of the same film."""
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=Fraction(rate))
        stream.width, stream.height, stream.pix_fmt = 112, 84, "yuv420p"
        for _ in range(num_frames):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((84, 112, 3), np.uint8), "rgb24")))
        out.mux(stream.encode(None))
    frames, times = processor.open_video(path)
    fps = float(Fraction(rate))
    metadata = {"fps": fps, "total_num_frames": num_frames, "duration": num_frames / fps}
    metadata["frames_indices"] = [round(time * fps) for time in times]
    parts = processor.image_processor, processor.tokenizer, processor.video_processor
    text = "<|vision_start|><|video_pad|><|vision_end|> What moves?"
    stock = Qwen2_5_VLProcessor(*parts)(
        text=[text], videos=[frames], video_metadata=[metadata], do_sample_frames=False, return_tensors="pt"
    )
    ours = processor(text=[text], videos=[str(path)], return_tensors="pt")
    assert ours["second_per_grid_ts"].tolist() == pytest.approx(
        [float(seconds) for seconds in stock["second_per_grid_ts"]]
    )
    assert ours["input_ids"].tolist() == stock["input_ids"].tolist()
    grid = {"video_grid_thw": ours["video_grid_thw"]}
    types = (ours["input_ids"] == processor.video_token_id).int() * 2
    positions = [
        rope(ours["input_ids"], types, second_per_grid_ts=torch.as_tensor(inputs["second_per_grid_ts"]), **grid)[0]
        for rope, inputs in (
            (model.model.get_rope_index, ours),
            (partial(Qwen2_5_VLModel.get_rope_index, model.model), stock),
        )
    ]
    video = types[0] == 2
    assert positions[0][:, 0, video].tolist() == positions[1][:, 0, video].tolist()
