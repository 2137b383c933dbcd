"""The checkers of notebook 13b: plausible mistakes are named."""

import pytest
import torch
from notebook_answers import assert_wrong
from torch import nn

from mrla_minimal.course.checks.detecting import check_last_two, check_patch, check_points


def answering(length=max, measure=lambda apart: apart.amax(dim=1), limit=lambda stride: 1.5 * stride,
              levels=True, result=lambda hits: hits):
    def answer(points, box):
        x0, y0, x1, y1 = box.tolist()
        stride = 4 if length(x1 - x0, y1 - y0) < 24 else 8
        apart = (points[:, :2] - torch.tensor([(x0 + x1) / 2, (y0 + y1) / 2])).abs()
        hits = measure(apart) <= limit(points[:, 2])
        return result(hits & (points[:, 2] == stride) if levels else hits)

    return answer


def in_the_box(points, box):
    return ((points[:, :2] > box[:2]) & (points[:, :2] < box[2:])).all(dim=1)


def test_right_points_pass():
    assert check_points.judge(answering()) == ("passed", "passed")


@pytest.mark.parametrize(("answer", "words"), [
    (answering(length=min), "not the shorter one"),
    (answering(measure=lambda apart: apart.norm(dim=1)), "a square, not a circle"),
    (answering(limit=lambda stride: 1.5), "not 1.5 pixels"),
    (answering(limit=lambda stride: 6.0), "12 pixels on stride 8"),
    (answering(levels=False), "both levels answer"),
    (in_the_box, "near the box's centre"),
    (answering(limit=lambda stride: 2.0 * stride), "points answer; you give"),
    (answering(result=lambda hits: hits.float()), "return booleans"),
    (answering(result=lambda hits: hits.float() * float("nan")), "NaN"),
    (answering(result=lambda hits: hits.nonzero()), "shape"),
    (lambda points, box: points.zero_()[:, 0] > 0, "in place"),
])
def test_wrong_points_are_named(answer, words):
    assert_wrong(check_points, answer, words)


def patch(offset=-0.5, steps=lambda size: (torch.arange(size).double() + 0.5) / size, nearest=False,
          shares=lambda down, right: (down, right), plane=False, result=lambda patch: patch):
    """An answer by loops, with a mistake where one is given."""
    def answer(image, box, size):
        x0, y0, x1, y1 = box.tolist()
        read = torch.zeros(size, size, dtype=torch.float64)
        for i, part in enumerate(steps(size).tolist()):
            for j, other in enumerate(steps(size).tolist()):
                y, x = y0 + (y1 - y0) * part + offset, x0 + (x1 - x0) * other + offset
                if nearest:
                    read[i, j] = image[round(y), round(x)]
                    continue
                top, left = int(y), int(x)
                down, right = shares(y - top, x - left)
                if plane:       # through three of the four pixels
                    corner = image[top, left]
                    read[i, j] = corner + down * (image[top + 1, left] - corner) + right * (
                        image[top, left + 1] - corner)
                    continue
                upper = (1 - right) * image[top, left] + right * image[top, left + 1]
                lower = (1 - right) * image[top + 1, left] + right * image[top + 1, left + 1]
                read[i, j] = (1 - down) * upper + down * lower
        return result(read)

    return answer


@pytest.mark.parametrize("result", [lambda patch: patch, lambda patch: patch.float()])
def test_a_right_patch_passes(result):
    assert check_patch.judge(patch(result=result)) == ("passed", "passed")


@pytest.mark.parametrize(("answer", "words"), [
    (patch(offset=0.0), "half a pixel off: the centre"),
    (patch(offset=0.5), "to the wrong side"),
    (patch(steps=lambda size: torch.arange(size).double() / size), "at its middle"),
    (patch(steps=lambda size: torch.linspace(0, 1, size).double()), "from edge to edge"),
    (patch(nearest=True), "nearest pixel"),
    (patch(result=lambda patch: patch.T), "turned"),
    (patch(shares=lambda down, right: (right, down)), "on the ramp"),
    (patch(plane=True), "right on a ramp, and not on other images"),
    (patch(result=lambda patch: patch * float("nan")), "NaN"),
    (patch(result=lambda patch: patch[None]), "shape"),
])
def test_a_wrong_patch_is_named(answer, words):
    assert_wrong(check_patch, answer, words)


class LastTwo(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.value = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)

    def forward(self, x, memory=None):
        value = self.value(x)
        return (value if memory is None else (value + memory) / 2), value


class Alone(LastTwo):
    def forward(self, x, memory=None):
        return self.value(x), self.value(x)


class Fading(LastTwo):
    def forward(self, x, memory=None):
        output = super().forward(x, memory)[0]
        return output, output


class Sum(LastTwo):
    def forward(self, x, memory=None):
        value = self.value(x)
        return (value if memory is None else value + memory), value


class HalfAtFirst(LastTwo):
    def forward(self, x, memory=None):
        value = self.value(x)
        return (value + (0 if memory is None else memory)) / 2, value


class AllSoFar(LastTwo):
    def forward(self, x, memory=None):
        memory = [*(memory or []), self.value(x)]
        return sum(memory) / len(memory), memory


class Unnamed(LastTwo):
    def __init__(self, channels):
        super().__init__(channels)
        self.convolution = self.__dict__["_modules"].pop("value")

    def forward(self, x, memory=None):
        return self.convolution(x), None


class Explodes(LastTwo):
    """Right on small maps, and no number in a detector's."""

    def forward(self, x, memory=None):
        output, memory = super().forward(x, memory)
        return (output * float("nan") if x.shape[-1] > 5 else output), memory


class OneThing(LastTwo):
    def forward(self, x, memory=None):
        return self.value(x)


def test_the_mean_of_the_last_two_passes():
    assert check_last_two.judge(LastTwo) == ("passed", "passed")


@pytest.mark.parametrize(("answer", "words"), [
    (Alone, "v alone"), (Fading, "carry the last value"), (Sum, "not their sum"),
    (HalfAtFirst, "layer 1 has"), (AllSoFar, "the mean of all values so far"),
    (Unnamed, "as self.value"), (OneThing, "two things"),
    (Explodes, "not finite"), (lambda channels: 3, "should make a module"),
])
def test_wrong_means_are_named(answer, words):
    assert_wrong(check_last_two, answer, words)
