import hashlib
import os
import threading
import time
from dataclasses import replace

import filelock
import pytest
from little_cifar import names
from loopback import Page, serve

from mrla_minimal.lab.data import download
from mrla_minimal.lab.data.download import DownloadError, Patience, Source, StorageError, fetch

CONTENT = bytes(range(256)) * 400  # 102,400 bytes
HASTY = Patience(window=0.3, least_rate=500_000, connect=2.0, read=0.5)


@pytest.fixture(autouse=True)
def online(monkeypatch):
    monkeypatch.delenv("MRLA_OFFLINE", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def source(site, path, content=CONTENT, size=None):
    return Source(site.url(path), hashlib.md5(content).hexdigest(), len(content) if size is None else size)


def test_a_file_arrives_whole_with_a_progress_bar(tmp_path, capsys):
    with serve({"/file.bin": Page(CONTENT)}) as site:
        wanted = source(site, "/file.bin")
        folder = tmp_path / "new" / "folder"
        assert fetch([wanted], folder) == (folder / "file.bin", wanted)
    assert names(folder) == ["file.bin"] and (folder / "file.bin").read_bytes() == CONTENT
    printed = capsys.readouterr()
    assert "file.bin" in printed.err and printed.out == ""


def test_a_good_file_is_not_fetched_again_nor_touched(tmp_path):
    (tmp_path / "second.bin").write_bytes(CONTENT)
    os.utime(tmp_path / "second.bin", (1, 1))
    with serve({}) as site:
        sources = [source(site, "/first.bin"), source(site, "/second.bin")]
        assert fetch(sources, tmp_path) == (tmp_path / "second.bin", sources[1])
        assert site.requests == []
    assert (tmp_path / "second.bin").stat().st_mtime == 1


def test_a_connection_that_breaks_off_is_resumed_where_it_broke(tmp_path, capsys):
    with serve({"/file.bin": Page(CONTENT, breaks=[30_000, 50_000])}) as site:
        fetch([source(site, "/file.bin")], tmp_path)
        assert [asked for _, asked in site.requests] == [None, "bytes=30000-", "bytes=80000-"]
        assert site.sent == len(CONTENT)  # nothing was fetched twice
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert "after 30,000 of 102,400 bytes; resuming" in capsys.readouterr().out


def test_the_part_of_an_earlier_process_is_resumed(tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:70_000])
    with serve({"/file.bin": Page(CONTENT)}) as site:
        fetch([source(site, "/file.bin")], tmp_path)
        assert site.requests == [("/file.bin", "bytes=70000-")] and site.sent == len(CONTENT) - 70_000
    assert (tmp_path / "file.bin").read_bytes() == CONTENT and names(tmp_path) == ["file.bin"]


def test_what_came_is_kept_when_no_try_is_left(tmp_path):
    with serve({"/file.bin": Page(CONTENT, breaks=[10_000] * 9)}) as site:
        with pytest.raises(DownloadError, match="file.bin: broke off 5 times"):
            fetch([source(site, "/file.bin")], tmp_path)
    assert names(tmp_path) == ["file.bin.part"]
    assert (tmp_path / "file.bin.part").read_bytes() == CONTENT[:50_000]


@pytest.mark.parametrize("ranges, requests", [("ignored", 1), ("refused", 2)])
def test_a_server_without_ranges_starts_over(tmp_path, ranges, requests):
    (tmp_path / "file.bin.part").write_bytes(b"x" * 70_000)
    with serve({"/file.bin": Page(CONTENT, ranges=ranges)}) as site:
        fetch([source(site, "/file.bin")], tmp_path)
        assert [asked for _, asked in site.requests] == ["bytes=70000-", None][:requests]
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("length", [70_000, len(CONTENT), len(CONTENT) + 5])
def test_a_part_of_something_else_is_thrown_away(tmp_path, capsys, length):
    (tmp_path / "file.bin.part").write_bytes(b"x" * length)
    with serve({"/file.bin": Page(CONTENT)}) as site:
        fetch([source(site, "/file.bin")], tmp_path)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    told = "thrown away; once more" if length < len(CONTENT) else "file.bin.part is no part of the file"
    assert told in capsys.readouterr().out and names(tmp_path) == ["file.bin"]


