"""The client of the hub, as it is, against a small hub in this process: what is sent is what comes back."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pickle
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from PIL import Image

from opir_lightning import Restorer, UserError, checkpoints, hub, restore
from opir_lightning.checkpoints import find_weights, load_model, pack_weights, read_header, start_from
from opir_lightning.models import OPIR

pytest.importorskip("huggingface_hub")
from huggingface_hub import constants

# The client's own way of sending bytes.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")

SETTINGS = {
    "tasks": ["none", "noise", "rain"],
    "width": 4,
    "encoder_blocks": [1],
    "middle_blocks": 1,
    "decoder_blocks": [1],
    "features": 4,
}
NOBODY = "http://127.0.0.1:9"  # where no one listens
GOOD, READ_ONLY = "hf_may_write", "hf_may_read"


class SmallHub(ThreadingHTTPServer):
    """As much of the hub's protocol as one model needs; weights go the way of large files, the card goes in the commit.

    Attributes:
        models: by id: ``private``, ``gated``, ``commits`` (oldest first): id, message and files of each.
        asked: method and path of every request.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.models: dict[str, dict] = {}
        self.large: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []

    def add(self, repo: str, files: dict[str, bytes], message: str = "", **properties: bool) -> str:
        """A commit with these files on top of those that are there; returns its id."""
        model = self.models.setdefault(repo, {"private": False, "gated": False, "commits": []})
        model.update(properties)
        before = model["commits"][-1]["files"] if model["commits"] else {}
        number = hashlib.sha1(f"{repo} {len(model['commits'])}".encode()).hexdigest()
        model["commits"].append({"id": number, "message": message, "files": {**before, **files}})
        return number


class Answer(BaseHTTPRequestHandler):
    server: SmallHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def reply(self, status: int, content: object = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str = "", **headers: str) -> None:
        self.reply(status, {"error": code}, X_Error_Code=code, **headers)

    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def do_GET(self) -> None:
        self.server.asked.append((self.command, self.path))
        if self.path.startswith("/api/models/"):
            model = self.server.models.get(self.path.removeprefix("/api/models/"))
            if model is None:
                return self.refuse(404, "RepoNotFound")
            return self.reply(200, {"id": self.path[12:], "private": model["private"], "tags": [], "siblings": []})
        owner, name, _, revision, file = self.path[1:].split("/", 4)
        model = self.server.models.get(f"{owner}/{name}")
        if model is None or (model["private"] and self.token() not in (GOOD, READ_ONLY)):
            return self.refuse(404, "RepoNotFound")
        if model["gated"]:
            return self.refuse(403, "GatedRepo")
        commits = {commit["id"]: commit for commit in model["commits"]}
        commit = commits.get(model["commits"][-1]["id"] if revision == "main" else revision)
        if commit is None:
            return self.refuse(404, "RevisionNotFound")
        if file not in commit["files"]:
            return self.refuse(404, "EntryNotFound", X_Repo_Commit=commit["id"])
        content = commit["files"][file]
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        return self.reply(200, content, ETag=etag, X_Repo_Commit=commit["id"])

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.server.asked.append((self.command, self.path))
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/validate-yaml":
            return self.reply(200, {"errors": [], "warnings": []})
        if self.token() != GOOD:
            return self.refuse(403 if self.token() == READ_ONLY else 401)
        if self.path == "/api/repos/create":
            return self.create(json.loads(body))
        if self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**thing, "actions": {"upload": {"href": f"{self.server.url}/large/{thing['oid']}"}}}
                for thing in json.loads(body)["objects"]
            ]
            return self.reply(200, {"transfer": "basic", "objects": objects})
        owner, name, verb, _ = self.path.removeprefix("/api/models/").split("/")
        if verb == "preupload":
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self.reply(200, {"files": files})
        return self.commit(f"{owner}/{name}", [json.loads(line) for line in body.splitlines()])

    def create(self, wish: dict) -> None:
        repo = f"{wish['organization']}/{wish['name']}"
        status = 409 if repo in self.server.models else 200
        private = wish.get("private") or wish.get("visibility") == "private"
        self.server.models.setdefault(repo, {"private": private, "gated": False, "commits": []})
        self.reply(status, {"url": f"{self.server.url}/{repo}"})

    def commit(self, repo: str, lines: list[dict]) -> None:
        files = {}
        for line in lines[1:]:
            value = line["value"]
            files[value["path"]] = (
                self.server.large[value["oid"]] if line["key"] == "lfsFile" else base64.b64decode(value["content"])
            )
        number = self.server.add(repo, files, lines[0]["value"]["summary"])
        self.reply(200, {"commitUrl": f"{self.server.url}/{repo}/commit/{number}", "commitOid": number})

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.large[hashlib.sha256(content).hexdigest()] = content
        self.reply(200)


