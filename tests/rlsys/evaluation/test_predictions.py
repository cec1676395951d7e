"""Files of predictions in every layout, clean and dirty."""

from __future__ import annotations

import json
from pathlib import Path

import openpyxl
import pytest

from rlsys.evaluation.answered import Answered
from rlsys.evaluation.predictions import Predictions, PredictionsError, read_predictions
from rlsys.types import Json
from tests.rlsys.evaluation.protocols.rows import chosen, grounded

ROWS = [chosen("A", row_id=f"mme:{at}", question_id=f"00{at}-1", video=f"v{at}", qid=str(at % 2)) for at in range(4)]


def read(tmp_path: Path, name: str, content: str | bytes, rows: list[Answered] | None = None) -> Predictions:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_predictions(path, ROWS if rows is None else rows)


def lines(*values: Json) -> str:
    return "\n".join(value if isinstance(value, str) else json.dumps(value) for value in values)


def texts(found: Predictions) -> list[tuple[str, ...]]:
    return [row.texts for row in found.answered]


def test_rows_are_matched_by_their_id_and_those_without_a_prediction_are_listed(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        "own.jsonl",
        lines(
            {"prompt_id": "mme:2", "text": "C"},
            {"row_id": "0", "response": "A"},
            {"qid": "003-1", "question_id": "003-1", "prediction": "D"},
            {"prompt_id": "other:9", "text": "B"},
        ),
    )
    assert texts(found) == [("A",), (), ("C",), ("D",)]
    assert (found.missing, found.unmatched) == (("mme:1",), ("other:9",))
    assert found.answered[1].reason == "no prediction in own.jsonl"
    assert any("1 rows without a prediction" in line for line in found.lines())


def test_samples_of_a_row_are_kept_in_order_and_a_second_text_for_one_is_reported(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        "own.jsonl",
        lines(
            {"row_id": "mme:0", "text": "second", "sample": 1},
            {"row_id": "mme:0", "text": "first", "sample": 0},
            {"row_id": "mme:1", "text": "kept"},
            {"row_id": "mme:1", "text": "dropped"},
        ),
    )
    assert texts(found)[:2] == [("first", "second"), ("kept",)]
    assert found.duplicates == ("mme:1",)


def test_a_bad_line_is_a_dirty_row(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        "own.jsonl",
        lines(
            "{broken",
            "[1, 2]",
            "null",
            {"text": "no id"},
            {"row_id": "mme:0"},
            {"row_id": "mme:0", "text": None},
            {"row_id": ["mme:0"], "text": "A"},
            {"row_id": True, "text": "A"},
            {"row_id": "mme:1", "text": {"a": 1}},
            "",
            '{"row_id": "mme:2", "text": NaN}',
            "[" * 100_000,
            {"row_id": "mme:3", "text": 7},
        )
        + "\n\xff\xfe",
    )
    assert texts(found) == [(), (), (), ("7",)]
    assert [one.place for one in found.dirty] == [f"line {at}" for at in (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 14)]
    assert "no id" in found.dirty[3].problem


def test_the_samples_of_lmms_eval(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        "20260806_samples_videomme.jsonl",
        lines(
            {"doc_id": 0, "target": "A", "filtered_resps": "A", "input": "…"},
            {"doc_id": 1, "target": "A", "filtered_resps": ["B"], "resps": [["B."]]},
            {"doc_id": 2, "target": "A", "resps": [["C", "D"]]},
            {"doc_id": 9, "filtered_resps": "A"},
        ),
    )
    assert texts(found) == [("A",), ("B",), ("C", "D"), ()]
    assert found.unmatched == ("9",)


@pytest.mark.parametrize("name", ["p.tsv", "p.csv"])
def test_tables_of_vlmevalkit(tmp_path: Path, name: str) -> None:
    between = "\t" if name.endswith("tsv") else ","
    table = [["index", "video", "prediction"], ["0", "v0", "A"], ["3", "v3", '"D\nbecause"'], ["1", "v1", ""], ["x"]]
    found = read(tmp_path, name, "\ufeff" + "\n".join(between.join(line) for line in table))
    assert texts(found) == [("A",), ("",), (), ("D\nbecause",)]
    assert found.unmatched == ("x",)


