"""Small checkpoints, and reading what is committed."""

import hashlib
import shutil
from pathlib import Path

import pytest
import torch
from tiny import tiny_cifar
from tiny_suites import NETS, export_nets, run_nets

from mrla_minimal.course.index_records import prices_table, variants_table
from mrla_minimal.course.quiz_records import quiz_table
from mrla_minimal.course.sideways_records import denoisers_table, shift_table
from mrla_minimal.course.sideways_records import differences_table as denoisers_differences
from mrla_minimal.course.who_knows import three_questions_table, two_by_two
from mrla_minimal.course.words_records import differences_table, readers_table
from mrla_minimal.lab import cli, data
from mrla_minimal.lab.data.nuclei import load_nuclei
from mrla_minimal.lab.data.scenes import views
from mrla_minimal.lab.engine import evaluate, inputs, load_model, read_checkpoint, read_config, train
from mrla_minimal.lab.engine.config import config_from_dict
from mrla_minimal.lab.engine.detection import find_objects
from mrla_minimal.lab.evidence import committed
from mrla_minimal.lab.evidence.jobs import run_folder
from mrla_minimal.lab.evidence.tables import summaries, tables, with_tables
from mrla_minimal.lab.files import append_record, read_records, replace_file
from mrla_minimal.lab.precision import average_precision

ROOT = Path(__file__).parents[3]


def test_an_exported_checkpoint_is_small_and_reaches_what_its_line_says(repository):
    records = run_nets(("plain", "mrla-base"), seeds=(1, 0))
    lines = export_nets(records)
    assert [(line["variant"], line["seed"]) for line in lines] == [("plain", 0), ("mrla-base", 0)]
    for line in lines:
        path = Path("data/checkpoints") / line["file"]
        assert line["file"] == f"tiny-{line['variant']}.pt"
        assert hashlib.sha256(path.read_bytes()).hexdigest() == line["sha256"]
        record = next(record for record in records if record["id"] == line["id"])
        assert (record["variant"], record["seed"]) == (line["variant"], 0)
        assert line["test_accuracy"] == record["test_accuracy"]
        model, state = load_model(path)
        assert evaluate(model, tiny_cifar().test)[1] == line["rounded_test_accuracy"]
        assert state["id"] == line["id"] and state["config"]["data_root"] is None and "optimizer" not in state
        whole = read_checkpoint(run_folder(NETS, record))["model"]
        for name, tensor in state["model"].items():
            kept = tensor.dtype if "running_" in name or not tensor.is_floating_point() else torch.float16
            assert tensor.dtype == kept and torch.equal(tensor, whole[name].to(kept)), name
    before = {path: path.read_bytes() for path in Path("data").rglob("*.*")}
    assert export_nets(records) == []
    assert {path: path.read_bytes() for path in Path("data").rglob("*.*")} == before


def test_export_and_evaluate_on_the_command_line(repository, monkeypatch, capsys):
    for module in (inputs, data):        # a command names its images: these cannot be handed in
        monkeypatch.setattr(module, "load_cifar", tiny_cifar)
    run_nets(variants=("mrla-light",))
    assert cli.main(["compare", "--suite", "tiny", "--export"]) == 0
    line = read_records("data/results/checkpoints.jsonl")[0][0]
    assert "1 checkpoints written" in capsys.readouterr().out
    assert cli.main(["evaluate", "data/checkpoints/tiny-mrla-light.pt"]) == 0
    assert f"test accuracy {100 * line['rounded_test_accuracy']:.2f} %" in capsys.readouterr().out


def test_a_net_too_large_or_a_run_folder_gone_is_refused(repository, monkeypatch):
    records = run_nets(variants=("plain",))
    monkeypatch.setattr(committed, "LARGEST_CHECKPOINT", 1000)
    with pytest.raises(ValueError, match="at most 1000 are committed"):
        export_nets(records)
    assert not Path("data/checkpoints").exists()
    with pytest.raises(ValueError, match="no such checkpoint"):
        committed.export_checkpoints(NETS, records, "elsewhere", Path("data/checkpoints"),
                                     Path("data/results/checkpoints.jsonl"))


