"""Files of records that a command makes run by run, and the commands that make them."""

import argparse
import hashlib
import json
import subprocess
import sys

import pytest

from mrla_minimal.course.made_records import (
    difference_cells,
    made_with,
    print_or_refuse,
    run_id,
    write_asked,
    write_missing,
)
from mrla_minimal.lab.files import read_records


def numbered(path, numbers):
    wanted = [{"id": number, "number": number} for number in numbers]
    return write_missing(path, lambda known: (record for record in wanted if not made_with(record, known)))


def test_what_is_missing_is_appended_and_what_is_there_stays(tmp_path):
    path = tmp_path / "new" / "runs.jsonl"
    assert [record["number"] for record in numbered(path, [1, 2])] == [1, 2]
    made = numbered(path, [2, 3])
    assert [record["number"] for record in made] == [1, 2, 3] and made == read_records(path)[0]


def test_a_run_that_another_command_made_meanwhile_is_kept_once(tmp_path):
    path = tmp_path / "runs.jsonl"

    def make(known):
        numbered(path, [1, 2])          # another command, while this one makes its first run
        yield {"id": 1, "number": 1}
        yield {"id": 3, "number": 3}

    assert [record["number"] for record in write_missing(path, make)] == [1, 2, 3]


def test_a_line_half_written_is_to_be_mended(tmp_path):
    (tmp_path / "runs.jsonl").write_text('{"id": 1}\n{"id":')
    with pytest.raises(ValueError, match="line 2: not a whole record: .*: mend or remove that line") as error:
        numbered(tmp_path / "runs.jsonl", [1])
    assert "left out" not in str(error.value)


def test_a_run_is_kept_though_another_command_left_half_a_line_meanwhile(tmp_path):
    path = tmp_path / "runs.jsonl"

    def make(known):
        with path.open("a") as file:
            file.write('{"id": 2, "accu')       # another command, killed while it wrote
        yield {"id": 1}

    with pytest.raises(ValueError, match="line 1: not a whole record: .*: mend or remove that line"):
        write_missing(path, make)
    assert read_records(path)[0] == [{"id": 1}]


def test_a_lock_that_cannot_be_taken_is_told_before_the_first_run(tmp_path):
    (tmp_path / "runs.jsonl.lock").mkdir()
    made = []
    with pytest.raises(OSError):
        write_missing(tmp_path / "runs.jsonl", lambda known: made)
    assert not (tmp_path / "runs.jsonl").exists()


def test_each_run_is_kept_before_the_next_one_begins(tmp_path):
    path = tmp_path / "runs.jsonl"

    def make(known):
        yield {"id": 1}
        assert read_records(path)[0] == [{"id": 1}]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_missing(path, make)
    assert read_records(path)[0] == [{"id": 1}]


def test_an_id_follows_from_the_setting_alone():
    assert run_id({"b": 1, "a": 2}) == run_id({"a": 2, "b": 1}) == hashlib.sha256(
        b'{"a": 2, "b": 1}').hexdigest()[:12]


def test_records_are_found_by_their_setting_or_a_part_of_it():
    records = [{"a": 2, "b": 1}, {"a": 2, "b": 0}, {"b": 1}]
    assert made_with({"a": 2}, iter(records)) == records[:2]
    assert made_with({"a": 2, "b": 0}, records) == records[1:2]
    assert made_with({"a": 2, "c": 0}, records) == []


def test_a_refusal_is_one_line(capsys):
    def refuse():
        raise ValueError("no such thing")

    with pytest.raises(SystemExit) as ended:
        print_or_refuse(argparse.ArgumentParser(), refuse)
    assert ended.value.code == 2 and capsys.readouterr().err == "no such thing\n"


@pytest.mark.parametrize("module", ["quiz_records", "who_knows", "words_records", "sideways_records",
                                    "index_records", "small_suite", "detector_curve"])
def test_no_command_adds_to_a_damaged_file(module, tmp_path):
    path = tmp_path / "damaged.jsonl"
    path.write_text("not a record\n")
    ended = subprocess.run([sys.executable, "-P", "-m", f"mrla_minimal.course.{module}", "--out", path],
                           capture_output=True, text=True)
    assert ended.returncode == 2 and path.read_text() == "not a record\n"
    assert ended.stderr.count("\n") == 1 and "line 1: not a whole record" in ended.stderr


def test_asked_runs_are_said_one_by_one_and_none_is_begun_too_late(tmp_path, capsys):
    path, asked = tmp_path / "a.jsonl", [{"part": part, "seed": seed} for part in "ab" for seed in (0, 1)]
    path.write_text(json.dumps({"id": "0", "part": "z", "seed": 0}) + "\n")

    def make(known):
        for number, setting in enumerate(asked, start=1):
            if not made_with(setting, known):
                yield {"id": str(number), **setting, "accuracy": 0.5}

    first = write_asked(path, asked, make, minutes=1e-9)
    assert [record["id"] for record in first] == ["1"] and capsys.readouterr().out == "1 a 0\n"
    made = write_asked(path, asked[::-1], make)
    assert [record["id"] for record in made] == ["4", "3", "2", "1"]
    assert capsys.readouterr().out == "2 a 1\n3 b 0\n4 b 1\n"
    assert len(path.read_text().splitlines()) == 5, "records of other settings stay, and are not returned"


def test_minutes_must_be_positive(tmp_path):
    for minutes in (0, float("nan")):
        with pytest.raises(ValueError, match="minutes must be"):
            write_asked(tmp_path / "a.jsonl", [], lambda known: [], minutes)
    assert not (tmp_path / "a.jsonl").exists()


def test_a_difference_as_cells():
    assert difference_cells([0.2, 0.4], 2) == ("+0.30", "-0.97 to +1.57")
    assert difference_cells([-0.25], 3) == ("-0.250", "-")
