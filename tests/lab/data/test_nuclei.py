"""The nuclei: what is committed, splits by field, crops and tiles, and how the file is made."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scripts import load_script

from mrla_minimal.boxes import label_boxes
from mrla_minimal.lab.data import nuclei as module
from mrla_minimal.lab.data.crops import Crop, cut, cut_boxes, cut_tiles, plan_crops
from mrla_minimal.lab.data.nuclei import Nuclei, instances, load_nuclei
from mrla_minimal.lab.data.zipped import find_zip, read_index

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "data" / "nuclei"


@pytest.fixture(scope="module")
def val():
    return load_nuclei("val", ROOT / "data")


@pytest.fixture(scope="module")
def entries():
    path = find_zip("nuclei", module.SHA256, ROOT / "data")
    return {split: read_index(path, split) for split in ("train", "val", "test")}


def little(count=3, size=40):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, size, size), generator=generator).to(torch.uint8)
    labels = torch.zeros(count, size, size, dtype=torch.int16)
    labels[:, 3:9, 5:13], labels[:, 20:30, 18:22] = 1, 2
    return Nuclei(images, labels, tuple("abc"), ("stained",) * 3, tuple("fgh"))


# What is committed


def test_no_field_has_images_in_two_splits(entries):
    fields = {split: {entry["group"] for entry in some} for split, some in entries.items()}
    assert {split: len(some) for split, some in fields.items()} == {"train": 142, "val": 35, "test": 61}
    assert len(set.union(*fields.values())) == 142 + 35 + 61


def test_the_readmes_table_is_true(entries, val):
    rows = {split: (len(some), sum(entry["instances"] for entry in some)) for split, some in entries.items()}
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    for split, (images, nuclei) in rows.items():
        assert f"| {split} | {images} |" in text and f"| {nuclei:,} |" in text
    assert f"{sum(images for images, _ in rows.values())} microscope images" in text
    assert module.SHA256 in text and f"{(FOLDER / 'nuclei.zip').stat().st_size:,} bytes" in text
    _, _, counts = instances(val.tiles()[1])
    assert f"| val | 101 | 35 | 4,043 | {len(counts)} | {int(counts.sum()):,} | {int(counts.max())} |" in text


def test_a_split_is_loaded(val, entries):
    assert val.images.shape == (101, 3, 256, 256) and val.images.dtype == torch.uint8
    assert val.labels.shape == (101, 256, 256) and len(val) == 101
    assert val.labels.amax((1, 2)).tolist() == [entry["instances"] for entry in entries["val"]]
    # WebP may leave a difference of 1 between the colours of a grey pixel.
    grey = ((val.images[:, 0].int() - val.images[:, 1].int()).abs() <= 1).flatten(1).all(1)
    assert [kind == "fluorescence" for kind in val.kinds] == grey.tolist()
    empty = [name for name, labels in zip(val.names, val.labels, strict=True) if not labels.any()]
    assert empty == ["220b37f4ca"]
    # Nuclei shine in fluorescence: labels and images belong together.
    for image, labels, kind in zip(val.images, val.labels, val.kinds, strict=True):
        if kind == "fluorescence" and labels.any():
            assert image[0][labels > 0].float().mean() > image[0][labels == 0].float().mean()


def test_the_index_is_made_again_byte_for_byte(entries):
    """From the fields and kinds alone: the splits, their order and the text are those of prepare.py."""
    every = sorted((entry for some in entries.values() for entry in some), key=lambda entry: entry["name"])
    anew = [{key: value for key, value in entry.items() if key != "split"} for entry in every]
    fields = json.loads((FOLDER / "fields.json").read_text(encoding="utf-8"))
    assert all(entry["group"] == fields[entry["name"]] for entry in anew)
    load_script(FOLDER / "prepare.py").give_splits(anew)
    with zipfile.ZipFile(FOLDER / "nuclei.zip") as archive:
        assert json.dumps({"side": 256, "images": anew}, indent=0).encode() == archive.read("index.json")


# Crops, tiles, boxes


def test_a_crop_depends_on_seed_and_step_alone():
    nuclei = little()
    first = nuclei.crops(seed=1, step=5, count=6, size=16)
    again = nuclei.crops(seed=1, step=5, count=6, size=16)
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    for seed, step in ((2, 5), (1, 6)):
        assert not torch.equal(first[0], nuclei.crops(seed=seed, step=step, count=6, size=16)[0])
    assert first[0].shape == (6, 3, 16, 16) and first[1].shape == (6, 16, 16)


def test_all_places_images_and_symmetries_are_drawn():
    crops = plan_crops(torch.zeros(3, 3, 10, 11), 8, 2000, seed=0, step=0)
    assert {(crop.image, crop.top, crop.left, crop.symmetry) for crop in crops} == {
        (image, top, left, symmetry)
        for image in range(3) for top in range(3) for left in range(4) for symmetry in range(8)}


@pytest.mark.parametrize("symmetry", range(8))
def test_images_labels_and_boxes_turn_alike(symmetry):
    """The boxes cut and turned are those of the label map cut and turned; the symmetries are eight."""
    nuclei, crop = little(), Crop(image=1, top=4, left=6, symmetry=symmetry, size=24)
    labels = cut(nuclei.labels, [crop])
    boxes = cut_boxes(label_boxes(nuclei.labels[1:2], 2)[0], crop)
    assert torch.equal(boxes, label_boxes(labels, 2)[0])
    numbered = torch.arange(40 * 40).view(1, 1, 40, 40).expand(2, 1, -1, -1)
    turned = [cut(numbered, [Crop(1, 4, 6, other, 24)]) for other in range(8)]
    assert sum(torch.equal(turned[symmetry], other) for other in turned) == 1
    colours = cut(nuclei.images, [crop])[0]
    assert colours.shape == (3, 24, 24)
    assert torch.equal(colours[0].sum(), nuclei.images[1, 0, 4:28, 6:30].sum())


def test_tiles_hold_every_pixel_once_in_its_place():
    maps = torch.arange(2 * 4 * 6).view(2, 4, 6)
    tiles = cut_tiles(maps, 2)
    assert tiles.shape == (12, 2, 2)
    assert tiles[0].tolist() == [[0, 1], [6, 7]] and tiles[1].tolist() == [[2, 3], [8, 9]]
    assert tiles[6].tolist() == [[24, 25], [30, 31]] and len(tiles.unique()) == 48
    images, labels, source = little().tiles(20)
    assert images.shape == (12, 3, 20, 20) and labels.shape == (12, 20, 20)
    assert source.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert torch.equal(images[5], little().images[1, :, :20, 20:])


def test_instances_are_numbered_anew_without_what_is_too_small():
    labels = torch.zeros(2, 12, 12, dtype=torch.int16)
    labels[0, 0:3, 0:3], labels[0, 5:7, 2:7], labels[1, 4:8, 4:8] = 4, 7, 2        # 9, 10 and 16 pixels
    anew, boxes, counts = instances(labels)
    assert counts.tolist() == [1, 1] and anew.amax((1, 2)).tolist() == [1, 1]
    assert boxes.tolist() == [[[2, 5, 7, 7]], [[4, 4, 8, 8]]] and (anew[0, :3, :3] == 0).all()
    anew, boxes, counts = instances(torch.zeros(1, 4, 4, dtype=torch.int16))
    assert boxes.shape == (1, 0, 4) and counts.tolist() == [0]


# Bad input


@pytest.mark.parametrize("call, message", [
    (lambda: little().crops(0, 0, size=48), "a crop of 48 x 48 pixels does not fit into images of 40 x 40"),
    (lambda: little().tiles(48), "tiles of 48 x 48 pixels do not fill images of 40 x 40"),
    (lambda: Nuclei(little().images, little().labels[:, :39], (), (), ()), "labels must be .3, 40, 40."),
    (lambda: Nuclei(little().images.float(), little().labels, (), (), ()), "images must be uint8"),
    (lambda: Nuclei(little().images, little().labels - 1, (), (), ()), "labels must be integers of at least"),
    (lambda: Nuclei(little().images, little().labels, ("a",), (), ()), "one for each of 3 images"),
    (lambda: load_nuclei("dev", ROOT / "data"), "split must be one of 'train', 'val', 'test', not 'dev'"),
])
def test_wrong_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_missing_and_a_damaged_file_are_named(tmp_path):
    with pytest.raises(ValueError, match="no nuclei.zip: looked for .*; it comes with the rep") as error:
        load_nuclei("val", tmp_path)
    assert "--data-root REPOSITORY/data" in str(error.value) and "\n" not in str(error.value)
    (tmp_path / "nuclei").mkdir()
    content = bytearray((FOLDER / "nuclei.zip").read_bytes())
    content[1_000_000] ^= 1
    (tmp_path / "nuclei" / "nuclei.zip").write_bytes(content)
    with pytest.raises(ValueError, match="nuclei.zip is damaged or another file") as error:
        load_nuclei("val", tmp_path)
    assert "\n" not in str(error.value)


# How the file is made


def field_of_view(seed, colour, size=600):
    """A smooth picture, as microscopes see."""
    noise = np.random.default_rng(seed).random((size // 50, size // 50, 3))
    picture = Image.fromarray((noise * 255).astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    return picture if colour else picture.convert("L").convert("RGB")


@pytest.fixture
def originals(tmp_path):
    """Two fields, grey and coloured, cut into quarters of 300 x 300 as the published set is."""
    for field, colour in (("g", False), ("s", True)):
        picture = field_of_view(ord(field), colour)
        for quarter in range(4):
            left, top = 300 * (quarter % 2), 300 * (quarter // 2)
            folder = tmp_path / "raw" / f"{field}{quarter}".ljust(12, "0")
            (folder / "images").mkdir(parents=True)
            (folder / "masks").mkdir()
            picture.crop((left, top, left + 300, top + 300)).save(folder / "images" / "image.png")
            for number in range(3):
                mask = np.zeros((300, 300), np.uint8)
                mask[100 + 20 * number : 112 + 20 * number, 140:165] = 255
                Image.fromarray(mask).save(folder / "masks" / f"{number}.png")
    return tmp_path / "raw"


def test_a_set_is_made_from_raw_folders(originals, tmp_path, monkeypatch):
    fields = load_script(FOLDER / "fields.py").fields(originals)
    assert len(fields) == 8 and len(set(fields.values())) == 2      # quarters are put together
    assert all(fields[name][0] == name[0] for name in fields)
    (tmp_path / "nuclei").mkdir()
    target = tmp_path / "nuclei" / "nuclei.zip"
    found = load_script(FOLDER / "prepare.py").prepare(originals, fields, target)
    monkeypatch.setattr(module, "SHA256", found)
    made = load_nuclei("train", tmp_path)
    assert made.names == tuple(f"{field}{quarter}".ljust(10, "0") for field in "gs" for quarter in range(4))
    assert made.kinds == ("fluorescence",) * 4 + ("stained",) * 4
    assert made.labels.amax((1, 2)).tolist() == [3] * 8
    # 300 -> 256: the first mask, rows 100 to 112 and columns 140 to 165, times 0.853
    assert (label_boxes(made.labels[:1], 3)[0, 0] - torch.tensor([119.5, 85.3, 140.8, 95.6])).abs().max() < 1
    grey = made.images[0, 0].float()
    assert grey.min() < 10 and grey.max() > 245                     # stretched
