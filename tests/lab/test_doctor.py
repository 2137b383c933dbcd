import os
from pathlib import Path

import pytest
import requests
import torch

from mrla_minimal.lab import doctor


def lines_of(capsys):
    *lines, last = capsys.readouterr().out.splitlines()
    assert all(line.startswith(("[OK]   ", "[WARN] ", "[FAIL] ")) for line in lines)
    return lines, last


def test_doctor_prints_a_line_a_check_and_fails_with_status_1(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "find_cifar", lambda name: None)
    assert doctor.run_doctor() == 0
    lines, last = lines_of(capsys)
    assert last == "ready: nothing failed"
    for word in ("Python", "torch", "einops", "platformdirs", "device", "cifar10", "cifar100", "free"):
        assert any(word in line for line in lines), word
    monkeypatch.setattr(doctor, "TORCH_FROM", (99, 0))
    assert doctor.run_doctor() == 1
    lines, last = lines_of(capsys)
    assert sum(line.startswith("[FAIL]") for line in lines) == 1
    assert last == f"1 of {len(lines)} checks failed" and "needs 99.0 or newer" in "".join(lines)


@pytest.mark.parametrize("capability, precision", [
    ((9, 0), "bfloat16"), ((8, 0), "bfloat16"), ((7, 5), "float16"), ((6, 1), "float32"),
])
def test_doctor_names_the_precision_that_a_gpu_trains_in(monkeypatch, capability, precision):
    ones = torch.ones

    def on_the_cpu(*shape, device, **options):
        return ones(*shape, **options)

    monkeypatch.setattr(doctor, "choose_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(doctor.torch, "ones", on_the_cpu)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert doctor.check_device() == ("OK", f"device cuda: a GPU; trains in {precision}")


def test_doctor_asks_no_network_and_writes_nothing(monkeypatch, tmp_path):
    def refuse(*arguments, **options):
        raise AssertionError("it asked the network")

    monkeypatch.setattr(requests.Session, "request", refuse)
    monkeypatch.delenv("MRLA_OFFLINE")
    monkeypatch.setenv("MRLA_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert doctor.run_doctor() == 0 and list(tmp_path.iterdir()) == []


def test_each_line_is_printed_before_the_next_check_begins(monkeypatch, capsys):
    def slow(name):
        assert "device" in capsys.readouterr().out
        return "OK", name

    monkeypatch.setattr(doctor, "check_data", slow)
    monkeypatch.setattr(doctor, "SETS", ("cifar10",))
    assert doctor.run_doctor() == 0


def test_doctor_tells_where_data_is_missing_or_altered(monkeypatch, tmp_path):
    monkeypatch.setenv("MRLA_DATA", str(tmp_path / "empty"))
    monkeypatch.setattr(doctor, "find_cifar", lambda name: None)
    status, text = doctor.check_data("cifar10")
    assert status == "WARN" and str(tmp_path / "empty") in text and "mrla fetch cifar10" in text

    def altered(name):
        raise ValueError("data_batch_1 is altered")

    monkeypatch.setattr(doctor, "find_cifar", altered)
    assert doctor.check_data("cifar10") == ("FAIL", "cifar10: data_batch_1 is altered")


def test_doctor_on_a_full_disk_and_a_missing_package(monkeypatch, tmp_path):
    usage = doctor.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: usage._replace(free=10 * 2**20))
    assert doctor.check_disk(tmp_path / "deep" / "down")[0] == "FAIL"
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: usage._replace(free=2**29))
    assert doctor.check_disk(tmp_path)[0] == "WARN"
    assert doctor.check_package("no_such_module_here")[0] == "FAIL"


def test_a_file_is_no_place_for_data(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "data"):
        assert doctor.check_disk(place) == ("FAIL", f"{tmp_path / 'file'} is no folder: set MRLA_DATA to one")


@pytest.mark.parametrize("present, expected, exit_status", [
    ((), "FAIL", 1), (("cifar10",), "WARN", 0), (("cifar10", "cifar100"), "OK", 0),
])
def test_a_data_folder_that_is_read_only_matters_while_data_is_missing(
        monkeypatch, tmp_path, capsys, present, expected, exit_status):
    (tmp_path / "data").mkdir()
    may = os.access
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: Path(path).name != "data" and may(path, mode))
    monkeypatch.setattr(doctor, "find_cifar", lambda name: tmp_path / "data" if name in present else None)
    monkeypatch.setenv("MRLA_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    assert doctor.run_doctor() == exit_status
    lines, _ = lines_of(capsys)
    assert lines[-1].startswith(f"[{expected}]") and str(tmp_path / "data") in lines[-1]
    assert lines[-2].startswith("[OK]")     # the working folder


def test_a_place_that_cannot_be_looked_at_is_a_line(monkeypatch, tmp_path):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", refuse)
    assert doctor.check_disk(tmp_path) == ("FAIL", f"{tmp_path}: Permission denied")