def test_an_index_label_comes_before_the_place_in_the_file(tmp_path: Path) -> None:
    rows = [chosen("A", row_id=f"m:{at}", index=float(10 + at)) for at in range(2)]
    found = read(tmp_path, "p.tsv", "index\tprediction\n11\tB\n0\tA\n", rows)
    assert texts(found) == [(), ("B",)]
    assert found.unmatched == ("0",)


def test_a_spreadsheet(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    for row in (["index", None, "prediction"], [2, None, "C is right"], [0, 5, "A"], [1, None, None]):
        book.active.append(row)
    book.create_sheet("notes").append(["prediction", "of another kind"])
    book.save(tmp_path / "p.xlsx")
    found = read_predictions(tmp_path / "p.xlsx", ROWS)
    assert texts(found) == [("A",), (), ("C is right",), ()]
    assert [one.place for one in found.dirty] == ["row 4"]


@pytest.mark.parametrize(
    "tree",
    [
        [{"row_id": "mme:0", "text": "A"}, {"row_id": "mme:2", "text": "C"}, "broken"],
        {"mme:0": "A", "002-1": {"prediction": "C"}},
        {"index": {"0": 0, "1": 2}, "prediction": {"0": "A", "1": "C"}},
    ],
)
def test_json_as_a_list_an_object_by_id_and_columns(tmp_path: Path, tree: Json) -> None:
    assert texts(read(tmp_path, "p.json", json.dumps(tree))) == [("A",), (), ("C",), ()]


@pytest.mark.parametrize(
    "tree",
    [
        ["A", "B", "C", "D"],
        {"results": [{"row_id": at, "predict": text} for at, text in enumerate("ABCD")]},
        {"model": "m", "logs": [{"doc_id": at, "filtered_resps": [text]} for at, text in enumerate("ABCD")]},
        {"predictions": {f"mme:{at}": text for at, text in enumerate("ABCD")}},
        {f"00{at}-1": {"model_output": text} for at, text in enumerate("ABCD")},
        {f"v{at}.mp4": text for at, text in enumerate("ABCD")},
        [{"video": f"videos/v{at}.webm", "generated_text": text} for at, text in enumerate("ABCD")],
        [{"video_id": f"v{at}", "question": " Q ", "pred": text} for at, text in enumerate("ABCD")],
        # a number of another file, which the video and the question overrule
        [{"index": at + 1, "video": f"v{at}", "question": "q", "prediction": t} for at, t in enumerate("ABCD")],
    ],
)
def test_layouts_of_other_systems(tmp_path: Path, tree: Json) -> None:
    found = read(tmp_path, "p.json", json.dumps(tree))
    assert texts(found) == [("A",), ("B",), ("C",), ("D",)]
    assert (found.missing, found.unmatched, found.dirty) == ((), (), ())


def test_replies_of_an_api_in_a_batch_and_numbers_for_a_text(tmp_path: Path) -> None:
    reply = {"status_code": 200, "body": {"choices": [{"message": {"content": "A"}}, {"message": {"content": "B"}}]}}
    found = read(
        tmp_path,
        "batch.jsonl",
        lines(
            {"id": "batch_1", "custom_id": "mme:0", "response": reply, "error": None},
            {"row_id": "1", "pred": [12.5, 17.0]},
            {"row_id": "2", "response": {"body": {"error": "no"}}},
        ),
    )
    assert texts(found) == [("A", "B"), ("[12.5, 17.0]",), (), ()]
    assert found.dirty[0].place == "line 3"


def test_a_number_in_the_data_set_names_no_row_of_another_video(tmp_path: Path) -> None:
    found = read(tmp_path, "p.jsonl", lines({"doc_id": 0, "video": "v3", "text": "A"}, {"doc_id": 1, "text": "B"}))
    assert texts(found) == [(), ("B",), (), ("A",)]


def test_next_gqa_names_a_question_by_its_video_and_number(tmp_path: Path) -> None:
    found = read(tmp_path, "p.json", json.dumps({"v2_0": "C", "v3_1": "D", "0": "shared by two videos"}))
    assert texts(found)[2:] == [("C",), ("D",)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.pkl", b"", "read from .jsonl, .json"),
        ("p.json", b"{", "not JSON"),
        ("p.json", b"3", "holds a int"),
        ("p.xlsx", b"PK", "not a spreadsheet"),
        (
            "p.jsonl",
            b'{"id": "other:1", "text": "A"}',
            "no prediction in it is of these 4 rows.*like 'mme:0'.*like other:1",
        ),
        ("p.json", b'["A", "B", "C"]', "no prediction in it.*entry 0: not an object but str"),
    ],
)
def test_a_file_that_holds_no_predictions_at_all_is_an_error(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    with pytest.raises(PredictionsError, match=message):
        read(tmp_path, name, content)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PredictionsError, match=r"none\.jsonl: cannot be read"):
        read_predictions(tmp_path / "none.jsonl", ROWS)


