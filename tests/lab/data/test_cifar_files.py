import hashlib
import io
import os
import pickle
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from loopback import Page, serve

from mrla_minimal.lab import data
from mrla_minimal.lab.data import (
    MEAN,
    STD,
    AlteredFile,
    Split,
    data_roots,
    fetch_cifar,
    find_cifar,
    hold_out,
    load_cifar,
    normalise,
    plan_epoch,
    take_batch,
)
from mrla_minimal.lab.data.download import DownloadError, Source, StorageError
from mrla_minimal.lab.data.synthetic import synthetic_images

NAMES = ("ant", "bee", "train")  # CIFAR-100 too has a class called train
TRAIN, TEST = 60, 18


def md5(content):
    return hashlib.md5(content).hexdigest()


def tar_of(files):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def png(image):
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(file, "PNG")
    return file.getvalue()


class StandIn:
    """A small data set in both published packagings, from one set of random images."""

    def __init__(self):
        random = np.random.default_rng(0)
        self.images = random.integers(0, 256, (TRAIN + TEST, 3, 32, 32), dtype=np.uint8)
        self.labels = np.arange(TRAIN + TEST) % 3
        self.images[3] = self.images[1]  # the same picture under two labels: CIFAR-100 has such
        self.files = {
            "part_1": self.batch(slice(0, 40)), "part_2": self.batch(slice(40, TRAIN)),
            "test": self.batch(slice(TRAIN, None)),
            "meta": pickle.dumps({b"fine_names": [name.encode() for name in NAMES], b"coarse_names": [b"x"]}, 4),
        }
        self.tar = tar_of({f"little/{name}": content for name, content in [*self.files.items(), ("readme", b"hi")]})
        pictures = {}
        for place in random.permutation(TRAIN + TEST):
            split, name = "train" if place < TRAIN else "test", NAMES[self.labels[place]]
            pictures[f"top/{split}/insects/{name}/{place}.png"] = png(self.images[place])
        self.tgz = tar_of({"top/labels.txt": b"ant", "top/train/ant/._1.png": b"not a picture", **pictures})

    def batch(self, places):
        rows = self.images[places].reshape(-1, 3072)
        return pickle.dumps({b"data": rows, b"fine": self.labels[places].tolist(), b"coarse": [0] * len(rows)}, 4)

    def facts(self, site=None):
        url = site.url("/") if site else "http://127.0.0.1:9/"
        train = {name: md5(self.files[name]) for name in ("part_1", "part_2")}
        return data.Facts(
            "little", train, {"test": md5(self.files["test"])}, {"meta": md5(self.files["meta"])},
            b"fine", b"fine_names", {"train": TRAIN, "test": TEST},
            Source(url + "little.tar.gz", md5(self.tar), len(self.tar)),
            Source(url + "little.tgz", md5(self.tgz), len(self.tgz)))

    def write_folder(self, root):
        (root / "little").mkdir(parents=True)
        for name, content in self.files.items():
            (root / "little" / name).write_bytes(content)
        return root / "little"


@pytest.fixture(scope="module")
def little():
    stand_in = StandIn()
    parts = [(stand_in.images[:TRAIN], stand_in.labels[:TRAIN]), (stand_in.images[TRAIN:], stand_in.labels[TRAIN:])]
    stand_in.fingerprint = data._finish(parts, NAMES, "cifar10").fingerprint
    return stand_in


