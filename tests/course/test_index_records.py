"""The hunt of two steps, the topics' text, how indexers are trained on them, and the records' file."""

import json
from functools import partial
from pathlib import Path
from statistics import fmean

import pytest
import torch

from mrla_minimal.course import hunt, index_records, topics
from mrla_minimal.course.index_training import (
    UNASKED,
    distil,
    drawn,
    fresh_indexers,
    measure,
    overlaps,
    price,
    train,
)
from mrla_minimal.family.index_cache import IndexCacheAttention, recorded, set_pattern
from mrla_minimal.family.language_model import TinyLanguageModel
from mrla_minimal.family.patterns import every_pattern

ROOMS = hunt.ROOMS


@pytest.fixture
def hunts():
    return hunt.draw_hunts(6, torch.Generator().manual_seed(0))


def test_a_hunt_is_answered_by_its_notes(hunts):
    tokens, answers = hunts
    for of_hunt, wanted in zip(tokens.tolist(), answers.tolist(), strict=True):
        notes = dict(of_hunt[:ROOMS])
        assert sorted(notes) == sorted(notes.values()) == list(range(ROOMS))
        assert wanted[:ROOMS] == [UNASKED] * ROOMS
        for (room, mark), answer in zip(of_hunt[ROOMS:], wanted[ROOMS:], strict=True):
            assert mark == ROOMS and answer == notes[notes[room]]
        assert sorted(room for room, _ in of_hunt[ROOMS:]) == list(range(ROOMS))


def test_where_the_two_notes_stand(hunts):
    tokens, answers = hunts
    first, second = hunt.note_places(tokens)
    for row in range(len(tokens)):
        for question in range(ROOMS):
            room = tokens[row, ROOMS + question, 0]
            assert tokens[row, first[row, question], 0] == room
            assert tokens[row, second[row, question], 0] == tokens[row, first[row, question], 1]
            assert tokens[row, second[row, question], 1] == answers[row, ROOMS + question]


def test_found_notes_is_the_share_of_questions_whose_set_holds_the_note(hunts):
    torch.manual_seed(0)
    model = hunt.hunt_model(partial(IndexCacheAttention, k=hunt.TOKENS))
    shares = hunt.found_notes(model, hunts[0])
    assert shares == [[1.0, 1.0]] * hunt.LAYERS                             # a set of all tokens
    model = hunt.hunt_model()
    with recorded(model) as seen:
        model(hunts[0])
    first, _ = hunt.note_places(hunts[0])
    held = [[place in chosen for place, chosen in zip(places, positions[ROOMS:], strict=True)]
            for places, positions in zip(first.tolist(), seen[2]["positions"].tolist(), strict=True)]
    assert hunt.found_notes(model, hunts[0])[2][0] == pytest.approx(torch.tensor(held).float().mean().item())


def test_the_text_is_cut_into_what_is_learned_and_a_tenth_that_is_not():
    encoded, symbols = topics.encode("abc" * 100)
    assert symbols == "abc" and encoded[:4].tolist() == [0, 1, 2, 0]
    learned, held_out = topics.split(encoded)
    assert len(learned) == 270 and torch.equal(torch.cat([learned, held_out]), encoded)
    tokens, following = topics.text_drawer(torch.arange(12), 11)(3, torch.Generator().manual_seed(0))
    assert tokens.tolist() == [list(range(11))] * 3 and following.tolist() == [list(range(1, 12))] * 3
    with pytest.raises(ValueError, match="a text of 11 symbols holds no piece of 11"):
        topics.text_drawer(torch.arange(11), 11)


def test_the_text_is_this_pythons_own():
    text = topics.topics_text()
    assert len(text) > 300_000 and "assert" in text
    assert topics.fingerprint(text) != topics.fingerprint(text + " ")


def test_a_model_learns_and_its_indexers_stay_as_they_are():
    torch.manual_seed(0)
    model = hunt.hunt_model()
    set_pattern(model, "FFFF", "all")
    before = {name: part.clone() for name, part in model.state_dict().items()}
    losses = train(model, hunt.draw_hunts, 8, 8, 5e-3, torch.Generator().manual_seed(0))
    assert len(losses) == 8 and losses[-1] < losses[0]
    for name, part in model.state_dict().items():
        assert torch.equal(part, before[name]) == (".indexer." in name), name


