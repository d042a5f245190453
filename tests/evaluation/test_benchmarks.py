"""Benchmarks are read from files of their own schemas, which are written here. Every other file is refused with a
message that says why."""

import inspect
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fourdthinker_hf.data.question_vocabulary import DSR_TASKS
from fourdthinker_hf.data.records import Record, write_records
from fourdthinker_hf.evaluation import dsr_bench
from fourdthinker_hf.evaluation.benchmarks import load_benchmark, missing_files, questions_hash

TEXTS = ["2 m", "B-side, 3.5 m", "A. Smith's car", "none"]
LETTERED = [f"{letter}. {text}" for letter, text in zip("ABCD", TEXTS, strict=True)]


def dsr_row(number=0, options=LETTERED, **values):
    """One row with the columns of DSR-Bench."""
    return {
        "videoID": f"vid_{number // 2}",
        "question": " How far? ",
        "options": options,
        "answer": "ABCD"[number % 4],
        "type": DSR_TASKS[number % 13],
        **values,
    }


def write_dsr(folder, rows):
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "benchmark.parquet")
    return folder


def test_dsr_bench_every_sub_task(tmp_path):
    folder = write_dsr(tmp_path / "dsr", [dsr_row(number) for number in range(26)])
    (folder / "videos").mkdir()
    records = load_benchmark(folder)
    assert [record.task for record in records] == [*DSR_TASKS, *DSR_TASKS]
    assert len(set(DSR_TASKS)) == 13
    assert records[5] == Record(
        id="0005-vid_2",
        question="How far?",
        answer=TEXTS[1],
        options=TEXTS,
        task="abs_dir_pred",
        video=str(folder / "videos" / "vid_2.mp4"),
    )
    assert missing_files(records[5]) == [str(folder / "videos" / "vid_2.mp4")]


@pytest.mark.parametrize("write", [json.dumps, repr, list], ids=["json", "python", "list"])
@pytest.mark.parametrize("options", [LETTERED, TEXTS, [f"({c}" for c in TEXTS]], ids=["lettered", "plain", "odd"])
def test_dsr_bench_options_in_each_copy(tmp_path, write, options):
    """Letters are removed only if every option begins with its own: "A. Smith's car" keeps its A."""
    expected = TEXTS if options is LETTERED else options
    (record,) = load_benchmark(write_dsr(tmp_path / "dsr", [dsr_row(options=write(options))]))
    assert (record.options, record.answer) == (expected, expected[0])