@pytest.fixture(scope="module")
def model() -> OPIR:
    torch.manual_seed(0)
    net = OPIR.from_settings(SETTINGS).eval()
    for value in net.state_dict().values():  # a new network does nothing, and any two would agree
        if value.is_floating_point():
            value.add_(0.1 * torch.rand(value.shape))
    return net


@pytest.fixture
def small_hub(tmp_path, monkeypatch):
    server = SmallHub()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    # What the client takes from its environment when it is imported; version 1.0 does not hear of the above later on.
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the storage of large files has a protocol of its own
    monkeypatch.setenv("HF_TOKEN", GOOD)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def picture() -> torch.Tensor:
    return torch.rand(1, 3, 21, 34, generator=torch.Generator().manual_seed(1))


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_what_is_pushed_comes_back_bit_for_bit(small_hub, model, picture):
    sender = Restorer(model, device="cpu")
    sender.metadata = {"steps": 7, "psnr": {"Rain100L": [25.0, 27.5]}}
    url = sender.push_to_hub("someone/tiny-rain", private=True, commit_message="First weights", license_name="mit")
    assert url == f"{small_hub.url}/someone/tiny-rain"
    there = small_hub.models["someone/tiny-rain"]
    assert there["private"]
    (commit,) = there["commits"]
    assert commit["message"] == "First weights"
    assert set(commit["files"]) == {"model.safetensors", "README.md"}
    card = commit["files"]["README.md"].decode()
    assert "license: 'mit'" in card
    assert 'from_pretrained("someone/tiny-rain")' in card
    assert "| Rain100L | 25.00 | 27.50 |" in card

    receiver = Restorer.from_pretrained("someone/tiny-rain", device="cpu")
    assert same(receiver(picture), sender(picture))
    assert receiver.metadata == sender.metadata
    assert receiver.tasks == sender.tasks


def test_a_revision_stays_when_newer_weights_are_pushed(small_hub, model, picture):
    Restorer(model).push_to_hub("someone/tiny")
    first = small_hub.models["someone/tiny"]["commits"][0]["id"]
    old = Restorer.from_pretrained("someone/tiny", device="cpu")
    newer = OPIR.from_settings(SETTINGS)
    newer.load_state_dict({name: value * 1.5 for name, value in model.state_dict().items()})
    Restorer(newer).push_to_hub("someone/tiny", card="---\nlicense: mit\n---\nMy own words.\n")
    assert small_hub.models["someone/tiny"]["commits"][1]["files"]["README.md"].decode().endswith("My own words.\n")
    now = Restorer.from_pretrained("someone/tiny", device="cpu")(picture)
    assert not same(now, old(picture))
    assert same(now, Restorer(newer, device="cpu")(picture))
    assert same(Restorer.from_pretrained(f"someone/tiny@{first}", device="cpu")(picture), old(picture))


def test_weights_are_fetched_once_and_serve_without_the_hub(small_hub, model, monkeypatch):
    small_hub.add("someone/tiny", {"model.safetensors": pack_weights(model, {"steps": 3})})
    path = find_weights("someone/tiny")
    assert [method for method, _ in small_hub.asked] == ["HEAD", "HEAD", "GET"]
    assert find_weights("someone/tiny") == path
    assert [method for method, _ in small_hub.asked] == ["HEAD", "HEAD", "GET", "HEAD"]
    monkeypatch.setenv("HF_ENDPOINT", NOBODY)
    assert read_header("someone/tiny").metadata == {"steps": 3}


def test_a_newer_file_that_is_too_large_is_not_fetched(small_hub, model, monkeypatch):
    packed = pack_weights(model)
    monkeypatch.setattr(hub, "LARGEST_FILE", len(packed))
    small_hub.add("someone/tiny", {"model.safetensors": packed})
    path = find_weights("someone/tiny")
    small_hub.add("someone/tiny", {"model.safetensors": packed + b" "})
    with pytest.raises(UserError, match=rf"has {len(packed) + 1} bytes; {len(packed)} are allowed"):
        find_weights("someone/tiny")
    assert [method for method, _ in small_hub.asked].count("GET") == 1
    monkeypatch.setenv("HF_ENDPOINT", NOBODY)
    assert find_weights("someone/tiny") == path


def test_the_command_restores_with_weights_of_the_hub(small_hub, model, tmp_path, monkeypatch):
    small_hub.add("someone/tiny", {"model.safetensors": pack_weights(model)})
    Image.new("RGB", (24, 20), (90, 120, 30)).save(tmp_path / "in.png")
    monkeypatch.chdir(tmp_path)
    assert restore.main(["in.png", "-o", "out", "--weights", "someone/tiny", "--device", "cpu"]) == 0
    with Image.open(tmp_path / "out" / "in.png") as restored, Image.open(tmp_path / "in.png") as before:
        want = Restorer(model, device="cpu").restore_image(before)
        assert restored.tobytes() == want.tobytes() != before.tobytes()