def test_the_first_seed_whose_run_folder_is_here_is_exported(repository):
    first, second = run_nets(variants=("plain",), seeds=(0, 1))
    shutil.rmtree(run_folder(NETS, first))
    assert [line["id"] for line in export_nets([first, second])] == [second["id"]]


def test_a_checkpoint_that_cannot_be_tested_is_not_written(repository, monkeypatch):
    """A weight that float16 does not hold: rounded, the net is not finite."""
    records = run_nets(variants=("plain",))
    folder = run_folder(NETS, records[0])
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    state["model"]["classifier.bias"][0] = 1e6
    torch.save(state, folder / "checkpoint.pt")
    with pytest.raises(ValueError, match="classifier.bias"):
        export_nets(records)

    def stopped(*args):
        raise KeyboardInterrupt

    state["model"]["classifier.bias"][0] = 0.0
    torch.save(state, folder / "checkpoint.pt")
    with monkeypatch.context() as patch:
        patch.setattr(committed, "evaluate", stopped)
        with pytest.raises(KeyboardInterrupt):
            export_nets(records)
    assert not Path("data/checkpoints").exists() and not Path("data/results/checkpoints.jsonl").exists()
    assert len(export_nets(records)) == 1 and Path("data/checkpoints/tiny-plain.pt").exists()


def test_weights_alone_are_not_resumed(repository):
    records = run_nets(variants=("plain",))
    export_nets(records)
    folder = run_folder(NETS, records[0])
    small = Path("data/checkpoints/tiny-plain.pt").read_bytes()
    replace_file(folder / "checkpoint.pt", lambda file: file.write(small))
    with pytest.raises(ValueError, match="holds weights alone"):
        train(read_config(folder), folder, resume=True, progress=False)


def test_what_is_not_there_is_said_and_the_pilot_takes_its_place(repository, capsys):
    assert committed.committed_records("tiny") == [] and committed.committed_records("anything") == []
    assert committed.read_suite("large", pilot="tiny") is None
    assert capsys.readouterr().out == ("large: no records yet; to make them: mrla suite run large\n"
                                       "tiny: no records yet; to make them: mrla suite run tiny\n")
    assert committed.load_committed("plain", ("large", "tiny")) is None
    assert capsys.readouterr().out == "plain: no checkpoint yet; to make it: mrla suite export large\n"
    records = run_nets(("plain", "mrla-base"))
    export_nets(records)
    capsys.readouterr()
    summary = committed.read_suite("large", pilot="tiny")
    assert summary.suite == "tiny" and set(summary.accuracies) == {"plain", "mrla-base"}
    assert capsys.readouterr().out.endswith("shown in its place: tiny, a test\n")
    assert committed.suite_records("large", pilot="tiny") == ("tiny", records)
    assert [r["variant"] for r in committed.read_interventions("large", pilot="tiny")] == ["mrla-base"]
    model, state = committed.load_committed("mrla-base", ("large", "tiny"))
    assert not model.training and state["config"]["layer_attention"] == "mrla-base"
    assert committed.read_interventions("large") == [] and committed.suite_records("large") == ("large", [])


def test_a_committed_checkpoint_that_was_changed_is_not_opened(repository):
    export_nets(run_nets(("plain",)))
    path = Path("data/checkpoints/tiny-plain.pt")
    whole = path.read_bytes()
    other = {**torch.load(path, weights_only=True), "fingerprint": "other"}
    torch.save(other, path)         # a whole checkpoint, and another one
    with pytest.raises(ValueError, match="tiny-plain.pt is not the file that was published"):
        committed.load_committed("plain", ("tiny",))
    path.write_bytes(whole)
    assert committed.load_committed("plain", ("tiny",)) is not None
    Path("data/results/checkpoints.jsonl").write_text('{"file": 3}\n')
    with pytest.raises(ValueError, match="checkpoints.jsonl is no index of checkpoints: line 1"):
        committed.load_committed("plain", ("tiny",))
    Path("data/results/checkpoints.jsonl").unlink()
    with pytest.raises(ValueError, match="tiny-plain.pt is not committed evidence"):
        committed.load_committed("plain", ("tiny",))


