"""The tiny model's making: its tokenizer, and the labels its tower is warmed up on."""

from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_init import SPECIAL_TOKENS, make_tokenizer
from tiny_tower import NUM_COLOURS, labels_of

from fourdthinker_hf.data.simulation import COLOURS

TOKENIZER = make_tokenizer(["red ball 3 4, 5 4."], 300)


@settings(deadline=None)
@given(st.text())
def test_any_text_survives_the_tokenizer(text):
    ids = TOKENIZER(text, split_special_tokens=True)["input_ids"]
    assert TOKENIZER.decode(ids, clean_up_tokenization_spaces=False) == text


def test_special_tokens_and_tags_are_one_token_each():
    for token in [*SPECIAL_TOKENS, "<think>", "</think>", "<answer>", "</answer>"]:
        assert len(TOKENIZER(token)["input_ids"]) == 1


def test_tower_labels_are_the_bins_of_the_text():
    text = "blue cube 0 0, 3 3, out, 11 5. white ball 4 4, 4 4, 4 4, 4 4. everything moves right. camera pan left."
    labels = labels_of(text, 3)
    assert labels.shape == (4, 3, 3, NUM_COLOURS)
    blue, white = list(COLOURS).index("blue"), list(COLOURS).index("white")
    assert [labels[step, ..., blue].nonzero().tolist() for step in range(4)] == [[[0, 0]], [[0, 0]], [], [[1, 2]]]
    assert labels[0, 0, 0, blue] == 1  # the first bin of its cell
    assert labels[1, 0, 0, blue] == 1 + 3 * 4 + 3  # the last one
    assert labels[3, 1, 2, blue] == 1 + 1 * 4 + 3
    assert (labels[..., white] > 0).sum() == 4 and (labels[:, 1, 1, white] == 1).all()
    assert (labels > 0).sum() == 7
