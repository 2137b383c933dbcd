import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from little_cifar import names, same
from loopback import Page, serve

import mrla_minimal
from mrla_minimal.lab.data import cifar_files, data_roots, fetch_cifar, find_cifar, load_cifar, published
from mrla_minimal.lab.data.download import DownloadError, StorageError

pytestmark = pytest.mark.usefixtures("small_world")


@pytest.mark.parametrize("call", [load_cifar, find_cifar, fetch_cifar])
def test_unknown_names_are_refused(tmp_path, call):
    with pytest.raises(ValueError, match="name must be one of cifar10, cifar100; got 'mnist'"):
        call("mnist", tmp_path)


def test_unknown_source_is_refused(tmp_path):
    with pytest.raises(ValueError, match="source must be 'auto', 'real' or 'synthetic', got 'fake'"):
        load_cifar("cifar10", tmp_path, source="fake")


def test_a_folder_that_lacks_a_file_is_named_and_left_out(little, tmp_path, monkeypatch, capsys):
    little.write_folder(tmp_path)
    (tmp_path / "little" / "part_2").unlink()
    monkeypatch.setenv("MRLA_OFFLINE", "1")
    with pytest.raises(DownloadError, match="no good cifar10 files"):
        load_cifar("cifar10", tmp_path, source="real")
    assert f"{tmp_path / 'little'} lacks part_2" in capsys.readouterr().out


def test_a_download_is_kept_and_used(little, tmp_path, monkeypatch, capsys):
    with serve({"/little.tar.gz": Page(little.tar)}) as site:
        monkeypatch.setitem(published.FACTS, "cifar10", little.facts(site))
        first = load_cifar("cifar10", tmp_path / "new")
        assert len(site.requests) == 1 and first.source == "cifar10"
        assert same(load_cifar("cifar10", tmp_path / "new"), first) and len(site.requests) == 1
    printed = capsys.readouterr()
    assert "synthetic" not in (printed.out + printed.err).lower() and str(tmp_path / "new") in printed.out
    assert find_cifar("cifar10", tmp_path / "new") == tmp_path / "new" / "little"


def test_if_the_first_source_fails_the_png_source_serves(little, tmp_path, monkeypatch):
    with serve({"/little.tgz": Page(little.tgz)}) as site:
        monkeypatch.setitem(published.FACTS, "cifar10", little.facts(site))
        assert fetch_cifar("cifar10", tmp_path) == tmp_path / "cifar10.npz"
        assert [path for path, _ in site.requests] == ["/little.tar.gz", "/little.tgz"]
        assert load_cifar("cifar10", tmp_path).fingerprint == little.fingerprint and len(site.requests) == 2


def test_when_every_source_fails_the_built_in_set_is_announced(little, tmp_path, monkeypatch, capsys):
    with serve({"/little.tgz": Page(b"", status=503)}) as site:
        monkeypatch.setitem(published.FACTS, "cifar10", little.facts(site))
        cifar = load_cifar("cifar10", tmp_path)
        with pytest.raises(DownloadError, match="mrla fetch") as caught:
            load_cifar("cifar10", tmp_path, source="real")
    printed = capsys.readouterr().out
    for text in (printed, str(caught.value)):
        assert "little.tar.gz: HTTP 404" in text and "little.tgz: HTTP 503" in text and str(tmp_path) in text
    assert "SYNTHETIC IMAGES INSTEAD OF CIFAR10" in printed
    assert cifar.source == "synthetic" and len(cifar.classes) == 10
    assert (len(cifar.train), len(cifar.test)) == (50, 10)
    assert cifar.fingerprint != little.fingerprint
    assert same(cifar, load_cifar("cifar100", source="synthetic")) and capsys.readouterr().out == ""


