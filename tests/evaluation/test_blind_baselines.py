"""Baselines that answer from the text alone."""

import numpy as np

from fourdthinker_hf.data.records import Record
from fourdthinker_hf.evaluation.blind_baselines import longest_option, right_options, text_classifier


def test_the_text_classifier_finds_a_bias_where_there_is_one():
    rng = np.random.default_rng(0)
    words = ["grows", "shrinks", "stays", "turns", "falls", "rolls"]

    def record(k, biased):
        options = rng.permutation(words)[:4].tolist()
        right = options.index("grows") if biased and "grows" in options else k % 4
        return Record(str(k), f"How does {k % 7} move?", options[right], options)

    def share(records):
        training, rest = records[::2], records[1::2]
        return np.mean(np.equal(text_classifier(rest, training), right_options(rest)))

    assert share([record(k, True) for k in range(600)]) > 0.6
    assert share([record(k, False) for k in range(600)]) < 0.35


def test_the_longest_option_is_chosen():
    assert longest_option([Record("0", "", "a", ["a", "abc", "ab", "a"])]) == [1]