LOG_IN = b"<html>Room number?</html>\n"


@pytest.mark.parametrize("page, reason", [
    (Page(LOG_IN, ranges="ignored", announced=-1), "the connection ended"),
    (Page(LOG_IN, kind="text/html; charset=utf-8", ranges="ignored", announced=-1), "a web page, not"),
    (Page(CONTENT, ranges="ignored", breaks=[30_000]), "the connection broke"),
    (Page(CONTENT * 2, ranges="ignored", announced=-1), "sends more than the file's 102,400 bytes"),
    (Page(CONTENT * 2, announced=-1), "sends more than the file's 102,400 bytes"),
    (Page(CONTENT, status=503), "HTTP 503"),
    (Page(b"?" * len(CONTENT), ranges="ignored", breaks=[90_000]), "the connection broke"),
    (Page(b"?" * len(CONTENT), ranges="ignored"), "wrong md5"),
    (Page(b"?" * len(CONTENT)), "wrong md5"),
    (Page(b"?" * len(CONTENT), breaks=[10_000, 10_000]), "wrong md5"),
    (Page(CONTENT, announced="abc"), "announces a length that is no number: 'abc'"),
], ids=["log-in page", "html", "breaks off sooner", "too much", "too much from there on", "error",
        "junk that is longer", "whole junk", "junk from there on", "junk in pieces", "no length"])
def test_no_answer_shortens_what_has_arrived(tmp_path, page, reason):
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:70_000])
    with serve({"/file.bin": page}) as site:
        with pytest.raises(DownloadError, match=reason):
            fetch([source(site, "/file.bin")], tmp_path)
        assert names(tmp_path) == ["file.bin.part"]
        assert (tmp_path / "file.bin.part").read_bytes() == CONTENT[:70_000]
        site.pages["/file.bin"] = Page(CONTENT)
        fetch([source(site, "/file.bin")], tmp_path)
        assert site.requests[-1] == ("/file.bin", "bytes=70000-")


def test_an_answer_that_begins_anew_and_goes_on_as_the_part_takes_its_place(tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:70_000])
    with serve({"/file.bin": Page(CONTENT, ranges="ignored", breaks=[80_000, 60_000])}) as site:
        with pytest.raises(DownloadError):
            fetch([source(site, "/file.bin")], tmp_path)
    assert names(tmp_path) == ["file.bin.part"]
    assert (tmp_path / "file.bin.part").read_bytes() == CONTENT[:80_000]


@pytest.mark.parametrize("name, value, reason", [
    ("REQUESTS_CA_BUNDLE", "/no/such/bundle.pem", "path: /no/such/bundle.pem.*REQUESTS_CA_BUNDLE is /no/"),
    ("CURL_CA_BUNDLE", "/no/such/bundle.pem", "CURL_CA_BUNDLE is /no/such/bundle.pem"),
    ("HTTPS_PROXY", "http://127.0.0.1:9", "no connection by way of the proxy"),
])
def test_what_the_environment_spoils_is_not_blamed_on_the_disk(tmp_path, monkeypatch, name, value, reason):
    for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NO_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.lower(), raising=False)
    monkeypatch.setenv(name, value)
    with pytest.raises(DownloadError, match=f"https://127.0.0.1:9/file.bin: .*{reason}"):
        fetch([Source("https://127.0.0.1:9/file.bin", "0" * 32, 1)], tmp_path)
    assert names(tmp_path) == []


def test_a_file_of_certificates_that_holds_none_is_named(tmp_path, monkeypatch):
    (tmp_path / "empty.pem").touch()
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "empty.pem"))
    with serve({}) as site:
        wanted = Source(site.url("/file.bin").replace("http:", "https:"), "0" * 32, 1)
        with pytest.raises(DownloadError, match=r"not accepted \(REQUESTS_CA_BUNDLE is .*empty.pem"):
            fetch([wanted], tmp_path / "folder")


