import hashlib
import os
import pickle
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from little_cifar import NAMES, TEST, TRAIN, md5

from mrla_minimal.lab.data import find_cifar, hold_out, load_cifar, normalise, published
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


def write_npz(path, little, **changes):
    arrays = {"train_images": little.images[:TRAIN], "train_labels": little.labels[:TRAIN],
              "test_images": little.images[TRAIN:], "test_labels": little.labels[TRAIN:],
              "classes": np.array(NAMES), **changes}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


@pytest.mark.parametrize("change, said", [
    ({"train_images": None}, "KeyError"),
    ({"train_images": np.zeros((TRAIN, 3, 32, 32), np.float64)}, r"float64 \(60, 3, 32, 32\) where uint8"),
    ({"train_images": np.zeros((TRAIN, 3072), np.uint8)}, r"\(60, 3072\) where uint8 \(60, 3, 32, 32\)"),
    ({"test_images": np.zeros((TEST + 1, 3, 32, 32), np.uint8)}, r"\(19, 3, 32, 32\) where"),
    ({"train_images": np.uint8(1)}, r"uint8 \(\) where"),
    ({"train_images": np.array([None] * TRAIN)}, "cannot be read"),
    ({"test_labels": np.array(["a"] * TEST)}, r"<U1 \(18,\) where int64"),
    ({"test_labels": np.zeros((TEST, 1), np.int64)}, r"\(18, 1\) where int64 \(18,\)"),
    ({"test_labels": np.zeros(TEST)}, r"float64 \(18,\) where int64"),
    ({"test_labels": np.full(TEST, -5)}, "wrong fingerprint"),
    ({"classes": np.arange(3)}, "class names as int64"),
    ({"classes": np.array("abc")}, r"class names as <U3 \(\)"),
    ({"classes": np.array(["ant", "bee", "sea"])}, "wrong fingerprint"),
])
def test_arrays_of_another_kind_are_told_in_one_line(little, tmp_path, change, said):
    path = tmp_path / "cifar10.npz"
    write_npz(path, little)
    assert load_cifar("cifar10", tmp_path, "real").fingerprint == little.fingerprint
    write_npz(path, little, **change)
    with pytest.raises(AlteredFile, match=said) as caught:
        load_cifar("cifar10", tmp_path, "real")
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_a_file_of_arrays_may_be_damaged_anywhere(little, tmp_path):
    path = tmp_path / "cifar10.npz"
    write_npz(path, little)
    good = path.read_bytes()
    random = np.random.default_rng(0)
    damaged = [b"", b"PK", b"no archive", pickle.dumps([1]), good[:1000], good[:-1], good[100:]]
    places = [*random.integers(0, len(good) - 64, 20), *(len(good) - end for end in (64, 200, 500))]
    for start in places:
        damaged.append(good[:start] + random.bytes(64) + good[start + 64:])
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(AlteredFile) as caught:
            load_cifar("cifar10", tmp_path, "real")
        assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_pickles_of_an_old_numpy_are_read_without_a_warning(little, tmp_path, monkeypatch):
    folder, facts = little.write_folder(tmp_path), little.facts()
    new = pickle.dumps(pickle.loads((folder / "part_1").read_bytes(), encoding="bytes"), 3)
    # The published files have 0 and 1 where numpy now writes, and wants, False and True.
    old = new.replace(b"\x89\x88\x87", b"K\x00K\x01\x87")
    assert old != new
    (folder / "part_1").write_bytes(old)
    monkeypatch.setitem(published.FACTS, "cifar10", replace(facts, train=facts.train | {"part_1": md5(old)}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_cifar("cifar10", tmp_path, "real").fingerprint == little.fingerprint
    given = []
    monkeypatch.setattr(np, "dtype", lambda *arguments: given.append(arguments))
    published._ALLOWED["numpy", "dtype"]("u1", 0, 1)    # not every numpy warns
    assert given == [("u1", False, True)] and type(given[0][1]) is bool


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
    # The classes are sorted by name, so PNG folders give the same labels.
    assert cifar.source == name and list(cifar.classes) == sorted(cifar.classes)
    assert cifar.train.labels.bincount().unique().tolist() == [50_000 // classes]
    assert cifar.test.labels.bincount().unique().tolist() == [10_000 // classes]
    rest, taken = hold_out(cifar.train)
    assert (len(rest), len(taken)) == (45_000, 5_000)
    assert taken.labels.bincount().unique().tolist() == [5_000 // classes]
    if name == "cifar10":
        pixels = normalise(cifar.train.images[:20_000])
        assert pixels.mean((0, 2, 3)).abs().max() < 0.02 and (pixels.std((0, 2, 3)) - 1).abs().max() < 0.02
    assert capsys.readouterr() == ("", "")
