"""The shift task, and the records of notebook 17."""

from pathlib import Path

import pytest
import torch
from tiny import tiny_cifar

from mrla_minimal.course import shift_task, sideways_records
from mrla_minimal.course.denoising import Denoiser, denoise, images_to_clean, psnr
from mrla_minimal.course.shift_task import draw_task, find_shift, noise_maps, what_was_found
from mrla_minimal.lab.data import load_cifar
from mrla_minimal.lab.files import append_record, read_records

COMMITTED = Path(__file__).parents[2] / "data" / "results" / "sideways.jsonl"


def test_the_answer_is_the_first_map_a_shift_away():
    earlier, own, wanted = draw_task(3, 0, (3, -2))
    assert torch.allclose(wanted[:, :, :17, 2:], earlier[:, :, 3:, :18], atol=1e-4)
    assert not torch.allclose(earlier, own)
    with pytest.raises(ValueError, match="blur must be odd, not 2"):
        noise_maps(5, 2)
    white, smooth = noise_maps(5, 1, count=64), noise_maps(5, 3, count=64)
    assert white.var().item() == pytest.approx(1, abs=0.05)
    assert smooth[..., 1:-1, 1:-1].var().item() == pytest.approx(1, abs=0.1)
    beside = [(x[..., :-1] * x[..., 1:]).mean().item() for x in (white, smooth)]
    assert abs(beside[0]) < 0.05 and beside[1] == pytest.approx(2 / 3, abs=0.1)


@pytest.mark.parametrize("name", ["sideways", "acla"])
def test_keys_walk_to_the_shift_and_what_was_found_says_so(name):
    run = find_shift(name, blur=5, seed=0)
    assert run["loss"].shape == (201,) and run["places"].shape == (201, 2, 4, 2)
    assert run["weights"].shape == (201, 2, 4)
    assert torch.allclose(run["weights"].sum(dim=(1, 2)), torch.ones(201), atol=1e-5)
    assert run["weights"][0].flatten().tolist() == pytest.approx([1 / 8] * 8)
    assert torch.allclose(run["places"][0].norm(dim=-1), torch.full((2, 4), 2.0), atol=1e-5)
    found = what_was_found(run)
    assert found["layer"] == 1 and found["place"] == pytest.approx(list(shift_task.SHIFTS[0]), abs=0.1)
    assert found["earlier"] > 0.9 and found["loss"] < 0.01 < run["loss"][0]


def test_what_was_found_by_hand():
    weights = torch.tensor([[[0.1, 0.1, 0.1, 0.1], [0.0, 0.5, 0.1, 0.0]]])
    run = {"loss": torch.tensor([0.25]), "weights": weights, "places": torch.arange(16.0).view(1, 2, 4, 2)}
    found = what_was_found(run)
    assert (found["loss"], found["place"], found["layer"], found["weight"]) == (0.25, [10.0, 11.0], 2, 0.5)
    assert found["earlier"] == pytest.approx(0.4)
    with pytest.raises(ValueError, match="name must be one of 'sideways', 'acla', not 'cla'"):
        find_shift("cla", 3, 0)
    with pytest.raises(ValueError, match="blur must be a positive integer, not 0"):
        find_shift("acla", 0, 0)


def test_records_are_made_once_and_a_stop_goes_on(tmp_path):
    path = tmp_path / "sideways.jsonl"
    chosen = dict(seeds=[0], steps={"shift": 2, "denoiser": 1}, cifar=tiny_cifar(), keep=tmp_path / "nets")
    first = sideways_records.write_sideways_records(path, minutes=1e-9, **chosen)
    assert len(first) == 1
    made = sideways_records.write_sideways_records(path, **chosen)
    assert made[0] == first[0] and len(made) == 11 and len({record["id"] for record in made}) == 11
    assert sideways_records.write_sideways_records(path, **chosen) == made == read_records(path)[0]
    shifts, denoisers = made[:6], made[6:]
    assert {(run["name"], run["blur"]) for run in shifts} == {
        (name, blur) for name in ("sideways", "acla") for blur in (1, 3, 5)}
    assert all(run["shift"] == [3, -2] for run in shifts)
    assert [run["variant"] for run in denoisers] == ["plain", "mean", "same-layer", "sideways", "acla"]
    assert all(run["source"] == tiny_cifar().source for run in denoisers)
    assert [len(layer) for layer in denoisers[3]["weights"]] == [1, 2, 3] and "open" not in denoisers[0]
    assert sorted(path.name for path in (tmp_path / "nets").iterdir()) == ["acla.pt", "plain.pt"]


