"""Training a detector by the engine: what it learns, what it records, and that it survives being killed."""

import dataclasses
import json
import sys

import kill_and_resume
import pytest
import torch
from tiny import tiny_cifar, tiny_run
from tiny_scenes import detection_config, detection_train, tiny_cells, tiny_scenes

from mrla_minimal.detector import Detections
from mrla_minimal.lab.data.scenes import training_batch, views
from mrla_minimal.lab.device import World
from mrla_minimal.lab.engine import (
    TrainConfig,
    TrainingDiverged,
    TrainingOutOfTime,
    load_model,
    open_run,
    read_checkpoint,
)
from mrla_minimal.lab.engine.detection import find_objects, precision_by_kind
from mrla_minimal.lab.fields import from_text

ALONE = World(0, 1, torch.device("cpu"))


def run_of(data=None, **changes):
    return open_run(detection_config(**changes), ALONE, data=data or tiny_scenes())


def same_weights(first, second):
    states = [read_checkpoint(folder)["model"] for folder in (first, second)]
    return all(torch.equal(value, states[1][name]) for name, value in states[0].items())


# What it is given


def test_a_step_depends_on_seed_and_step_alone():
    run = run_of(seed=3)
    images, targets = run.batch()
    again, of_order = run_of(seed=3).batch(), run_of(seed=5, order=3).batch()
    assert torch.equal(images, again[0]) and torch.equal(images, of_order[0])
    assert torch.equal(targets.regions, of_order[1].regions)
    run.step = 1
    assert not torch.equal(images, run.batch()[0])
    shaken = training_batch(tiny_scenes().train, 3, 0, 4, 32)[1].regions
    assert torch.equal(shaken, targets.regions) and not torch.equal(shaken, targets.boxes)


def test_an_epoch_is_as_many_crops_as_there_is_room_for():
    run = run_of()
    assert run.steps_per_epoch == 8 * 64 * 64 // (32 * 32 * 4) == 8 and run.total_steps == 16
    assert run_of(steps=5).total_steps == 5


def test_views_hold_every_object_of_the_tiles():
    scenes = tiny_scenes()
    seen = list(views(scenes.test, 32))
    assert len(seen) == 8 * 4 and {view.kind for view in seen} == {"fluorescence", "stained"}
    assert [view.field for view in seen[:9]] == 8 * ["field0"] + ["field1"]
    for view in seen:
        assert view.image.shape == (3, 32, 32) and len(view.boxes) == len(view.classes) == len(view.masks)
        for box, mask in zip(view.boxes, view.masks, strict=True):
            rows, columns = mask.nonzero(as_tuple=True)
            edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert box.tolist() == [float(edge) for edge in edges]
    whole = list(views(tiny_cells().test, 32))
    assert len(whole) == 8 and whole[0].image.shape == (3, 64, 64) and whole[0].masks is None


@pytest.mark.parametrize("size, message", [
    (24, "a crop of 32 x 32 pixels does not fit into images of 24 x 24"),
])
def test_images_smaller_than_a_crop_are_refused(size, message):
    with pytest.raises(ValueError, match=message):
        run_of(tiny_scenes(size=size))


def test_images_of_another_task_are_refused():
    with pytest.raises(ValueError, match="data must be Scenes for a detector, not a Cifar"):
        run_of(tiny_cifar())
    with pytest.raises(ValueError, match="data must hold masks with dataset 'nuclei'"):
        run_of(tiny_cells())
    with pytest.raises(ValueError, match="data must hold boxes alone with dataset 'blood'"):
        run_of(dataset="blood")
    with pytest.raises(ValueError, match=r"data\.train\.labels"):
        open_run(dataclasses.replace(tiny_run().config), ALONE, data=tiny_scenes())


@pytest.mark.parametrize("field, value, message", [
    ("model", "vit", "model must be 'resnet' with dataset 'nuclei', not 'vit'"),
    ("resolution", 16, "resolution is CIFAR's, and must be left at 32 with dataset 'nuclei', .* not 16"),
    ("wipe", 0.1, "wipe must be 0.0"), ("augment", "off", "augment must be 'auto'"),
    ("label_smoothing", 0.1, "label_smoothing must be 0.0"), ("compile", True, "compile must be False"),
    ("source", "synthetic", "source must be 'auto' or 'real' with dataset 'nuclei'"),
])
def test_what_a_detector_makes_no_use_of_is_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(dataset="nuclei", **{field: value})