def test_distillation_trains_the_indexers_of_the_f_layers_alone():
    torch.manual_seed(0)
    model = hunt.hunt_model()
    before = {name: part.clone() for name, part in model.state_dict().items()}
    losses = {serves: distil(model, hunt.draw_hunts, "FSFS", 12, 8, 5e-3, torch.Generator().manual_seed(0),
                             serves) for serves in ("own", "all")}
    assert all(of_run[-1] < of_run[0] for of_run in losses.values())
    assert losses["own"][0] != losses["all"][0]
    for name, part in model.state_dict().items():
        trained = ".indexer." in name and name.split(".")[1] in "02"
        assert torch.equal(part, before[name]) != trained, name
    assert [layer.attention.kind for layer in model.layers] == list("FSFS")
    with pytest.raises(ValueError, match="serves must be one of 'own', 'all'"):
        distil(model, hunt.draw_hunts, "FSFS", 1, 1, 1e-3, torch.Generator(), "some")


@pytest.mark.parametrize("pattern", ["FSF", "FSFSS", "SFFF", "FXFF", None])
def test_a_pattern_of_another_model_is_refused_before_anything_is_trained(pattern):
    def draw(count, generator):
        raise AssertionError("it has begun")

    model = hunt.hunt_model()
    set_pattern(model, "FSFS")
    with pytest.raises(ValueError, match="a pattern for 4 layers is 4 letters F or S|must begin with F"):
        distil(model, draw, pattern, 1, 1, 1e-3, torch.Generator())
    assert [layer.attention.kind for layer in model.layers] == list("FSFS")
    with pytest.raises(ValueError, match="steps must be a positive integer, not 0"):
        train(model, draw, 0, 1, 1e-3, torch.Generator())


def test_fresh_indexers_are_drawn_by_their_seed():
    torch.manual_seed(0)
    model = hunt.hunt_model()
    state = torch.get_rng_state()
    weights = []
    for seed in (1, 2, 1):
        fresh_indexers(model, seed)
        weights.append(model.layers[1].attention.indexer.query.weight.detach().clone())
    assert torch.equal(weights[0], weights[2]) and not torch.equal(weights[0], weights[1])
    assert torch.equal(torch.get_rng_state(), state)


def test_measures_leave_out_what_is_not_asked():
    class Knows(torch.nn.Module):
        def forward(self, tokens):
            logits = torch.nn.functional.one_hot(tokens, 5).float() * 100
            return logits

    tokens = torch.tensor([[0, 1, 2, 3]])
    answers = torch.tensor([[UNASKED, 1, 2, 4]])
    measured = measure(Knows(), [(tokens, answers)])
    assert measured["accuracy"] == pytest.approx(2 / 3) and measured["loss"] == pytest.approx(100 / 3)


def test_random_positions_are_the_same_each_time():
    torch.manual_seed(0)
    model, batches = hunt.hunt_model(), drawn(hunt.draw_hunts, 2, 4, torch.Generator().manual_seed(0))
    first = price(model, "FFFF", batches, "random")
    torch.rand(5)
    assert price(model, "FFFF", batches, "random") == first != price(model, "FFFF", batches, "last")


TINY = {"k": 2, "steps": 2, "batch": 4, "learning_rate": 1e-3, "distil_steps": 2}


def test_a_record_prices_every_pattern_and_every_control(monkeypatch):
    seen = []
    monkeypatch.setattr(index_records, "train", lambda *given: seen.extend(train(*given)) or seen)
    torch.manual_seed(0)
    made = index_records.index_record(hunt.hunt_model(), hunt.draw_hunts, hunt.draw_hunts, 0, TINY, ("FSFS",),
                                      hunt.found_notes)
    assert set(made["patterns"]) == set(every_pattern(4))
    assert set(made["controls"]) == {"oracle", "last", "random"}
    assert [pattern.count("F") for pattern, _ in made["greedy"]] == [4, 3, 2, 1]
    assert set(made["distilled"]["FSFS"]) == {"own", "all"} and len(made["found"]) == 4
    assert made["train_loss"] == pytest.approx(fmean(seen), rel=1e-6) and len(seen) == TINY["steps"]
    assert [made["overlap"][layer][layer] for layer in range(4)] == pytest.approx([1.0] * 4)
    assert made["overlap"][0][2] == pytest.approx(made["overlap"][2][0])


