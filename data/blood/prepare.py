"""blood.zip from the published set: 640 x 480 brought to 160 x 120, boxes with it, its own three lists kept.

    python data/blood/prepare.py BCCD_FOLDER blood.zip

BCCD_FOLDER holds Annotations, ImageSets and JPEGImages. The same input gives the same bytes with the same
Pillow (and the WebP library in it). Needs Pillow.
"""

import hashlib
import io
import json
import sys
import xml.etree.ElementTree as ET
import zipfile
from pathlib import Path

from PIL import Image

CLASSES, FACTOR, SHORTEST = ["RBC", "WBC", "Platelets"], 4, 2


def boxes_of(annotation):
    """[[class, x0, y0, x1, y1], ...] of an XML file; a box without width or height is left out."""
    boxes = []
    for thing in ET.parse(annotation).getroot().findall("object"):
        bounds = thing.find("bndbox")
        x0, y0, x1, y1 = (int(bounds.find(side).text) / FACTOR for side in ("xmin", "ymin", "xmax", "ymax"))
        if x1 - x0 >= SHORTEST and y1 - y0 >= SHORTEST:
            boxes.append([CLASSES.index(thing.find("name").text), x0, y0, x1, y1])
    return boxes


def prepare(folder, out):
    """Write the zip file `out`. Returns its SHA-256."""
    folder, entries, contents = Path(folder), [], {}
    splits = {name: split for split in ("train", "val", "test")
              for name in (folder / "ImageSets" / "Main" / f"{split}.txt").read_text().split()}
    for path in sorted((folder / "Annotations").glob("*.xml")):
        image = Image.open(folder / "JPEGImages" / f"{path.stem}.jpg").convert("RGB")
        buffer = io.BytesIO()
        image.resize((160, 120), Image.Resampling.BOX).save(buffer, "WEBP", quality=90, method=6)
        contents[f"images/{path.stem}.webp"] = buffer.getvalue()
        entries.append({"name": path.stem, "split": splits[path.stem], "boxes": boxes_of(path)})
    index = {"width": 160, "height": 120, "classes": CLASSES, "images": entries}
    contents = {"index.json": json.dumps(index).encode(), **dict(sorted(contents.items()))}
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, content in contents.items():
            archive.writestr(zipfile.ZipInfo(name, (2018, 1, 1, 0, 0, 0)), content)
    return hashlib.sha256(Path(out).read_bytes()).hexdigest()


if __name__ == "__main__":
    print(prepare(*sys.argv[1:]))
