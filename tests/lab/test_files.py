import errno

import pytest

from mrla_minimal.lab import files


def test_replace_file_keeps_the_old_content_when_writing_fails(tmp_path):
    path = tmp_path / "file"
    files.replace_file(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"new")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        files.replace_file(path, fail)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_records_survive_a_broken_last_line(tmp_path):
    path = tmp_path / "records.jsonl"
    files.append_record(path, {"a": 1})
    with open(path, "a") as file:
        file.write('{"a": 2, "b"')
    files.append_record(path, {"a": 3})
    records, complaints = files.read_records(path)
    assert records == [{"a": 1}, {"a": 3}] and len(complaints) == 1 and "line 2" in complaints[0]
