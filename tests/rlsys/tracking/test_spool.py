"""Records on disk: in order, whole or not there, none lost whatever moment the process dies at."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from rlsys.tracking.sample_buffer import SampleBuffer
from rlsys.tracking.spool import Spool, SpoolInUseError, encode, read_records
from rlsys.tracking.uploader import REFUSED_FILE, first_group
from tests.support.pace import patience


def metrics(step: int, num: int = 1) -> dict[str, object]:
    values = {f"loss/{index}": step + index / 7 for index in range(num)}
    return {"kind": "metrics", "step": step, "time_ms": 1000 * step, "values": values}


def taken(spool: Spool) -> list[int]:
    """Steps of everything that waits, acknowledged one call after the other."""
    steps: list[int] = []
    while waiting := spool.waiting():
        steps += [record["step"] for record in waiting]
        spool.acknowledge(len(waiting))
    return steps


def reopened(spool: Spool, **options: int) -> Spool:
    spool.close()
    return Spool(spool._folder, **options)


def test_records_come_out_as_they_went_in(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    records = [metrics(step, num=3) for step in range(1, 4)]
    for record in records:
        spool.append(record)
    assert (list(spool.waiting()), spool.num_waiting) == (records, 3)
    spool.acknowledge(3)
    assert (list(spool.waiting()), spool.num_waiting) == ([], 0)


def test_what_is_not_acknowledged_is_there_after_a_restart(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for step in range(1, 6):
        spool.append(metrics(step))
    spool.waiting()
    spool.acknowledge(2)
    spool = reopened(spool)
    assert (spool.num_waiting, spool.last_steps) == (3, {"metrics": 5})
    spool.append(metrics(6))
    assert taken(spool) == [3, 4, 5, 6]
    assert taken(reopened(spool)) == []


@pytest.mark.parametrize("lost_bytes", [1, 5, 40])
def test_a_half_written_last_line_is_cut_off_and_written_over(lost_bytes: int, tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for step in (1, 2, 3):
        spool.append(metrics(step))
    spool.close()
    file = tmp_path / "000001.jsonl"
    file.write_bytes(file.read_bytes()[:-lost_bytes])
    spool = Spool(tmp_path)
    assert (spool.num_waiting, spool.last_steps) == (2, {"metrics": 2})
    spool.append(metrics(3))
    assert taken(spool) == [1, 2, 3]


def test_a_damaged_line_in_the_middle_costs_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spool = Spool(tmp_path)
    for step in (1, 2, 3):
        spool.append(metrics(step))
    spool.close()
    file = tmp_path / "000001.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"step":2', b'"step":7'))
    spool = Spool(tmp_path)
    assert spool.num_waiting == 2
    assert taken(spool) == [1, 3]
    assert "damaged" in caplog.text


def test_segments_that_are_acknowledged_stay_and_are_not_read_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(tmp_path, segment_bytes=2000)
    for step in range(1, 201):
        spool.append(metrics(step))
    segments = sorted(tmp_path.glob("*.jsonl"))
    assert len(segments) > 5
    assert taken(spool) == list(range(1, 201))
    spool = reopened(spool, segment_bytes=2000)
    # steps of earlier segments are known from the head of the newest, so none is recorded twice
    assert (spool.num_waiting, spool.last_steps) == (0, {"metrics": 200})
    first = segments[0].read_bytes()
    segments[0].write_bytes(b"not read\n")
    spool = reopened(spool, segment_bytes=2000)
    assert (spool.num_waiting, spool.last_steps) == (0, {"metrics": 200})
    assert "damaged" not in caplog.text
    segments[0].write_bytes(first)
    spool.close()
    (tmp_path / "position").unlink()
    assert taken(Spool(tmp_path)) == list(range(1, 201))


def test_a_lost_position_makes_records_come_twice_and_never_not_at_all(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for step in (1, 2, 3):
        spool.append(metrics(step))
    spool.waiting()
    spool.acknowledge(2)
    (tmp_path / "position").write_bytes(b"")  # the machine died
    assert taken(reopened(spool)) == [1, 2, 3]


def test_a_writer_and_a_reader_may_be_two_threads(tmp_path: Path) -> None:
    spool, steps = Spool(tmp_path, segment_bytes=3000), []

    def read() -> None:
        while len(steps) < 2000:
            steps.extend(taken(spool))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    for step in range(2000):
        spool.append(metrics(step))
        if step % 100 == 0:
            spool.sync()
    reader.join(timeout=patience(60.0))
    assert steps == list(range(2000))
    assert spool.num_waiting == 0


def test_a_record_for_which_the_disk_has_no_room_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    spool, write, rooms = Spool(tmp_path), os.pwrite, iter([10])

    def half_a_write(file: int, data: bytes, position: int) -> int:
        room = next(rooms, None)
        if room is None:
            raise OSError(28, "No space left on device")
        return write(file, data[:room], position)

    spool.append(metrics(1))
    with monkeypatch.context() as patched:
        patched.setattr("os.pwrite", half_a_write)
        with pytest.raises(OSError, match="No space"):
            spool.append(metrics(2))
    spool.append(metrics(2))
    assert taken(spool) == [1, 2]


def test_two_processes_cannot_have_one_spool(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    with pytest.raises(SpoolInUseError, match="still running"):
        Spool(tmp_path)
    spool.close()
    Spool(tmp_path).close()


def test_records_that_were_refused_beside_a_spool_are_no_segment_of_it(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append(metrics(1))
    (tmp_path / REFUSED_FILE).write_bytes(encode(metrics(7)))
    assert taken(reopened(spool)) == [1]


def test_steps_at_the_front_share_a_call_up_to_its_limit() -> None:
    rows = {"kind": "rows", "step": 1, "samples": [], "verdicts": []}
    table = {"kind": "table", "name": "tables/a.json", "text": ""}
    steps = [metrics(1, 400), rows, metrics(2, 400), metrics(3, 400)]
    assert list(first_group(steps)) == steps[:3]
    assert list(first_group([metrics(1), table, metrics(2)])) == [metrics(1)]
    assert list(first_group([table, metrics(2)])) == [table]
    assert list(first_group([metrics(1, 1500), metrics(2)])) == [metrics(1, 1500)]


def row(step: int) -> dict[str, object]:
    return {"kind": "rows", "step": step, "samples": [{"step": step, "text": "a\nb"}], "verdicts": []}


def test_rows_wait_for_the_steps_that_share_their_file_and_count_once(tmp_path: Path) -> None:
    blocks = SampleBuffer(tmp_path)
    blocks.add([row(7), row(8)])
    # the process died in the middle of a line, and the records after it come again
    file = next(tmp_path.glob("*.jsonl"))
    with file.open("ab") as appended:
        appended.write(encode(row(9))[:-4])
    blocks.add([row(8), row(9)])
    assert blocks.complete(9) == []
    (block,) = blocks.complete(10)
    assert [sample["step"] for sample in block.samples] == [7, 8, 9]
    block.forget()
    assert blocks.complete(None) == []
    assert json.loads(json.dumps(block.samples[0])) == {"step": 7, "text": "a\nb"}


def test_a_file_is_read_up_to_its_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "records"
    path.write_bytes(encode(metrics(1)) + encode(metrics(2))[:-1])
    assert [record["step"] for record, _ in read_records(path) if record] == [1]