def test_offline_nothing_is_asked_nor_made(little, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MRLA_OFFLINE", "1")
    with serve({"/little.tar.gz": Page(little.tar)}) as site:
        monkeypatch.setitem(published.FACTS, "cifar10", little.facts(site))
        assert load_cifar("cifar10", tmp_path / "root").source == "synthetic"
        assert "MRLA_OFFLINE" in capsys.readouterr().out
        for call, arguments in ((load_cifar, ["real"]), (fetch_cifar, [])):
            with pytest.raises(DownloadError, match="MRLA_OFFLINE.*put little.tar.gz"):
                call("cifar10", tmp_path / "root", *arguments)
        assert find_cifar("cifar10", tmp_path / "root") is None
        assert site.requests == [] and names(tmp_path) == []


def test_a_place_that_cannot_hold_data_is_no_reason_for_other_images(little, tmp_path, monkeypatch):
    (tmp_path / "root").write_text("a file")
    with pytest.raises(ValueError, match="root is not a folder"):
        load_cifar("cifar10", tmp_path / "root")
    with serve({"/little.tar.gz": Page(little.tar)}) as site:
        monkeypatch.setitem(published.FACTS, "cifar10", little.facts(site))
        with pytest.raises(StorageError, match="cannot write to"):
            load_cifar("cifar10", tmp_path / "root" / "below")
        assert site.requests == []


@pytest.mark.parametrize("served", ["little.tar.gz", "little.tgz"])
def test_fetch_replaces_damaged_files_once_it_has_good_ones(little, tmp_path, monkeypatch, served):
    folder = little.write_folder(tmp_path)
    (folder / "part_1").write_bytes(b"damaged")
    (folder / "notes").write_text("mine")
    with pytest.raises(DownloadError):
        fetch_cifar("cifar10", tmp_path)
    assert (folder / "part_1").read_bytes() == b"damaged"
    content = {"little.tar.gz": little.tar, "little.tgz": little.tgz}[served]
    with serve({f"/{served}": Page(content)}) as site:
        monkeypatch.setitem(published.FACTS, "cifar10", little.facts(site))
        path = fetch_cifar("cifar10", tmp_path)
    assert path == (folder if served == "little.tar.gz" else tmp_path / "cifar10.npz")
    assert load_cifar("cifar10", tmp_path).fingerprint == little.fingerprint
    assert (folder / "notes").read_text() == "mine" and (folder / "part_2").exists()


def test_fetch_leaves_good_data_as_it_is(little, tmp_path):
    folder = little.write_folder(tmp_path)
    os.utime(folder / "part_1", (1, 1))
    assert fetch_cifar("cifar10", tmp_path) == folder and (folder / "part_1").stat().st_mtime == 1


def test_where_data_is_looked_for(little, tmp_path, monkeypatch):
    repository = tmp_path / "repository"
    (repository / "notebooks").mkdir(parents=True)
    (repository / "pyproject.toml").write_text('[project]\nname = "mrla-minimal"\n')
    monkeypatch.chdir(repository / "notebooks")
    monkeypatch.setenv("MRLA_DATA", str(tmp_path / "variable"))
    roots = data_roots()
    assert roots[:2] == [tmp_path / "variable", repository / "data"] and len(roots) == 3
    assert "mrla-minimal" in str(roots[2])
    assert data_roots(tmp_path / "given") == [tmp_path / "given"]
    assert find_cifar("cifar10") is None
    little.write_folder(repository / "data")
    assert find_cifar("cifar10") == repository / "data" / "little"
    little.write_folder(tmp_path / "variable")
    assert find_cifar("cifar10") == tmp_path / "variable" / "little"
    assert find_cifar("cifar10", tmp_path / "given") is None
    monkeypatch.delenv("MRLA_DATA")
    (repository / "pyproject.toml").write_text('[project]\nname = "another"\n')
    assert data_roots() == roots[2:]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the cache folder has other names elsewhere")
def test_the_cache_folder_is_where_it_always_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert data_roots() == [tmp_path / "home" / ".cache" / "mrla-minimal"]


@pytest.mark.parametrize("how", ["MRLA_DATA", "root"])
@pytest.mark.parametrize("form", ["{}", "{}/", "~/data/little"])
def test_the_unpacked_folder_itself_may_be_named(little, tmp_path, monkeypatch, how, form):
    place = tmp_path / "home" / "data"
    folder = little.write_folder(place)
    monkeypatch.setitem(published.FACTS, "cifar100", replace(little.facts(), folder="other"))
    named = form.format(folder)
    if how == "MRLA_DATA":
        monkeypatch.setenv("MRLA_DATA", named)
    root = named if how == "root" else None
    assert find_cifar("cifar10", root) == folder and data_roots(root)[0] == place
    assert load_cifar("cifar10", root, "real").fingerprint == little.fingerprint
    folder.rename(place / "other")      # the other set, beside the one that is named
    assert find_cifar("cifar100", root) == place / "other"


def test_without_a_home_folder_data_stands_beside_the_work(little, tmp_path, monkeypatch):
    def nobody(*_):
        raise RuntimeError("could not determine the home directory")

    monkeypatch.setattr("platformdirs.user_cache_dir", nobody)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)        # what it does where there is no home
    monkeypatch.chdir(tmp_path)
    assert data_roots() == [tmp_path / "data"]
    folder = little.write_folder(tmp_path / "data")
    assert find_cifar("cifar10") == folder
    with pytest.raises(ValueError, match="~/data: there is no home folder here; write the whole path"):
        find_cifar("cifar10", "~/data")
    # An older platformdirs leaves the tilde in.
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: f"~/.cache/{name}")
    assert data_roots() == [tmp_path / "data"]


def test_a_folder_that_may_not_be_read_is_named_and_left_out(little, tmp_path, monkeypatch, capsys):
    closed = tmp_path / "closed"
    is_file = Path.is_file

    def refuse(path):
        if closed in path.parents:
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", refuse)
    monkeypatch.setattr(cifar_files, "repository_root", lambda: tmp_path / "here")
    monkeypatch.setenv("MRLA_DATA", str(closed))
    folder = little.write_folder(tmp_path / "here" / "data")
    assert find_cifar("cifar10") == folder
    assert capsys.readouterr().out == f"note: {closed} is not yours to read, and is left out\n"
    folder.rename(tmp_path / "away")
    monkeypatch.setenv("MRLA_OFFLINE", "1")
    assert load_cifar("cifar10").source == "synthetic"


def test_a_bare_machine_can_load(little, tmp_path):
    """requests and Pillow are needed for downloads and PNG files only."""
    script = """if True:
        import sys
        for name in ("platformdirs", "requests", "urllib3", "PIL", "matplotlib", "scipy"):
            sys.modules[name] = None
        import torch
        from mrla_minimal.lab.data import cifar_files
        from mrla_minimal.lab.data.synthetic import synthetic_images
        cifar_files.synthetic_images = lambda count, seed: synthetic_images(20, seed)
        assert cifar_files.load_cifar("cifar10").source == "synthetic"
    """
    environment = os.environ | {"PYTHONPATH": str(Path(mrla_minimal.__file__).parents[1])}
    run = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment,
                         capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "downloads need a package: pip install requests" in run.stdout
