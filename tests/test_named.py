"""Named sets: where they come from, and that nothing is kept that is not what it should be."""

import gzip
import threading
import time
from hashlib import sha256
from http.client import BadStatusLine
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from pyrovae.data import downloads, load_data
from pyrovae.data.downloads import OFFLINE, Remote, fetch
from pyrovae.data.named import IDX_NAMES, NAMED, NamedSet, _idx_images
from pyrovae.errors import InputError

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"


def idx(array):
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return gzip.compress(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes(), mtime=0)


def contents():
    rng = np.random.default_rng(0)
    shapes = ((60, 4, 4), (60,), (20, 4, 4), (20,))
    arrays = (rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes)
    return {f"{name}.gz": idx(array) for name, array in zip(IDX_NAMES, arrays, strict=True)}


@pytest.fixture
def served():
    """A server on this machine: the files it has, how it answers, and what it was asked for."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.rpartition("/")[2]
            self.server.asked.append(self.path)
            time.sleep(self.server.wait)
            if self.path.startswith("/moved/"):
                self.send_response(302)
                self.send_header("Location", self.server.to + name)
                self.end_headers()
            elif name not in self.server.files:
                self.send_error(404)
            else:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(self.server.files[name])

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.asked, server.wait, server.to = contents(), [], 0, ""
    server.address = f"http://127.0.0.1:{server.server_port}/"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def small(served, monkeypatch):
    """A small set in the place of KMNIST, whose files the server has."""
    files = tuple(Remote(n, len(c), sha256(c).hexdigest()) for n, c in served.files.items())
    found = NamedSet("KMNIST", _idx_images, files, (served.address,), ("KMNIST/raw",))
    monkeypatch.setitem(NAMED, "kmnist", found)
    monkeypatch.delenv(OFFLINE, raising=False)
    return found


def test_a_set_is_downloaded_once(small, served, tmp_path):
    data = load_data("kmnist", data_dir=tmp_path)
    assert (len(data.train), len(data.valid), len(data.test)) == (50, 10, 20)
    assert len(served.asked) == 4
    again = load_data("kmnist", data_dir=tmp_path)
    assert again.fingerprint == data.fingerprint
    assert len(served.asked) == 4
    assert sorted(p.name for p in (tmp_path / "KMNIST/raw").iterdir()) == sorted(served.files)


def test_only_what_lacks_is_downloaded(small, served, tmp_path):
    load_data("kmnist", data_dir=tmp_path)
    lost = tmp_path / "KMNIST/raw" / small.files[2].name
    lost.unlink()
    load_data("kmnist", data_dir=tmp_path)
    assert served.asked[4:] == [f"/{small.files[2].name}"]


@pytest.mark.parametrize("harm", ["other", "short", "long", "empty"])
def test_what_arrives_other_than_it_should_is_not_kept(harm, small, served, tmp_path):
    name = small.files[1].name
    whole = served.files[name]
    served.files[name] = {
        "other": whole[:-1] + bytes([whole[-1] ^ 1]),
        "short": whole[:-1],
        "long": whole + b"0",
        "empty": b"",
    }[harm]
    with pytest.raises(InputError, match="arrived other than it should be"):
        load_data("kmnist", data_dir=tmp_path)
    assert [p.name for p in (tmp_path / "KMNIST/raw").iterdir()] == [small.files[0].name]


def test_what_never_ends_is_cut_off(served, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "CHUNK", 1000)
    endless = Remote("endless", 5000, "0" * 64)

    class Endless:
        def __init__(self):
            self.read_so_far = 0

        def read(self, size):
            self.read_so_far += size
            return b"0" * size

    answer = Endless()
    with pytest.raises(OSError, match="other than it should be"):
        downloads._keep(answer, endless, tmp_path)
    assert answer.read_so_far == 6000
    assert list(tmp_path.iterdir()) == []


def test_the_next_address_is_tried(small, served, tmp_path):
    fetch(small.files, (f"{served.address}nowhere/x", served.address), tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


def test_a_server_of_another_kind_is_passed_over(small, served, tmp_path, monkeypatch):
    real = downloads.urlopen

    def answer(address, timeout):
        if "other" in address:
            raise BadStatusLine("SSH-2.0-x")
        return real(address, timeout=timeout)

    monkeypatch.setattr(downloads, "urlopen", answer)
    fetch(small.files, ("http://other/", served.address), tmp_path)
    assert len(list(tmp_path.iterdir())) == 4
    with pytest.raises(OSError, match="SSH"):
        fetch(small.files, ("http://other/",), tmp_path / "again")


def test_a_redirection_out_of_the_web_is_not_followed(small, served, tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    served.to = f"file://{tmp_path}/"
    secret = Remote("secret", 6, sha256(b"secret").hexdigest())
    with pytest.raises(OSError, match="not allowed"):
        fetch([secret], (f"{served.address}moved/",), tmp_path / "in")


def test_a_slow_server_is_not_waited_for(small, served, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "SECONDS", 0.2)
    served.wait = 1
    with pytest.raises(InputError, match="timed out"):
        load_data("kmnist", data_dir=tmp_path)


def test_without_a_network_one_error_says_what_works(tmp_path, monkeypatch):
    monkeypatch.setenv(OFFLINE, "1")
    with pytest.raises(InputError) as error:
        load_data("fashion-mnist", data_dir=tmp_path)
    text = str(error.value)
    assert "PYROVAE_OFFLINE is set" in text
    assert str(tmp_path / "FashionMNIST" / "raw") in text
    assert all(f"{name}.gz" in text for name in IDX_NAMES)
    assert "--data digits" in text
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_said(small, tmp_path):
    (tmp_path / "KMNIST").write_text("a file")
    with pytest.raises(InputError, match="cannot be downloaded"):
        load_data("kmnist", data_dir=tmp_path)


@pytest.mark.parametrize("place", ["MNIST/raw", "MNIST", "."])
def test_mnist_is_found_where_it_may_lie(place, tmp_path, monkeypatch):
    monkeypatch.setenv(OFFLINE, "1")
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    for name, content in contents().items():
        (tmp_path / place / name).write_bytes(content)
    assert len(load_data("mnist", data_dir=tmp_path).test) == 20
    with pytest.raises(InputError):
        load_data("kmnist", data_dir=tmp_path)


@pytest.mark.parametrize("name", NAMED)
def test_files_that_are_at_hand_are_those_of_the_table(name):
    if not SHARED.is_dir():
        pytest.skip("needs ../shared/data")
    found = [
        (file, path)
        for file in NAMED[name].files
        for place in NAMED[name].places
        if (path := SHARED / place / file.name).is_file()
    ]
    assert found or name != "mnist"
    for file, path in found:
        assert path.stat().st_size == file.size
        assert sha256(path.read_bytes()).hexdigest() == file.sha256


def test_the_documents_table_is_that_of_the_code():
    text = (ROOT / "docs" / "data.md").read_text()
    for name, found in NAMED.items():
        assert f"`{name}`" in text
        for file in found.files:
            row = next(line for line in text.splitlines() if file.sha256 in line)
            assert f"`{file.name}`" in row
            assert f"{file.size:,}" in row
            assert f"`{found.places[0]}`" in row
        for address in found.addresses:
            assert address in text
        for other in found.others:
            assert f"`{other}`" in text
