"""The processor: prompts, target frames of mental images, real times, and videos given by path."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fourdthinker_hf import FourDThinkerProcessor
from fourdthinker_hf.video_fourdthinker import VideoError


def frames(count, height=84, width=84):
    return np.zeros((count, height, width, 3), np.uint8)


def tokens_of(processor, ids):
    return processor.tokenizer.convert_ids_to_tokens(ids)


def test_output_image_becomes_a_block_with_its_target_frame(processor):
    text = "a<output_image>b"
    batch = processor(text=[text], imagery=[[Image.new("RGB", (84, 84), "red")]], return_tensors="pt")
    block = ["<|latent_start|>"] + ["<|latent_pad|>"] * 4 + ["<|latent_end|>"]
    assert tokens_of(processor, batch["input_ids"][0]) == ["a", *block, "b"]
    assert batch["image_grid_thw_latent"].tolist() == [[1, 6, 6]]
    assert batch["pixel_values_latent"].shape == (36, 3 * 2 * 14 * 14)
    red = (torch.tensor([1.0, 0, 0]) - torch.tensor(processor.image_processor.image_mean)) / torch.tensor(
        processor.image_processor.image_std
    )
    # A patch is channels x frames x 14 x 14, flattened.
    torch.testing.assert_close(batch["pixel_values_latent"][0].view(3, -1)[:, 0], red)
    assert "pixel_values_latent" not in processor(text=[text], return_tensors="pt")


def test_decode_with_images_puts_output_image_back(processor):
    text = "<think> red ball <output_image> it moves <output_image></think>"
    ids = processor(text=[text], return_tensors="pt")["input_ids"][0]
    assert processor.decode_with_images(ids) == text


@pytest.mark.parametrize("imagery", [[[]], [[Image.new("RGB", (84, 84))] * 2], []])
def test_imagery_must_match_the_text(processor, imagery):
    with pytest.raises(ValueError, match="target frames|rows"):
        processor(text=["a<output_image>"], imagery=imagery, return_tensors="pt")


def test_seconds_per_grid_come_from_the_timestamps(processor):
    text = "<|vision_start|><|video_pad|><|vision_end|>"
    batch = processor(
        text=[text, text],
        videos=[frames(4), frames(6)],
        return_tensors="pt",
        padding=True,
        video_timestamps=[[0, 0.5, 1.0, 1.5], [3, 6, 9, 12, 15, 18]],
    )
    assert batch["second_per_grid_ts"].tolist() == [1.0, 6.0]
    assert batch["video_grid_thw"].tolist() == [[2, 6, 6], [3, 6, 6]]
    assert (batch["input_ids"] == processor.video_token_id).sum(1).tolist() == [18, 27]


def test_an_array_needs_its_times(processor):
    text = "<|vision_start|><|video_pad|><|vision_end|>"
    for times in (None, [[0.0, 1.0]]):
        with pytest.raises(ValueError, match="4 frames needs video_timestamps"):
            processor(text=[text], videos=[frames(4)], video_timestamps=times)


def test_a_path_is_opened_and_trimmed(processor, clip, tmp_path):
    messages = processor.conversation(str(clip), "where", start=1.0, end=2.0)
    assert messages[0]["content"][0]["video"] == f"{clip}#t=1.000000,2.000000"
    assert messages[0]["content"][1]["text"] == "The video shows 1 s to 2 s.\nwhere"
    kwargs = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    whole = processor.apply_chat_template([processor.conversation(str(clip), "where")], **kwargs)
    assert whole["video_grid_thw"].tolist() == [[4, 6, 6]]  # 4 s at 2 frames a second
    trimmed = processor.apply_chat_template([messages], **kwargs)
    assert trimmed["video_grid_thw"].tolist() == [[2, 6, 6]]  # frames at 1, 1.5 and 2 s
    assert trimmed["second_per_grid_ts"].tolist() == [1.0]
    messages = processor.conversation(str(clip), "where")
    fewer = processor.apply_chat_template([messages], **kwargs, processor_kwargs={"num_frames": 2})
    assert fewer["video_grid_thw"].tolist() == [[1, 6, 6]]
    with pytest.raises(VideoError, match="missing.mp4"):
        processor.apply_chat_template([processor.conversation("missing.mp4", "where")], **kwargs)


def test_the_prompt_is_chatml_with_lettered_options(processor):
    messages = processor.conversation("clip.mp4", " Which? ", ["left", "right"])
    assert processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>Which?\nA. left\nB. right<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_saving_keeps_what_a_checkpoint_was_trained_with(processor, tmp_path):
    changed = FourDThinkerProcessor(
        processor.image_processor,
        processor.tokenizer,
        processor.video_processor,
        processor.chat_template,
        latent_size=6,
        fps=1.0,
        max_frames=50,
        instruction="Think.",
    )
    changed.save_pretrained(tmp_path)
    loaded = FourDThinkerProcessor.from_pretrained(tmp_path)
    assert (loaded.latent_size, loaded.fps, loaded.max_frames, loaded.instruction) == (6, 1.0, 50, "Think.")
    assert loaded.latent_block.count("<|latent_pad|>") == 6
    assert loaded.format_question("Why?") == "Why?\nThink."


@pytest.mark.parametrize(
    ("bounds", "fragment", "grid"),
    [((None, None), "", 4), ((3.0, None), "#t=3.000000", 1), ((None, 1.0), "#t=,1.000000", 2)],
)
def test_either_end_of_a_span_may_be_left_out(processor, clip, bounds, fragment, grid):
    """4 s at 2 frames a second; the last frame is on screen from 3.875 s on."""
    messages = processor.conversation(str(clip), "where", start=bounds[0], end=bounds[1])
    assert messages[0]["content"][0]["video"] == str(clip) + fragment
    text = "<|vision_start|><|video_pad|><|vision_end|>"
    batch = processor(text=[text], videos=[str(clip) + fragment], return_tensors="pt")
    assert batch["video_grid_thw"].tolist() == [[grid, 6, 6]]


def test_a_name_that_only_looks_like_a_span_is_a_name(processor, clip, tmp_path):
    odd = tmp_path / "take#t=two.mp4"
    odd.write_bytes(clip.read_bytes())
    batch = processor(text=["<|video_pad|>"], videos=[odd], return_tensors="pt")
    assert batch["video_grid_thw"].tolist() == [[4, 6, 6]]
    with pytest.raises(VideoError, match="start=-1.0 s is outside"):
        processor(text=["<|video_pad|>"], videos=[f"{clip}#t=-1"])


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_with_one_two_and_no_videos_give_what_each_gives_alone(processor, clip, side):
    settings = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    one = processor.conversation(str(clip), "where does it move")
    two = [
        {
            "role": "user",
            "content": [*one[0]["content"], *processor.conversation(str(clip), "and", start=1)[0]["content"]],
        }
    ]
    none = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
    rows = [one, none, two]
    batch = processor.apply_chat_template(rows, **settings, processor_kwargs={"padding": True, "padding_side": side})
    alone = [processor.apply_chat_template([row], **settings) for row in rows]
    for ids, mask, single in zip(batch["input_ids"], batch["attention_mask"].bool(), alone, strict=True):
        assert ids[mask].tolist() == single["input_ids"][0].tolist()
    for name in ("pixel_values_videos", "video_grid_thw", "second_per_grid_ts"):
        torch.testing.assert_close(batch[name], torch.cat([single[name] for single in alone if name in single]))
    assert batch["video_grid_thw"].shape == (3, 3) and "video_grid_thw" not in alone[1]


INPUTS = Path(__file__).parent / "video_inputs"
NTSC, UHD = INPUTS / "ntsc_2997.mp4", INPUTS / "uhd_33s.mp4"


@pytest.fixture(scope="module")
def stock_processor(processor):
    """With the sizes and the number of frames of Qwen2.5-VL, which are those of qwen-vl-utils."""
    stock = copy.deepcopy(processor)
    stock.max_frames = 768
    stock.video_processor.size = {"shortest_edge": 128 * 28 * 28, "longest_edge": 768 * 28 * 28}
    return stock


def message(video, **asked):
    return [{"role": "user", "content": [{"type": "video", "video": video, **asked}, {"type": "text", "text": "q"}]}]


SETTINGS = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}

# Number of frames, height and width of `fetch_video` of qwen-vl-utils 0.0.14 (decord) on the same message.
QWEN_VL_UTILS = [
    (NTSC, {"fps": 1}, (4, 280, 392)),
    (NTSC, {"fps": 3.5}, (14, 280, 392)),
    (NTSC, {"nframes": 7}, (8, 280, 392)),
    (NTSC, {"nframes": 10, "max_pixels": 100352}, (10, 280, 392)),
    (NTSC, {"min_pixels": 200704}, (8, 392, 532)),
    (NTSC, {"total_pixels": 401408}, (8, 280, 392)),
    (NTSC, {"video_start": 1.0, "video_end": 2.5}, (4, 280, 392)),
    (NTSC, {"video_start": 0.7, "fps": 4}, (12, 280, 392)),
    (NTSC, {"resized_height": 100, "resized_width": 150}, (8, 112, 140)),
    (NTSC, {"video_end": 99, "nframes": 4}, (4, 280, 392)),
    (NTSC, {"fps": 4, "max_frames": 5}, (4, 280, 392)),
    (NTSC, {"fps": 0.1, "min_frames": 6}, (6, 280, 392)),
    (UHD, {"nframes": 4, "max_pixels": 50176, "min_pixels": 784}, (4, 168, 280)),
    (UHD, {"nframes": 2, "total_pixels": 300000}, (2, 392, 728)),
    ("frames", {}, (4, 280, 392)),
    ("frames", {"max_pixels": 100352}, (4, 280, 392)),
    ("frames", {"min_pixels": 784, "max_pixels": 23520}, (4, 112, 168)),
    ("frames", {"resized_height": 100, "resized_width": 150}, (4, 112, 140)),
    ("frames", {"sample_fps": 1}, (4, 280, 392)),
]


@pytest.mark.parametrize(("video", "asked", "expected"), QWEN_VL_UTILS, ids=str)
def test_what_a_message_asks_for_is_what_qwen_vl_utils_gives(stock_processor, tmp_path, video, asked, expected):
    if video == "frames":  # three pictures of 320 x 240; the last is repeated
        Image.new("RGB", (320, 240)).save(tmp_path / "frame.png")
        video = [str(tmp_path / "frame.png"), f"file://{tmp_path}/frame.png", str(tmp_path / "frame.png")]
    else:
        video = f"file://{video}"
    batch = stock_processor.apply_chat_template([message(video, **asked)], **SETTINGS)
    (grid,) = batch["video_grid_thw"].tolist()
    assert (2 * grid[0], 14 * grid[1], 14 * grid[2]) == expected
    assert int((batch["input_ids"] == stock_processor.video_token_id).sum()) == grid[0] * grid[1] * grid[2] // 4


def test_frames_that_a_message_asks_for_have_their_real_times(stock_processor):
    """decord's indices of the same message, over 29.97 frames a second."""
    asked = {"video_start": 0.7, "fps": 4}
    _, times = stock_processor._open_asked(str(NTSC), asked)
    indices = np.array([21, 30, 39, 48, 57, 66, 74, 83, 92, 101, 110, 119])
    assert times == pytest.approx(indices * 1001 / 30000, abs=1e-5)
    batch = stock_processor.apply_chat_template([message(str(NTSC), **asked)], **SETTINGS)
    assert batch["second_per_grid_ts"].item() == pytest.approx(2 * 99 * 1001 / 30000 / 12, abs=1e-5)


