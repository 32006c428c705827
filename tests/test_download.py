"""The downloader against a local server with faults: it resumes, verifies, and leaves a folder whole or not at all."""

import hashlib
import io
import shutil
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from alutils.data import download
from alutils.data.download import ARCHIVES, Archive, DownloadError, download_isic2018, main
from alutils.data.isic2018 import FOLDERS, load_isic2018

FIRST, FOLDER = ARCHIVES[0].name, ARCHIVES[0].name.removesuffix(".zip")


class Server:
    """Files at ``url``, with the faults that a test switches on; ``asked`` logs (name, Range header)."""

    def __init__(self):
        self.files, self.asked = {}, []
        self.drop_after = []  # bytes after which the next answers break off
        self.codes = []  # status codes of the next answers
        self.ignore_range = False
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, self))
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_port}/2018/"

    def close(self):
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def ranges(self):
        return [asked for _, asked in self.asked]


class Handler(BaseHTTPRequestHandler):
    def __init__(self, server, *args):
        self.faults = server
        super().__init__(*args)

    def do_GET(self):
        faults, name, asked = self.faults, self.path.removeprefix("/2018/"), self.headers["Range"]
        faults.asked.append((name, asked))
        code = faults.codes.pop(0) if faults.codes else 200 if name in faults.files else 404
        if code != 200:
            self.send_error(code)
            return
        start = 0 if faults.ignore_range else int(asked.removeprefix("bytes=").removesuffix("-"))
        body = faults.files[name][start:]
        self.send_response(200 if faults.ignore_range else 206)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: faults.drop_after.pop(0)] if faults.drop_after else body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "_WAITS", (0, 0, 0, 0))
    monkeypatch.setattr(download, "_CHUNK", 64)
    server = Server()
    yield server
    server.close()


def encoded(image, kind):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def archives(server):
    """The six archives of a tiny data set of the official layout, on the server."""
    made = []
    for folder in (name for pair in FOLDERS.values() for name in pair):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as zipped:
            zipped.writestr(f"{folder}/LICENSE.txt", b"CC-0")
            zipped.writestr(f"__MACOSX/._{folder}", b"junk")
            for i in range(2):
                name = f"{folder}/ISIC_{folder.split('_')[2]}{i}"
                noise = np.random.default_rng(len(made) // 2 * 2 + i).integers(0, 256, (40, 60, 3), dtype=np.uint8)
                if folder.endswith("Input"):
                    zipped.writestr(f"{name}.jpg", encoded(Image.fromarray(noise), "JPEG"))
                    zipped.writestr(f"{name}_superpixels.png", b"")
                else:
                    mask = Image.fromarray(np.where(noise[..., 0] > 127, 255, 0).astype(np.uint8))
                    zipped.writestr(f"{name}_segmentation.png", encoded(mask, "PNG"))
        data = server.files[f"{folder}.zip"] = buffer.getvalue()
        made.append(Archive(f"{folder}.zip", len(data), hashlib.sha256(data).hexdigest()))
    return tuple(made)


@pytest.fixture
def fetch_first(server, archives, tmp_path):
    return partial(download_isic2018, tmp_path, archives=archives[:1], base_urls=[server.url])


def visible(root):
    return sorted(path.name for path in root.iterdir() if path.name != ".download.lock")


# --- the whole way ---------------------------------------------------------------------------------------------------


def test_the_archives_are_those_whose_folders_the_reader_expects():
    expected = {f"{folder}.zip" for folders in FOLDERS.values() for folder in folders}
    assert {archive.name for archive in ARCHIVES} == expected
    assert sum(archive.size for archive in ARCHIVES) == 13_812_889_765
    assert all(len(bytes.fromhex(archive.sha256)) == 32 for archive in ARCHIVES)


def test_a_fresh_download_can_be_loaded_and_a_second_call_asks_for_nothing(server, archives, tmp_path, monkeypatch):
    root = tmp_path / "new" / "isic"
    fetch = partial(download_isic2018, root, archives=archives, base_urls=[server.url])
    assert fetch() == root and server.ranges() == ["bytes=0-"] * 6
    assert visible(root) == sorted(folder for folders in FOLDERS.values() for folder in folders)
    splits = load_isic2018(root, 32, cache_dir=tmp_path / "cache")
    assert splits.train.ids == ("ISIC_Training0", "ISIC_Training1") and len(splits.test.images) == 2
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    monkeypatch.setattr(download, "FileLock", None)  # nothing to lock: the folder may be a read-only share
    fetch()
    assert len(server.asked) == 6 and {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_two_calls_at_once_fetch_each_archive_once(server, archives, tmp_path):
    fetch = partial(download_isic2018, tmp_path, archives=archives, base_urls=[server.url])
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: fetch(), range(2)))
    assert sorted(server.asked) == sorted((archive.name, "bytes=0-") for archive in archives)


def test_what_the_user_put_there_is_used_and_kept_or_named(server, archives, tmp_path, fetch_first):
    (tmp_path / FIRST).write_bytes(server.files[FIRST][:-1] + b"?")
    with pytest.raises(DownloadError, match=f"{FIRST} is not the official archive: .*Delete it"):
        fetch_first()
    assert visible(tmp_path) == [FIRST]
    (tmp_path / FIRST).write_bytes(server.files[FIRST])
    (tmp_path / FOLDER).mkdir()  # empty, so that it counts as missing
    fetch_first()
    assert server.asked == [] and visible(tmp_path) == [FOLDER, FIRST]
    assert len(list((tmp_path / FOLDER).glob("*.jpg"))) == 2


