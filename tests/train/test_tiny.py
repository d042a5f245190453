"""How the tiny model is made: its tokenizer, and the labels that its vision tower is pretrained with."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from init_model import SPECIAL_TOKENS, make_tokenizer
from pretrain_tower import parse_places, place_loss

from fourdthinker_hf.data.simulation.basic_scenes import COLOURS

TOKENIZER = make_tokenizer(["red ball 3 4, 5 4."], 300)


@settings(deadline=None)
@given(st.text())
def test_any_text_survives_the_tokenizer(text):
    ids = TOKENIZER(text, split_special_tokens=True)["input_ids"]
    assert TOKENIZER.decode(ids, clean_up_tokenization_spaces=False) == text


def test_special_tokens_and_tags_are_one_token_each():
    for token in [*SPECIAL_TOKENS, "<think>", "</think>", "<answer>", "</answer>"]:
        assert len(TOKENIZER(token)["input_ids"]) == 1


def test_places_are_the_bins_of_the_text():
    text = "blue cube 0 0, 3 3, out, 11 5. white ball 4 4, 4 4, 4 4, 4 4. everything moves right. camera pan left."
    places = parse_places(text, 3)
    assert places.shape == (4, 3, 3, len(COLOURS), 2)
    blue, white = list(COLOURS).index("blue"), list(COLOURS).index("white")
    assert places[0, 0, 0, blue].tolist() == [0, 0] and places[1, 0, 0, blue].tolist() == [3, 3]
    assert places[3, 1, 2, blue].tolist() == [11, 5]
    assert (places[2, ..., blue, :] == -1).all()
    assert (places[:, 1, 1, white] == 4).all()
    assert (places >= 0).all(-1).sum() == 7


def test_place_loss_counts_present_and_absent_equally():
    places = torch.full((2, len(COLOURS), 2), -1)
    places[0, 0] = torch.tensor([5, 2])  # modulo 4: 1 and 2
    scores = torch.zeros(2, len(COLOURS), 2, 5)
    loss, right = place_loss(scores.flatten(1), places, 4)
    assert loss.item() == pytest.approx(2 * math.log(5)) and right == 0
    scores[0, 0, 0, 2] = scores[0, 0, 1, 3] = 9
    assert place_loss(scores.flatten(1), places, 4)[1] == 1