@pytest.mark.parametrize(
    ("video", "asked", "reason"),
    [
        ("gone.mp4", {"fps": 1, "nframes": 4}, "fps and nframes"),
        ("gone.mp4", {"fps": 0}, "fps of a video in a message must be a number above 0, not 0"),
        ("gone.mp4", {"fps": "two"}, "fps .* not 'two'"),
        ("gone.mp4", {"speed": 2}, "speed beside this video"),
        ("gone.mp4", {"resized_height": 56}, "resized_height and resized_width"),
        ("gone.mp4", {"min_pixels": 9000, "max_pixels": 8000}, "min_pixels=9000 .* above max_pixels=8000"),
        ("gone.mp4", {"video_start": 3, "video_end": 2}, "video_start=3 .* not before video_end=2"),
        ("gone.mp4#t=1,2", {"fps": 2}, "not by both"),
        ("https://example.org/a.mp4", {}, "https://example.org/a.mp4: nothing is downloaded"),
        (["gone.png", "http://example.org/a.png"], {}, "http://example.org/a.png: nothing is downloaded"),
        (["gone.png"], {"fps": 2}, "fps beside this video"),
        (np.zeros((4, 84, 84, 3), np.uint8), {"nframes": 2}, "nframes beside this video"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(processor, video, asked, reason):
    with pytest.raises(ValueError, match=reason) as error:
        processor.apply_chat_template([message(video, **asked)], **SETTINGS)
    assert not isinstance(error.value, VideoError)  # nothing was opened


def test_a_video_with_settings_leaves_the_others_as_they_are(processor, clip):
    rows = [message(str(clip)), message(str(clip), resized_height=112, resized_width=140), message(str(clip))]
    batch = processor.apply_chat_template(rows, **SETTINGS, processor_kwargs={"padding": True})
    assert batch["video_grid_thw"].tolist() == [[4, 6, 6], [4, 8, 10], [4, 6, 6]]
    with pytest.raises(ValueError, match="gone.png: cannot be read as a frame"):
        processor.apply_chat_template([message(["gone.png"])], **SETTINGS)
