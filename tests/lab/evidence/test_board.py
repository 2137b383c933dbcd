"""What the processes of a timed run know of each other."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mrla_minimal.lab.evidence.board import Activity, Board

OTHER = """
import sys, time
from pathlib import Path
from mrla_minimal.lab.evidence.board import Activity, Board
with Board(Path(sys.argv[1]), 5.0) as board:
    board.show(Activity(5.0, "id", "plain seed 3", 100.0, 20.0))
    print("there", flush=True)
    sys.stdin.read()
"""


def start(folder):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    other = subprocess.Popen([sys.executable, "-c", OTHER, str(folder)], env=environment, text=True,
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout.readline() == "there\n"
    return other


def seen(board):
    with board.turn():
        return board.others()


@pytest.mark.parametrize("end", ["leaves", pytest.param("is killed", marks=pytest.mark.skipif(
    os.name != "posix", reason="needs SIGKILL"))])
def test_a_process_is_seen_as_long_as_it_lives(tmp_path, end):
    with Board(tmp_path, 5.0) as board:
        assert seen(board) == []
        other = start(tmp_path)
        assert seen(board) == [Activity(5.0, "id", "plain seed 3", 100.0, 20.0)]
        if end == "leaves":
            other.stdin.close()
        else:
            other.send_signal(signal.SIGKILL)
        other.wait(timeout=60)
        assert seen(board) == [] and len(list(tmp_path.glob(".at-work-*.json"))) == 1      # its own


def test_two_in_one_folder_have_places_of_their_own(tmp_path):
    with Board(tmp_path, 1.0) as one, Board(tmp_path, 2.0) as two:
        one.show(Activity(1.0, "a", "one"))
        two.show(Activity(2.0, "b", "two"))
        assert [each.id for each in seen(one)] == ["b"] and [each.id for each in seen(two)] == ["a"]


def test_what_takes_longer_than_it_should_is_not_done_at_once():
    run = Activity(1.0, "a", "plain", since=100.0, seconds=20.0)
    assert [run.left(now) for now in (100.0, 105.0, 130.0)] == [20.0, 15.0, 2.0]
    assert Activity(1.0).left(100.0) == 0.0
