"""A one-stage detector with a mask branch, on the stages of a ResNet with any layer attention.

    detector = Detector(20, layer_attention="mrla-light")
    losses = detector.losses(images, targets)           # training
    found = detector.detect(images)                     # evaluation: boxes, scores, classes, masks

The ResNet's three maps, of strides 2, 4 and 8, meet in a pyramid. On its strides 4 and 8 every point says
whether an object's centre is near, and where its box lies; masks are read from stride 2. The memory of the
attention goes through the stages as in classification.

Sources: T.-Y. Lin et al., Feature Pyramid Networks, CVPR 2017; Z. Tian et al., FCOS, ICCV 2019 (points);
X. Li et al., Generalized Focal Loss, NeurIPS 2020 (a class score that is the box's IoU); K. He et al.,
Mask R-CNN, ICCV 2017 (masks). What differs: objects go to a level by their longer side; a box is said as its
centre and its size, so that a point may lie outside it; masks are learnt in shaken true boxes.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrla_minimal.boxes import box_iou, generalised_iou, paste_masks, roi_align, suppress_in_classes
from mrla_minimal.hosting import AttentionFactory
from mrla_minimal.resnet import BLOCKS, cifar_resnet
from mrla_minimal.shapes import check_choice, check_images, check_positive, check_range, is_positive
from mrla_minimal.targets import STRIDES, Targets, assign, points_of

TYPICAL = 3.0           # strides: the size of box that a head starts from
PRIOR = 0.02            # the class score that a head starts from: nearly all points see no object
MASK = 14               # parts of a box, each way, that its mask is predicted in


@dataclass(frozen=True, eq=False)
class Detections:
    """What was found in one image, best score first, on the CPU.

    boxes (n, 4) in pixels, scores (n,), classes (n,), masks (n, height, width) boolean, or None.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    masks: Tensor | None


class NotFinite(ValueError):
    """A score or a box of a detector is no finite number."""


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def _tower(channels: int, length: int = 2) -> nn.Sequential:
    layers = [(_convolution(channels, channels), nn.GroupNorm(8, channels), nn.ReLU()) for _ in range(length)]
    return nn.Sequential(*(layer for group in layers for layer in group))


class Pyramid(nn.Module):
    """Maps of strides 2, 4, 8 -> the same with `channels` each, the coarser flowing into the finer."""

    def __init__(self, inputs: list[int], channels: int):
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(number, channels, 1) for number in inputs)
        self.smooth = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in inputs)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        maps = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]
        for fine in reversed(range(len(maps) - 1)):
            maps[fine] = maps[fine] + F.interpolate(maps[fine + 1], size=maps[fine].shape[2:])
        return [smooth(x) for smooth, x in zip(self.smooth, maps, strict=True)]


