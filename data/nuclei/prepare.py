"""nuclei.zip from the published images: label maps from masks, 256 x 256 pixels, splits by field.

    python data/nuclei/prepare.py STAGE1_TRAIN_FOLDER nuclei.zip

README.md beside this file says where the folder comes from and what is done to it. The same input gives the
same bytes with the same Pillow (and the WebP library in it). Needs numpy and Pillow.
"""

import collections
import hashlib
import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

SIDE, SMALLEST, QUALITY = 256, 10, 90
LEFT_OUT = {(1024, 1024), (603, 1272)}      # nuclei would be 4 or 5 pixels wide
SHARES = {"train": 0.60, "val": 0.15, "test": 0.25}


def read(folder):
    """One image's folder -> (RGB image, label map); of two masks at a pixel the first by file name has it."""
    (path,) = (folder / "images").glob("*.png")
    image = Image.open(path).convert("RGB")
    labels = np.zeros(image.size[::-1], np.int32)
    for number, mask in enumerate(sorted((folder / "masks").glob("*.png")), start=1):
        labels[(np.asarray(Image.open(mask).convert("L")) > 0) & (labels == 0)] = number
    return image, labels


def shrink(image, labels):
    """The shorter side brought to 256, never enlarged, and the middle 256 x 256; labels numbered anew."""
    factor = min(1.0, SIDE / min(image.size))
    size = tuple(max(SIDE, round(length * factor)) for length in image.size)
    if factor < 1:
        image = image.resize(size, Image.Resampling.BOX)
        labels = np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))
    left, top = ((length - SIDE) // 2 for length in size)
    image = image.crop((left, top, left + SIDE, top + SIDE))
    labels = labels[top : top + SIDE, left : left + SIDE]
    numbers, pixels = np.unique(labels[labels > 0], return_counts=True)
    anew = np.zeros_like(labels)
    for new, old in enumerate(numbers[pixels >= SMALLEST], start=1):
        anew[labels == old] = new
    return image, anew, factor


def stretched(image):
    """Grey, its darkest to its 99.8th percentile spread over 0 to 255, before WebP loses what is faint."""
    grey = np.asarray(image.convert("L")).astype(np.float64)
    low, high = grey.min(), max(np.percentile(grey, 99.8), grey.min() + 10)
    return Image.fromarray((255 * (grey - low) / (high - low)).clip(0, 255).round().astype(np.uint8))


def give_splits(entries):
    """Add a split to every entry: whole fields, kind by kind, largest first, to the split most in want."""
    rng = np.random.default_rng(2018)
    for kind in sorted({entry["kind"] for entry in entries}):
        members = collections.defaultdict(list)
        for entry in entries:
            if entry["kind"] == kind:
                members[entry["group"]].append(entry)
        order = [sorted(members)[i] for i in rng.permutation(len(members))]
        order.sort(key=lambda field: -len(members[field]))
        total = sum(map(len, members.values()))
        wanted = {split: share * total for split, share in SHARES.items()}
        for field in order:
            split = max(wanted, key=lambda split: wanted[split] / SHARES[split])
            wanted[split] -= len(members[field])
            for entry in members[field]:
                entry["split"] = split


def encoded(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def prepare(folder, fields, out):
    """Write the zip file `out`; fields {image: field} as in fields.json. Returns its SHA-256."""
    entries, contents = [], {}
    for source in sorted(path for path in Path(folder).iterdir() if path.name[:10] in fields):
        image, labels = read(source)
        shape = labels.shape
        if shape in LEFT_OUT:
            continue
        colours = np.asarray(image).astype(int)
        stained = bool(np.abs(colours[..., 0] - colours[..., 1]).max() > 5)
        image, labels, factor = shrink(image, labels)
        image = image if stained else stretched(image)
        name, depth = source.name[:10], np.uint8 if labels.max() < 256 else np.uint16
        contents[f"images/{name}.webp"] = encoded(image, "WEBP", quality=QUALITY, method=6)
        contents[f"labels/{name}.png"] = encoded(Image.fromarray(labels.astype(depth)), "PNG", optimize=True)
        entries.append({"name": name, "source": source.name, "group": fields[name],
                        "kind": "stained" if stained else f"dark{shape[0]}", "factor": round(factor, 4),
                        "instances": int(labels.max())})
    give_splits(entries)
    contents = {"index.json": json.dumps({"side": SIDE, "images": entries}, indent=0).encode(),
                **dict(sorted(contents.items()))}
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, content in contents.items():
            archive.writestr(zipfile.ZipInfo(name, (2018, 1, 1, 0, 0, 0)), content)
    return hashlib.sha256(Path(out).read_bytes()).hexdigest()


if __name__ == "__main__":
    known = json.loads(Path(__file__).with_name("fields.json").read_text(encoding="utf-8"))
    print(prepare(sys.argv[1], known, sys.argv[2]))