def test_several_processes_are_refused():
    with pytest.raises(ValueError, match="by one process, not by 2"):
        open_run(detection_config(), World(0, 2, torch.device("cpu")), data=tiny_scenes())


# What it learns


@pytest.mark.slow
def test_four_crops_are_learnt_by_heart_in_60_steps(tmp_path):
    scenes = tiny_scenes(4, size=64, crop=64)
    config = detection_config(depth=20, width=16, layer_attention=None, steps=60, drop_path=0.0)
    result = detection_train(config, tmp_path, data=scenes)
    last = result.metrics[-1]
    assert last["test_box_AP50"] > 0.9 and last["test_mask_AP50"] > 0.9
    assert last["train_loss"] < 0.5 * result.metrics[0]["train_loss"]


def test_heads_of_a_seed_start_alike_in_all_variants():
    states = [run_of(layer_attention=name).model.state_dict() for name in (None, "mrla-base", "mrla-light")]
    for state in states[1:]:
        assert all(torch.equal(value, state[name]) for name, value in states[0].items())


def test_half_precision_gives_nearly_the_same_losses():
    run = run_of(drop_path=0.0, layer_attention="mrla-light")
    images, targets = run.batch()
    whole = run.model.losses(images, targets)
    with torch.autocast("cpu", torch.bfloat16):
        half = run.model.losses(images, targets)
    assert all(half[name].item() == pytest.approx(value.item(), rel=0.03) for name, value in whole.items())


# What it records


def test_what_a_run_leaves_behind(tmp_path):
    result = detection_train(detection_config(validation=True), tmp_path)
    assert result.test_accuracy is None and result.source == "discs"
    first, last = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert (first["epoch"], last["step"]) == (1, 16) and "train_accuracy" not in last
    assert "validation_mask_AP" in first and "test_mask_AP" not in first
    assert set(last) > {f"test_{kind}{what}_AP{level}" for kind in ("", "stained_", "fluorescence_")
                        for what in ("box", "mask") for level in ("", "50", "75")}
    kept = from_text(last["test_mask_fields"])
    assert kept.average_precision()["AP"] == pytest.approx(last["test_mask_AP"], abs=0.02)
    assert len(kept.truths) == 4
    model, state = load_model(tmp_path)
    assert state["classes"] == ["disc"]
    seen = list(views(tiny_scenes().test, 32))
    scores = precision_by_kind(find_objects(model, seen), [view.kind for view in seen])
    assert scores["stained_mask_AP75"] == last["test_stained_mask_AP75"]
    assert (tmp_path / "curves.png").exists()


def test_the_test_at_the_end_shows_how_far_it_is(tmp_path, capsys):
    for progress in (True, False):
        detection_train(detection_config(steps=1), tmp_path / str(progress), progress=progress)
        shown = capsys.readouterr()
        assert ("testing on 32 images\n" in shown.out) == progress == ("evaluating" in shown.err)


def test_classes_without_masks(tmp_path):
    result = detection_train(detection_config(dataset="blood", steps=3), tmp_path, data=tiny_cells())
    assert 0 <= result.metrics[-1]["test_box_AP"] <= 1
    assert not [name for name in result.metrics[-1] if "mask" in name]
    assert load_model(tmp_path)[0].head.classes.out_channels == 3


def told(model, seen, monkeypatch, kinds=("fluorescence", "stained")):
    """The model finds what is there, in those views of one batch that are of these kinds."""
    counts = [len(view.boxes) * (view.kind in kinds) for view in seen]
    answers = [Detections(view.boxes[:count], torch.full((count,), 0.9), view.classes[:count],
                          view.masks[:count]) for view, count in zip(seen, counts, strict=True)]
    monkeypatch.setattr(model, "detect", lambda images: answers)
    return model


