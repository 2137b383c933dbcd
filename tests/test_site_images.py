"""The explorable "Which layers does this image ask?": its numbers are the library's, its images CIFAR's."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from mrla_minimal.lab.data import load_cifar
from mrla_minimal.looking import _hook_weights, record_attention

ROOT = Path(__file__).parents[1]
STATIC = ROOT / "site/static"
sys.path.append(str(ROOT / "site"))

import export_images  # noqa: E402

PAGE = (ROOT / "site/pages/which_layers.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def shown():
    """What the page knows."""
    text = (STATIC / "images_nets.js").read_text(encoding="utf-8")
    return json.loads(text.partition("const IMAGES_NETS = ")[2].partition(";\n")[0])


@pytest.fixture(scope="module")
def images():
    """The images of the page's picture, uint8 (n, 3, 32, 32)."""
    picture = torch.from_numpy(numpy.array(Image.open(STATIC / "images.png")))
    rows = picture.unflatten(0, (-1, 32)).unflatten(2, (-1, 32))       # (rows, 32, columns, 32, 3)
    return rows.permute(0, 2, 4, 1, 3).flatten(0, 1).contiguous()


@pytest.fixture(scope="module", params=range(len(export_images.NETS)),
                ids=["-".join(net[:2]) for net in export_images.NETS])
def net(request, shown):
    """(what the page knows of a net, the net, its resolution)."""
    suite, variant, title = export_images.NETS[request.param]
    known = shown["nets"][request.param]
    assert (known["title"], known["checkpoint"]) == (title, f"{suite}-{variant}.pt")
    model, config = export_images.load_net(suite, variant)
    return known, model, config.resolution


def largest_gap(one, other):
    """The largest difference between two nested lists of the same form."""
    if isinstance(one, list):
        assert len(one) == len(other)
        return max(map(largest_gap, one, other))
    return abs(one - other)


SOME = slice(3, 40, 7)      # six of the forty images, of six classes: the others in the slow test


def test_the_weights_and_answers_as_learned_and_made_uniform_are_the_librarys(net, images):
    known, model, resolution = net
    x = export_images.prepare(images[SOME], resolution)
    weights, chances = export_images.look(model, x, "learned")
    found = [export_images.by_image(weights, image) for image in range(len(x))]
    assert largest_gap(found, known["weights"][SOME]) < 1e-6
    assert largest_gap(chances.tolist(), known["chances"]["learned"][SOME]) < 1e-6
    if not known["gates"]:          # a uniform gate needs a mean over training images
        weights, chances = export_images.look(model, x, "uniform")
        assert largest_gap(export_images.by_image(weights, 0), known["frozen"]["uniform"]) < 1e-6
        assert largest_gap(chances.tolist(), known["chances"]["uniform"][SOME]) < 1e-6


def test_the_frozen_weights_give_the_frozen_answers(net, images):
    """Without the training images the mean itself cannot be made anew; what it does to an answer can."""
    known, model, resolution = net

    def put_in(stage, layer, weights):
        table = torch.tensor(known["frozen"]["mean"][stage][layer], dtype=weights.dtype)
        return table.expand_as(weights)

    hooks = _hook_weights(model, put_in)
    try:
        with torch.no_grad():
            chances = model(export_images.prepare(images[SOME], resolution)).softmax(dim=1)
    finally:
        for hook in hooks:
            hook.remove()
    # the table is rounded to six decimals, and a sharp net magnifies that
    assert largest_gap(chances.tolist(), known["chances"]["mean"][SOME]) < 1e-4
    gap = largest_gap(known["chances"]["mean"][SOME], known["chances"]["learned"][SOME])
    assert gap > 1e-2, "frozen or not would be the same"


@pytest.mark.slow
def test_all_of_it_is_made_again_from_cifar(shown, images):
    try:
        cifar = load_cifar("cifar10", source="real")
    except (ValueError, OSError) as error:
        pytest.skip(f"needs the real CIFAR-10: {error}")
    chosen, labels = export_images.chosen_images(cifar.test)
    assert torch.equal(chosen, images) and labels.tolist() == shown["labels"]
    for place, net in enumerate(export_images.NETS):
        others = cifar.train.images[: export_images.MEAN_OVER]
        made = json.loads(json.dumps(export_images.describe(*net, chosen, others)))
        known = shown["nets"][place]
        assert {name: made[name] for name in ("title", "checkpoint", "gates", "tested")} == {
            name: known[name] for name in ("title", "checkpoint", "gates", "tested")}
        for part in ("weights", "frozen", "chances"):
            pairs = [(made[part], known[part])] if part == "weights" else [
                (made[part][how], known[part][how]) for how in known[part]]
            assert max(largest_gap(*pair) for pair in pairs) < 1.5e-6, (net, part)   # both are rounded


