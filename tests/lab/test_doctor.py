from mrla_minimal.lab import doctor


def test_doctor_prints_a_line_a_check_and_fails_with_status_1(monkeypatch, capsys):
    assert doctor.run_doctor() == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith(("[OK]   ", "[WARN] ", "[FAIL] ")) for line in lines[:-1]) and lines[-1].startswith("ready")
    for word in ("Python", "torch", "einops", "device", "cifar10", "cifar100", "free"):
        assert any(word in line for line in lines), word
    monkeypatch.setattr(doctor, "TORCH_FROM", (99, 0))
    assert doctor.run_doctor() == 1
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("[FAIL]") for line in lines) == 1 and lines[-1].startswith("1 of")
    assert "needs 99.0 or newer" in "".join(lines)


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
