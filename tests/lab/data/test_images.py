import pytest
import torch

from mrla_minimal.lab.data import Split, hold_out, normalise, plan_epoch, take_batch
from mrla_minimal.lab.data.images import MEAN, STD
from mrla_minimal.lab.data.synthetic import synthetic_images


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
        assert places(part) == sorted(places(part))
        assert part.labels.tolist() == [labels[place] for place in places(part)]


def test_a_tenth_of_nine_images_is_told():
    with pytest.raises(ValueError, match="to hold out a tenth takes at least 10 images, not 9"):
        hold_out(numbered([0] * 9))


def test_hold_out_is_a_draw_from_the_seed():
    split = numbered([i % 10 for i in range(500)])
    taken = [places(hold_out(split, 53, seed)[1]) for seed in (0, 0, 1, 2, 3, 4, 5, 6)]
    assert taken[0] == taken[1] and len({tuple(t) for t in taken}) == 7
    assert all(set(hold_out(split, 53, seed)[1].labels.bincount().tolist()) == {5, 6} for seed in range(3))
    # What does not divide evenly goes to drawn classes, not always to the first ones. No place is favoured.
    extra = {hold_out(split, 51, seed)[1].labels.bincount().argmax().item() for seed in range(20)}
    assert len(extra) > 4
    assert len({place for seed in range(60) for place in places(hold_out(split, 50, seed)[1])}) > 480


@pytest.mark.parametrize("size", [0, -1, 30, 31])
def test_hold_out_refuses_impossible_sizes(size):
    with pytest.raises(ValueError, match=f"between 1 and 29 for a split of 30 images, got {size}"):
        hold_out(numbered([0, 1, 2] * 10), size)


def test_hold_out_of_a_tiny_split_says_so():
    with pytest.raises(ValueError, match="to hold out a tenth takes at least 10 images, not 3"):
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
    tensors = (split.images, split.labels, plan.order, plan.shift, plan.flip)
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    # It looks at no values: on a GPU that would make the host wait.
    images, labels = take_batch(split, plan, 0, 2)
    assert images.shape == (2, 3, 32, 32) and labels.shape == (2,) and images.device.type == "meta"


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 64, 48), (4, 9, 11)])
def test_images_of_another_size_or_number_of_channels_are_cropped_and_normalised_alike(shape):
    split = Split(torch.randint(0, 256, (20, *shape), dtype=torch.uint8), torch.arange(20))
    plan = plan_epoch(20, 1, 2)
    images, _ = take_batch(split, plan, 3, 17)
    assert images.shape == (14, *shape) and images.dtype == torch.float32
    height, width = shape[1:]
    for place in range(3, 17):
        padded = torch.nn.functional.pad(split.images[plan.order[place]], (4,) * 4)
        down, right = plan.shift[place]
        crop = padded[:, down:down + height, right:right + width]
        crop = crop.flip(2) if plan.flip[place] else crop
        assert torch.equal(images[place - 3], normalise(crop[None])[0])


def test_grey_images_are_normalised_by_the_average_of_the_colours_constants():
    black, white = normalise(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)).flatten().tolist()
    assert black == pytest.approx(-sum(MEAN) / sum(STD), rel=1e-5)
    assert white - black == pytest.approx(3 / sum(STD), rel=1e-5)


@pytest.fixture
def odd_defaults():
    """float64 as torch's default type and "meta", which holds no values, as its default device."""
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)


def pictures():
    images, labels = synthetic_images(60, 3)
    split = Split(images, labels)
    rest, taken = hold_out(split, 12)
    plans = [plan_epoch(48, 1, 2), plan_epoch(48, 1, 2, augment=False)]
    batches = [tensor for plan in plans for tensor in take_batch(rest, plan, 5, 40)]
    return [images, labels, taken.images, taken.labels, *batches]


def test_torchs_defaults_change_no_image(request):
    expected = pictures()
    request.getfixturevalue("odd_defaults")
    found = pictures()
    assert [tensor.dtype for tensor in found[-2:]] == [torch.float32, torch.int64]
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype and one.device.type == "cpu" and torch.equal(one, other)