def test_a_training_starts_from_weights_of_the_hub(small_hub, model):
    small_hub.add("someone/tiny", {"model.safetensors": pack_weights(model)})
    net = OPIR.from_settings(SETTINGS)
    start_from(net, "someone/tiny")
    for name, value in model.state_dict().items():
        assert torch.equal(net.state_dict()[name], value)


def test_names_files_and_folders_come_before_the_hub(small_hub, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoints.save_weights("runs/rain/model.safetensors", model)
    assert find_weights("runs/rain") == Path("runs/rain/model.safetensors")
    assert load_model("opir_tiny")[0].tasks != model.tasks
    for missing in ("runs/snow.safetensors", "runs/last.ckpt", "./runs/snow", "/runs/snow", "snow", Path("runs/snow")):
        with pytest.raises(UserError, match="There is no weights file"):
            find_weights(missing)
    assert small_hub.asked == []


FAILURES = {
    "no model": ("someone/nothing", "shows no model of this name; if it is a private one, log in"),
    "no revision": ("someone/tiny@v9", "has no revision 'v9'"),
    "no weights": ("someone/pickles", "holds no model.safetensors"),
    "on request": ("someone/gated", "is open on request"),
    "no id": ("some--one/tiny", "is no id of a model"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_what_cannot_be_fetched_is_one_sentence_that_names_both_meanings(small_hub, model, case):
    weights = pack_weights(model)
    small_hub.add("someone/tiny", {"model.safetensors": weights})
    small_hub.add("someone/gated", {"model.safetensors": weights}, gated=True)
    small_hub.add("someone/pickles", {"pytorch_model.bin": weights, "model.ckpt": weights})
    name, reason = FAILURES[case]
    with pytest.raises(UserError, match=reason) as caught:
        Restorer.from_pretrained(name)
    assert str(caught.value).startswith(f"There is no file or folder '{name.partition('@')[0]}', and ")
    assert "Hugging Face Hub" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_private_model_needs_a_token(small_hub, model, monkeypatch):
    small_hub.add("someone/secret", {"model.safetensors": pack_weights(model)}, private=True)
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    with pytest.raises(UserError, match="if it is a private one, log in with `hf auth login` or set HF_TOKEN"):
        find_weights("someone/secret")


def test_a_hub_that_is_down_or_switched_off_is_one_sentence(small_hub, model, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", NOBODY)
    with pytest.raises(UserError, match=r"no file or folder 'someone/tiny', and .* could not be reached"):
        find_weights("someone/tiny")
    with pytest.raises(UserError, match=r"Nothing was sent to 'someone/tiny': .* could not be reached"):
        Restorer(model).push_to_hub("someone/tiny")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        find_weights("someone/tiny")


def test_a_pickle_under_the_name_of_weights_is_refused_and_never_runs(small_hub, tmp_path):
    marker = tmp_path / "ran"

    class Payload:
        def __reduce__(self):
            return (os.mkdir, (str(marker),))

    small_hub.add("someone/evil", {"model.safetensors": pickle.dumps(Payload())})
    with pytest.raises(UserError, match="is not a"):
        load_model("someone/evil")
    assert not marker.exists()


@pytest.mark.parametrize(("token", "status"), [(READ_ONLY, 403), ("hf_unknown", 401)])
def test_a_token_that_may_not_write_is_told(small_hub, model, monkeypatch, token, status):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError, match=rf"Nothing was sent to 'someone/tiny': .*\({status}\).*HF_TOKEN"):
        Restorer(model).push_to_hub("someone/tiny")
    assert small_hub.models == {}


def test_private_weights_do_not_go_to_a_public_page(small_hub, model):
    Restorer(model).push_to_hub("someone/tiny")
    with pytest.raises(UserError, match="it is there already and public"):
        Restorer(model).push_to_hub("someone/tiny", private=True)
    assert len(small_hub.models["someone/tiny"]["commits"]) == 1


@pytest.mark.parametrize("repo", ["tiny", "someone/tiny@v1", "a/b/c", "someone/model.safetensors", "some one/tiny"])
def test_what_is_no_id_is_not_pushed_to(small_hub, model, repo):
    with pytest.raises(UserError, match="must be OWNER/NAME"):
        Restorer(model).push_to_hub(repo)
    assert small_hub.asked == []


def test_an_id_and_its_revision_are_told_apart():
    assert hub.parse_id("owner/some.name-1_x") == ("owner/some.name-1_x", None)
    assert hub.parse_id("owner/name@refs/pr/1") == ("owner/name", "refs/pr/1")
    assert hub.parse_id("owner/name@") is None