@pytest.mark.parametrize("announced", ["abc", "1e5", "-1 ", "1_0"])
def test_a_length_that_is_no_number_lets_the_next_source_be_asked(tmp_path, capsys, announced):
    with serve({"/a.bin": Page(CONTENT, announced=announced), "/b.bin": Page(CONTENT)}) as site:
        _, used = fetch([source(site, "/a.bin"), source(site, "/b.bin")], tmp_path)
    assert used.name == "b.bin" and names(tmp_path) == ["b.bin"]
    assert f"announces a length that is no number: '{announced.strip()}'" in capsys.readouterr().out


def test_wrong_content_is_never_taken_and_the_next_source_is_asked(tmp_path, capsys):
    wrong = CONTENT[:-1] + b"!"
    with serve({"/a/file.bin": Page(wrong), "/b/other.bin": Page(CONTENT)}) as site:
        path, used = fetch([source(site, "/a/file.bin"), source(site, "/b/other.bin")], tmp_path)
        assert used.url == site.url("/b/other.bin") and len(site.requests) == 2
    assert names(tmp_path) == ["other.bin"] and path.read_bytes() == CONTENT
    assert "/a/file.bin: its content is not the published one (wrong md5)." in capsys.readouterr().out


def test_every_reason_is_told(tmp_path, capsys):
    pages = {"/b": Page(CONTENT, status=503), "/c": Page(CONTENT + b"more"),
             "/d": Page(CONTENT * 2, announced=-1)}
    with serve(pages) as site:
        closed = Source("http://127.0.0.1:9/e", "0" * 32, 1)
        with pytest.raises(DownloadError) as caught:
            fetch([*(source(site, path) for path in ("/a", "/b", "/c", "/d")), closed], tmp_path, HASTY)
    message = str(caught.value)
    assert "\n" not in message
    for path, reason in {
        "/a": "HTTP 404", "/b": "HTTP 503", "/c": "offers a file of 102,404 bytes instead of 102,400",
        "/d": "sends more than the file's 102,400 bytes", ":9/e": "no connection",
    }.items():
        assert f"{path}: {reason}" in message
    assert capsys.readouterr().out.count("\n") == 5  # one line for each, as it happened
    assert names(tmp_path) == []


def test_a_slow_source_keeps_its_part_and_the_next_gets_its_turn(tmp_path, capsys):
    with serve({"/slow.bin": Page(CONTENT, rate=50_000), "/quick.bin": Page(CONTENT)}) as site:
        _, used = fetch([source(site, "/slow.bin"), source(site, "/quick.bin")], tmp_path, HASTY)
        assert used.name == "quick.bin"
    assert names(tmp_path) == ["quick.bin", "slow.bin.part"]
    part = (tmp_path / "slow.bin.part").read_bytes()
    assert 5_000 < len(part) < 60_000 and CONTENT.startswith(part)
    assert "/slow.bin: slow, " in capsys.readouterr().out


def test_a_source_that_was_quick_at_first_may_slow_down(tmp_path):
    with serve({"/file.bin": Page(CONTENT, rate=30_000, quick_until=70_000)}) as site:
        fetch([source(site, "/file.bin")], tmp_path, replace(HASTY, least_rate=100_000))
        assert site.requests == [("/file.bin", None)]


def test_if_all_are_slow_the_fastest_finishes(tmp_path, capsys):
    pages = {"/slow.bin": Page(CONTENT, rate=30_000), "/slower.bin": Page(CONTENT, rate=10_000),
             "/fastest.bin": Page(CONTENT, rate=120_000)}
    with serve(pages) as site:
        _, used = fetch([source(site, path) for path in [*pages, "/none.bin"]], tmp_path, HASTY)
        assert used.name == "fastest.bin"
        (_, first), (_, second) = [request for request in site.requests if request[0] == "/fastest.bin"]
        assert first is None and int(second.removeprefix("bytes=").removesuffix("-")) > 10_000
    assert (tmp_path / "fastest.bin").read_bytes() == CONTENT
    assert "No source is quick: finishing from" in capsys.readouterr().out


