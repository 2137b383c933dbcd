import hashlib
import io
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from little_cifar import NAMES, TEST, TRAIN, md5, names, png, same, tar_of

from mrla_minimal.lab.data import find_cifar, hold_out, load_cifar, normalise, published
from mrla_minimal.lab.data.download import StorageError
from mrla_minimal.lab.data.published import AlteredFile, finish

PUBLISHED = dict(published.FACTS), dict(published.FINGERPRINTS)     # before the stand-in takes their place
pytestmark = pytest.mark.usefixtures("small_world")


def test_what_a_loaded_set_is(little, tmp_path, capsys):
    little.write_folder(tmp_path)
    cifar = load_cifar("cifar10", tmp_path)
    assert cifar.train.images.shape == (TRAIN, 3, 32, 32) and cifar.train.images.dtype == torch.uint8
    assert cifar.test.labels.shape == (TEST,) and cifar.test.labels.dtype == torch.int64
    assert (len(cifar.train), cifar.classes, cifar.source) == (TRAIN, NAMES, "cifar10")
    hashes = [hashlib.blake2b(image.numpy().tobytes()).digest() for image in cifar.train.images]
    assert hashes == sorted(hashes)
    label_of = {image.tobytes(): label for image, label in zip(little.images, little.labels, strict=True)}
    twice = little.images[3].tobytes()
    for image, label in zip(cifar.train.images, cifar.train.labels, strict=True):
        assert image.numpy().tobytes() == twice or label_of[image.numpy().tobytes()] == label
    pair = [label.item() for image, label in zip(cifar.train.images, cifar.train.labels, strict=True)
            if image.numpy().tobytes() == twice]
    assert pair == [0, 1]  # ties in the order of the labels
    assert capsys.readouterr() == ("", "")


def test_every_packaging_gives_the_same_tensors(little, tmp_path):
    little.write_folder(tmp_path / "folder")
    reference = load_cifar("cifar10", tmp_path / "folder")
    for name, content, unpacked in (("little.tar.gz", little.tar, "little"), ("little.tgz", little.tgz, "cifar10.npz")):
        root = tmp_path / name
        root.mkdir()
        (root / name).write_bytes(content)
        assert same(load_cifar("cifar10", root, "real"), reference)
        assert names(root) == sorted([name, unpacked])
        (root / name).unlink()
        assert same(load_cifar("cifar10", root, "real"), reference)  # from what was unpacked alone


def test_the_fingerprint_sees_every_part():
    images = np.arange(4 * 3072, dtype=np.uint32).astype(np.uint8).reshape(4, 3, 32, 32)
    images[:, 0, 0, 0] = range(4)
    labels = np.array([0, 1, 0, 1])
    parts = [(images[:2], labels[:2]), (images[2:], labels[2:])]

    def fingerprint(parts, classes=("a", "b")):
        return finish(parts, classes, "x").fingerprint

    swapped = [(part[0][::-1], part[1][::-1]) for part in parts]
    assert fingerprint(parts) == fingerprint(swapped)
    variants = [fingerprint(parts), fingerprint(parts, ("a", "c")), fingerprint(parts[::-1]),
                fingerprint([parts[0], (parts[1][0], parts[1][1][::-1])]),
                fingerprint([(images[:2] ^ 1, labels[:2]), parts[1]])]
    assert len(set(variants)) == len(variants)


@pytest.mark.parametrize("source", ["auto", "real"])
@pytest.mark.parametrize("damage", ["altered", "truncated"])
@pytest.mark.parametrize("file", ["little/part_2", "little.tar.gz", "little.tgz", "cifar10.npz"])
def test_a_damaged_file_is_an_error_that_names_it(little, tmp_path, capsys, file, damage, source):
    if file == "cifar10.npz":
        (tmp_path / "little.tgz").write_bytes(little.tgz)
        load_cifar("cifar10", tmp_path)
    else:
        little.write_folder(tmp_path)
        (tmp_path / "little.tar.gz").write_bytes(little.tar)
        (tmp_path / "little.tgz").write_bytes(little.tgz)
        if file != "little/part_2":
            (tmp_path / "little").rename(tmp_path / "elsewhere")
        if file == "little.tgz":
            (tmp_path / "little.tar.gz").unlink()
    capsys.readouterr()
    content = bytearray((tmp_path / file).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / file).write_bytes(content if damage == "altered" else content[:-100])
    with pytest.raises(AlteredFile, match="mrla fetch") as caught:
        load_cifar("cifar10", tmp_path, source)
    assert str(tmp_path / file) in str(caught.value) and "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError) and "SYNTHETIC" not in capsys.readouterr().out
    with pytest.raises(AlteredFile):
        find_cifar("cifar10", tmp_path)