def test_no_rows_and_an_empty_file(tmp_path: Path) -> None:
    assert read(tmp_path, "p.jsonl", "", []) == Predictions(
        answered=(), missing=(), unmatched=(), duplicates=(), dirty=()
    )
    with pytest.raises(PredictionsError, match="the file is empty"):
        read(tmp_path, "p.csv", "", [grounded(0, 1)])


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    "bad",
    ['{"row_id": "mme:1", "text": "B",}', '{"row_id": "mme:1", "text": "B"},', "// of the pilot", "# of the pilot"],
)
def test_a_comma_too_many_or_a_comment_costs_its_line_alone(tmp_path: Path, end: str, bad: str) -> None:
    good = [json.dumps({"row_id": f"mme:{at}", "text": f"{at}\u2028"}, ensure_ascii=False) for at in (0, 2)]
    found = read(tmp_path, "own.jsonl", "\ufeff" + end.join([good[0], bad, "\ufeff" + good[1], "\ufeff", ""]))
    assert texts(found) == [("0\u2028",), (), ("2\u2028",), ()]
    assert [one.place for one in found.dirty] == ["line 2"]


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("p.jsonl", "", "the file is empty"),
        (
            "p.jsonl",
            b"\x1f\x8b\x08 and more",
            "(invalid start byte at byte 1); nothing else, and the file is compressed",
        ),
        ("p.jsonl", '[\n{"row_id": "mme:0", "text": "A"},\n', "the file is one JSON list, or a part of one"),
        ("p.jsonl", '{"row_id": "other:9", "text": "A"}', "`prompt_id` is like 'mme:0'; it has ids like other:9"),
        ("p.csv", "index;prediction\r\n0;A\r\n", "line 2: no id"),
        ("p.tsv", "# of the pilot\nindex\tprediction\n0\tA\n", "line 2: no id"),
        ("p.json", "{}", "the file is JSON over several lines"),
        ("p.json", '[{"row_id": "mme:0", "text": "A"},]', "not JSON"),
        ("p.json", '// of the pilot\n[{"row_id": "mme:0", "text": "A"}]', "not JSON"),
    ],
)
def test_a_file_without_any_prediction_is_one_sentence_and_not_a_figure_of_zero(
    tmp_path: Path, name: str, content: str | bytes, why: str
) -> None:
    with pytest.raises(PredictionsError) as error:
        read(tmp_path, name, content)
    assert why in str(error.value) and str(error.value).startswith(f"{tmp_path / name}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_table_is_read_as_spreadsheets_export_it(tmp_path: Path, encoding: str) -> None:
    table = 'index\tprediction\r\n0\tA\r\n2\t"D\r\ncafé"\r\n'
    assert texts(read(tmp_path, "p.tsv", table.encode(encoding))) == [("A",), (), ("D\r\ncafé",), ()]