class Head(nn.Module):
    """What every point of a level says: class logits (batch, points, classes), boxes (batch, points, 4)."""

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.class_tower, self.box_tower = _tower(channels), _tower(channels)
        self.classes, self.boxes = _convolution(channels, num_classes), _convolution(channels, 4)
        for layer in (self.classes, self.boxes):
            nn.init.normal_(layer.weight, std=0.01)
        nn.init.constant_(self.classes.bias, -math.log(1 / PRIOR - 1))
        nn.init.zeros_(self.boxes.bias)

    def forward(self, x: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.classes(self.class_tower(x)).flatten(2).mT                    # (batch, points, classes)
        shift, size = self.boxes(self.box_tower(x)).flatten(2).mT.float().split(2, dim=-1)
        centre = points[:, :2] + points[:, 2:] * shift
        half = TYPICAL / 2 * points[:, 2:] * size.clamp(max=4).exp()                # at most 164 strides
        return logits.float(), torch.cat([centre - half, centre + half], dim=-1)


class Detector(nn.Module):
    """Boxes, classes and masks of the objects in images (batch, 3, height, width).

    depth, width, block and all further arguments are `cifar_resnet`'s, whose stem has stride 2 here.
    num_classes   classes of objects;  masks  whether there is a mask branch;  channels  of the pyramid

    The heads are drawn before the backbone, and a ResNet draws its attentions last: so from one seed all
    variants start with the same heads and the same host.
    Raises ValueError naming the argument, what was given and what is allowed.
    """

    def __init__(self, depth: int = 20, *, num_classes: int = 1, masks: bool = True, channels: int = 32,
                 width: int = 16, block: str = "basic",
                 layer_attention: str | AttentionFactory | None = None, **host: object):
        super().__init__()
        check_choice("block", block, BLOCKS)
        check_positive("num_classes", num_classes)
        check_positive("width", width)
        if not is_positive(channels) or channels % 8:
            raise ValueError(f"channels must be a positive multiple of 8, not {channels!r}")
        expansion = 4 if block == "bottleneck" else 1
        self.finest = 0 if masks else 1         # without masks nothing is read from stride 2
        self.pyramid = Pyramid([expansion * width * 2**stage for stage in range(self.finest, 3)], channels)
        self.head = Head(channels, num_classes)
        self.mask_head = nn.Sequential(_tower(channels), nn.Conv2d(channels, 1, 1)) if masks else None
        self.backbone = cifar_resnet(depth, width=width, block=block, layer_attention=layer_attention,
                                     stem_stride=2, **host)
        self.backbone.classifier = nn.Identity()        # it classifies nothing, and would get no gradient

    @property
    def stages(self) -> nn.ModuleList:
        """The backbone's, for `record_attention` and `freeze_attention`."""
        return self.backbone.stages

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The finest map, (batch, channels, height / 2, width / 2) if there are masks, and what points say:

        logits (batch, points, classes), boxes (batch, points, 4) and points (points, 3).
        """
        check_images(images, self.backbone.in_channels)
        if min(images.shape[2:]) < STRIDES[-1]:
            raise ValueError(f"images must be at least {STRIDES[-1]} pixels high and wide, not "
                             f"{tuple(images.shape[2:])}")
        maps = self.pyramid(self.backbone.features(images)[self.finest :])
        fine, levels = maps[0], maps[-2:]
        points = [points_of(*x.shape[2:], stride, x.device)
                  for x, stride in zip(levels, STRIDES, strict=True)]
        said = [self.head(x, some) for x, some in zip(levels, points, strict=True)]
        logits, boxes = (torch.cat(parts, dim=1) for parts in zip(*said, strict=True))
        return fine, logits, boxes, torch.cat(points)

    def _mask_logits(self, fine: Tensor, boxes: Tensor, image: Tensor, slot: Tensor) -> Tensor:
        """(objects, 14, 14): of the boxes (batch, most, 4) those at the places (image, slot)."""
        return self.mask_head(roi_align(fine, boxes, MASK, stride=2)[image, slot])[:, 0]

    def losses(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """{"class", "box", "mask"}, to be added up. Nothing in it waits for the device.

        class: cross-entropy towards the IoU of the point's box (0 where it answers for none), times the
        squared distance to it (the quality focal loss of Li et al.), summed over points, by positive point.
        box: 1 - generalised IoU, over positive points. mask: binary cross-entropy in the shown regions.
        Raises ValueError for targets of another number of images, and for a mask branch and targets without
        masks. `box_targets` checks classes, if it is told how many there are.
        """
        if self.mask_head is not None and targets.masks is None:
            raise ValueError("this detector has a mask branch, and the targets hold no masks: masks=False")
        fine, logits, boxes, points = self(images)
        if len(targets.boxes) != len(images):       # one image's would be broadcast to all
            raise ValueError(f"targets must be of as many images as are given, {len(images)}, "
                             f"not of {len(targets.boxes)}")
        if targets.boxes.shape[1] == 0:         # not one object in the batch: a slot that nothing stands in
            empty = targets.boxes.new_zeros(len(images), 1, 4)
            targets = Targets(empty, empty[..., 0].long(), empty[..., 0].bool())
        positive, chosen = assign(points, targets.boxes, targets.present)                   # (batch, points)
        wanted = targets.boxes.gather(1, chosen[..., None].expand(-1, -1, 4))
        kinds = targets.classes.gather(1, chosen)
        count = positive.sum().clamp(min=1)
        with torch.no_grad():
            quality = box_iou(boxes[:, :, None], wanted[:, :, None])[..., 0, 0] * positive
            quality = quality[..., None] * F.one_hot(kinds, logits.shape[-1])
        by_point = F.binary_cross_entropy_with_logits(logits, quality, reduction="none")
        by_point = by_point * (quality - logits.sigmoid()).square()
        losses = {"class": by_point.sum() / count,
                  "box": ((1 - generalised_iou(boxes, wanted)) * positive).sum() / count}
        if self.mask_head is not None:
            losses["mask"] = self._mask_loss(fine, targets)
        return losses

    def _mask_loss(self, fine: Tensor, targets: Targets) -> Tensor:
        if targets.masks is None or len(targets.image) == 0:
            return 0 * (fine.sum() + sum(parameter.sum() for parameter in self.mask_head.parameters()))
        image, slot = targets.image, targets.slot
        shown = self._mask_logits(fine, targets.regions, image, slot)               # (objects, 14, 14)
        # Each object's own mask, as a batch of one map and one box: (objects, 1, ...)
        masks, regions = targets.masks[image, slot][:, None], targets.regions[image, slot][:, None]
        truth = roi_align(masks.float(), regions, MASK)                             # (objects, 1, 1, 14, 14)
        return F.binary_cross_entropy_with_logits(shown.float(), (truth[:, 0, 0] > 0.5).float())

    @torch.no_grad()
    def detect(self, images: Tensor, least: float = 0.05, overlap: float = 0.5,
               most: int = 300) -> list[Detections]:
        """What is found in each image: boxes of the `most` points that score best, if at least `least`.

        Of two of them of one class whose IoU is above `overlap` the better stays. That comes last: some nine
        points see one object, so 300 points leave some 33 boxes in a crowded image. Boxes end at the image's
        border; a mask is where its probability is above a half. Call it in evaluation mode.
        Raises ValueError for a `least` or `overlap` that is no number of at least 0 and a `most` that is no
        positive integer, and NotFinite (a ValueError too) if what the points say is not finite.
        """
        check_range("least", least, 0, math.inf)
        check_range("overlap", overlap, 0, math.inf)
        check_positive("most", most)
        fine, logits, boxes, _ = self(images)
        if not (logits.isfinite().all() and boxes.isfinite().all()):
            raise NotFinite("not all scores and boxes of the detector are finite")
        height, width = images.shape[2:]
        border = boxes.new_tensor([width, height, width, height]).cpu()
        scores, places = logits.sigmoid().flatten(1).sort(dim=1, descending=True, stable=True)
        scores, places, boxes = scores[:, :most].cpu(), places[:, :most].cpu(), boxes.cpu()
        found = []
        for image in range(len(images)):
            good = scores[image] >= least
            point, kinds = places[image][good] // logits.shape[-1], places[image][good] % logits.shape[-1]
            some = torch.minimum(boxes[image, point].clamp(min=0), border)
            stay = suppress_in_classes(some, scores[image][good], kinds, overlap, max(height, width))
            some, masks = some[stay], None
            if self.mask_head is not None:
                shown = self._mask_logits(fine[image : image + 1], some[None].to(fine.device),
                                          torch.zeros_like(stay).to(fine.device),
                                          torch.arange(len(stay), device=fine.device))
                masks = paste_masks(shown.float().sigmoid().cpu(), some, height, width) > 0.5
            found.append(Detections(some, scores[image][good][stay], kinds[stay], masks))
        return found