def test_right_files_with_other_images_are_refused(little, tmp_path, monkeypatch):
    little.write_folder(tmp_path)
    monkeypatch.setitem(published.FINGERPRINTS, "cifar10", "0" * 64)
    with pytest.raises(ValueError, match="wrong fingerprint"):
        load_cifar("cifar10", tmp_path)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_cannot_run_code(little, tmp_path, monkeypatch, protocol):
    folder = little.write_folder(tmp_path)
    if protocol == 4:
        evil, asked = pickle.dumps({b"data": Evil(tmp_path / "ran")}, protocol), "getattr"
    else:
        evil, asked = f"cos\nsystem\n(S'touch {tmp_path / 'ran'}'\ntR.".encode(), "os.system"
        evil = b"\x80\x02" + evil if protocol == 2 else evil
    (folder / "part_1").write_bytes(evil)
    facts = little.facts()
    with pytest.raises(AlteredFile):  # the md5 comes first
        load_cifar("cifar10", tmp_path)
    monkeypatch.setitem(published.FACTS, "cifar10", replace(facts, train=facts.train | {"part_1": md5(evil)}))
    with pytest.raises(ValueError, match="part_1 is refused: it asks for") as caught:
        load_cifar("cifar10", tmp_path)
    assert asked in str(caught.value) or "pathlib" in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_an_archive_that_reaches_outside_is_refused(little, tmp_path, monkeypatch):
    bad = tar_of({"little/part_1": b"1", "little/../../part_2": b"2"})
    root = tmp_path / "root"
    root.mkdir()
    (root / "little.tar.gz").write_bytes(bad)
    facts = little.facts()
    monkeypatch.setitem(published.FACTS, "cifar10", replace(facts, pickles=replace(facts.pickles, md5=md5(bad))))
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
    monkeypatch.setitem(published.FACTS, "cifar10", replace(facts, pngs=replace(facts.pngs, md5=md5(archive))))
    expected = {"size": r"\(32, 31\) RGB, not", "mode": r"\(32, 32\) L, not", "count": "'train': 1, 'test': 0"}[kind]
    with pytest.raises(ValueError, match=expected):
        load_cifar("cifar10", tmp_path)
    assert names(tmp_path) == ["little.tgz"]


def test_a_full_disk_leaves_no_half_written_images(little, tmp_path, monkeypatch):
    (tmp_path / "little.tgz").write_bytes(little.tgz)

    def full(file, **arrays):
        file.write(b"begun")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(published.np, "savez", full)
    with pytest.raises(StorageError, match="No space left"):
        load_cifar("cifar10", tmp_path)
    assert names(tmp_path) == ["little.tgz"]


REAL = os.environ.get("MRLA_DATA", "")
needs = {name: pytest.mark.skipif(not (Path(REAL) / facts.folder).is_dir() or not REAL,
                                  reason=f"MRLA_DATA names no folder with {facts.folder}")
         for name, facts in published.FACTS.items()}


@pytest.mark.parametrize("name, classes", [pytest.param("cifar10", 10, marks=needs["cifar10"]),
                                           pytest.param("cifar100", 100, marks=needs["cifar100"])])
def test_the_real_data(name, classes, monkeypatch, capsys):
    monkeypatch.setitem(published.FACTS, name, PUBLISHED[0][name])
    monkeypatch.setitem(published.FINGERPRINTS, name, PUBLISHED[1][name])
    cifar = load_cifar(name, REAL, source="real")
    assert (len(cifar.train), len(cifar.test), len(cifar.classes)) == (50_000, 10_000, classes)
    assert cifar.source == name and list(cifar.classes) == sorted(cifar.classes)  # so PNG folders give the same labels
    assert cifar.train.labels.bincount().unique().tolist() == [50_000 // classes]
    assert cifar.test.labels.bincount().unique().tolist() == [10_000 // classes]
    rest, taken = hold_out(cifar.train)
    assert (len(rest), len(taken)) == (45_000, 5_000)
    assert taken.labels.bincount().unique().tolist() == [5_000 // classes]
    if name == "cifar10":
        pixels = normalise(cifar.train.images[:20_000])
        assert pixels.mean((0, 2, 3)).abs().max() < 0.02 and (pixels.std((0, 2, 3)) - 1).abs().max() < 0.02
    assert capsys.readouterr() == ("", "")
