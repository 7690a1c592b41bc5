"""Models of the hub: from its cache on this machine, else from a hub that this test runs."""

import hashlib
import json
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from huggingface_hub import constants

from protocols.sharding import hub
from protocols.sharding.hub import download, main
from protocols.sharding.splitting import DOWNLOAD, Download, Unsuitable, read
from tests.unit.sharding_models import save_model

COMMIT = "c0ffee" * 6 + "abcd"
REPO = "someone/tiny-llama"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a hub that cannot be reached."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    use("http://127.0.0.1:9", monkeypatch)
    (tmp_path / "said").mkdir()
    return tmp_path / "hub"


def use(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the hub at this address, as HF_ENDPOINT does for a process that starts."""
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def put(cache: Path, source: Path, repo: str = REPO) -> Path:
    """Lay a folder into the cache as the hub's own library does: links to files named by hash."""
    place = cache / f"models--{repo.replace('/', '--')}"
    snapshot = place / "snapshots" / COMMIT
    for folder in (snapshot, place / "blobs", place / "refs"):
        folder.mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    for path in source.iterdir():
        name = hashlib.sha256(path.read_bytes()).hexdigest()
        (place / "blobs" / name).write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(f"../../blobs/{name}")
    return snapshot


@contextmanager
def serving(repo: str, files: dict[str, bytes]) -> Generator[tuple[str, list[str]]]:
    """Run a hub with one repository; yields its address and the files that were asked for."""
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            name = path.removeprefix(f"/{repo}/resolve/{COMMIT}/")
            if path.startswith(f"/api/models/{repo}/tree/"):
                self.answer(json.dumps([
                    {"type": "file", "path": name, "size": len(data),
                     "oid": hashlib.sha1(data).hexdigest()}  # as git names it
                    for name, data in files.items()
                ]).encode())  # fmt: skip
            elif path.startswith(f"/api/models/{repo}"):
                siblings = [{"rfilename": name} for name in files]
                about = {"id": repo, "sha": COMMIT, "siblings": siblings}
                self.answer(json.dumps(about).encode())
            elif name in files:
                if self.command == "GET":
                    asked.append(name)
                self.answer(files[name])
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()

        def answer(self, data: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_whole_copy_in_the_cache_is_used_and_nobody_is_asked(cache: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    snapshot = put(cache, tmp_path / "model")
    assert main(REPO, str(tmp_path / "said")) == 0
    assert read(tmp_path / "said" / DOWNLOAD, Download) == Download(path=str(snapshot))
    assert download(f"{REPO}@{COMMIT}", tmp_path / "said") == snapshot


def test_without_a_copy_and_without_a_hub_it_says_what_to_do(cache: Path, tmp_path: Path) -> None:
    assert main(REPO, str(tmp_path / "said")) == 2
    said = read(tmp_path / "said" / DOWNLOAD, Download)
    assert said is not None
    assert said.error.startswith(f"{REPO} is not in the hub's cache here, and the hub cannot be")
    assert said.error.endswith("copy its folder here and add that")
    assert "\n" not in said.error
    assert cache.exists() is False or not list(cache.rglob("*.safetensors"))


def test_data_is_downloaded_programs_are_not(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tmp_path / "model")
    files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    others = ["modeling_x.py", "pytorch_model.bin", "onnx/model.json", "consolidated.safetensors"]
    with serving(REPO, files | dict.fromkeys(others, b"x")) as (address, asked):
        use(address, monkeypatch)
        found = download(REPO, tmp_path / "said")
        assert {path.name: path.read_bytes() for path in found.iterdir()} == files
        assert sorted(asked) == sorted(files)
        asked.clear()
        assert download(REPO, tmp_path / "said") == found
        (found / "model.safetensors").unlink()  # as after an interruption
        assert download(REPO, tmp_path / "said") == found
    assert (found / "model.safetensors").read_bytes() == files["model.safetensors"]
    assert set(asked) <= {"model.safetensors"}
    assert cache in found.parents


def test_a_repository_with_gguf_files_only_says_which(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(REPO, {"q4.gguf": b"x", "q8.gguf": b"x", "config.json": b"{}"}) as (address, _):
        use(address, monkeypatch)
        with pytest.raises(Unsuitable, match=r"files only \(q4\.gguf, q8\.gguf\): choose one"):
            download(REPO, tmp_path / "said")
    (tmp_path / "q4.gguf").write_bytes(b"x")
    (tmp_path / "only").mkdir()
    (tmp_path / "q4.gguf").rename(tmp_path / "only" / "q4.gguf")
    put(cache, tmp_path / "only", "someone/other")
    with pytest.raises(Unsuitable, match=r"`shoal model add .*/FILE`"):
        download("someone/other", tmp_path / "said")


@pytest.mark.usefixtures("cache")
def test_what_the_hub_does_not_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(REPO, {"model.bin": b"x"}) as (address, _):
        use(address, monkeypatch)
        with pytest.raises(Unsuitable, match="the hub has no someone/else"):
            download("someone/else", tmp_path / "said")
        with pytest.raises(Unsuitable, match=r"has no \.safetensors file"):
            download(REPO, tmp_path / "said")
    with pytest.raises(Unsuitable, match="neither ORG/NAME"):
        download("../../etc", tmp_path / "said")


@pytest.mark.usefixtures("cache")
def test_a_full_disk_is_said_before_anything_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("protocols.sharding.splitting.DISK_RESERVE_BYTES", 1 << 60)
    with serving(REPO, {"model.safetensors": bytes(10), "config.json": b"{}"}) as (address, asked):
        use(address, monkeypatch)
        with pytest.raises(Unsuitable, match="MiB of disk are needed, 0 MiB can be had"):
            hub.download(REPO, tmp_path / "said")
    assert not asked