@pytest.fixture(autouse=True)
def small_world(little, monkeypatch, tmp_path):
    """The stand-in takes the place of CIFAR-10, nothing of this machine is looked at, downloads may be tried."""
    monkeypatch.setitem(data.FACTS, "cifar10", little.facts())
    monkeypatch.setitem(data.FINGERPRINTS, "cifar10", little.fingerprint)
    monkeypatch.setattr(data, "synthetic_images", lambda count, seed: synthetic_images(count // 200, seed))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("MRLA_OFFLINE", raising=False)
    monkeypatch.delenv("MRLA_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def same(one, other):
    return (one.fingerprint == other.fingerprint and one.classes == other.classes and all(
        torch.equal(getattr(getattr(one, split), field), getattr(getattr(other, split), field))
        for split in ("train", "test") for field in ("images", "labels")))


def names(root):
    return sorted(path.name for path in root.iterdir() if path.suffix != ".lock")


# ---- loading ----------------------------------------------------------------------------------------------------


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
        return data._finish(parts, classes, "x").fingerprint

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
    monkeypatch.setitem(data.FINGERPRINTS, "cifar10", "0" * 64)
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
    monkeypatch.setitem(data.FACTS, "cifar10", replace(facts, train=facts.train | {"part_1": md5(evil)}))
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
    monkeypatch.setitem(data.FACTS, "cifar10", replace(facts, pickles=replace(facts.pickles, md5=md5(bad))))
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
    monkeypatch.setitem(data.FACTS, "cifar10", replace(facts, pngs=replace(facts.pngs, md5=md5(archive))))
    expected = {"size": r"\(32, 31\) RGB, not", "mode": r"\(32, 32\) L, not", "count": "'train': 1, 'test': 0"}[kind]
    with pytest.raises(ValueError, match=expected):
        load_cifar("cifar10", tmp_path)
    assert names(tmp_path) == ["little.tgz"]


@pytest.mark.parametrize("call", [load_cifar, find_cifar, fetch_cifar])
def test_unknown_names_are_refused(tmp_path, call):
    with pytest.raises(ValueError, match="name must be one of cifar10, cifar100; got 'mnist'"):
        call("mnist", tmp_path)


def test_unknown_source_is_refused(tmp_path):
    with pytest.raises(ValueError, match="source must be 'auto', 'real' or 'synthetic', got 'fake'"):
        load_cifar("cifar10", tmp_path, source="fake")


# ---- getting ----------------------------------------------------------------------------------------------------


def test_a_folder_that_lacks_a_file_is_named_and_left_out(little, tmp_path, monkeypatch, capsys):
    little.write_folder(tmp_path)
    (tmp_path / "little" / "part_2").unlink()
    monkeypatch.setenv("MRLA_OFFLINE", "1")
    with pytest.raises(DownloadError, match="no good cifar10 files"):
        load_cifar("cifar10", tmp_path, source="real")
    assert f"{tmp_path / 'little'} lacks part_2" in capsys.readouterr().out


def test_a_full_disk_leaves_no_half_written_images(little, tmp_path, monkeypatch):
    (tmp_path / "little.tgz").write_bytes(little.tgz)

    def full(file, **arrays):
        file.write(b"begun")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(data.np, "savez", full)
    with pytest.raises(StorageError, match="No space left"):
        load_cifar("cifar10", tmp_path)
    assert names(tmp_path) == ["little.tgz"]


def test_a_download_is_kept_and_used(little, tmp_path, monkeypatch, capsys):
    with serve({"/little.tar.gz": Page(little.tar)}) as site:
        monkeypatch.setitem(data.FACTS, "cifar10", little.facts(site))
        first = load_cifar("cifar10", tmp_path / "new")
        assert len(site.requests) == 1 and first.source == "cifar10"
        assert same(load_cifar("cifar10", tmp_path / "new"), first) and len(site.requests) == 1
    printed = capsys.readouterr()
    assert "synthetic" not in (printed.out + printed.err).lower() and str(tmp_path / "new") in printed.out
    assert find_cifar("cifar10", tmp_path / "new") == tmp_path / "new" / "little"


def test_if_the_first_source_fails_the_png_source_serves(little, tmp_path, monkeypatch):
    with serve({"/little.tgz": Page(little.tgz)}) as site:
        monkeypatch.setitem(data.FACTS, "cifar10", little.facts(site))
        assert fetch_cifar("cifar10", tmp_path) == tmp_path / "cifar10.npz"
        assert [path for path, _ in site.requests] == ["/little.tar.gz", "/little.tgz"]
        assert load_cifar("cifar10", tmp_path).fingerprint == little.fingerprint and len(site.requests) == 2


def test_when_every_source_fails_the_built_in_set_is_announced(little, tmp_path, monkeypatch, capsys):
    with serve({"/little.tgz": Page(b"", status=503)}) as site:
        monkeypatch.setitem(data.FACTS, "cifar10", little.facts(site))
        cifar = load_cifar("cifar10", tmp_path)
        with pytest.raises(DownloadError, match="mrla fetch") as caught:
            load_cifar("cifar10", tmp_path, source="real")
    printed = capsys.readouterr().out
    for text in (printed, str(caught.value)):
        assert "little.tar.gz: HTTP 404" in text and "little.tgz: HTTP 503" in text and str(tmp_path) in text
    assert "SYNTHETIC IMAGES INSTEAD OF CIFAR10" in printed
    assert cifar.source == "synthetic" and len(cifar.classes) == 10 and (len(cifar.train), len(cifar.test)) == (50, 10)
    assert cifar.fingerprint != little.fingerprint
    assert same(cifar, load_cifar("cifar100", source="synthetic")) and capsys.readouterr().out == ""


def test_offline_nothing_is_asked_nor_made(little, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MRLA_OFFLINE", "1")
    with serve({"/little.tar.gz": Page(little.tar)}) as site:
        monkeypatch.setitem(data.FACTS, "cifar10", little.facts(site))
        assert load_cifar("cifar10", tmp_path / "root").source == "synthetic"
        assert "MRLA_OFFLINE" in capsys.readouterr().out
        for call, arguments in ((load_cifar, ["real"]), (fetch_cifar, [])):
            with pytest.raises(DownloadError, match="MRLA_OFFLINE.*put little.tar.gz"):
                call("cifar10", tmp_path / "root", *arguments)
        assert find_cifar("cifar10", tmp_path / "root") is None
        assert site.requests == [] and names(tmp_path) == []


def test_a_place_that_cannot_hold_data_is_no_reason_for_other_images(little, tmp_path, monkeypatch):
    (tmp_path / "root").write_text("a file")
    with pytest.raises(ValueError, match="root is not a folder"):
        load_cifar("cifar10", tmp_path / "root")
    with serve({"/little.tar.gz": Page(little.tar)}) as site:
        monkeypatch.setitem(data.FACTS, "cifar10", little.facts(site))
        with pytest.raises(StorageError, match="cannot write to"):
            load_cifar("cifar10", tmp_path / "root" / "below")
        assert site.requests == []


@pytest.mark.parametrize("served", ["little.tar.gz", "little.tgz"])
def test_fetch_replaces_damaged_files_once_it_has_good_ones(little, tmp_path, monkeypatch, served):
    folder = little.write_folder(tmp_path)
    (folder / "part_1").write_bytes(b"damaged")
    (folder / "notes").write_text("mine")
    with pytest.raises(DownloadError):
        fetch_cifar("cifar10", tmp_path)
    assert (folder / "part_1").read_bytes() == b"damaged"
    content = {"little.tar.gz": little.tar, "little.tgz": little.tgz}[served]
    with serve({f"/{served}": Page(content)}) as site:
        monkeypatch.setitem(data.FACTS, "cifar10", little.facts(site))
        path = fetch_cifar("cifar10", tmp_path)
    assert path == (folder if served == "little.tar.gz" else tmp_path / "cifar10.npz")
    assert load_cifar("cifar10", tmp_path).fingerprint == little.fingerprint
    assert (folder / "notes").read_text() == "mine" and (folder / "part_2").exists()


def test_fetch_leaves_good_data_as_it_is(little, tmp_path):
    folder = little.write_folder(tmp_path)
    os.utime(folder / "part_1", (1, 1))
    assert fetch_cifar("cifar10", tmp_path) == folder and (folder / "part_1").stat().st_mtime == 1


def test_where_data_is_looked_for(little, tmp_path, monkeypatch):
    repository = tmp_path / "repository"
    (repository / "notebooks").mkdir(parents=True)
    (repository / "pyproject.toml").write_text('[project]\nname = "mrla-minimal"\n')
    monkeypatch.chdir(repository / "notebooks")
    monkeypatch.setenv("MRLA_DATA", str(tmp_path / "variable"))
    roots = data_roots()
    assert roots[:2] == [tmp_path / "variable", repository / "data"] and len(roots) == 3
    assert "mrla-minimal" in str(roots[2])
    assert data_roots(tmp_path / "given") == [tmp_path / "given"]
    assert find_cifar("cifar10") is None
    little.write_folder(repository / "data")
    assert find_cifar("cifar10") == repository / "data" / "little"
    little.write_folder(tmp_path / "variable")
    assert find_cifar("cifar10") == tmp_path / "variable" / "little"
    assert find_cifar("cifar10", tmp_path / "given") is None
    monkeypatch.delenv("MRLA_DATA")
    (repository / "pyproject.toml").write_text('[project]\nname = "another"\n')
    assert data_roots() == roots[2:]


def test_a_bare_machine_can_load(little, tmp_path):
    """pooch, requests and Pillow are needed for downloads and PNG files only."""
    script = """if True:
        import sys
        for name in ("pooch", "requests", "urllib3", "PIL", "matplotlib", "scipy"):
            sys.modules[name] = None
        import torch
        from mrla_minimal.lab import data
        from mrla_minimal.lab.data.synthetic import synthetic_images
        data.synthetic_images = lambda count, seed: synthetic_images(20, seed)
        assert data.load_cifar("cifar10").source == "synthetic"
    """
    environment = {key: value for key, value in os.environ.items() if key not in ("MRLA_DATA", "MRLA_OFFLINE")}
    environment["PYTHONPATH"] = str(Path(data.__file__).parents[3])
    run = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "downloads need the package requests" in run.stdout


# ---- splits and batches -----------------------------------------------------------------------------------------


def numbered(labels):
    """A split whose images tell their place by their first pixels."""
    images = torch.zeros(len(labels), 3, 32, 32, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(len(labels)) % 256
    images[:, 0, 0, 1] = torch.arange(len(labels)) // 256
    return Split(images, torch.tensor(labels))


def places(split):
    return (split.images[:, 0, 0, 0].long() + 256 * split.images[:, 0, 0, 1].long()).tolist()


@pytest.mark.parametrize("labels, size, expected", [
    ([0] * 30 + [1] * 20 + [2] * 50, 10, [3, 2, 5]),
    ([0] * 30 + [1] * 20 + [2] * 50, None, [3, 2, 5]),
    ([0] * 33 + [1] * 17 + [2] * 50, 10, [3, 2, 5]),  # shares 3.3, 1.7 and 5
    ([2, 0, 1] * 10, 29, [10, 10, 9]),
    ([0, 2, 2, 2, 2], 4, [1, 0, 3]),  # a class that does not occur
])
def test_hold_out_takes_each_classs_share(labels, size, expected):
    split = numbered(labels)
    rest, taken = hold_out(split, size)
    counts = taken.labels.bincount(minlength=3).tolist()
    assert counts == expected or (size == 29 and sorted(counts, reverse=True) == expected)
    assert sorted(places(rest) + places(taken)) == list(range(len(labels)))
    for part in (rest, taken):
        assert places(part) == sorted(places(part)) and part.labels.tolist() == [labels[i] for i in places(part)]


def test_hold_out_is_a_draw_from_the_seed():
    split = numbered([i % 10 for i in range(500)])
    taken = [places(hold_out(split, 53, seed)[1]) for seed in (0, 0, 1, 2, 3, 4, 5, 6)]
    assert taken[0] == taken[1] and len({tuple(t) for t in taken}) == 7
    assert all(set(hold_out(split, 53, seed)[1].labels.bincount().tolist()) == {5, 6} for seed in range(3))
    # What does not divide evenly goes to drawn classes, not always to the first ones; and no place is favoured.
    extra = {hold_out(split, 51, seed)[1].labels.bincount().argmax().item() for seed in range(20)}
    assert len(extra) > 4
    assert len({place for seed in range(60) for place in places(hold_out(split, 50, seed)[1])}) > 480


@pytest.mark.parametrize("size", [0, -1, 30, 31])
def test_hold_out_refuses_impossible_sizes(size):
    with pytest.raises(ValueError, match=f"between 1 and 29 for a split of 30 images, got {size}"):
        hold_out(numbered([0, 1, 2] * 10), size)


def test_hold_out_of_a_tiny_split_says_so():
    with pytest.raises(ValueError, match="got 0"):
        hold_out(numbered([0, 1, 2]))


def test_a_plan_is_a_function_of_seed_and_epoch():
    plan, again = plan_epoch(1_000, 3, 4), plan_epoch(1_000, 3, 4)
    for field, dtype, shape in (("order", torch.int64, (1_000,)), ("shift", torch.int64, (1_000, 2)),
                                ("flip", torch.bool, (1_000,))):
        value = getattr(plan, field)
        assert value.dtype == dtype and value.shape == shape and torch.equal(value, getattr(again, field))
        for seed, epoch in ((3, 5), (4, 4), (4, 3), (34, 0), (3 + 2**32, 4)):
            assert not torch.equal(value, getattr(plan_epoch(1_000, seed, epoch), field))
    assert plan.order.sort().values.tolist() == list(range(1_000))
    assert plan.shift.unique().tolist() == list(range(9)) and 400 < plan.flip.sum() < 600
    assert not torch.equal(plan.shift[:, 0], plan.shift[:, 1])


def test_a_plan_leaves_torchs_own_generator_alone():
    state = torch.get_rng_state()
    plan_epoch(10, 0, 0)
    assert torch.equal(state, torch.get_rng_state())


def test_without_augmentation_images_are_only_shuffled():
    split = Split(torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8), torch.arange(20))
    plan = plan_epoch(20, 0, 1, augment=False)
    assert torch.equal(plan.order, plan_epoch(20, 0, 1).order)
    images, labels = take_batch(split, plan, 0, 20)
    assert torch.equal(labels, plan.order) and torch.equal(images, normalise(split.images[plan.order]))


@pytest.mark.parametrize("size", [0, -1])
def test_an_empty_epoch_is_refused(size):
    with pytest.raises(ValueError, match=f"at least 1 image, got {size}"):
        plan_epoch(size, 0, 0)


def test_a_batch_is_what_one_gets_image_by_image():
    split = Split(torch.randint(0, 256, (50, 3, 32, 32), dtype=torch.uint8), torch.randint(0, 10, (50,)))
    plan = plan_epoch(50, 1, 2)
    images, labels = take_batch(split, plan, 7, 40)
    assert images.dtype == torch.float32 and images.is_contiguous()
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    for place in range(7, 40):
        padded = torch.zeros(3, 40, 40)
        padded[:, 4:36, 4:36] = split.images[plan.order[place]] / 255
        down, right = plan.shift[place]
        crop = padded[:, down:down + 32, right:right + 32]
        crop = crop.flip(2) if plan.flip[place] else crop
        torch.testing.assert_close(images[place - 7], (crop - mean) / std, rtol=1e-5, atol=1e-6)
        assert labels[place - 7] == split.labels[plan.order[place]]


def test_batches_do_not_depend_on_where_an_epoch_was_resumed():
    split = Split(torch.randint(0, 256, (30, 3, 32, 32), dtype=torch.uint8), torch.arange(30))
    whole = take_batch(split, plan_epoch(30, 0, 0), 0, 30)[0]
    late = take_batch(split, plan_epoch(30, 0, 0), 20, 40)  # the last batch may be short
    assert torch.equal(late[0], whole[20:]) and late[1].shape == (10,)


def test_normalise_gives_mean_0_and_deviation_1_and_leaves_its_input():
    images = torch.tensor(MEAN).view(1, 3, 1, 1).mul(255).round().to(torch.uint8).expand(2, 3, 32, 32)
    before = images.clone()
    assert normalise(images).abs().max() < 0.01 and torch.equal(images, before)
    black, white = (normalise(torch.full((1, 3, 1, 1), value, dtype=torch.uint8)) for value in (0, 255))
    torch.testing.assert_close((white - black).flatten(), 1 / torch.tensor(STD))


def test_splits_and_plans_move_together():
    split, plan = numbered([0, 1, 2]).to("meta"), plan_epoch(3, 0, 0).to("meta")
    assert {t.device.type for t in (split.images, split.labels, plan.order, plan.shift, plan.flip)} == {"meta"}
    images, labels = take_batch(split, plan, 0, 2)  # looks at no values: on a GPU that would make the host wait
    assert images.shape == (2, 3, 32, 32) and labels.shape == (2,) and images.device.type == "meta"


# ---- the real data ----------------------------------------------------------------------------------------------

REAL = os.environ.get("MRLA_DATA", "")
needs = {name: pytest.mark.skipif(not (Path(REAL) / facts.folder).is_dir() or not REAL,
                                  reason=f"MRLA_DATA names no folder with {facts.folder}")
         for name, facts in data.FACTS.items()}
PUBLISHED = dict(data.FACTS), dict(data.FINGERPRINTS)


@pytest.mark.parametrize("name, classes", [pytest.param("cifar10", 10, marks=needs["cifar10"]),
                                           pytest.param("cifar100", 100, marks=needs["cifar100"])])
def test_the_real_data(name, classes, monkeypatch, capsys):
    monkeypatch.setitem(data.FACTS, name, PUBLISHED[0][name])
    monkeypatch.setitem(data.FINGERPRINTS, name, PUBLISHED[1][name])
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


def test_looking_for_data_in_a_notebook_says_nothing():
    """Where ipykernel runs without ipywidgets, pooch's import of tqdm.auto warns; a student would see it in red."""
    code = ("import sys, types, IPython; sys.modules['ipykernel.zmqshell'] = types.ModuleType('zmqshell'); "
            "sys.modules['ipywidgets'] = None; from mrla_minimal.lab.data import data_roots; data_roots()")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0 and "IProgress" not in run.stderr, run.stderr