def test_the_command_ends_in_one_line_or_one_error(server, archives, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(download_isic2018.__kwdefaults__, "archives", archives)
    monkeypatch.setitem(download_isic2018.__kwdefaults__, "base_urls", [server.url])
    assert main([str(tmp_path)]) is None
    assert f"are in {tmp_path}" in capsys.readouterr().out
    server.files.clear()
    shutil.rmtree(tmp_path / FOLDER)
    assert f"{FIRST} cannot be downloaded" in main([str(tmp_path)])
    monkeypatch.setattr(download, "_missing", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert "same command continues" in main([str(tmp_path)])


# --- faults of the network -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ignore_range", [False, True])
def test_a_dropped_connection_is_resumed_from_where_it_broke(server, tmp_path, fetch_first, ignore_range):
    server.ignore_range = ignore_range  # the server then sends all of the file again
    server.drop_after, server.codes = [640, 960 if ignore_range else 320], [200, 503]
    fetch_first()
    assert server.ranges() == ["bytes=0-", "bytes=640-", "bytes=640-", "bytes=960-"]
    assert visible(tmp_path) == [FOLDER]


def test_what_an_interrupted_call_left_is_resumed_by_the_next(server, tmp_path, fetch_first):
    (tmp_path / f"{FIRST}.part").write_bytes(server.files[FIRST][:700])
    fetch_first()
    assert server.ranges() == ["bytes=700-"] and visible(tmp_path) == [FOLDER]


def test_the_mirror_continues_and_where_none_answers_each_is_named(server, archives, tmp_path):
    mirror, closed = Server(), Server()
    closed.close()
    fetch = partial(download_isic2018, tmp_path, archives=archives[:1])
    server.drop_after = [640, 0, 0, 0]
    with pytest.raises(DownloadError, match="browser") as caught:
        fetch(base_urls=[server.url, closed.url])
    assert f"{server.url}{FIRST}: " in str(caught.value) and f"{closed.url}{FIRST}: " in str(caught.value)
    assert visible(tmp_path) == [f"{FIRST}.part"]
    mirror.files, server.codes = server.files, [404]
    fetch(base_urls=[server.url, mirror.url.rstrip("/")])
    mirror.close()
    assert mirror.ranges() == ["bytes=640-"] and visible(tmp_path) == [FOLDER]


def test_a_page_instead_of_the_archive_is_not_written_over_what_has_arrived(server, tmp_path, fetch_first):
    arrived = server.files[FIRST][:700]
    (tmp_path / f"{FIRST}.part").write_bytes(arrived)
    server.files[FIRST], server.ignore_range = b"<html>Please log in</html>", True
    with pytest.raises(DownloadError, match=r"announces 26 bytes instead of \d+"):
        fetch_first()
    assert (tmp_path / f"{FIRST}.part").read_bytes() == arrived


def test_a_corrupt_archive_is_deleted_and_the_next_call_fetches_it_anew(server, tmp_path, fetch_first):
    right = server.files[FIRST]
    server.files[FIRST] = right[:100] + bytes([right[100] ^ 1]) + right[101:]
    with pytest.raises(DownloadError, match=rf"{FIRST}.part is not the official archive: its SHA-256 "):
        fetch_first()
    assert visible(tmp_path) == []
    server.files[FIRST] = right
    fetch_first()
    assert visible(tmp_path) == [FOLDER]


# --- faults of the disk ----------------------------------------------------------------------------------------------


def test_too_small_a_disk_is_refused_before_anything_is_downloaded(server, archives, tmp_path, monkeypatch):
    sizes = [archive.size for archive in archives]
    usage = type("Usage", (), {"free": sum(sizes) + max(sizes) - 1})  # everything unpacked, and an archive beside it
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage)
    fetch = partial(download_isic2018, tmp_path, archives=archives, base_urls=[server.url])
    with pytest.raises(DownloadError, match="make room"):
        fetch()
    assert server.asked == [] and visible(tmp_path) == []
    usage.free = 1.2 * sum(sizes) + max(sizes)
    fetch()


def test_a_root_that_cannot_be_made_is_named(archives, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DownloadError, match="file cannot be written"):
        download_isic2018(tmp_path / "file", archives=archives)


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_unpacking_leaves_no_folder_and_the_next_call_unpacks_without_download(
    server, tmp_path, monkeypatch, fetch_first, interrupt
):
    extract = zipfile.ZipFile.extract

    def extract_one(self, member, path):
        if (path / FOLDER).exists():
            raise interrupt
        return extract(self, member, path)

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "extract", extract_one)
        with pytest.raises((KeyboardInterrupt, DownloadError)):
            fetch_first()
    assert visible(tmp_path) == [f"{FIRST}.part"]
    (tmp_path / f".{FOLDER}.part" / FOLDER).mkdir(parents=True)  # what a killed process would have left
    (tmp_path / f".{FOLDER}.part" / FOLDER / "half.jpg").touch()
    fetch_first()
    assert len(server.asked) == 1 and visible(tmp_path) == [FOLDER]
    assert not (tmp_path / FOLDER / "half.jpg").exists()
