"""Training data: the format of records, and two ways to make them.

`records` reads and writes records; `contact_sheet` draws them on one picture; `simulation/` makes them from simulated
scenes and `annotation/` from real videos. Both use `media` (target frames, video files), `question_vocabulary` (words
of tasks, answers and options) and `value_changes` (reads a value measured over time as a sequence of changes).
`ground_truth` checks annotation on simulated clips.
"""
