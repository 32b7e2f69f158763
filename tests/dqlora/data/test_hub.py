import errno
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants, snapshot_download
from safetensors.torch import save_file

from dqlora.data import download
from dqlora.data.hub import Snapshot
from dqlora.errors import UserError
from tests.hub import Hub, cut, flip, serve, short, status, web_page

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SOURCE = f"hf://owner/name@{COMMIT}"
FILES = ["config.json", "model*.safetensors"]
JSON = "application/json"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(download, "PAUSES", (0.01,))
    monkeypatch.setattr(download, "PATIENCE", 0.3)
    folder = tmp_path / "root/models/owner/name" / COMMIT
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "wav2vec2"}\n')
    save_file({"a": torch.zeros(300, 100), "b": torch.ones(7)}, folder / "model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with serve(tmp_path / "root") as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield hub


def model_bytes(hub: Hub) -> bytes:
    return (hub.root / "models/owner/name" / COMMIT / "model.safetensors").read_bytes()


def test_files_come_once_into_the_hubs_cache(hub: Hub, tmp_path: Path) -> None:
    folder = Snapshot(SOURCE).fetch(FILES)
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    assert (folder / "model.safetensors").read_bytes() == model_bytes(hub)
    sent = hub.bytes["model.safetensors"]
    assert sent == len(model_bytes(hub))
    Snapshot(SOURCE).fetch(FILES)
    assert hub.bytes["model.safetensors"] == sent
    found = snapshot_download("owner/name", revision=COMMIT, cache_dir=tmp_path / "cache", local_files_only=True)
    assert Path(found) == folder
    assert hub.tokens == {"127.0.0.1"}  # the host of large files is localhost


def test_shapes_come_from_headers(hub: Hub) -> None:
    assert Snapshot(SOURCE).tensor_shapes(["model*.safetensors"]) == {"a": [300, 100], "b": [7]}
    assert hub.bytes["model.safetensors"] < 300


@pytest.mark.parametrize(
    "fault",
    [cut, short, flip, status(429, Retry_After="0"), status(429, Retry_After="²"), status(503), status(500)],
)
@pytest.mark.parametrize("where", ["/cdn/", "/resolve/", "config.json"])
def test_a_fault_that_passes(hub: Hub, where: str, fault: object) -> None:
    hub.spoil(fault, where)
    assert (Snapshot(SOURCE).fetch(FILES) / "model.safetensors").read_bytes() == model_bytes(hub)


@pytest.mark.parametrize(
    ("fault", "where", "message"),
    [
        (flip, "/cdn/", "came damaged twice"),
        (web_page, "/cdn/", "a web page came instead"),
        (status(503), "/cdn/", "503"),
        (status(503), "/api/", "503"),
        (status(429, Retry_After="3600"), "/api/", "429 .*it asks to wait 3600 s"),
        (status(401), "/api/", "no such repository, or it is private.*hf auth login"),
        (status(403, X_Error_Code="GatedRepo"), "/resolve/", "access must be granted"),
        (status(401, X_Error_Code="GatedRepo"), "/resolve/", "access must be granted"),
        (
            status(401, X_Error_Message="Invalid credentials in Authorization header"),
            "/api/",
            "your token; unset HF_TOK",
        ),
        (status(404), "/resolve/", "404, not found"),
        (status(418), "/resolve/", "418"),
    ],
)
def test_a_fault_that_stays_is_one_line(hub: Hub, tmp_path: Path, fault: object, where: str, message: str) -> None:
    hub.spoil(fault, where, times=1000)
    with pytest.raises(UserError, match=message) as caught:
        Snapshot(SOURCE).fetch(FILES)
    assert str(caught.value).startswith(SOURCE)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").rglob("model.safetensors"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hf://owner/nothing@main", "no public repository"),
        ("hf://owner/name@nothing", "no such revision"),
        (f"hf://owner/name@{'1' * 40}", "no such revision"),
        ("hf://owner/name", "names no revision"),
        *((f"hf://{name}@main", "no name of a repository") for name in ("a/b/c", "", "ä/b", "-a/b", "a b", "a/.b")),
    ],
)
def test_a_wrong_name(hub: Hub, source: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Snapshot(source)


def test_a_branch_is_its_commit(hub: Hub) -> None:
    hub.refs["main"] = COMMIT
    assert Snapshot("hf://owner/name@main").fetch(FILES).name == COMMIT
    hub.shutdown()
    hub.server_close()
    assert Snapshot("hf://owner/name@main").fetch(FILES).name == COMMIT


def test_a_cache_that_is_whole_need_not_be_writable(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.refs["main"] = COMMIT

    def refuse(path: Path, *arguments: object, **settings: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as locked:  # root may write anywhere
        for name in ("touch", "write_text", "replace", "symlink_to"):
            locked.setattr(Path, name, refuse)
        with pytest.raises(UserError, match=r"owner/name@main: .*: Permission denied; set HF_HUB_CACHE"):
            Snapshot("hf://owner/name@main")
        with pytest.raises(UserError, match=rf"owner/name@{COMMIT}: .*: Permission denied; set HF_HUB_CACHE"):
            Snapshot(SOURCE).fetch(FILES)
    folder = Snapshot("hf://owner/name@main").fetch(FILES)
    with monkeypatch.context() as locked:
        for name in ("touch", "write_text", "replace", "symlink_to"):
            locked.setattr(Path, name, refuse)
        assert Snapshot("hf://owner/name@main").fetch(FILES) == folder


def test_without_a_network(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Snapshot(SOURCE).fetch(FILES)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert Snapshot(SOURCE).fetch(FILES) == folder
    assert Snapshot(SOURCE).tensor_shapes(["model*"]) is None
    blob = (folder / "model.safetensors").resolve()
    blob.write_bytes(blob.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged; run it again with a network"):
        Snapshot(SOURCE).fetch(FILES)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        Snapshot(f"hf://owner/other@{COMMIT}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert (Snapshot(SOURCE).fetch(FILES) / "model.safetensors").read_bytes() == model_bytes(hub)


def test_without_a_network_and_with_half_a_model(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    Snapshot(SOURCE).fetch(["config.json"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert (Snapshot(SOURCE).fetch(["config.json"]) / "config.json").exists()
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set, and it is not in the cache"):
        Snapshot(SOURCE).fetch(["model*.safetensors"])


def test_a_killed_download_goes_on(hub: Hub, tmp_path: Path) -> None:
    digest = next(file.digest for name, file in Snapshot(SOURCE).files.items() if name == "model.safetensors")
    part = tmp_path / "cache/models--owner--name/blobs" / f"{digest}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(model_bytes(hub)[:50_000])
    assert (Snapshot(SOURCE).fetch(FILES) / "model.safetensors").read_bytes() == model_bytes(hub)
    assert hub.bytes["model.safetensors"] == len(model_bytes(hub)) - 50_000


def test_whole_files_do_where_a_server_sends_no_parts(hub: Hub) -> None:
    content = model_bytes(hub)
    hub.spoil(lambda handler, body: handler.answer(200, content, {}), "/cdn/", times=1)
    assert Snapshot(SOURCE).tensor_shapes(["model*.safetensors"]) is None
    hub.spoil(lambda handler, body: handler.answer(200, content, {}), "/cdn/", times=1)
    assert (Snapshot(SOURCE).fetch(FILES) / "model.safetensors").read_bytes() == content


@pytest.mark.parametrize("host", ["", "https://huggingface.co"])
def test_a_list_of_files_comes_in_pages(hub: Hub, host: str) -> None:
    """Whatever host the next one is said to be at: a mirror passes on the hub's links."""
    hub.page, hub.page_host = 1, host or hub.url
    names = {path.name for path in (hub.root / "models/owner/name" / COMMIT).iterdir()}
    assert set(Snapshot(SOURCE).files or ()) == names
    assert hub.tokens == {"127.0.0.1"}


@pytest.mark.parametrize("answer", ["", '[{"type": "fi', "null", "[1]", '"x"', '{"error": "x"}', '[{"type": "file"}]'])
@pytest.mark.parametrize("where", ["/tree/", "/revision/"])
def test_an_answer_of_another_form(hub: Hub, where: str, answer: str) -> None:
    hub.refs["main"] = COMMIT
    hub.spoil(lambda handler, body: handler.answer(200, answer.encode(), {"Content-Type": JSON}), where, 1)
    with pytest.raises(UserError, match="does not answer as the hub does; check HF_ENDPOINT"):
        Snapshot("hf://owner/name@main")


def test_what_is_no_hub_is_said(hub: Hub) -> None:
    hub.spoil(lambda handler, body: handler.answer(200, b"hello", {}), "/api/", 1)
    with pytest.raises(UserError, match="does not answer as the hub does; check HF_ENDPOINT"):
        Snapshot(SOURCE)
    assert json.loads((hub.root / "models/owner/name" / COMMIT / "config.json").read_text())
