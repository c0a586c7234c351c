"""Checkpoints fetched from a folder, from a server on this machine, and from a hub on it."""

from __future__ import annotations

import functools
import hashlib
import http.server
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from robustsnn.cli.main import _main
from robustsnn.errors import InputError
from robustsnn.models import pull as pulling
from robustsnn.models.checkpoint import load_model, read_checkpoint
from robustsnn.models.pull import pull
from robustsnn.models.zoo import zoo_folder

NAME = "fashion-mnist/resnet12-snn"


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, and, under /OWNER/NAME/resolve/main/, as the Hub serves them."""

    def log_message(self, *args: object) -> None:
        pass

    def send_head(self):
        _, slash, file = self.path.partition("/owner/net/resolve/main/")
        if not slash:
            return super().send_head()
        path = Path(self.directory) / "there" / file
        if not path.is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("X-Repo-Commit", "c" * 40)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        content = path.read_bytes()
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "c" * 40)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return path.open("rb")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of a server on this machine, and a checkpoint in the folder that it serves."""
    there = tmp_path / "served" / "there"
    shutil.copytree(zoo_folder(NAME), there)
    handler = functools.partial(Quiet, directory=str(tmp_path / "served"))
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{made.server_port}", there
    finally:
        made.shutdown()
        made.server_close()
        thread.join()


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_checkpoint_comes_whole_from_a_server_and_from_a_folder(server, tmp_path, capsys):
    address, there = server
    assert _main(["zoo", "pull", f"{address}/there/", "--output", str(tmp_path / "a")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "a")
    local = pull(str(there), tmp_path / "deep" / "b", read_checkpoint(there).sha256.upper())
    assert files(tmp_path / "a") == files(local) == files(there)
    assert type(load_model(local)).__name__ == "Network"
    (there / "card.md").unlink()
    assert "card.md" not in files(pull(f"{address}/there", tmp_path / "c"))


def changed_weights(there: Path) -> None:
    path = there / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def another_network(there: Path) -> None:
    path = there / "model.json"
    described = json.loads(path.read_text())
    described["network"]["widths"] = [8, 8, 8, 8]
    path.write_text(json.dumps(described))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (changed_weights, "does not match the sha256"),
        (another_network, "asks for"),
        (lambda there: (there / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda there: (there / "model.json").write_text("{"), "not valid JSON"),
    ],
)
def test_what_is_broken_is_refused_and_leaves_nothing(server, tmp_path, change, says, capsys):
    address, there = server
    change(there)
    target = tmp_path / "mine" / "net"
    assert _main(["zoo", "pull", f"{address}/there", "--output", str(target)]) == 2
    said = capsys.readouterr().err
    assert says in said and len(said.splitlines()) == 1
    assert not target.parent.exists()


def test_weights_that_were_not_asked_for_are_refused(server, tmp_path):
    address, _ = server
    with pytest.raises(InputError, match="not the ones that you asked for"):
        pull(f"{address}/there", tmp_path / "net", "0" * 64)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "no folder nowhere"),
        (["file:///etc"], "only hf://"),
        (["hf://owner"], "hf://OWNER/NAME"),
        (["ftp://host/net"], "only hf://"),
        (["https://host/net", "--sha256", "abc"], "64 hex digits"),
        (["https://host/"], "no name of its own"),
        (["http://127.0.0.1:1/net", "--output", "new"], "cannot be fetched"),
    ],
)
def test_malformed_references(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert _main(["zoo", "pull", *arguments]) == 2
    said = capsys.readouterr().err
    assert says in said and len(said.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_without_end_is_not_read_to_its_end(server, tmp_path, monkeypatch):
    address, _ = server
    monkeypatch.setattr(pulling, "LARGEST", 100)
    with pytest.raises(InputError, match="larger than 100 bytes"):
        pull(f"{address}/there", tmp_path / "net")


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("huggingface_hub") is None, reason="huggingface_hub is not installed"
)
def test_a_checkpoint_comes_from_a_hub(server, tmp_path):
    address, there = server
    (there / "training.csv").unlink()
    done = subprocess.run(
        [sys.executable, "-m", "robustsnn", "zoo", "pull", "hf://owner/net"],
        cwd=tmp_path,
        env={
            **os.environ,
            "HF_ENDPOINT": address,
            "HF_HOME": str(tmp_path / "cache"),
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "net") == files(there)