def test_records_go_on_where_they_stopped(tmp_path):
    path, calls = tmp_path / "some" / "hunt.jsonl", []

    def make(seed):
        calls.append(seed)
        return {"patterns": {"FF": {"accuracy": seed + 0.123456}}}

    first = index_records.write_index_records(path, "hunt", make, TINY, (0, 1))
    assert [record["seed"] for record in first] == [0, 1]
    assert first[0]["patterns"]["FF"]["accuracy"] == 0.1235
    again = index_records.write_index_records(path, "hunt", make, TINY, (0, 1, 2))
    assert calls == [0, 1, 2] and [record["seed"] for record in again] == [0, 1, 2]
    assert len({record["id"] for record in again}) == 3
    assert {"commit", "torch", "python"} <= set(again[0])
    other = index_records.write_index_records(path, "hunt", make, TINY | {"k": 3}, (0,))
    assert calls[-1] == 0 and len(calls) == 4
    assert [(record["seed"], record["k"]) for record in other] == [(0, 3)]     # none of the other recipe
    assert other[0]["id"] != again[0]["id"]
    assert index_records.write_index_records(path, "hunt", make, TINY, (1,)) == again and len(calls) == 4
    with open(path, "a") as file:
        file.write("no record\n")
    before = path.read_bytes()
    with pytest.raises(ValueError, match="not a whole record"):
        index_records.write_index_records(path, "hunt", make, TINY, (5,))
    assert path.read_bytes() == before


def test_a_wrong_seed_ends_the_command_with_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        index_records.main(["--seeds", "-1", "--out", str(tmp_path / "hunt.jsonl")])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "seed must be an integer from 0 to 2147483647, not -1\n"
    assert not (tmp_path / "hunt.jsonl").exists()


@pytest.mark.parametrize(("make", "recipe"), [(index_records.hunt_record, "HUNT"),
                                              (index_records.text_record, "TEXT")])
def test_a_record_is_its_seeds_and_leaves_torchs_random_state(make, recipe, monkeypatch):
    drawn_models = []

    def keep(model, draw, test, seed, given, *rest):
        assert given is getattr(index_records, recipe)
        drawn_models.append(model.place.weight.detach().clone())
        return {"found": len(rest) == 2}

    monkeypatch.setattr(index_records, "index_record", keep)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert make(1)["found"] == make(2)["found"] == (recipe == "HUNT")
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    make(1)
    assert torch.equal(drawn_models[0], drawn_models[2])
    assert not torch.equal(drawn_models[0], drawn_models[1])


def record_of(seed, **accuracies):
    measured = {name: {"accuracy": accuracy, "loss": 2 - accuracy} for name, accuracy in accuracies.items()}
    patterns = {name: value for name, value in measured.items() if not set(name) - set("FS")}
    controls = {name: measured["dense"] for name in ("oracle", "last", "random")}
    return {"seed": seed, "patterns": patterns, "dense": measured["dense"], "controls": controls}


def test_the_price_list_shows_the_lowest_and_the_highest_seed_by_price():
    records = [record_of(0, FF=0.9, FS=0.5, dense=1.0), record_of(1, FF=0.8, FS=0.6, dense=1.0)]
    _, *rows = index_records.prices_table(records).splitlines()
    assert [row.split() for row in rows[:3]] == [
        ["FS", "1", "0.50", "0.60", "2"], ["FF", "2", "0.80", "0.90", "2"], ["dense", "1.00", "1.00", "2"]]
    assert "1.40" in index_records.prices_table(records, "loss")


def test_overlaps_leave_the_model_with_all_layers_full(hunts):
    torch.manual_seed(0)
    model = hunt.hunt_model()
    set_pattern(model, "FSSS")
    square = overlaps(model, hunts[0])
    assert len(square) == 4 and [layer.attention.kind for layer in model.layers] == list("FFFF")
    assert square[0][1] < 1


def test_a_text_model_takes_the_place_of_a_hunt():
    torch.manual_seed(0)
    encoded, symbols = topics.encode("to be or not to be " * 40)
    model = TinyLanguageModel(len(symbols), 8, 12, 2, 2, partial(IndexCacheAttention, k=3))
    draw = topics.text_drawer(encoded, 8)
    made = index_records.index_record(model, draw, draw, 0, TINY, ())
    assert set(made["patterns"]) == {"FF", "FS"} and "found" not in made


@pytest.mark.parametrize("name", ["hunt", "topics"])
def test_the_committed_records_name_a_commit_without_changes(name):
    path = Path(__file__).parents[2] / "data" / "results" / f"{name}.jsonl"
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len({record["id"] for record in records}) == len(records) > 0
    for record in records:
        assert len(record["commit"]) == 40 and not record["commit"].endswith("+changes")
        recipe = index_records.TEXT if name == "topics" else index_records.HUNT
        assert recipe.items() <= record.items()         # as the command would make them now
    if name == "topics":
        assert len({record["text"] for record in records}) == 1