def test_a_source_that_says_nothing_is_left(tmp_path, capsys):
    with serve({"/mute.bin": Page(CONTENT, stalls_after=0), "/good.bin": Page(CONTENT)}) as site:
        began = time.monotonic()
        sources = [source(site, "/mute.bin"), source(site, "/good.bin")]
        _, used = fetch(sources, tmp_path, replace(HASTY, read=0.2))
        assert used.name == "good.bin" and time.monotonic() - began < 10  # the server would wait for 30 s
    assert "/mute.bin: no answer for 0.2 s." in capsys.readouterr().out


def test_a_source_that_falls_silent_is_asked_again_for_the_rest(tmp_path, capsys):
    with serve({"/file.bin": Page(CONTENT, stalls_after=65_536)}) as site:
        fetch([source(site, "/file.bin")], tmp_path, replace(HASTY, window=9, read=0.2))
        assert site.requests == [("/file.bin", None), ("/file.bin", "bytes=65536-")]
    assert "no answer for 0.2 s after 65,536 of 102,400 bytes; resuming" in capsys.readouterr().out


def test_even_the_last_resort_must_move(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "STALLED", 100_000)
    with serve({"/trickle.bin": Page(CONTENT, rate=20_000)}) as site:
        with pytest.raises(DownloadError, match=r"trickle.bin: slow, \d+\.\d kB/s"):
            fetch([source(site, "/trickle.bin")], tmp_path, HASTY)


def test_a_bad_file_is_replaced_only_by_a_good_one(tmp_path):
    (tmp_path / "file.bin").write_bytes(b"damaged")
    with serve({"/file.bin": Page(CONTENT, status=503)}) as site:
        with pytest.raises(DownloadError):
            fetch([source(site, "/file.bin")], tmp_path)
        assert (tmp_path / "file.bin").read_bytes() == b"damaged"
        site.pages["/file.bin"] = Page(CONTENT)
        fetch([source(site, "/file.bin")], tmp_path)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a device that is always full")
def test_a_full_disk_is_told_at_once(tmp_path):
    (tmp_path / "file.bin.part").symlink_to("/dev/full")
    with serve({"/file.bin": Page(CONTENT), "/other.bin": Page(CONTENT)}) as site:
        said = "cannot write to .*No space left.*make room.*about 0 MB free"
        with pytest.raises(StorageError, match=said) as caught:
            fetch([source(site, "/file.bin"), source(site, "/other.bin")], tmp_path)
        assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
        assert len(site.requests) == 1  # another source would not help
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_is_told(tmp_path):
    (tmp_path / "folder").write_text("a file")
    with serve({"/file.bin": Page(CONTENT)}) as site:
        with pytest.raises(StorageError, match="cannot write to .*folder"):
            fetch([source(site, "/file.bin")], tmp_path / "folder")
        assert site.requests == []


def test_a_lock_of_another_user_is_named(tmp_path, monkeypatch):
    def refuse(lock, timeout):
        raise PermissionError(13, "Permission denied", lock.lock_file)

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with serve({"/file.bin": Page(CONTENT)}) as site:
        with pytest.raises(StorageError, match="file.bin.lock .*another user's.*set MRLA_DATA to a folder"):
            fetch([source(site, "/file.bin")], tmp_path)
        assert site.requests == []


def test_offline_asks_nobody_and_leaves_no_trace(tmp_path, monkeypatch):
    monkeypatch.setenv("MRLA_OFFLINE", "1")
    with serve({"/file.bin": Page(CONTENT)}) as site:
        with pytest.raises(DownloadError, match="MRLA_OFFLINE"):
            fetch([source(site, "/file.bin")], tmp_path / "folder")
        assert site.requests == [] and names(tmp_path) == []
        (tmp_path / "file.bin").write_bytes(CONTENT)
        # What is there may be used.
        assert fetch([source(site, "/file.bin")], tmp_path)[0] == tmp_path / "file.bin"


def test_two_at_once_download_once(tmp_path, capsys):
    with serve({"/file.bin": Page(CONTENT, rate=200_000)}) as site:
        wanted, paths = source(site, "/file.bin"), []
        threads = [threading.Thread(target=lambda: paths.append(fetch([wanted], tmp_path)[0]))
                   for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert paths == [tmp_path / "file.bin"] * 2 and site.sent == len(CONTENT)
    assert "waiting for it" in capsys.readouterr().out