def test_what_cannot_be_made_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "sideways.jsonl"
    for chosen, message in ((dict(parts=["all"]), "part must be one of 'shift', 'denoiser', not 'all'"),
                            (dict(seeds=[-1]), "seed must be"),
                            (dict(seeds=[0, 0]), "seed given twice: 0, 0"),
                            (dict(minutes=0), "minutes must be")):
        with pytest.raises(ValueError, match=message):
            sideways_records.write_sideways_records(path, **chosen)
    monkeypatch.setenv("MRLA_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError):                 # no real CIFAR-10, and nothing else takes its place
        sideways_records.write_sideways_records(path, parts=["denoiser"], seeds=[0])
    assert not path.exists()
    append_record(path, {"part": "shift"})
    path.write_text(path.read_text() + "half a li")
    with pytest.raises(ValueError, match="not a whole record"):
        sideways_records.write_sideways_records(path)


def denoiser(variant, *each):
    return [dict(part="denoiser", variant=variant, seed=seed, psnr=psnr, parameters=1234)
            for seed, psnr in enumerate(each)]


def test_the_tables_by_hand():
    records = [*denoiser("plain", 26.0, 27.0, 28.0), *denoiser("mean", 26.5, 27.25), *denoiser("acla", 30.0)]
    assert sideways_records.differences(records, "mean", "plain") == [0.5, 0.25]
    lines = sideways_records.denoisers_table(records).splitlines()
    assert lines[1].split() == ["plain", "27.000", "26.000-28.000", "1,234", "3"] and len(lines) == 4
    (line,) = sideways_records.differences_table(records).splitlines()[1:]
    assert line.split() == ["mean", "-", "plain", "+0.375", "-1.213", "to", "+1.963", "2"]
    shift = dict(part="shift", name="acla", blur=3, shift=[3, -2], earlier=0.5, loss=0.25)
    runs = [dict(shift, layer=layer, place=place)
            for layer, place in ((1, [3.05, -2.0]), (2, [3.0, -2.0]), (1, [3.0, -1.8]))]
    assert [sideways_records.is_found(run) for run in runs] == [True, False, False]
    assert sideways_records.shift_table(runs).splitlines()[1].split() == [
        "acla", "smoothed", "by", "3", "1", "of", "3", "0.50-0.50", "0.250-0.250"]


def test_the_committed_records_are_whole():
    records, complaints = read_records(COMMITTED)
    assert not complaints and len({record["id"] for record in records}) == len(records)
    assert {record["commit"] for record in records} == {records[0]["commit"]}
    assert len(records[0]["commit"]) == 40
    assert [{key: record[key] for key in run} for record, run
            in zip(records, sideways_records.asked_runs(), strict=True)] == sideways_records.asked_runs()
    for record in records:
        if record["part"] == "denoiser":
            assert (record["source"], record["images"]) == ("cifar10", 256)
            assert record["noisy"] == pytest.approx(20.17, abs=0.01)


def kept_net(variant):
    model = Denoiser(variant)
    model.load_state_dict(torch.load(COMMITTED.parents[1] / "denoisers" / f"{variant}.pt", weights_only=True))
    return model.eval()


@pytest.mark.parametrize("variant", sideways_records.KEPT)
def test_a_kept_net_reaches_what_its_record_says(variant):
    model = kept_net(variant)
    record = sideways_records.denoisers_of(read_records(COMMITTED)[0])[variant][0]
    try:
        cifar = load_cifar("cifar10", source="real")
    except (ValueError, OSError) as error:
        pytest.skip(f"needs the real CIFAR-10: {error}")
    clean, noisy = images_to_clean(cifar)
    assert psnr(denoise(model, noisy), clean).mean().item() == pytest.approx(record["psnr"], abs=0.005)