def test_who_finds_everything_has_100_of_every_kind(monkeypatch):
    seen = list(views(tiny_scenes().test, 32))
    model = told(run_of().model, seen, monkeypatch)
    found = find_objects(model, seen)
    assert model.training
    scores = precision_by_kind(found, [view.kind for view in seen])
    assert set(scores.values()) == {1.0} and len(scores) == 3 * 2 * 3
    assert len(precision_by_kind(found, [None] * len(seen))) == 2 * 3


def test_each_kind_of_image_is_measured_by_itself(monkeypatch):
    seen = list(views(tiny_scenes().test, 32))
    found = find_objects(told(run_of().model, seen, monkeypatch, ["stained"]), seen)
    scores = precision_by_kind(found, [view.kind for view in seen])
    assert scores["stained_mask_AP"] == scores["stained_box_AP50"] == 1.0
    assert scores["fluorescence_mask_AP"] == 0.0 < scores["mask_AP"] < 1.0
    assert precision_by_kind({"box": []}, []) == {}


def test_scores_that_are_no_numbers_are_no_result():
    model = run_of().model
    with torch.no_grad():
        model.head.classes.bias.fill_(float("nan"))
    with pytest.raises(TrainingDiverged, match="not all scores and boxes of the detector are finite"):
        find_objects(model, list(views(tiny_scenes().test, 32)))


def test_what_a_net_refuses_is_no_divergence(monkeypatch):
    model = run_of().model

    def refuse(*given):
        raise ValueError("x must be square")

    monkeypatch.setattr(model, "forward", refuse)
    with pytest.raises(ValueError, match="x must be square") as error:
        find_objects(model, list(views(tiny_scenes().test, 32)))
    assert not isinstance(error.value, TrainingDiverged)


# That it survives


def test_a_run_that_is_stopped_and_resumed_ends_as_one_that_was_not(tmp_path):
    config = detection_config(layer_attention="mrla-light")
    detection_train(config, tmp_path / "whole")
    with pytest.raises(TrainingOutOfTime, match="at step 1 of 16"):
        detection_train(config, tmp_path / "parts", until=0.0)
    detection_train(config, tmp_path / "parts", resume=True)
    lines = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "parts")]
    assert lines[0] == lines[1] and same_weights(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no signals to processes")
@pytest.mark.slow
def test_a_killed_run_ends_bit_for_bit_as_one_that_was_not(monkeypatch):
    monkeypatch.setattr(kill_and_resume, "SCRIPT", kill_and_resume.SCRIPT.with_name("tiny_scenes.py"))
    monkeypatch.setattr(kill_and_resume, "EPOCHS", 4)
    assert kill_and_resume.main(kills=3) == 0


def test_a_loss_that_is_not_finite_has_no_result(tmp_path):
    run = run_of()
    with torch.no_grad():
        run.model.head.boxes.bias.fill_(float("nan"))
    run.train_step()
    with pytest.raises(TrainingDiverged, match="the loss is nan at step 1 of 16"):
        run.read_losses()


def test_a_finished_run_without_its_precision_is_damaged(tmp_path):
    detection_train(detection_config(steps=2), tmp_path)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    for broken in ({"test_box_AP": 1.5}, {"test_mask_fields": 7}):
        metrics = [{**state["metrics"][-1], **broken}]
        torch.save({**state, "metrics": metrics}, tmp_path / "checkpoint.pt")
        with pytest.raises(ValueError, match="is damaged"):
            detection_train(detection_config(steps=2), tmp_path, resume=True)
    del metrics[0]["test_box_AP"]
    torch.save({**state, "metrics": metrics}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="is damaged"):
        detection_train(detection_config(steps=2), tmp_path, resume=True)


def test_a_class_without_a_name_is_told_before_any_step():
    """In a step nobody looks: torch's own error comes late, and on a GPU from anywhere."""
    with pytest.raises(ValueError, match="classes must name that of every box, not RBC alone: .* class 1,"):
        dataclasses.replace(tiny_cells(), classes=("RBC",))
    assert len(dataclasses.replace(tiny_cells(), classes=("RBC", "WBC")).classes) == 2
