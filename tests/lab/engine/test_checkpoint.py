import dataclasses
import errno
import functools
import hashlib
import math
import random
import shutil
from pathlib import Path

import pytest
import torch
from tiny import tiny_cifar, tiny_config, tiny_run, tiny_train

from mrla_minimal.lab import files, plugins
from mrla_minimal.lab.engine import evaluate, load_model, read_checkpoint, read_config
from mrla_minimal.lab.engine.checkpoint import CHECKPOINT_FORMAT
from mrla_minimal.lab.engine.config import OPTIMIZERS
from mrla_minimal.lab.engine.resume import MAY_DIFFER, restore


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, monkeypatch):
    saves = []
    original = torch.save

    def save(state, file):
        saves.append(state["step"])
        if len(saves) == 2:
            file.write(b"half a checkpoint")
            raise OSError(errno.ENOSPC, "No space left on device", "checkpoint.pt")
        original(state, file)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(OSError, match="No space left"):
        tiny_train(tiny_config(), tmp_path / "run")
    assert read_checkpoint(tmp_path / "run")["step"] == 0
    assert not list((tmp_path / "run").glob("*.part")) and not list((tmp_path / "run").glob(".*.part"))
    result = tiny_train(tiny_config(), tmp_path / "run", resume=True)
    assert result.metrics[-1]["step"] == 12


def test_a_disk_that_fills_while_the_checkpoint_is_flushed(tmp_path, monkeypatch):
    flushed = []

    def fsync(descriptor):
        flushed.append(descriptor)
        if len(flushed) == 7:       # config, metrics, timing, checkpoint; metrics, timing, checkpoint
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left"):
        tiny_train(tiny_config(), tmp_path / "run")
    assert read_checkpoint(tmp_path / "run")["step"] == 0 and not list((tmp_path / "run").glob(".*.part"))
    assert tiny_train(tiny_config(), tmp_path / "run", resume=True).metrics[-1]["step"] == 12


def test_a_checkpoint_that_lacks_a_part_is_named(tmp_path):
    torch.save({"format": CHECKPOINT_FORMAT}, tmp_path / "part.pt")
    lacking = "it lacks config, classes, source, fingerprint, model"
    with pytest.raises(ValueError, match=f"part.pt is not a whole checkpoint: {lacking}"):
        load_model(tmp_path / "part.pt")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 broken"])
def test_what_is_no_checkpoint_is_named(tmp_path, content):
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(ValueError, match="checkpoint.pt is not a checkpoint"):
        load_model(tmp_path)


class _RunsCode:
    def __reduce__(self):
        return print, ("this must never run",)


def test_a_checkpoint_cannot_run_code(tmp_path, capsys):
    torch.save({"format": _RunsCode()}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="checkpoint.pt is not a checkpoint"):
        load_model(tmp_path)
    assert "never" not in capsys.readouterr().out


def test_a_truncated_checkpoint_is_named(tmp_path):
    tiny_train(tiny_config(epochs=1), tmp_path / "run")
    path = tmp_path / "run" / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match="checkpoint.pt is not a checkpoint"):
        tiny_train(tiny_config(epochs=1), tmp_path / "run", resume=True)


def test_a_checkpoint_of_another_model_is_named(tmp_path):
    tiny_train(tiny_config(epochs=1), tmp_path / "run")
    state = read_checkpoint(tmp_path / "run")
    state["config"]["width"] = 8
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="other.pt holds the weights of another model"):
        load_model(tmp_path / "other.pt")