def test_dsr_bench_with_the_other_name_of_the_video_and_videos_beside_it(tmp_path):
    row = dsr_row(video="clip.mp4")
    del row["videoID"]
    (record,) = load_benchmark(write_dsr(tmp_path / "dsr", [row]))
    assert (record.id, record.video) == ("0000-clip", str(tmp_path / "dsr" / "clip.mp4"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "colour"}, "row 0: type 'colour'"),
        ({"answer": "E"}, "row 0: .*answer 'E' of 4 options"),
        ({"options": "A. left, B. right"}, "benchmark.parquet, row 0: "),
        ({"options": ["A. same", "B. right"], "answer": "C"}, "answer 'C' of 2"),
        ({"question": None}, "benchmark.parquet, row 0: "),
    ],
)
def test_dsr_bench_with_bad_rows(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        load_benchmark(write_dsr(tmp_path / "dsr", [dsr_row(**change)]))


def test_files_of_another_schema(tmp_path):
    folder = write_dsr(tmp_path / "dsr", [{"prompt": "?", "options": TEXTS}])
    with pytest.raises(
        ValueError, match="benchmark.parquet: this is not the schema of DSR-Bench, which has a column 'video'"
    ):
        load_benchmark(folder)
    (folder / "benchmark.parquet").write_text("PAR?")
    with pytest.raises(ValueError, match="benchmark.parquet: it cannot be read as DSR-Bench"):
        load_benchmark(folder)
    with pytest.raises(ValueError, match="nowhere: there is neither a file nor a folder of this name$"):
        load_benchmark(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="nor a folder with benchmark.parquet"):
        load_benchmark(tmp_path / "empty")


def test_the_next_benchmark_is_a_file_of_under_60_lines():
    assert len(inspect.getsource(dsr_bench).splitlines()) < 60


def ours(**values):
    return {"id": 7, "question": "Where?", "answer": "B", "options": ["up", "down"], "video": "v/a.mp4", **values}


def write_jsonl(folder, *rows):
    path = folder / "records.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_jsonl_by_file_and_by_folder_without_the_videos(tmp_path):
    path = write_jsonl(tmp_path, ours(reasoning="a <output_image>", imagery=["gone.png"]))
    (record,) = load_benchmark(path)
    assert load_benchmark(tmp_path) == [record]
    assert (record.id, record.answer, record.video) == ("7", "down", str(tmp_path / "v/a.mp4"))
    assert missing_files(record) == [record.video]


def test_jsonl_that_simulate_or_the_published_rl_set_writes(tmp_path, clip):
    record = Record("1", "Where?", "left", options=["left", "right"], task="way", video=str(clip))
    write_records(tmp_path / "own.jsonl", [record])
    assert load_benchmark(tmp_path / "own.jsonl") == [record]
    path = write_jsonl(tmp_path, {"Question": "?", "A": "x", "B": "y", "Correct": "B", "video_path": "a.mp4"})
    (record,) = load_benchmark(path)
    assert (record.id, record.options, record.answer) == ("line1", ["x", "y"], "y")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "records.jsonl, line 2: Expecting"),
        ("[]", "line 2: not a JSON object"),
        ({"question": "?"}, "line 2: missing field 'id'"),
        (ours(id=1, options=None), "question '1' cannot be asked: it has no options"),
        (ours(id=1, answer="left"), "the answer 'left' is not among"),
        (ours(id=1, video=None), "either a video or frames"),
        (ours(id=1, video=None, frames=["a.png"], timestamps=[0, 1]), "2 timestamps for 1 frames"),
        (
            {
                "id": 1,
                "text_input": "?",
                "text_output": "<think></think><answer>A</answer>",
                "image_input": [],
                "image_output": [],
            },
            "question '1' cannot be asked: it has no options",
        ),
        (ours(id=1, question="What is <output_image>?"), "stands for the model's own"),
        (ours(), "question '7' cannot be asked: another question has the same id"),
    ],
)
def test_jsonl_with_bad_rows(tmp_path, row, message):
    path = write_jsonl(tmp_path, ours(), row)
    with pytest.raises(ValueError, match=message):
        load_benchmark(path)


def test_bad_rows_can_be_left_out_and_are_named(tmp_path):
    refused = []
    path = write_jsonl(
        tmp_path, ours(), "{", ours(id=1, options=["up"]), ours(id=2, options=[*"abcdefghi"]), ours(id=3)
    )
    assert [record.id for record in load_benchmark(path, refused)] == ["7", "3"]
    assert [message[len(f"{path}, line ")] for message in refused] == ["2", "3", "4"]
    refused.clear()
    folder = write_dsr(tmp_path / "dsr", [dsr_row(0), dsr_row(1, answer="E"), dsr_row(2)])
    assert [record.id for record in load_benchmark(folder, refused)] == ["0000-vid_0", "0002-vid_1"]
    assert len(refused) == 1 and f"{folder}/benchmark.parquet, row 1: " in refused[0]


def test_a_file_without_questions(tmp_path):
    with pytest.raises(ValueError, match="holds no questions"):
        load_benchmark(write_jsonl(tmp_path))


def test_the_hash_is_of_what_is_asked_wherever_it_lies(tmp_path):
    hashes = []
    for name, answer in (("one", "A"), ("two", "A"), ("three", "B")):
        (tmp_path / name).mkdir()
        hashes.append(questions_hash(load_benchmark(write_jsonl(tmp_path / name, ours(answer=answer)))))
    assert hashes[0] == hashes[1] != hashes[2]
