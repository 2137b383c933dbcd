"""The blood cells: what is committed, crops of boxes, and how the file is made."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from scripts import load_script

from mrla_minimal.lab.data import blood as module
from mrla_minimal.lab.data.blood import CLASSES, Blood, load_blood

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "data" / "blood"
ANNOTATION = """<annotation><object><name>{name}</name><bndbox>
<xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object><object><name>RBC</name><bndbox><xmin>9</xmin><ymin>9</ymin><xmax>9</xmax>
<ymax>99</ymax></bndbox></object></annotation>"""


def little(box=(2.0, 3.0, 12.0, 9.0), kind=1):
    images = torch.zeros(1, 3, 12, 16, dtype=torch.uint8)
    return Blood(images, (torch.tensor([box]),), (torch.tensor([kind]),), ("a",))


def test_the_readmes_table_is_true():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    for split in ("train", "val", "test"):
        blood = load_blood(split, ROOT / "data")
        assert blood.images.shape == (len(blood), 3, 120, 160)
        counts = torch.cat(blood.classes).bincount(minlength=3).tolist()
        assert f"| {split} | {len(blood)} | {counts[0]:,} | {counts[1]} | {counts[2]} |" in text
    assert module.SHA256 in text and f"{(FOLDER / 'blood.zip').stat().st_size:,} bytes" in text
    assert "Copyright (c) 2017 shenggan" in (FOLDER / "LICENSE").read_text(encoding="utf-8")


def test_crops_carry_their_boxes():
    """White cells are darker than their surroundings, before and after the crop is cut and turned."""
    blood = load_blood("val", ROOT / "data")
    images, boxes, classes = blood.crops(seed=0, step=3, count=12)
    assert images.shape == (12, 3, 96, 96)
    inside, around = [], []
    for image, some, kinds in zip(images.float(), boxes, classes, strict=True):
        assert len(some) == len(kinds) and (some >= 0).all() and (some <= 96).all()
        assert (some[:, 2:] - some[:, :2] >= module.SHORTEST).all()
        for x0, y0, x1, y1 in some[kinds == CLASSES.index("WBC")].round().int().tolist():
            inside.append(image[1, y0:y1, x0:x1].mean())        # green
            around.append(image[1].mean())
    assert len(inside) > 3 and torch.tensor(inside).mean() < torch.tensor(around).mean() - 10
    again = blood.crops(seed=0, step=3, count=12)
    assert torch.equal(images, again[0]) and all(map(torch.equal, boxes, again[1]))


@pytest.mark.parametrize("call, message", [
    (lambda: little((2.0, 3.0, 2.0, 9.0)), r"a: the box \[2.0, 3.0, 2.0, 9.0\] has no width or height"),
    (lambda: little((2.0, 3.0, 17.0, 9.0)), "reaches out of the image of 16 x 12"),
    (lambda: little(kind=3), "a: classes must lie in 0 to 2"),
    (lambda: little().crops(0, 0, size=13), "a crop of 13 x 13 pixels does not fit into images of 16 x 12"),
    (lambda: load_blood("dev", ROOT / "data"), "split must be one of"),
    (lambda: load_blood("val", ROOT / "tests"), "no blood.zip: looked for"),
])
def test_wrong_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_set_is_made_from_the_published_folders(tmp_path, monkeypatch):
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (tmp_path / "raw" / folder).mkdir(parents=True)
    cells = {"train": ("WBC", (40, 80, 120, 200)), "val": ("RBC", (0, 4, 640, 480)),
             "test": ("RBC", (4, 4, 44, 44))}
    for split, (name, box) in cells.items():
        (tmp_path / "raw" / "ImageSets" / "Main" / f"{split}.txt").write_text(f"{split}1\n")
        (tmp_path / "raw" / "Annotations" / f"{split}1.xml").write_text(ANNOTATION.format(*box, name=name))
        Image.new("RGB", (640, 480), "red").save(tmp_path / "raw" / "JPEGImages" / f"{split}1.jpg")
    script = load_script(FOLDER / "prepare.py")
    (tmp_path / "blood").mkdir()
    monkeypatch.setattr(module, "SHA256", script.prepare(tmp_path / "raw", tmp_path / "blood" / "blood.zip"))
    made = load_blood("train", tmp_path)
    assert made.names == ("train1",) and made.images.shape == (1, 3, 120, 160)
    assert made.boxes[0].tolist() == [[10, 20, 30, 50]] and made.classes[0].tolist() == [1]
    assert load_blood("val", tmp_path).boxes[0].tolist() == [[0, 1, 160, 120]]