def test_own_records_come_before_the_pilots_and_unfinished_ones_do_not_count(repository, capsys):
    run_nets(variants=("plain",))
    (record,) = read_records("data/results/tiny.jsonl")[0]
    append_record("data/results/large.jsonl",
                  {**record, "suite": "large", "phase": "tuning", "metrics": [{"validation_accuracy": 0.5}]})
    assert committed.suite_records("large", pilot="tiny")[0] == "tiny"
    append_record("data/results/large.jsonl", {**record, "suite": "large", "id": "other"})
    assert committed.suite_records("large", pilot="tiny")[0] == "large"
    assert "no records yet" not in capsys.readouterr().out.splitlines()[-1]


def test_outside_of_a_repository_there_is_nothing_to_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="lies in no copy of the repository"):
        committed.committed_records("tiny")


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "data" / "checkpoints").glob("*.pt")),
                         ids=lambda path: path.stem)
def test_a_committed_checkpoint_reaches_what_its_line_says(path):
    model, state = load_model(path)
    config = config_from_dict(state["config"], path)
    line = next(line for line in read_records(ROOT / "data" / "results" / "checkpoints.jsonl")[0]
                if line["file"] == path.name)
    if config.detects:
        seen = list(views(load_nuclei("test"), 128))
        reached = average_precision(find_objects(model, seen)["mask"])["AP"]
        assert reached == pytest.approx(line["rounded_test_mask_AP"], abs=2e-4)
        return
    try:
        cifar = data.load_cifar("cifar10", source="real")
    except (ValueError, OSError) as error:
        pytest.skip(f"needs the real CIFAR-10: {error}")
    test = inputs.prepared(config, cifar).test
    assert evaluate(model, test)[1] == pytest.approx(line["rounded_test_accuracy"], abs=2e-4)


def test_the_reading_of_the_results_quotes_the_tables_of_the_records():
    """data/results/README.md holds each suite's tables as the records give them now: `mrla suite tables`."""
    folder = ROOT / "data" / "results"
    text = (folder / "README.md").read_text(encoding="utf-8")
    found = list(tables(summaries(folder), folder))
    assert with_tables(text, found) == text, "to make them anew: mrla suite tables"
    assert all(f"{table.marker}\n```\n{table.text}\n```\n" in text for table in found)
    quiz_records = read_records(folder / "quiz.jsonl")[0]
    assert len(quiz_records) == 350 and quiz_table(quiz_records) in text
    of_three_questions = read_records(folder / "who-knows.jsonl")[0]
    assert three_questions_table(of_three_questions) in text and two_by_two(of_three_questions) in text
    of_words = read_records(folder / "words.jsonl")[0]
    assert readers_table(of_words) in text and differences_table(of_words) in text
    of_sideways = read_records(folder / "sideways.jsonl")[0]
    for made in (shift_table, denoisers_table, denoisers_differences):
        assert made(of_sideways) in text
    hunts = {suite: [line for line in read_records(folder / "hunt.jsonl")[0] if line["suite"] == suite]
             for suite in ("hunt", "hunt-variants")}
    assert prices_table(hunts["hunt"]) in text and variants_table(hunts["hunt-variants"]) in text
    assert prices_table(read_records(folder / "topics.jsonl")[0], "loss") in text
    with_switches = read_records(folder / "quiz-switches.jsonl")[0]
    assert len(with_switches) == 30 and quiz_table(with_switches) in text


def test_the_quiz_table_by_hand():
    make = {"question": "late", "key_dim": 8, "steps": 5}
    records = [{**make, "method": "base", "width": width, "accuracy": a, "accuracy_mean": 0.25,
                "accuracy_shuffle": b}
               for width, a, b in ((4, 0.5, 0.1), (4, 0.75, 0.2), (8, 1.0, 0.3))]
    records.append({**make, "method": "mean", "width": 8, "accuracy": 0.4, "accuracy_mean": None,
                    "accuracy_shuffle": None})
    lines = quiz_table(records).splitlines()
    assert lines[1].split() == ["late,", "8,", "5", "base", "0.50-0.75", "1.00-1.00", "0.25-0.25,",
                                "0.10-0.20"]
    assert lines[2].split() == ["late,", "8,", "5", "mean", "-", "0.40-0.40", "-,", "-"]
