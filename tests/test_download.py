"""The downloader against a local server with faults: it resumes, verifies, and leaves a folder whole or not at all."""

import hashlib
import io
import shutil
import stat
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alutils.data import download
from alutils.data.download import ARCHIVES, Archive, DownloadError, download_isic2018, main
from alutils.data.isic2018 import FOLDERS, load_isic2018


class Server:
    """Files at ``base_url``, with the faults that a test switches on; ``requests`` logs (path, Range header)."""

    def __init__(self):
        self.files = {}  # name -> bytes
        self.requests = []
        self.drop_after = []  # bytes after which the next answers break off
        self.status = {}  # name -> status code of every answer
        self.ignore_range = False
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, self))
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()
        self.base_url = f"http://127.0.0.1:{self._http.server_port}/2018/"

    def close(self):
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def ranges(self, name):
        return [asked for path, asked in self.requests if path == name]


class Handler(BaseHTTPRequestHandler):
    def __init__(self, server, *args):
        self.faults = server
        super().__init__(*args)

    def do_GET(self):
        faults, name, asked = self.faults, self.path.removeprefix("/2018/"), self.headers.get("Range")
        faults.requests.append((name, asked))
        code = faults.status.get(name) or (200 if name in faults.files else 404)
        if code != 200:
            self.send_error(code)
            return
        body = faults.files[name]
        total = len(body)
        if asked and not faults.ignore_range:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            body = body[start:]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if faults.drop_after:
            body = body[: faults.drop_after.pop(0)]
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "_FIRST_WAIT", 0.0)
    monkeypatch.setattr(download, "_CHUNK", 64)
    server = Server()
    yield server
    server.close()


def archive_of(name, data):
    return Archive(name, len(data), hashlib.sha256(data).hexdigest())


