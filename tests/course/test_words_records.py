"""Drawn scenes and their questions, the frozen encoder, and the records of notebook 18."""

import math
from pathlib import Path

import pytest
import torch

from mrla_minimal.course import words_reading, words_records
from mrla_minimal.course.words_scenes import (
    ANSWERS,
    COLOURS,
    KINDS,
    PATCHES,
    PLACES,
    SHAPES,
    WORDS,
    as_text,
    ask,
    draw_scenes,
    outlines,
)
from mrla_minimal.family.regional import FUSIONS
from mrla_minimal.lab.files import append_record, read_records

COMMITTED = Path(__file__).parents[2] / "data" / "results" / "words.jsonl"


@pytest.fixture(scope="module")
def scenes():
    return draw_scenes(400, seed=5)


def test_each_scene_has_four_shapes_and_four_colours_once(scenes):
    for each, many in ((scenes.shapes, SHAPES), (scenes.colours, COLOURS)):
        assert each.shape == (400, 4) and all(len(set(row)) == 4 for row in each.tolist())
        assert each.flatten().bincount(minlength=len(many)).min() > 180         # 267 of each on average


def test_an_object_lies_in_its_quarter_in_its_colour(scenes):
    grid = scenes.covered.unflatten(2, (2, 4, 2, 4)).any(dim=5).any(dim=3)      # (count, 4, 2, 2) quarters
    for quarter in range(4):
        wanted = torch.zeros(2, 2, dtype=bool)
        wanted[quarter // 2, quarter % 2] = True
        assert (grid[:, quarter] == wanted).all()
    paints = torch.tensor(list(COLOURS.values())) - 0.5
    for number in range(30):
        for quarter in range(4):
            y, x = 16 * (quarter // 2), 16 * (quarter % 2)
            image = scenes.images[number, :, y : y + 16, x : x + 16]
            painted = image.abs().amax(dim=0) > 0.2             # grey is 0, and the noise has sd 0.05
            area = outlines()[scenes.shapes[number, quarter]].sum()
            assert abs(painted.sum() - area) <= 0.1 * area
            seen = image[:, painted].mean(dim=1)
            assert (paints - seen).square().sum(dim=1).argmin() == scenes.colours[number, quarter]


def test_scenes_are_the_same_for_the_same_seed_only():
    assert torch.equal(draw_scenes(3, 1).images, draw_scenes(3, 1).images)
    assert not torch.equal(draw_scenes(3, 1).images, draw_scenes(3, 2).images)
    with pytest.raises(ValueError, match="count must be a positive integer, not 0"):
        draw_scenes(0, 1)


def test_questions_say_what_they_ask_and_have_the_right_answer(scenes):
    shapes, colours = scenes.shapes[:1], scenes.colours[:1]
    for quarter in range(4):
        shape, colour = SHAPES[shapes[0, quarter]], list(COLOURS)[colours[0, quarter]]
        for kind, name in enumerate(KINDS):
            for questions, abouts in (("objects", (shape, colour)), ("places", (PLACES[quarter],) * 2)):
                words, answers = ask(shapes, colours, questions, torch.tensor([kind]),
                                     torch.tensor([quarter]))
                assert [WORDS[word] for word in words[0]] == [f"which {name}", abouts[kind]]
                assert ANSWERS[answers[0]] == (colour, shape)[kind]
    assert as_text([0, WORDS.index("disc")]) == "which colour is the disc?"
    assert as_text([1, WORDS.index("red")]) == "which shape is red?"
    assert as_text([1, WORDS.index("top left")]) == "which shape is at top left?"
    with pytest.raises(ValueError, match="questions must be one of 'objects', 'places', not 'all'"):
        ask(shapes, colours, "all", torch.tensor([0]), torch.tensor([0]))


def test_the_encoder_hands_out_five_layers_and_shortcuts_add(scenes):
    images = scenes.images[:3]
    torch.manual_seed(0)
    plain = words_reading.SceneEncoder().eval()
    residual = words_reading.SceneEncoder(residual=True).eval()
    residual.load_state_dict(plain.state_dict())
    layers, added = plain(images), residual(images)
    assert layers.shape == (3, words_reading.DEPTH, PATCHES, words_reading.CHANNELS)
    assert torch.equal(layers[:, 0], added[:, 0])
    assert torch.allclose(added[:, 1], layers[:, 0] + layers[:, 1], atol=1e-6)


def test_a_quarters_mean_is_over_its_patches():
    rows = torch.zeros(1, PATCHES, 1)
    rows[0, [3 * 8 + 4, 4 * 8 + 3, 7 * 8 + 7]] = torch.tensor([16.0, 32.0, 48.0])[:, None]
    assert words_reading.by_quarter(rows).flatten().tolist() == [0, 1, 2, 3]


@pytest.fixture(scope="module")
def looked():
    return words_reading.look_at_scenes(words_reading.train_encoder(0, steps=2), 0, train=80, test=20)


def test_training_and_unseen_scenes_differ_and_layers_have_size_1(looked):
    seen, unseen = looked
    assert len(seen.layers) == 80 and len(unseen.layers) == 20
    sizes = seen.layers.square().mean(dim=(0, 2, 3))
    assert torch.allclose(sizes, torch.ones(words_reading.DEPTH), atol=1e-4)
    assert not torch.equal(seen.scenes.images[:20], unseen.scenes.images)


def test_a_probe_finds_what_is_there_and_nothing_else(looked):
    seen, unseen = looked
    for part in looked:
        part.layers[:, 2] = 0
        quarters = [2 * (row // 4) + column // 4 for row in range(8) for column in range(8)]
        part.layers[:, 3] = 0
        part.layers[:, 3, :, :6] = torch.eye(6)[part.scenes.colours[:, quarters]]
    found = words_reading.probe(seen, unseen, "colour")
    assert found[3] == 1.0 and found[2] < 0.35
    with pytest.raises(ValueError, match="kind must be one of 'colour', 'shape', not 'color'"):
        words_reading.probe(seen, unseen, "color")


def test_seeded_draws_are_their_seeds_and_leave_torchs_random_state(looked):
    weights = []
    for start in (1, 2):
        torch.manual_seed(start)
        state = torch.get_rng_state()
        reader, _ = words_reading.train_reader(looked[0], "joint", seed=3, steps=2)
        weights.append([words_reading.train_encoder(3, steps=2).stem.weight, reader.key[0].weight])
        assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, *weights))


def test_a_probe_is_the_same_whatever_torchs_random_state(looked):
    found = []
    for start in (1, 2):
        torch.manual_seed(start)
        state = torch.get_rng_state()
        found.append([words_reading.probe(*looked, kind) for kind in KINDS])
        assert torch.equal(torch.get_rng_state(), state)
    assert found[0] == found[1]


def test_a_reader_is_trained_and_examined(looked):
    seen, unseen = looked
    reader, history = words_reading.train_reader(seen, "layers", steps=60, batch=16)
    assert {kind: len(each) for kind, each in history.items()} == {"colour": 2, "shape": 2}
    found = words_reading.examine(reader, unseen)
    for kind in KINDS:
        assert 0 <= found[kind]["accuracy"] <= 1 and 0 < found[kind]["looked"] < 1
        assert math.isclose(sum(found[kind]["layers"]), 1, abs_tol=1e-5)
    with pytest.raises(ValueError, match="batch must be at most the 80 scenes"):
        words_reading.train_reader(seen, "layers", steps=1, batch=81)
    with pytest.raises(ValueError, match="fusion must be one of"):
        words_reading.train_reader(seen, "all", steps=1)


# Records

def reader_record(fusion, seed, colour, shape, part="objects"):
    kinds = {kind: {"accuracy": accuracy, "looked": 0.5, "layers": [0.2] * 5}
             for kind, accuracy in (("colour", colour), ("shape", shape))}
    return {"what": "reader", "part": part, "fusion": fusion, "seed": seed, **kinds,
            "accuracy": (colour + shape) / 2}


def test_differences_are_paired_by_seed():
    records = [reader_record("mean", 0, 0.5, 0.7), reader_record("mean", 1, 0.9, 0.9),
               reader_record("layers", 1, 1.0, 0.9), reader_record("layers", 2, 0.1, 0.1),
               reader_record("layers", 0, 0.7, 0.7), {"what": "probes", "seed": 0}]
    assert words_records.differences(records, "objects", "layers", "mean") == pytest.approx([10, 5])
    lines = words_records.differences_table(records).splitlines()
    (row,) = [line for line in lines if "layers - mean" in line]
    assert row.split() == "objects layers - mean +7.50 -24.27 to +39.27 2".split()


def test_the_table_shows_the_lowest_and_the_highest_seed():
    records = [reader_record("mean", 0, 0.5, 0.7), reader_record("mean", 1, 0.9, 0.6)]
    _, row = words_records.readers_table(records).splitlines()
    assert row.split() == "objects mean 0.50-0.90 0.60-0.70 0.50-0.50 0.50-0.50 2".split()


def test_records_are_made_once_and_gone_on_with(tmp_path, monkeypatch):
    made = []

    def measured(setting, seen, unseen):
        made.append((setting["what"], setting["seed"], setting.get("fusion")))
        return {"accuracy": 0.5}

    monkeypatch.setattr(words_records, "_measured", measured)
    monkeypatch.setattr(words_records, "train_encoder", lambda seed, residual: None)
    monkeypatch.setattr(words_records, "look_at_scenes", lambda encoder, seed: (None, None))
    path = tmp_path / "words.jsonl"
    records = words_records.write_words_records(path, seeds=[0], parts=["residual"])
    fusions = words_records.PARTS["residual"][3]
    assert made == [("probes", 0, None), *(("reader", 0, fusion) for fusion in fusions)]
    again = words_records.write_words_records(path, seeds=[0, 1], parts=["residual"])
    assert made[len(records) :] == [("probes", 1, None), *(("reader", 1, fusion) for fusion in fusions)]
    assert read_records(path) == (again, []) and len({record["id"] for record in again}) == len(again)
    assert all({"commit", "versions", "id"} <= record.keys() for record in again)
    begun = words_records.write_words_records(path, 1e-9, iter([2]), iter(["residual"]))
    assert [(record["what"], record["seed"]) for record in begun] == [("probes", 2)]
    assert read_records(path) == ([*again, *begun], [])
    other = words_records.write_words_records(path, seeds=[1], parts=["residual"], steps=7)
    assert len(other) == 1 + len(fusions) and other[0] in again             # its probes are no other ones
    assert {record["steps"] for record in other[1:]} == {7}


def test_parts_may_be_given_one_by_one(monkeypatch):
    monkeypatch.setattr(words_records, "_measured", lambda *given: {})
    monkeypatch.setattr(words_records, "train_encoder", lambda seed, residual: None)
    monkeypatch.setattr(words_records, "look_at_scenes", lambda encoder, seed: (None, None))
    wanted = list(words_records.words_records([0, 1], list(words_records.PARTS)))
    assert len(wanted) == 2 * (2 + sum(len(fusions) for *_, fusions in words_records.PARTS.values()))
    given = words_records.words_records(iter([0, 1]), iter(words_records.PARTS), known=iter(wanted[:3]))
    assert [record["id"] for record in given] == [record["id"] for record in wanted[3:]]


def test_each_block_of_scenes_has_its_turn():
    for count in (67, 127, 191):        # of which each number of starts has a factor that is the batch's too
        starts = [words_reading._block(step, 64, count).start for step in range(count - 63)]
        assert sorted(starts) == list(range(count - 63))
    shipped = words_reading.TRAIN_SCENES
    assert [words_reading._block(step, 64, shipped).start for step in (0, 1, 23, 999)] == [
        0, 64, 64 * 23 % 1473, 64 * 999 % 1473]


def test_other_arguments_and_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="part must be one of 'objects', 'places', 'residual', not 'all'"):
        list(words_records.words_records(parts=["all"]))
    for seeds in ([-1], [2, 2]):
        with pytest.raises(ValueError, match="seed"):
            list(words_records.words_records(seeds=seeds))
    with pytest.raises(ValueError, match="steps must be a positive integer, .* not 0"):
        list(words_records.words_records(steps=0))
    for minutes in (0, float("nan"), "9"):
        with pytest.raises(ValueError, match=f"minutes must be a positive number, not {minutes!r}"):
            words_records.write_words_records(tmp_path / "a.jsonl", minutes)
    broken = tmp_path / "b.jsonl"
    append_record(broken, {"what": "probes"})
    broken.write_text(broken.read_text() + "no record\n")
    with pytest.raises(ValueError, match="line 2: not a whole record"):
        words_records.write_words_records(broken)


def test_the_committed_records_are_whole_and_of_committed_code():
    records, complaints = read_records(COMMITTED)
    assert not complaints and len({record["id"] for record in records}) == len(records)
    for residual in (False, True):
        seeds = {record["seed"] for record in records
                 if record["what"] == "probes" and record["residual"] == residual}
        assert seeds == set(words_records.SEEDS)
    for part, (*_, fusions) in words_records.PARTS.items():
        runs = words_records.readers_of(records, part)
        assert {fusion: set(seeds) for fusion, seeds in runs.items()} == {
            fusion: set(words_records.SEEDS) for fusion in fusions}
    assert {record["steps"] for record in records if record["what"] == "reader"} == {words_records.STEPS}
    for record in records:
        assert len(record["commit"]) == 40 and "+" not in record["commit"], record["id"]
    assert set(FUSIONS) == set(words_records.PARTS["objects"][3])
