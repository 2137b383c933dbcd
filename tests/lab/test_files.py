import errno
import json
import os
import sys
import threading

import filelock
import pytest

from mrla_minimal.lab import files


def test_replace_file_keeps_the_old_content_when_writing_fails(tmp_path):
    path = tmp_path / "file"
    files.replace_file(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"new")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space") as caught:
        files.replace_file(path, fail)
    assert caught.value.filename == str(path) and caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["missing/file", "folder", "file/file"])
def test_a_file_that_cannot_be_written_is_told_by_its_own_name(tmp_path, name):
    """And not by that of the part beside it, which nobody has asked for."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError) as caught:
        files.replace_file(tmp_path / name, lambda file: file.write(b"new"))
    assert caught.value.filename == str(tmp_path / name) and ".part" not in str(caught.value)


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_a_link_stays_a_link_whoever_writes(tmp_path):
    (tmp_path / "far").mkdir()
    for name, there in (("old", True), ("new", False)):     # a link may point to what is yet to be written
        target, link = tmp_path / "far" / name, tmp_path / f"{name}.json"
        if there:
            target.write_text("{}")
        link.symlink_to(target)
        files.write_json(link, {"a": 1})
        files.append_record(link, {"b": 2})
        assert link.is_symlink() and target.read_text() == '{\n "a": 1\n}\n{"b": 2}\n'
    assert sorted(path.name for path in (tmp_path / "far").iterdir()) == ["new", "old"]


def test_records_survive_a_broken_last_line(tmp_path):
    path = tmp_path / "records.jsonl"
    files.append_record(path, {"a": 1})
    with open(path, "a") as file:
        file.write('{"a": 2, "b"')
    files.append_record(path, {"a": 3})
    records, complaints = files.read_records(path)
    assert records == [{"a": 1}, {"a": 3}] and len(complaints) == 1 and "line 2" in complaints[0]


@pytest.mark.parametrize("bad", [
    b'{"a": NaN}', b'{"a": [1, -Infinity]}', b'{"a": 1e999}', b'{"a": "\xff"}',
    b'{"a": ' + b"9" * 5_000 + b"}", b'{"a": ' + b"[" * 200_000, b"5", b'"text"', b"[1]", b"\x00\x00",
], ids=["nan", "infinity", "overflow", "no utf-8", "digits", "deep", "number", "text", "list", "zeros"])
def test_a_line_that_is_no_record_of_finite_numbers_is_told_and_left_out(tmp_path, bad):
    path = tmp_path / "records.jsonl"
    path.write_bytes(b'{"a": 1}\n' + bad + b'\n\n{"a": "\xe2\x80\xa8"}\n')
    records, (complaint,) = files.read_records(path)
    assert records == [{"a": 1}, {"a": "\u2028"}]
    assert complaint.startswith(f"{path}, line 2: not a whole record")
    assert "\n" not in complaint and len(complaint) < len(str(path)) + 400


@pytest.mark.parametrize("value, place", [
    ({"loss": float("nan")}, "loss is nan"), ({"a": {"b": [0.5, float("inf")]}}, r"a\.b\[1\] is inf"),
    ({"a": ({"b": -float("inf")},)}, r"a\[0\]\.b is -inf"),
])
def test_a_number_that_is_not_finite_is_never_written(tmp_path, value, place):
    path = tmp_path / "file.json"
    path.write_text("old\n")
    for write in (files.write_json, files.append_record):
        with pytest.raises(ValueError, match=f"not written: {place}, not a finite number"):
            write(path, value)
    assert path.read_text() == "old\n" and os.listdir(tmp_path) == ["file.json"]
    files.write_json(path, {"loss": 0.1})
    assert json.loads(path.read_text()) == {"loss": 0.1}


@pytest.mark.parametrize("refusal, reason", [
    (PermissionError(errno.EACCES, "Permission denied"), "another user's"),
    (OSError(errno.ENOLCK, "No locks available"), "cannot lock files; use a folder on a disk of"),
    (NotImplementedError("FileSystem does not appear to support flock"), "cannot lock files"),
    (OSError(errno.EIO, "Input/output error"), "Input/output error"),
], ids=["another user", "no locks", "no flock", "other"])
def test_a_lock_that_cannot_be_taken_is_named(tmp_path, monkeypatch, refusal, reason):
    def refuse(*arguments, **options):
        raise refusal

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with pytest.raises(OSError, match=reason) as caught:
        with files.exclusive(tmp_path / "file.lock"):
            raise AssertionError("it was let in")
    assert caught.value.filename == str(tmp_path / "file.lock")


def test_a_lock_lets_one_in_at_a_time(tmp_path, capsys):
    path = tmp_path / "file.lock"
    with files.exclusive(path):
        with pytest.raises(files.Busy, match="file.lock is held by another process"):
            with files.exclusive(path, wait=False):
                raise AssertionError("it was let in")
        waiting = threading.Thread(target=lambda: files.exclusive(path).__enter__())
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive() and "waiting for it (file.lock)" in capsys.readouterr().out
    waiting.join(10)
    assert not waiting.is_alive()


def test_the_repository_is_found_from_within(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "pyproject.toml").mkdir()         # no file: unreadable, like one of another user
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "mrla-minimal"\n')
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert files.repository_root() == tmp_path
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "another"\n')
    assert files.repository_root() is None