def zip_of(members):
    """The bytes of a zip file; ``members`` are (name or ZipInfo, data)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, data in members:
            zipped.writestr(name, data)
    return buffer.getvalue()


def picture(image, kind):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def archives(server):
    """The six archives of a tiny data set of the official layout, on the server."""
    made = []
    rng = np.random.default_rng(0)
    for number, folders in enumerate(FOLDERS.values()):
        for folder in folders:
            members = [(f"{folder}/", b""), (f"{folder}/LICENSE.txt", b"CC-0"), (f"__MACOSX/._{folder}", b"junk")]
            for i in range(2):
                name = f"ISIC_{number}{i}"
                if folder.endswith("Input"):
                    noise = Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))
                    members.append((f"{folder}/{name}.jpg", picture(noise, "JPEG")))
                else:
                    mask = Image.new("L", (60, 40))
                    mask.paste(255, (10, 10, 30, 30))
                    members.append((f"{folder}/{name}_segmentation.png", picture(mask, "PNG")))
            data = zip_of(members)
            server.files[f"{folder}.zip"] = data
            made.append(archive_of(f"{folder}.zip", data))
    return tuple(made)


def visible(root):
    return sorted(path.name for path in root.iterdir() if path.name != ".download.lock")


FIRST = ARCHIVES[0].name


# --- the whole way ---------------------------------------------------------------------------------------------------


def test_the_archives_are_those_whose_folders_the_reader_expects():
    assert sorted(archive.folder for archive in ARCHIVES) == sorted(name for pair in FOLDERS.values() for name in pair)
    assert sum(archive.size for archive in ARCHIVES) == 13_812_889_765
    assert all(len(bytes.fromhex(archive.sha256)) == 32 for archive in ARCHIVES)


def test_a_fresh_download_can_be_loaded_and_leaves_only_the_six_folders(server, archives, tmp_path):
    root = tmp_path / "new" / "isic"
    assert download_isic2018(root, archives=archives, base_urls=[server.base_url]) == root
    assert visible(root) == sorted(archive.folder for archive in archives)
    splits = load_isic2018(root, 32, cache_dir=tmp_path / "cache")
    assert splits.train.ids == ("ISIC_00", "ISIC_01") and splits.test.ids == ("ISIC_20", "ISIC_21")
    assert [asked for _, asked in server.requests] == ["bytes=0-"] * 6


def test_a_second_call_asks_the_server_for_nothing_and_changes_nothing(server, archives, tmp_path, monkeypatch):
    download_isic2018(tmp_path, archives=archives, base_urls=[server.base_url])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*g")}
    server.requests.clear()
    monkeypatch.setattr(download, "FileLock", None)  # nothing to lock: the folder may be a read-only share
    download_isic2018(tmp_path, archives=archives, base_urls=[server.base_url])
    assert server.requests == []
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*g")} == before


def test_a_folder_with_hidden_files_alone_is_fetched_and_keeps_them(server, archives, tmp_path):
    folder = tmp_path / archives[0].folder
    folder.mkdir()
    (folder / ".DS_Store").write_bytes(b"mine")
    download_isic2018(tmp_path, archives=archives[:1], base_urls=[server.base_url])
    assert (folder / ".DS_Store").read_bytes() == b"mine" and len(list(folder.glob("*.jpg"))) == 2
    assert visible(tmp_path) == [archives[0].folder]


def test_each_folder_with_fewer_files_than_the_official_one_is_named_before_anything_is_fetched(
    server, archives, tmp_path, monkeypatch, capsys
):
    download_isic2018(tmp_path, archives=archives, base_urls=[server.base_url])
    archives = [replace(archive, n_images=2) for archive in archives]
    monkeypatch.setitem(download_isic2018.__kwdefaults__, "archives", archives)
    assert main([str(tmp_path)]) == 0
    (tmp_path / archives[0].folder / "ISIC_00.jpg").rename(tmp_path / archives[0].folder / "._ISIC_00.jpg")
    (tmp_path / archives[1].folder / "ISIC_00_segmentation.png").unlink()
    shutil.rmtree(tmp_path / archives[2].folder)
    server.requests.clear()
    capsys.readouterr()
    assert main([str(tmp_path)]) == 1
    said = capsys.readouterr().err
    for archive in archives:
        assert (f"{archive.folder} has 1 of 2 files" in said) == (archive in archives[:2])
    assert server.requests == [] and not (tmp_path / archives[2].folder).exists()


def test_the_official_counts_are_compared():
    assert [archive.n_images for archive in ARCHIVES] == [2594, 2594, 100, 100, 1000, 1000]


def test_the_users_own_archive_is_used_and_not_deleted(server, archives, tmp_path):
    (tmp_path / FIRST).write_bytes(server.files[FIRST])
    (tmp_path / archives[0].folder).mkdir()  # an empty folder counts as missing
    download_isic2018(tmp_path, archives=archives[:1], base_urls=[server.base_url])
    assert server.requests == []
    assert any((tmp_path / archives[0].folder).iterdir()) and (tmp_path / FIRST).exists()


def test_the_users_wrong_archive_is_named_and_not_deleted(server, archives, tmp_path):
    (tmp_path / FIRST).write_bytes(server.files[FIRST][:-1] + b"?")
    with pytest.raises(DownloadError, match=f"{FIRST} is not the official archive: .*Move it away"):
        download_isic2018(tmp_path, archives=archives, base_urls=[server.base_url])
    assert visible(tmp_path) == [FIRST]


def test_two_calls_at_once_fetch_each_archive_once(server, archives, tmp_path):
    fetch = partial(download_isic2018, tmp_path, archives=archives, base_urls=[server.base_url])
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: fetch(), range(2)))
    assert sorted(server.requests) == sorted((archive.name, "bytes=0-") for archive in archives)


# --- faults of the network -------------------------------------------------------------------------------------------


def test_a_dropped_connection_is_resumed_from_where_it_broke(server, archives, tmp_path):
    server.drop_after = [640, 320]
    download_isic2018(tmp_path, archives=archives[:1], base_urls=[server.base_url])
    assert server.ranges(FIRST) == ["bytes=0-", "bytes=640-", "bytes=960-"]
    assert visible(tmp_path) == [archives[0].folder]


@pytest.mark.parametrize(("left", "asked"), [(700, "bytes=700-"), (10**6, "bytes=0-")], ids=["less", "too much"])
def test_what_an_interrupted_call_left_is_resumed_by_the_next(server, archives, tmp_path, left, asked):
    (tmp_path / f"{FIRST}.part").write_bytes(server.files[FIRST].ljust(10**6)[:left])
    download_isic2018(tmp_path, archives=archives[:1], base_urls=[server.base_url])
    assert server.ranges(FIRST) == [asked]
    assert visible(tmp_path) == [archives[0].folder]


def test_a_server_that_ignores_range_sends_all_and_the_file_is_right(server, archives, tmp_path):
    server.ignore_range = True
    server.drop_after = [640]
    download_isic2018(tmp_path, archives=archives[:1], base_urls=[server.base_url])
    assert server.ranges(FIRST) == ["bytes=0-", "bytes=640-"]
    assert visible(tmp_path) == [archives[0].folder]


@pytest.mark.parametrize("fault", ["missing", "breaks off"])
def test_the_mirror_continues_where_the_first_address_fails(server, archives, tmp_path, fault):
    mirror = Server()
    mirror.files = dict(server.files)
    if fault == "missing":
        server.status[FIRST] = 404
    else:
        server.drop_after = [640, 0, 0, 0]
    try:
        download_isic2018(tmp_path, archives=archives[:1], base_urls=[server.base_url, mirror.base_url.rstrip("/")])
    finally:
        mirror.close()
    assert len(server.requests) == 4
    assert mirror.ranges(FIRST) == ["bytes=0-" if fault == "missing" else "bytes=640-"]
    assert visible(tmp_path) == [archives[0].folder]


def test_when_no_address_answers_the_error_names_each_and_the_remedy_and_the_next_call_continues(
    server, archives, tmp_path
):
    server.drop_after = [640, 0, 0, 0]
    closed = Server()
    closed.close()
    with pytest.raises(DownloadError) as caught:
        download_isic2018(tmp_path, archives=archives[:1], base_urls=[server.base_url, closed.base_url])
    message = str(caught.value)
    assert f"{server.base_url}{FIRST}: " in message and f"{closed.base_url}{FIRST}: " in message
    assert "browser" in message and str(tmp_path) in message
    assert visible(tmp_path) == [f"{FIRST}.part"]
    download_isic2018(tmp_path, archives=archives[:1], base_urls=[server.base_url])
    assert server.ranges(FIRST)[-1] == "bytes=640-"


def test_a_page_instead_of_the_archive_is_not_written_over_what_has_arrived(server, archives, tmp_path):
    arrived = server.files[FIRST][:700]
    (tmp_path / f"{FIRST}.part").write_bytes(arrived)
    server.files[FIRST] = b"<html>Please log in</html>"
    server.ignore_range = True
    with pytest.raises(DownloadError, match=r"announces 26 bytes instead of \d+"):
        download_isic2018(tmp_path, archives=archives[:1], base_urls=[server.base_url])
    assert (tmp_path / f"{FIRST}.part").read_bytes() == arrived


def test_a_corrupt_archive_is_deleted_and_the_next_call_fetches_it_anew(server, archives, tmp_path):
    right = server.files[FIRST]
    server.files[FIRST] = right[:100] + bytes([right[100] ^ 1]) + right[101:]
    with pytest.raises(DownloadError, match=rf"{FIRST}.part is not the official archive: .* SHA-256 .*It was deleted"):
        download_isic2018(tmp_path, archives=archives[:1], base_urls=[server.base_url])
    assert visible(tmp_path) == []
    server.files[FIRST] = right
    download_isic2018(tmp_path, archives=archives[:1], base_urls=[server.base_url])
    assert visible(tmp_path) == [archives[0].folder]


# --- faults of the disk ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [False, True])
def test_too_small_a_disk_is_refused_before_anything_is_downloaded(server, archives, tmp_path, monkeypatch, keep):
    sizes = [archive.size for archive in archives]
    least = sum(sizes) + (sum(sizes) if keep else max(sizes))  # everything unpacked, and the archives beside it
    fetch = partial(download_isic2018, tmp_path, archives=archives, base_urls=[server.base_url], keep_archives=keep)
    usage = type("Usage", (), {"free": least - 1})
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DownloadError, match="make room"):
        fetch()
    assert server.requests == [] and visible(tmp_path) == []
    usage.free = 1.2 * least
    fetch()
    assert (tmp_path / FIRST).exists() == keep


def test_a_root_that_cannot_be_made_is_named(archives, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DownloadError, match="file cannot be written"):
        download_isic2018(tmp_path / "file", archives=archives)


# --- unpacking -------------------------------------------------------------------------------------------------------


def test_a_malicious_archive_cannot_write_outside_its_folder(server, tmp_path):
    folder = ARCHIVES[0].folder
    members = [(f"{folder}/good", b""), ("/evil", b""), ("../evil", b""), (f"{folder}/../../evil", b""), ("evil", b"")]
    link = zipfile.ZipInfo(f"{folder}/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    data = zip_of([*members, (link, b"/etc")])
    server.files[FIRST] = data
    root = tmp_path / "deep" / "root"
    download_isic2018(root, archives=[archive_of(FIRST, data)], base_urls=[server.base_url])
    assert visible(root) == [folder] and visible(tmp_path) == ["deep"] and visible(tmp_path / "deep") == ["root"]
    assert not (root / folder / "link").is_symlink() and not Path("/evil").exists()


@pytest.mark.parametrize("data", [b"no zip file", zip_of([("elsewhere/file", b"")])], ids=["no zip", "no folder"])
def test_what_cannot_be_unpacked_is_named_and_leaves_no_folder(server, tmp_path, data):
    server.files[FIRST] = data
    with pytest.raises(DownloadError, match=f"{FIRST}.part cannot be unpacked: "):
        download_isic2018(tmp_path, archives=[archive_of(FIRST, data)], base_urls=[server.base_url])
    assert visible(tmp_path) == [f"{FIRST}.part"]


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_unpacking_leaves_no_folder_and_the_next_call_unpacks_without_download(
    server, archives, tmp_path, monkeypatch, interrupt
):
    extract = zipfile.ZipFile.extract
    unpacked = []

    def extract_one(self, member, path):
        if unpacked:
            raise interrupt
        unpacked.append(member)
        return extract(self, member, path)

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "extract", extract_one)
        with pytest.raises((KeyboardInterrupt, DownloadError)):
            download_isic2018(tmp_path, archives=archives[:1], base_urls=[server.base_url])
    assert visible(tmp_path) == [f"{FIRST}.part"]
    (tmp_path / f".{archives[0].folder}.part").mkdir()  # what a killed process would have left
    (tmp_path / f".{archives[0].folder}.part" / "half.jpg").touch()
    server.requests.clear()
    download_isic2018(tmp_path, archives=archives[:1], base_urls=[server.base_url])
    assert server.requests == [] and visible(tmp_path) == [archives[0].folder]
    assert not (tmp_path / archives[0].folder / "half.jpg").exists()


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_downloads_and_reports_errors_and_interrupts_without_a_traceback(
    server, archives, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(download_isic2018.__kwdefaults__, "archives", archives)
    monkeypatch.setitem(download_isic2018.__kwdefaults__, "base_urls", [server.base_url])
    assert main([str(tmp_path / "isic")]) == 0
    assert f"complete in {tmp_path / 'isic'}" in capsys.readouterr().out
    server.status = dict.fromkeys(server.files, 404)
    assert main([str(tmp_path / "other")]) == 1
    assert f"{FIRST} cannot be downloaded" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([])

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "download_isic2018", interrupted)
    assert main([str(tmp_path / "other")]) == 130
    assert "same command continues" in capsys.readouterr().err
