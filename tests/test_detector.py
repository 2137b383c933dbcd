"""The detector: any layer attention in it, alike at the start, losses by hand, four crops learnt by heart."""

import math

import pytest
import torch
import torch.nn.functional as F
from net_tools import ThirdOfTheInput
from torch import nn

from mrla_minimal import Detector, cifar_resnet, freeze_attention, record_attention
from mrla_minimal.boxes import box_iou, generalised_iou, label_boxes, mask_iou
from mrla_minimal.hosting import LAYER_ATTENTIONS
from mrla_minimal.lab.precision import Found, average_precision
from mrla_minimal.targets import Targets, assign, box_targets, mask_targets, points_of

every_variant = pytest.mark.parametrize("name", [None, *LAYER_ATTENTIONS])


def scene(count=4, size=64, seed=0):
    """Bright discs on a dark ground, none on another: images, labels, boxes, counts."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.arange(size)[:, None] + 0.5, torch.arange(size) + 0.5
    images = 0.2 * torch.randn(count, 3, size, size, generator=generator)
    labels, counts = torch.zeros(count, size, size, dtype=torch.int64), []
    for image in range(count):
        number = 0
        for _ in range(9):
            radius, x, y = (torch.rand(3, generator=generator) * torch.tensor([12.0, size, size])).tolist()
            disc = (columns - x) ** 2 + (rows - y) ** 2 < (radius + 3) ** 2
            if not labels[image][disc].any():
                number += 1
                labels[image][disc] = number
                images[image] += disc * (1 + torch.rand(3, 1, 1, generator=generator))
        counts.append(number)
    return images, labels, label_boxes(labels, max(counts)), torch.tensor(counts)


def targets_of(labels, boxes, counts, seed=0):
    return mask_targets(labels, boxes, counts, torch.Generator().manual_seed(seed))


def seeded(name=None, **arguments):
    torch.manual_seed(0)
    return Detector(8, width=8, layer_attention=name, **arguments)


# The backbone


def test_features_are_what_each_stage_ends_in():
    torch.manual_seed(0)
    net = cifar_resnet(20, width=8, stem_stride=2, layer_attention="mrla-base").eval()
    images = torch.randn(2, 3, 64, 48)
    maps = net.features(images)
    assert [tuple(x.shape[1:]) for x in maps] == [(8, 32, 24), (16, 16, 12), (32, 8, 6)]
    assert torch.equal(net(images), net.classifier(maps[-1].mean((2, 3))))
    x = net.stem(images)
    for stage, expected in zip(net.stages, maps, strict=True):
        memory = None
        for block in stage:
            x, memory = block(x, memory)
        assert torch.equal(x, expected)


def test_the_stem_changes_no_parameter():
    states = []
    for stride in (1, 2):
        torch.manual_seed(0)
        states.append(cifar_resnet(8, stem_stride=stride).state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    with pytest.raises(ValueError, match="stem_stride must be a positive integer, not 0"):
        cifar_resnet(8, stem_stride=0)


@every_variant
def test_all_variants_of_a_seed_start_with_the_same_heads_and_host(name):
    plain, other = seeded().state_dict(), seeded(name).state_dict()
    assert set(plain) <= set(other)
    assert all(torch.equal(value, other[key]) for key, value in plain.items())


@pytest.mark.parametrize("masks", [True, False])
@every_variant
def test_every_parameter_of_every_variant_learns(name, masks):
    detector = seeded(name, masks=masks)
    images, *truth = scene(2)
    losses = detector.losses(images, targets_of(*truth))
    assert set(losses) == {"class", "box", "mask"} - (set() if masks else {"mask"})
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    without = [key for key, parameter in detector.named_parameters() if parameter.grad is None]
    assert without == []
    assert all(parameter.grad.isfinite().all() for parameter in detector.parameters())


def test_an_attention_of_ones_own_and_what_it_chooses():
    assert seeded(ThirdOfTheInput).backbone.stages[0][0].layer_attention is not None
    detector = seeded("mrla-base", masks=False).eval()
    images = torch.randn(2, 3, 32, 32)
    with record_attention(detector) as weights:
        learned = detector(images)[1]
    assert weights[2][0].shape == (2, 2, 1)         # batch, heads of 16 channels, layers read
    with freeze_attention(detector, "uniform"):
        assert detector(images)[1].shape == learned.shape


@pytest.mark.parametrize("size", [(32, 32), (40, 64), (33, 47), (8, 8)])
def test_any_size_of_image(size):
    fine, logits, boxes, points = seeded(num_classes=3).eval()(torch.randn(1, 3, *size))
    assert fine.shape[2:] == tuple(math.ceil(length / 2) for length in size)
    assert logits.shape == (1, len(points), 3) and boxes.shape == (1, len(points), 4)


def test_a_head_starts_with_few_objects_of_three_strides():
    _, logits, boxes, points = seeded()(torch.randn(2, 3, 64, 64))
    assert logits.sigmoid().mean().item() == pytest.approx(0.02, abs=0.005)
    assert ((boxes[..., 2:] - boxes[..., :2]) / points[:, 2:]).mean().item() == pytest.approx(3.0, abs=0.3)
    assert ((boxes[..., 2:] + boxes[..., :2]) / 2 - points[:, :2]).abs().mean() < 1


# Losses


def test_losses_are_their_formulas_point_by_point():
    detector = seeded(num_classes=3, masks=False).eval()
    images = torch.randn(2, 3, 32, 32)
    boxes = [torch.tensor([[3.0, 4, 14, 12], [2, 2, 30, 31]]), torch.tensor([[16.0, 10, 21, 27]])]
    kinds = [torch.tensor([2, 0]), torch.tensor([1])]
    targets = box_targets(boxes, kinds)
    _, logits, found, points = detector(images)
    positive, chosen = assign(points, targets.boxes, targets.present)
    assert positive.sum() > 5
    by_class, by_box = 0.0, 0.0
    for image in range(2):
        for point in range(len(points)):
            wanted = torch.zeros(3)
            if positive[image, point]:
                box = boxes[image][chosen[image, point]][None]
                wanted[kinds[image][chosen[image, point]]] = box_iou(found[image, point][None], box).item()
                by_box += 1 - generalised_iou(found[image, point][None], box).item()
            score = logits[image, point].sigmoid()
            entropy = -(wanted * score.log() + (1 - wanted) * (1 - score).log())
            by_class += ((wanted - score) ** 2 * entropy).sum().item()
    losses = detector.losses(images, targets)
    assert set(losses) == {"class", "box"}
    assert losses["class"].item() == pytest.approx(by_class / positive.sum().item(), rel=1e-4)
    assert losses["box"].item() == pytest.approx(by_box / positive.sum().item(), rel=1e-4)


def test_the_mask_loss_of_a_right_mask_is_smaller():
    images, labels, boxes, counts = scene(2)
    targets, detector = targets_of(labels, boxes, counts), seeded().eval()

    class Told(nn.Module):
        """In place of the mask branch: the logits of these masks, or of their contrary."""
        def __init__(self, sign):
            super().__init__()
            self.sign = sign

        def forward(self, patches):
            truth = [F.adaptive_avg_pool2d(_cut(labels[i] == k + 1, targets.regions[i, k]), 14)
                     for i, k in zip(targets.image, targets.slot, strict=True)]
            return self.sign * 20 * (torch.stack(truth) - 0.5)

    def _cut(mask, region):
        x0, y0, x1, y1 = region.tolist()
        steps = (torch.arange(56) + 0.5) / 56
        x, y = (x0 + steps * (x1 - x0)).long(), (y0 + steps * (y1 - y0)).long()
        return mask[y.clamp(0, 63)][:, x.clamp(0, 63)].float()[None]

    detector.mask_head = Told(1.0)
    right = detector.losses(images, targets)["mask"]
    detector.mask_head = Told(-1.0)
    assert right < 0.3 and detector.losses(images, targets)["mask"] > 5


def test_a_detector_in_bfloat16_is_near_that_in_float32():
    images, *truth = scene(2)
    detector, targets = seeded().eval(), targets_of(*truth)
    exact = detector.losses(images, targets)
    for name, loss in detector.bfloat16().losses(images.bfloat16(), targets).items():
        assert loss.item() == pytest.approx(exact[name].item(), rel=0.05)


def test_a_batch_without_any_object_only_says_no():
    detector = seeded()
    labels = torch.zeros(2, 32, 32, dtype=torch.int64)
    targets = targets_of(labels, torch.zeros(2, 0, 4), torch.zeros(2))
    losses = detector.losses(torch.randn(2, 3, 32, 32), targets)
    assert losses["box"] == 0 and losses["mask"] == 0 and losses["class"] > 0
    sum(losses.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in detector.parameters())


class Waiting(torch.overrides.TorchFunctionMode):
    """Raises where a value of a tensor would be asked for: on a GPU, the step would wait for it."""

    ASKING = {"item", "tolist", "nonzero", "__bool__", "__int__", "__float__", "__index__", "cpu", "numpy",
              "unique", "masked_select", "argwhere"}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        by_mask = name == "__getitem__" and any(
            isinstance(part, torch.Tensor) and part.dtype == torch.bool
            for part in (args[1] if isinstance(args[1], tuple) else (args[1],)))
        assert name not in self.ASKING and not by_mask, f"{name} waits for the device"
        return function(*args, **(kwargs or {}))


def test_a_step_asks_for_no_value():
    images, *truth = scene(2)
    detector, targets = seeded("mrla-light"), targets_of(*truth)
    with Waiting():
        sum(detector.losses(images, targets).values()).backward()
    with pytest.raises(AssertionError, match="waits for the device"), Waiting():
        images[images > 0].sum().item()


# Detection


def scored(detector, images, labels, boxes, counts):
    """Average precision of boxes and of masks, as a percentage."""
    by_box, by_mask = [], []
    for found, label, box, count in zip(detector.detect(images), labels, boxes, counts.tolist(), strict=True):
        truth = torch.zeros(count, dtype=torch.int64)
        masks = label == torch.arange(1, count + 1)[:, None, None]
        overlaps = box_iou(found.boxes.double(), box[:count].double())
        by_box.append(Found(overlaps, found.scores, found.classes, truth))
        by_mask.append(Found(mask_iou(found.masks, masks), found.scores, found.classes, truth))
    return [100 * average_precision(found)["AP50"] for found in (by_box, by_mask)]


def test_four_crops_are_learnt_by_heart_in_60_steps():
    images, labels, boxes, counts = scene()
    torch.manual_seed(0)
    detector = Detector(20, layer_attention="mrla-light")
    optimiser = torch.optim.AdamW(detector.parameters(), lr=6e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 6e-3, total_steps=60, pct_start=0.1)
    assert max(scored(detector.eval(), images, labels, boxes, counts)) < 20
    detector.train()
    for step in range(60):
        optimiser.zero_grad()
        sum(detector.losses(images, targets_of(labels, boxes, counts, step)).values()).backward()
        optimiser.step()
        schedule.step()
    by_box, by_mask = scored(detector.eval(), images, labels, boxes, counts)
    assert by_box > 90 and by_mask > 90


def test_detections_are_sorted_cut_at_the_border_and_apart_within_a_class():
    torch.manual_seed(0)
    detector = Detector(8, width=8, num_classes=3).eval()
    nn.init.normal_(detector.head.classes.weight, std=0.5)
    nn.init.normal_(detector.head.boxes.weight, std=0.1)
    some = detector.detect(torch.randn(2, 3, 32, 40), least=0.1, most=50)
    assert len(some) == 2
    for found in some:
        assert 3 < len(found.boxes) <= 50 and len(found.classes.unique()) > 1
        assert (found.scores.diff() <= 0).all() and found.scores.min() >= 0.1
        assert (found.boxes >= 0).all() and (found.boxes <= torch.tensor([40.0, 32, 40, 32])).all()
        assert found.masks.shape == (len(found.boxes), 32, 40) and found.masks.dtype == torch.bool
        same = found.classes[:, None] == found.classes
        overlap = box_iou(found.boxes, found.boxes).fill_diagonal_(0)
        assert overlap[same].max() <= 0.5 < overlap[~same].max()


def test_most_counts_points_before_suppression_and_nine_see_one_object(monkeypatch):
    detector = seeded(masks=False).eval()
    points = torch.cat([points_of(16, 16, 4, "cpu"), points_of(8, 8, 8, "cpu")])
    centres = torch.tensor([[10.0, 10], [34, 10], [54, 10], [10, 50], [34, 50], [54, 50]])
    boxes = torch.cat([centres - 5, centres + 5], dim=1)
    sees, which = assign(points, boxes[None], torch.ones(1, 6, dtype=torch.bool))
    assert which[sees].bincount().tolist() == 6 * [9]
    logits = torch.where(sees, 3 - 0.1 * which, -9.0)[..., None]        # the first object's are best
    monkeypatch.setattr(detector, "forward", lambda images: (None, logits, boxes[which], points))
    for most, objects in ((9, 1), (18, 2), (53, 6), (320, 6)):
        found, = detector.detect(torch.zeros(1, 3, 64, 64), most=most)
        assert torch.equal(found.boxes, boxes[:objects])


def test_nothing_found_is_an_empty_list_of_boxes():
    found, = seeded().eval().detect(torch.zeros(1, 3, 32, 32), least=0.9)
    assert found.boxes.shape == (0, 4) and found.masks.shape == (0, 32, 32) and len(found.scores) == 0


@pytest.mark.parametrize("call, message", [
    (lambda: Detector(8, num_classes=0), "num_classes must be a positive integer, not 0"),
    (lambda: Detector(8, channels=20), "channels must be a positive multiple of 8, not 20"),
    (lambda: Detector(8, channels="a"), "channels must be a positive multiple of 8, not 'a'"),
    (lambda: Detector(8, channels=None), "channels must be a positive multiple of 8, not None"),
    (lambda: Detector(8, channels=8.0), "channels must be a positive multiple of 8, not 8.0"),
    (lambda: seeded().detect(torch.randn(1, 3, 32, 32), most=-1), "most must be a positive integer, not -1"),
    (lambda: seeded().detect(torch.randn(1, 3, 32, 32), least=math.nan), "least must be .*not nan"),
    (lambda: seeded().detect(torch.randn(1, 3, 32, 32), least="a"), "least must be .*not 'a'"),
    (lambda: seeded().detect(torch.randn(1, 3, 32, 32), overlap=math.nan), "overlap must be .*not nan"),
    (lambda: seeded(masks=False).losses(torch.randn(2, 3, 32, 32),
                                        box_targets([torch.ones(1, 4)], [torch.tensor([0])])),
     "targets must be of as many images as are given, 2, not of 1"),
    (lambda: Detector(8, block="wide"), "block must be one of"),
    (lambda: Detector(8, layer_attention="mrla"), "layer_attention must be None, one of"),
    (lambda: seeded()(torch.randn(1, 3, 7, 32)), "images must be at least 8 pixels high and wide"),
    (lambda: seeded()(torch.randn(1, 1, 32, 32)), "images"),
    (lambda: seeded().losses(torch.randn(1, 3, 32, 32), Targets(*[torch.zeros(1, 1, 4)] * 3)), "masks=False"),
])
def test_wrong_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