def test_it_is_small_and_every_image_has_numbers(shown, images):
    names = ("images.js", "images_nets.js", "images.png")
    assert sum((STATIC / name).stat().st_size for name in names) < 600_000
    assert len(images) == len(shown["labels"]) == 40 and len(set(shown["labels"])) == 10
    for net in shown["nets"]:
        assert len(net["weights"]) == 40 and {len(row) for row in net["chances"].values()} == {40}
        for row in (row for rows in net["chances"].values() for row in rows):
            assert sum(row) == pytest.approx(1, abs=1e-5)
        heads = [head for image in net["weights"] for stage in image for layer in stage for head in layer]
        assert net["gates"] or all(sum(head) == pytest.approx(1, abs=1e-5) for head in heads)


def run_script(shown):
    """What the page's script makes of the numbers, for each net and image."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node, which runs the page's script outside a browser")
    code = (f"const {{ answersOf, furthest, weightsOf }} = require({json.dumps(str(STATIC / 'images.js'))});"
            f"const {{ nets, labels }} = require({json.dumps(str(STATIC / 'images_nets.js'))});"
            "const views = ['learned', 'mean', 'uniform', 'difference'];"
            "console.log(JSON.stringify(nets.map(net => labels.map((_, image) => ({"
            "answers: answersOf(net, image), far: furthest(net, image),"
            "views: views.map(view => weightsOf(net, image, view)) })))))")
    run = subprocess.run([node, "-e", code], capture_output=True, text=True, timeout=60, check=True)
    return json.loads(run.stdout)


def test_the_script_shows_these_numbers_and_no_others(shown):
    for net, of_net in zip(shown["nets"], run_script(shown), strict=True):
        for image, found in enumerate(of_net):
            learned, mean, uniform, difference = found["views"]
            assert learned == net["weights"][image]
            assert (mean, uniform) == (net["frozen"]["mean"], net["frozen"]["uniform"])
            triples = [(a, b, c) for parts in zip(learned, mean, difference, strict=True)
                       for layers in zip(*parts, strict=True) for heads in zip(*layers, strict=True)
                       for a, b, c in zip(*heads, strict=True)]
            assert all(a - b == pytest.approx(c, abs=1e-12) for a, b, c in triples)
            far = found["far"]
            assert far["gap"] == max(abs(c) for _, _, c in triples)
            place = far["stage"], far["layer"], far["head"], far["read"]
            assert difference[place[0]][place[1]][place[2]][place[3]] == far["weight"] - far["mean"]
            for how, answer in found["answers"].items():
                chances = net["chances"][how][image]
                assert answer == {"best": chances.index(max(chances)), "chance": max(chances)}


def test_the_page_says_what_its_numbers_say(shown):
    base, light, vit = shown["nets"]

    def said(net, how):
        return [chances.index(max(chances)) for chances in net["chances"][how]]

    def changed(net, how):
        return sum(one != other for one, other in zip(said(net, "learned"), said(net, how), strict=True))

    assert f"changes the answer to {changed(base, 'mean')} of the forty images" in PAGE
    assert f"making them uniform changes {changed(base, 'uniform')}." in PAGE
    assert f"uniform weights change {changed(vit, 'uniform')} answers" in PAGE
    assert light["frozen"]["mean"] == light["frozen"]["uniform"]        # "there both are the same"

    def decided(net, stage):        # the share of softmaxes with a weight above 0.99, after the first layer
        largest = [max(head) for image in net["weights"] for layer in image[stage][1:] for head in layer]
        return sum(one > 0.99 for one in largest) / len(largest)

    assert "In the first two stages of the ResNet with MRLA-base most layers put nearly all" in PAGE
    assert decided(base, 0) > 0.7 and decided(base, 1) > 0.7
    assert "In the transformer no layer puts nearly all weight on one" in PAGE and decided(vit, 0) == 0
    uniform = said(base, "uniform")
    surest = sum(max(chances) for chances in base["chances"]["uniform"]) / 40
    right = sum(one == label for one, label in zip(uniform, shown["labels"], strict=True))
    assert "Made uniform, that net is mostly wrong, and sure of it" in PAGE and right < 10 and surest > 0.8
    assert "right on about half of the test images" in PAGE and 0.44 < vit["tested"]["learned"] < 0.56


def test_recording_leaves_nothing_behind(net, images):
    """`look` frozen and then learned: the second is not still frozen."""
    _, model, resolution = net
    x = export_images.prepare(images[:2], resolution)
    before = export_images.look(model, x, "learned")[1]
    export_images.look(model, x, "mean", x)
    with torch.no_grad(), record_attention(model) as weights:
        assert torch.equal(model(x).softmax(dim=1), before) and weights[0][0] is not None