def test_load_model_gives_back_the_trained_net(tmp_path):
    result = tiny_train(tiny_config(), tmp_path / "run")
    model, state = load_model(tmp_path / "run")
    assert not model.training and state["step"] == 12
    assert evaluate(model, tiny_cifar().test)[1] == result.test_accuracy


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run and its configuration; a test that changes it works on a copy."""
    folder, config = tmp_path_factory.mktemp("finished") / "run", tiny_config(layer_attention="mrla-light")
    tiny_train(config, folder)
    return folder, config


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run", ignore=shutil.ignore_patterns(".lock"))
    return tmp_path / "run"


def test_zeroed_bytes_never_load_as_other_weights(copy):
    path = copy / "checkpoint.pt"
    content, weights = path.read_bytes(), read_checkpoint(copy)["model"]
    chance, refused = random.Random(0), 0
    for _ in range(30):
        start = chance.randrange(len(content) - 64)
        path.write_bytes(content[:start] + bytes(64) + content[start + 64:])
        try:
            state = read_checkpoint(copy)
        except ValueError as error:
            refused += 1
            assert "checkpoint.pt is not a checkpoint, or is damaged" in str(error)
        else:       # the bytes were zero already, or padding between two tensors
            assert all(torch.equal(state["model"][name], tensor) for name, tensor in weights.items())
    assert refused >= 15


def test_a_file_that_is_not_the_published_one_is_refused(copy):
    path = copy / "checkpoint.pt"
    published = hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_checkpoint(path, sha256=published)["step"] == 12 and load_model(path, sha256=published)
    for function in (read_checkpoint, load_model):
        with pytest.raises(ValueError, match=f"pt is not the file that was published.*, not {'0' * 64}"):
            function(path, sha256="0" * 64)


OTHERS = (None, True, 5, -1, 2.5, math.nan, "x", b"x", [], [5], {}, {"x": 5}, ("a", None), torch.zeros(3),
          torch.zeros(2, 2, dtype=torch.int64), torch.full((3,), math.nan),
          torch.zeros(1, dtype=torch.bool).to_sparse())


def places(state, path=()):
    """The paths to the values of a state, in lists and in dictionaries: three of each but the
    configuration."""
    if path:
        yield path
    inside = list(state.items()) if isinstance(state, dict) else \
        list(enumerate(state)) if isinstance(state, list | tuple) else []
    for key, value in inside if path in ((), ("config",)) else inside[:1] + inside[-2:]:
        yield from places(value, (*path, key))


def value_at(state, path):
    return functools.reduce(lambda part, key: part[key], path, state)


def replaced(state, path, value):
    """A copy of the state, as deep as the path, with another value at its end."""
    if not path:
        return value
    if isinstance(state, dict):
        return {**state, path[0]: replaced(state[path[0]], path[1:], value)}
    return type(state)(replaced(part, path[1:], value) if number == path[0] else part
                       for number, part in enumerate(state))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_checkpoint_of_wrong_kinds_is_one_line(tmp_path, optimizer):
    """Each value of a checkpoint, of a run in its second epoch, replaced by values of other kinds."""
    copy, config = tmp_path / "run", tiny_config(layer_attention="mrla-light", optimizer=optimizer)
    tiny_train(config, copy)
    state = read_checkpoint(copy)
    for memory in state["optimizer"]["state"].values():
        if "step" in memory:
            memory["step"] = torch.tensor(8.0)
    state |= {"step": 8, "metrics": state["metrics"][:1], "losses": [2.0, 2.0], "hits": [0.5, 0.5]}
    run, chance = tiny_run(**dataclasses.asdict(config)), random.Random(0)
    restore(run, state, copy)
    tried, passed = 0, []
    for path in sorted(set(places(state)), key=str):
        for value in chance.sample(OTHERS, 2):
            torch.save(replaced(state, path, value), copy / "checkpoint.pt")
            try:
                restore(run, read_checkpoint(copy), copy / "checkpoint.pt")
            except ValueError as error:
                assert "\n" not in str(error) and str(copy) in str(error) and len(str(error)) < 600
            else:
                passed.append((path, value))
            tried += 1
    assert tried > 100
    # What passes is of the same kind, or is nothing that a run goes on with.
    unused = {("optimizer", "param_groups"), ("scaler",), ("random",),
              *(("config", name) for name in MAY_DIFFER)}
    for path, value in passed:
        kinds = {type(value), type(value_at(state, path))}
        assert len(kinds) == 1 or kinds == {int, float} or {path[:1], path[:2]} & unused, f"{path}: {value!r}"


@pytest.mark.parametrize("content", [
    "[]", "{", "3", '{"depth": "8"}', '{"widht": 4}', "[" * 100_000, "\x00\xff"], ids=range(7))
def test_a_configuration_that_is_none_is_one_line(copy, content):
    (copy / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match="config.json is not") as error:
        read_config(copy)
    assert "\n" not in str(error.value)


def test_weights_that_are_not_finite_are_not_loaded(copy):
    state = read_checkpoint(copy)
    state["model"]["classifier.bias"][0] = math.inf
    torch.save(state, copy / "checkpoint.pt")
    with pytest.raises(ValueError, match="damaged: model: 'classifier.bias' must hold finite numbers alone"):
        load_model(copy)


MASKED = """
import torch


