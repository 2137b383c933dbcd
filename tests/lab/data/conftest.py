"""The stand-in for CIFAR-10 that the tests of published files and of finding them share."""

import pytest
from little_cifar import NAMES, TRAIN, LittleCifar

from mrla_minimal.lab.data import cifar_files, published
from mrla_minimal.lab.data.synthetic import synthetic_images


@pytest.fixture(scope="session")
def little():
    stand_in = LittleCifar()
    parts = [(stand_in.images[part], stand_in.labels[part]) for part in (slice(TRAIN), slice(TRAIN, None))]
    stand_in.fingerprint = published.finish(parts, NAMES, "cifar10").fingerprint
    return stand_in


@pytest.fixture
def small_world(little, monkeypatch, tmp_path):
    """The stand-in takes CIFAR-10's place, nothing of this machine is looked at, downloads may be tried."""
    monkeypatch.setitem(published.FACTS, "cifar10", little.facts())
    monkeypatch.setitem(published.FINGERPRINTS, "cifar10", little.fingerprint)
    monkeypatch.setattr(cifar_files, "synthetic_images",
                        lambda count, seed: synthetic_images(count // 200, seed))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("MRLA_OFFLINE", raising=False)
    monkeypatch.delenv("MRLA_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
