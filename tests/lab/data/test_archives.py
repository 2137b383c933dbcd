import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from little_cifar import md5, names, png, same, tar_of

from mrla_minimal.lab.data import archives, load_cifar, published
from mrla_minimal.lab.data.archives import files_in
from mrla_minimal.lab.data.download import StorageError

pytestmark = pytest.mark.usefixtures("small_world")


def test_every_packaging_gives_the_same_tensors(little, tmp_path):
    little.write_folder(tmp_path / "folder")
    reference = load_cifar("cifar10", tmp_path / "folder")
    for name, content, unpacked in (
        ("little.tar.gz", little.tar, "little"), ("little.tgz", little.tgz, "cifar10.npz"),
    ):
        root = tmp_path / name
        root.mkdir()
        (root / name).write_bytes(content)
        assert same(load_cifar("cifar10", root, "real"), reference)
        assert names(root) == sorted([name, unpacked])
        (root / name).unlink()
        assert same(load_cifar("cifar10", root, "real"), reference)  # from what was unpacked alone


def member(name, kind=tarfile.REGTYPE, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, 2 if kind == tarfile.REGTYPE else 0
    return info


@pytest.mark.parametrize("bad", [
    member("folder/../../out"), member("/etc/out"), member("C:/out"), member("folder\\..\\out"),
    member("link", tarfile.SYMTYPE, "/etc"), member("hard", tarfile.LNKTYPE, "folder/good"),
    member("device", tarfile.CHRTYPE), member("pipe", tarfile.FIFOTYPE),
], ids=lambda info: info.name)
def test_archive_members_that_could_reach_outside_are_refused(tmp_path, bad):
    with tarfile.open(tmp_path / "archive.tar.gz", "w:gz") as tar:
        tar.addfile(member("folder", tarfile.DIRTYPE))
        tar.addfile(member("folder/good"), io.BytesIO(b"ok"))
        tar.addfile(bad, io.BytesIO(b"no"))
    seen = []
    with pytest.raises(ValueError) as caught:
        seen.extend((path.as_posix(), content) for path, content in files_in(tmp_path / "archive.tar.gz"))
    assert repr(bad.name) in str(caught.value)
    assert names(tmp_path) == ["archive.tar.gz"]


def test_archive_files_are_read_in_place(tmp_path):
    with tarfile.open(tmp_path / "archive.tar.gz", "w:gz") as tar:
        tar.addfile(member("folder", tarfile.DIRTYPE))
        tar.addfile(member("folder/good"), io.BytesIO(b"ok"))
    read = [(path.as_posix(), content) for path, content in files_in(tmp_path / "archive.tar.gz")]
    assert read == [("folder/good", b"ok")]


def test_an_archive_that_reaches_outside_is_refused(little, tmp_path, monkeypatch):
    bad = tar_of({"little/part_1": b"1", "little/../../part_2": b"2"})
    root = tmp_path / "root"
    root.mkdir()
    (root / "little.tar.gz").write_bytes(bad)
    facts = little.facts()
    facts = replace(facts, pickles=replace(facts.pickles, md5=md5(bad)))
    monkeypatch.setitem(published.FACTS, "cifar10", facts)
    with pytest.raises(ValueError, match=r"little/\.\./\.\./part_2"):
        load_cifar("cifar10", root)
    assert names(root) == ["little.tar.gz"] and names(tmp_path) == ["root"]


def test_unpacking_is_all_or_nothing(little, tmp_path, monkeypatch):
    (tmp_path / "little.part").mkdir()  # left by a process that was killed
    (tmp_path / "little.part" / "old").touch()
    (tmp_path / "little.tar.gz").write_bytes(little.tar)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(StorageError, match="No space left"):
            load_cifar("cifar10", tmp_path)
    assert names(tmp_path) == ["little.tar.gz"]
    load_cifar("cifar10", tmp_path)
    assert names(tmp_path / "little") == sorted(little.files)


@pytest.mark.parametrize("kind", ["size", "mode", "count"])
def test_png_archives_with_other_images_are_refused(little, tmp_path, monkeypatch, kind):
    from PIL import Image

    odd = io.BytesIO()
    Image.new("RGB" if kind == "size" else "L", (32, 31) if kind == "size" else (32, 32)).save(odd, "PNG")
    picture = png(little.images[0]) if kind == "count" else odd.getvalue()
    archive = tar_of({"train/ant/1.png": picture})
    (tmp_path / "little.tgz").write_bytes(archive)
    facts = little.facts()
    facts = replace(facts, pngs=replace(facts.pngs, md5=md5(archive)))
    monkeypatch.setitem(published.FACTS, "cifar10", facts)
    expected = {
        "size": r"\(32, 31\) RGB, not", "mode": r"\(32, 32\) L, not", "count": "'train': 1, 'test': 0",
    }[kind]
    with pytest.raises(ValueError, match=expected):
        load_cifar("cifar10", tmp_path)
    assert names(tmp_path) == ["little.tgz"]


def test_a_full_disk_leaves_no_half_written_images(little, tmp_path, monkeypatch):
    (tmp_path / "little.tgz").write_bytes(little.tgz)

    def full(file, **arrays):
        file.write(b"begun")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archives.np, "savez", full)
    with pytest.raises(StorageError, match="No space left"):
        load_cifar("cifar10", tmp_path)
    assert names(tmp_path) == ["little.tgz"]