class Masked(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(channels, 1, 1))
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf, torch.nan]))

    def forward(self, x, memory=None):
        return x * self.scale * self.mask[:2].softmax(dim=0)[0], x
"""


def test_a_buffer_that_is_no_statistic_may_hold_what_it_likes(tmp_path, monkeypatch):
    """A mask of -inf is no sign of a run that diverged; a parameter beside it still is."""
    monkeypatch.chdir(tmp_path)
    Path("masked.py").write_text(MASKED)
    config = tiny_config(epochs=1, layer_attention="masked.py")
    tiny_train(config, Path("run"))
    model, state = load_model("run", trust=True)
    (mask, *_) = [buffer for name, buffer in model.named_buffers() if name.endswith(".mask")]
    assert mask[1] == -math.inf
    tiny_train(dataclasses.replace(config, epochs=2), Path("run"), resume=True, trust=True)
    (name, *_) = [name for name in state["model"] if name.endswith("layer_attention.scale")]
    state["model"][name][0] = math.nan
    torch.save(state, Path("run/checkpoint.pt"))
    with pytest.raises(ValueError, match=f"model: '{name}' must hold finite numbers alone"):
        load_model("run", trust=True)


def test_a_checkpoint_from_before_an_option_was_there_is_read(copy):
    state = read_checkpoint(copy)
    del state["config"]["compile"], state["in_channels"], state["precision"], state["scaler"]
    torch.save(state, copy / "checkpoint.pt")
    config = read_config(copy)
    assert load_model(copy)[1]["config"] == dataclasses.asdict(config)
    assert tiny_train(config, copy, resume=True).metrics == state["metrics"]


OWN = """
import torch
from pathlib import Path

Path(__file__).with_name("it_ran").touch()


class Mine(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()

    def forward(self, x, memory=None):
        return x, x
"""


@pytest.fixture
def own_run(tmp_path, monkeypatch):
    """A run with an attention of one's own, in its folder, that this process knows no more of."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(OWN)
    tiny_train(tiny_config(epochs=1, layer_attention="mine.py"), Path("run"))
    monkeypatch.setattr(plugins, "_VERSIONS", {})
    Path("it_ran").unlink()
    return Path("run")


def test_trust_is_true_or_false(own_run):
    for value in ("no", 1, None):
        with pytest.raises(ValueError, match=f"trust must be True or False, not {value!r}"):
            load_model(own_run, trust=value)
    assert not list(Path().rglob("it_ran"))


@pytest.mark.parametrize("where", ["in its place", "kept in the run folder"])
def test_a_strangers_file_is_not_run_unless_its_user_says_so(own_run, where):
    if where != "in its place":
        Path("mine.py").unlink()
    for read in (lambda **trust: load_model(own_run, **trust),
                 lambda **trust: load_model(own_run / "checkpoint.pt", **trust),
                 lambda **trust: tiny_train(read_config(own_run), own_run, resume=True, **trust)):
        with pytest.raises(ValueError, match="run.* needs mine.py, and .* to run that Python file.*--trust"):
            read()
        assert not list(Path().rglob("it_ran"))
        assert read(trust=True) and list(Path().rglob("it_ran"))
        for ran in Path().rglob("it_ran"):
            ran.unlink()
        plugins._VERSIONS.clear()
