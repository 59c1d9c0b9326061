"""Fetching and unpacking over a loopback server, and the LES-AV script from archive, folder and network."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.loopback import CONTENT, Web

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "data_prep"))  # scripts there import each other plainly

import les_av  # noqa: E402
from download import ArchiveError, DownloadError, copy_atomically, download, extract_zip, read_json  # noqa: E402

REAL = Path(os.environ.get("MEDCOARSE_DATA", "/nonexistent")) / "LES-AV"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def fetch(url: str, path: Path, sha256: str | None = SHA256, **kwargs: Any) -> Path:
    return download(url, path, sha256, **{"backoff_s": 0.001, "timeout_s": 5.0, "progress": False, **kwargs})


class TestDownload:
    def test_whole_file(self, web: Web, tmp_path: Path) -> None:
        path = fetch(web.file("/f"), tmp_path / "new" / "f.zip")
        assert path.read_bytes() == CONTENT
        assert list(path.parent.iterdir()) == [path]

    def test_file_that_is_there_is_not_fetched_again(self, web: Web, tmp_path: Path) -> None:
        url = web.file("/f")
        fetch(url, tmp_path / "f")
        fetch(url, tmp_path / "f")
        assert len(web.requests) == 1

    def test_wrong_file_that_is_there_is_replaced(self, web: Web, tmp_path: Path) -> None:
        (tmp_path / "f").write_bytes(b"old")
        assert fetch(web.file("/f"), tmp_path / "f").read_bytes() == CONTENT

    def test_goes_on_after_a_cut(self, web: Web, tmp_path: Path) -> None:
        assert fetch(web.file("/f", cuts=1), tmp_path / "f").read_bytes() == CONTENT
        assert len(web.requests) == 2
        assert web.requests[1][1]["Range"] == f"bytes={len(CONTENT) // 2}-"
        assert web.requests[1][1]["If-Range"] == '"v1"'

    def test_goes_on_in_a_later_call(self, web: Web, tmp_path: Path) -> None:
        url = web.file("/f", cuts=1)
        with pytest.raises(DownloadError, match="connection closed after 150000 of 300000 bytes; check the address"):
            fetch(url, tmp_path / "f", attempts=1)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["f.part", "f.part.json"]
        assert fetch(url, tmp_path / "f").read_bytes() == CONTENT
        assert web.requests[1][1]["Range"] == "bytes=150000-"

    @pytest.mark.parametrize("if_range", [True, False], ids=["server checks", "server does not"])
    def test_begins_anew_if_the_file_has_changed(self, web: Web, tmp_path: Path, if_range: bool) -> None:
        with pytest.raises(DownloadError):
            fetch(web.file("/f", cuts=1), tmp_path / "f", attempts=1)
        new = CONTENT[::-1]
        assert fetch(web.file("/f", new, etag='"v2"', if_range=if_range), tmp_path / "f", None).read_bytes() == new

    def test_begins_anew_if_only_the_length_tells_of_a_change(self, web: Web, tmp_path: Path) -> None:
        with pytest.raises(DownloadError):
            fetch(web.file("/f", etag=None, cuts=1), tmp_path / "f", attempts=1)
        new = CONTENT + b"more"
        assert fetch(web.file("/f", new, etag=None), tmp_path / "f", None).read_bytes() == new
        assert "Range" not in web.requests[-1][1]

    def test_begins_anew_if_the_file_has_become_shorter(self, web: Web, tmp_path: Path) -> None:
        with pytest.raises(DownloadError):
            fetch(web.file("/f", etag=None, cuts=1), tmp_path / "f", attempts=1)
        assert fetch(web.file("/f", b"short", etag=None), tmp_path / "f", None).read_bytes() == b"short"

    def test_begins_anew_from_another_address(self, web: Web, tmp_path: Path) -> None:
        with pytest.raises(DownloadError):
            fetch(web.file("/f", cuts=1), tmp_path / "f", attempts=1)
        assert fetch(web.file("/g"), tmp_path / "f").read_bytes() == CONTENT
        assert "Range" not in web.requests[-1][1]

    def test_server_without_range(self, web: Web, tmp_path: Path) -> None:
        assert fetch(web.file("/f", cuts=2, ranges=False), tmp_path / "f").read_bytes() == CONTENT
        assert "Range" in web.requests[-1][1]

    def test_gives_up_when_nothing_new_arrives(self, web: Web, tmp_path: Path) -> None:
        with pytest.raises(DownloadError, match="connection closed"):
            fetch(web.file("/f", cuts=99, ranges=False), tmp_path / "f", attempts=3)
        assert len(web.requests) == 3

    def test_keeps_trying_while_bytes_arrive(self, web: Web, tmp_path: Path) -> None:
        assert fetch(web.file("/f", cuts=8), tmp_path / "f", attempts=2).read_bytes() == CONTENT

    def test_wrong_checksum(self, web: Web, tmp_path: Path) -> None:
        with pytest.raises(DownloadError, match=f"SHA-256 is {SHA256}, expected {'0' * 64}; the file was discarded"):
            fetch(web.file("/f"), tmp_path / "f", "0" * 64)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("code", [403, 404, 410])
    def test_refusal_is_final(self, web: Web, tmp_path: Path, code: int) -> None:
        with pytest.raises(DownloadError, match=f"/f: the server answered {code} .*; check the address"):
            fetch(web.status("/f", code), tmp_path / "f")
        assert len(web.requests) == 1

    def test_server_in_trouble_is_asked_again(self, web: Web, tmp_path: Path) -> None:
        web.file("/f")
        url = web.status("/f", 503, 429, then=web.answers["/f"])
        assert fetch(url, tmp_path / "f").read_bytes() == CONTENT

    def test_challenge_for_browsers(self, web: Web, tmp_path: Path) -> None:
        with pytest.raises(DownloadError, match=r"answered 202 Accepted without the file.* open the address in one"):
            fetch(web.status("/f", 202), tmp_path / "f")

    def test_nobody_listens(self, web: Web, tmp_path: Path) -> None:
        with pytest.raises(DownloadError, match="refused; check the address, the network and the proxy settings"):
            fetch("http://127.0.0.1:9/f", tmp_path / "f", attempts=2)

    def test_silent_server(self, web: Web, tmp_path: Path) -> None:
        release = threading.Event()
        web.answers["/f"] = lambda handler: release.wait(5) and None
        with pytest.raises(DownloadError, match="timed out"):
            fetch(web.url + "/f", tmp_path / "f", timeout_s=0.1, attempts=1)
        release.set()

    def test_too_long(self, web: Web, tmp_path: Path) -> None:
        with pytest.raises(DownloadError, match="300000 bytes long, at most 1000 expected"):
            fetch(web.file("/f"), tmp_path / "f", max_bytes=1000)

    def test_too_long_without_saying_so(self, web: Web, tmp_path: Path) -> None:
        def answer(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(200)
            handler.end_headers()
            handler.wfile.write(CONTENT)

        web.answers["/f"] = answer
        with pytest.raises(DownloadError, match="longer than 1000 bytes"):
            fetch(web.url + "/f", tmp_path / "f", max_bytes=1000)

    def test_only_http(self, tmp_path: Path) -> None:
        with pytest.raises(DownloadError, match="expected an http:// or https:// address"):
            fetch(f"file://{__file__}", tmp_path / "f")

    def test_proxy_from_the_environment(self, web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("no_proxy")
        monkeypatch.setenv("http_proxy", web.url)
        web.answers["http://data.invalid/f"] = web.answers[web.file("/f").removeprefix(web.url)]
        assert fetch("http://data.invalid/f", tmp_path / "f").read_bytes() == CONTENT
        assert web.requests[0][0] == "http://data.invalid/f"


def make_zip(path: Path, members: dict[str, bytes], **attributes: int) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo("placeholder")
            info.filename = name  # as it is, however hostile
            info.compress_type = zipfile.ZIP_DEFLATED
            for key, value in attributes.items():
                setattr(info, key, value)
            archive.writestr(info, content)
    return path


class TestExtract:
    def test_wanted_members_only(self, tmp_path: Path) -> None:
        archive = make_zip(tmp_path / "a.zip", {"top/": b"", "top/a.txt": b"a", "top/sub/b.txt": b"b", "c.bin": b"c"})
        written = extract_zip(archive, tmp_path / "out", lambda n: n.split("/", 1)[1] if n.endswith(".txt") else None)
        assert [p.relative_to(tmp_path / "out").as_posix() for p in written] == ["a.txt", "sub/b.txt"]
        assert sorted(p.name for p in (tmp_path / "out").rglob("*")) == ["a.txt", "b.txt", "sub"]

    @pytest.mark.parametrize(
        "name", ["../evil", "a/../../evil", "/evil", "..\\evil", "C:\\evil", "C:evil", "\\\\host\\evil", "\\evil"]
    )
    @pytest.mark.parametrize("wanted", [True, False])
    def test_outside_the_folder(self, tmp_path: Path, name: str, wanted: bool) -> None:
        archive = make_zip(tmp_path / "a.zip", {"good.txt": b"good", name: b"evil"})
        with pytest.raises(ArchiveError, match="points outside the folder; not unpacked"):
            extract_zip(archive, tmp_path / "out", str if wanted else lambda n: "good.txt" if n == "good.txt" else None)
        assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]

    @pytest.mark.parametrize("mode", [0o120777, 0o020666, 0o010666], ids=["symlink", "device", "pipe"])
    def test_no_plain_file(self, tmp_path: Path, mode: int) -> None:
        archive = make_zip(tmp_path / "a.zip", {"link": b"/etc/passwd"}, external_attr=mode << 16)
        with pytest.raises(ArchiveError, match="member 'link' is a link or a device"):
            extract_zip(archive, tmp_path / "out")

    def test_target_outside_the_folder(self, tmp_path: Path) -> None:
        archive = make_zip(tmp_path / "a.zip", {"a": b"a"})
        with pytest.raises(ArchiveError, match="points outside"):
            extract_zip(archive, tmp_path / "out", lambda n: f"../{n}")

    def test_bomb(self, tmp_path: Path) -> None:
        archive = make_zip(tmp_path / "a.zip", {"a": bytes(10_000_000)})
        assert archive.stat().st_size < 20_000
        with pytest.raises(ArchiveError, match="would unpack to 10000000 bytes, at most 1000000 allowed"):
            extract_zip(archive, tmp_path / "out", max_bytes=1_000_000)

    def test_bomb_that_lies_about_its_size(self, tmp_path: Path) -> None:
        archive = make_zip(tmp_path / "a.zip", {"a": bytes(10_000_000)})
        archive.write_bytes(archive.read_bytes().replace((10_000_000).to_bytes(4, "little"), (9).to_bytes(4, "little")))
        with pytest.raises(ArchiveError, match="damaged one"):
            extract_zip(archive, tmp_path / "out", max_bytes=1_000_000)
        assert list((tmp_path / "out").iterdir()) == []

    def test_too_many_members(self, tmp_path: Path) -> None:
        archive = make_zip(tmp_path / "a.zip", {str(i): b"" for i in range(11)})
        with pytest.raises(ArchiveError, match="11 members, at most 10 expected"):
            extract_zip(archive, tmp_path / "out", max_members=10)

    def test_two_members_for_one_file(self, tmp_path: Path) -> None:
        archive = make_zip(tmp_path / "a.zip", {"x/a": b"1", "y/a": b"2"})
        with pytest.raises(ArchiveError, match="two members for 'a'"):
            extract_zip(archive, tmp_path / "out", lambda name: name[2:])

    def test_encrypted(self, tmp_path: Path) -> None:
        archive = make_zip(tmp_path / "a.zip", {"a": b"a"})
        content = bytearray(archive.read_bytes())
        content[content.index(b"PK\x01\x02") + 8] |= 1
        archive.write_bytes(content)
        with pytest.raises(ArchiveError, match="member 'a' is encrypted; unpack the archive by hand"):
            extract_zip(archive, tmp_path / "out")

    def test_damaged_and_no_archive(self, tmp_path: Path) -> None:
        archive = make_zip(tmp_path / "a.zip", {"a": CONTENT})
        content = bytearray(archive.read_bytes())
        content[1000] ^= 255
        archive.write_bytes(content)
        with pytest.raises(ArchiveError, match=r"damaged one .*; fetch it again"):
            extract_zip(archive, tmp_path / "out")
        archive.write_bytes(content[:-30])
        with pytest.raises(ArchiveError, match="no zip archive"):
            extract_zip(archive, tmp_path / "out")
        with pytest.raises(ArchiveError, match=r"nowhere.zip: no such file; pass the path"):
            extract_zip(tmp_path / "nowhere.zip", tmp_path / "out")


class TestReadJson:
    def test_content(self, web: Web) -> None:
        assert read_json(web.file("/f", b'[{"id": 1}]')) == [{"id": 1}]

    @pytest.mark.parametrize(
        ("content", "text"),
        [(b"<html>", "no JSON"), (b"\xff", "no JSON"), (b"[" + b"1," * 99, "longer than 100 bytes")],
    )
    def test_something_else(self, web: Web, content: bytes, text: str) -> None:
        with pytest.raises(DownloadError, match=f"/f: {text}"):
            read_json(web.file("/f", content), max_bytes=100)

    def test_refused_silent_or_away(self, web: Web) -> None:
        with pytest.raises(DownloadError, match="/f: the server answered 404"):
            read_json(web.status("/f", 404))
        release = threading.Event()
        web.answers["/g"] = lambda handler: release.wait(5) and None
        with pytest.raises(DownloadError, match="timed out"):
            read_json(web.url + "/g", timeout_s=0.1)
        release.set()
        with pytest.raises(DownloadError, match="refused"):
            read_json("http://127.0.0.1:9/")
        with pytest.raises(DownloadError, match="expected an http:// or https:// address"):
            read_json(f"file://{__file__}")


def test_atomic_copy_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"{}\n")
    copy_atomically(tmp_path / "a.json", tmp_path / "sub" / "b.json")
    assert (tmp_path / "sub" / "b.json").read_bytes() == b"{}\n"
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.json", "b.json", "sub"]


# --- the script --------------------------------------------------------------------------------------------------

IDS = (12, 15, 33, 34, 37)


def png(array: np.ndarray, suffix: str = "PNG", **kwargs: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, suffix, **kwargs)
    return stream.getvalue()


@pytest.fixture
def official(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Five small pictures take the place of the official 22, in manifest and split."""
    rng = np.random.default_rng(0)
    files: dict[str, bytes] = {}
    for i in IDS:
        files[f"images/{i}.png"] = png(rng.integers(0, 256, (12, 10, 3), dtype=np.uint8))
        files[f"vessel-segmentations/{i}.png"] = png(rng.choice(np.uint8([0, 255]), (12, 10)))
        files[f"masks/{i}_mask.gif"] = png(np.uint8([[0] * 10, *([[1] * 10] * 11)]), "GIF")
    places = {"image": "images/{}.png", "label": "vessel-segmentations/{}.png", "mask": "masks/{}_mask.gif"}
    split = [{key: name.format(i) for key, name in places.items()} for i in IDS]
    monkeypatch.setattr(les_av, "API", "http://127.0.0.1:9/")
    monkeypatch.setattr(les_av, "DATALIST", tmp_path / "split.json")
    monkeypatch.setattr(les_av, "MANIFEST", tmp_path / "manifest.json")
    (tmp_path / "split.json").write_text(json.dumps({"training": split[:4], "test": split[4:]}))
    unpack(files, tmp_path / "reference")
    sums = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "pixels_sha256": pixels(tmp_path / "reference" / name)}
        for name, content in files.items()
    }
    (tmp_path / "manifest.json").write_text(json.dumps({"files": sums}))
    return files | {"README.txt": b"Only for scientific purposes.\r\n"}


def pixels(path: Path) -> str:
    return les_av.pixels_sha256(path)


def unpack(files: dict[str, bytes], folder: Path) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def archive(official: dict[str, bytes], tmp_path: Path) -> Path:
    members = {f"LES-AV/{name}": content for name, content in official.items()}
    extra = {"LES-AV/": b"", "LES-AV/arteries/12.png": b"-", "__MACOSX/LES-AV/images/._12.png": b"-"}
    return make_zip(tmp_path / "saved.zip", extra | members)


def run(*args: object) -> int:
    return les_av.main([str(arg) for arg in args])


def test_from_the_network(
    web: Web, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(les_av, "URLS", (web.status("/closed", 202), web.file("/open", archive.read_bytes())))
    out = tmp_path / "data" / "LES-AV"
    assert run("--output_dir", out) == 0
    command = f"python -m monai.bundle run training --config_file bundles/les_av/train.json --dataset_dir {out}"
    assert command in capsys.readouterr().out
    names = {"README.txt", "datalist.json", "provenance.json", "images", "vessel-segmentations", "masks"}
    assert {p.name for p in out.iterdir()} == names
    assert (out / "datalist.json").read_text() == (tmp_path / "split.json").read_text()
    record = json.loads((out / "provenance.json").read_text())
    assert record["origin"]["url"] == web.url + "/open"
    assert record["origin"]["archive_sha256"] == hashlib.sha256(archive.read_bytes()).hexdigest()
    assert record["licence"].startswith("Only for scientific purposes.")
    assert len(record["files"]) == 16


def publish(web: Web, monkeypatch: pytest.MonkeyPatch, content: bytes, **changes: Any) -> None:
    """Let the loopback server state size and MD5 of the archive as figshare does."""
    md5 = hashlib.md5(content).hexdigest()
    entry = {"id": les_av.FILE_ID, "name": "LES-AV.zip", "size": len(content), "computed_md5": md5} | changes
    other = {"id": 1, "name": "other.zip", "size": 1, "computed_md5": "0" * 32}
    monkeypatch.setattr(les_av, "API", web.file("/api", json.dumps([other, entry]).encode()))


def test_archive_is_verified_with_the_published_checksum(
    web: Web, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = archive.read_bytes()
    bad = good.replace(b"LES-AV/arteries", b"LES-AV/Arteries")  # of the same length
    publish(web, monkeypatch, good)
    out = tmp_path / "out"
    for content in (bad, good + b"more"):
        assert run("--output_dir", out, "--url", web.file("/changed", content)) == 1
        error = capsys.readouterr().err
        expected = f"{len(good)} bytes with MD5 {hashlib.md5(good).hexdigest()}"
        got = f"{len(content)} bytes with MD5 {hashlib.md5(content).hexdigest()}"
        assert f"what came has {got}, figshare states {expected}" in error
        assert list(out.iterdir()) == []
    monkeypatch.setattr(les_av, "URLS", (web.url + "/changed", web.file("/open", good)))
    assert run("--output_dir", out) == 0
    origin = json.loads((out / "provenance.json").read_text())["origin"]
    assert (origin["url"], origin["published_md5"]) == (web.url + "/open", hashlib.md5(good).hexdigest())


@pytest.mark.parametrize(
    "changes", [{"id": 2}, {"size": "46 MB"}, {"computed_md5": None}, {"computed_md5": "43"}], ids=str
)
def test_checksum_that_is_not_stated_is_no_obstacle(
    web: Web,
    archive: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
) -> None:
    publish(web, monkeypatch, b"other", **changes)
    assert run("--output_dir", tmp_path / "out", "--url", web.file("/open", archive.read_bytes())) == 0
    assert f"note: {web.url}/api states no size and MD5 (" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"[5]", b"{}", b"null", b"<html>", b"0"])
def test_strange_answers_about_the_checksum_are_no_obstacle(
    web: Web, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(les_av, "API", web.file("/api", content))
    assert run("--output_dir", tmp_path / "out", "--url", web.file("/open", archive.read_bytes())) == 0


def test_damaged_archive_is_fetched_again_by_the_next_run(
    web: Web, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = archive.read_bytes()
    bad = bytearray(good)
    bad[good.index(b"LES-AV/images/12.png") + 40] ^= 255
    out = tmp_path / "out"
    assert run("--output_dir", out, "--url", web.file("/f", bytes(bad))) == 1
    captured = capsys.readouterr().err
    assert "refused); only the files in the archive are verified" in captured  # nobody states a checksum
    assert "damaged one" in captured
    assert not list(tmp_path.rglob("out/*.zip*"))
    assert run("--output_dir", out, "--url", web.file("/f", good)) == 0


def test_archives_of_the_user_are_left_alone(web: Web, archive: Path, tmp_path: Path) -> None:
    good = archive.read_bytes()
    out = tmp_path / "out"
    out.mkdir()
    for name in ("LES-AV.zip", "damaged.zip"):
        (out / name).write_bytes(b"damaged")
    assert run("--output_dir", out, "--archive", out / "damaged.zip") == 1
    assert run("--output_dir", out, "--url", web.file("/f", good)) == 0
    assert [(out / name).read_bytes() for name in ("LES-AV.zip", "damaged.zip")] == [b"damaged"] * 2


def test_second_run_changes_nothing_and_asks_nobody(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("--output_dir", out, "--archive", archive) == 0
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in out.rglob("*") if p.is_file()}
    assert run("--output_dir", out, "--url", "http://127.0.0.1:9/") == 0
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in out.rglob("*") if p.is_file()} == before


def test_only_missing_files_are_unpacked(archive: Path, official: dict[str, bytes], tmp_path: Path) -> None:
    out = unpack(official, tmp_path / "out")
    kept = (out / "images" / "15.png").stat().st_mtime_ns
    (out / "images" / "12.png").unlink()
    assert run("--output_dir", out, "--archive", archive) == 0
    assert (out / "images" / "12.png").read_bytes() == official["images/12.png"]
    assert (out / "images" / "15.png").stat().st_mtime_ns == kept


def test_folder_in_place_and_copied(official: dict[str, bytes], tmp_path: Path) -> None:
    source = unpack(official, tmp_path / "source" / "LES-AV")
    assert run("--folder", tmp_path / "source", "--output_dir", tmp_path / "copy") == 0
    assert not (source / "datalist.json").exists()
    assert (tmp_path / "copy" / "datalist.json").is_file()
    assert run("--folder", tmp_path / "source") == 0
    assert (source / "datalist.json").is_file()


def test_readme_alone_is_not_fetched(official: dict[str, bytes], tmp_path: Path) -> None:
    out = unpack(official, tmp_path / "out")
    (out / "README.txt").unlink()
    assert run("--output_dir", out, "--url", "http://127.0.0.1:9/") == 0
    assert json.loads((out / "provenance.json").read_text())["licence"].startswith("see https://figshare.com")


def test_missing_files(official: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = unpack(official, tmp_path / "out")
    (out / "masks" / "12_mask.gif").unlink()
    assert run("--folder", out) == 1
    assert "1 of 15 files are missing (masks/12_mask.gif); run this script with --output_dir" in capsys.readouterr().err


def test_modified_file(official: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = unpack(official, tmp_path / "out")
    (out / "images" / "12.png").write_bytes(png(np.zeros((12, 10, 3), np.uint8)))
    assert run("--folder", out) == 1
    error = capsys.readouterr().err
    assert "1 of 15 files are not the official ones (images/12.png); delete them and run this script again" in error
    assert not (out / "datalist.json").exists()
    assert run("--folder", out, "--allow-modified") == 0
    assert "warning:" in capsys.readouterr().err


def test_modified_files_are_still_decoded(
    official: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = unpack(official, tmp_path / "out")
    (out / "images" / "12.png").write_bytes(official["images/12.png"][:-100])
    (out / "vessel-segmentations" / "15.png").write_bytes(png(np.full((12, 10), 7, np.uint8)))
    assert run("--folder", out, "--allow-modified") == 1
    error = capsys.readouterr().err
    assert "12.png: damaged, cut short" in error
    assert "15.png: label holds the values {7}, expected only {0, 255}" in error


def test_recompressed_files_are_official(
    official: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = unpack(official, tmp_path / "out")
    with Image.open(out / "images" / "12.png") as image:
        content = png(np.asarray(image), compress_level=0)
    assert content != official["images/12.png"]
    (out / "images" / "12.png").write_bytes(content)
    assert run("--folder", out) == 0
    assert "1 file re-compressed, pixels as in the official set" in capsys.readouterr().out


def test_own_split_is_kept(official: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = unpack(official, tmp_path / "out")
    own = (
        '{"training": [{"image": "images/12.png", "label": "vessel-segmentations/12.png"}], "test": ["images/15.png"]}'
    )
    (out / "datalist.json").write_text(
        own.replace('["images/15.png"]', '[{"image": "images/15.png", "label": "x.png"}]')
    )
    assert run("--folder", out) == 1
    captured = capsys.readouterr()
    assert "differs from the official split and was kept; delete it and run again" in captured.out
    assert "x.png: no such file" in captured.err


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ({"LES-AV/LES-AV_randomseed_42/weights.pth": b"-"}, "holds none of the files of LES-AV; get the zip file from"),
        ({"../images/12.png": b"-"}, "points outside the folder"),
    ],
)
def test_other_archive(
    official: dict[str, bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    members: dict[str, bytes],
    text: str,
) -> None:
    archive = make_zip(tmp_path / "other.zip", members)
    assert run("--output_dir", tmp_path / "out", "--archive", archive) == 1
    assert text in capsys.readouterr().err


def test_no_address_works(
    web: Web,
    official: dict[str, bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("--output_dir", tmp_path / "out", "--url", web.file("/f", b"<html>")) == 1
    error = capsys.readouterr().err
    assert "what came is no zip archive" in error
    assert f"Open {les_av.PAGE} in a browser, save the zip file and run this script again with --archive FILE" in error
    assert list((tmp_path / "out").iterdir()) == []


def test_folder_that_cannot_be_written(
    official: dict[str, bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = unpack(official, tmp_path / "out")
    monkeypatch.setattr(os, "access", lambda *args: False)
    assert run("--folder", out) == 1
    assert "cannot be written to; make a copy with --output_dir" in capsys.readouterr().err


def test_manifest_and_split_name_the_same_66_files() -> None:
    listed = json.loads(les_av.DATALIST.read_text())
    names = {name for section in ("training", "test") for entry in listed[section] for name in entry.values()}
    files = json.loads(les_av.MANIFEST.read_text())["files"]
    assert set(files) == names
    assert len(files) == 66
    assert all(len(f["sha256"]) == len(f["pixels_sha256"]) == 64 and f["size"] > 0 for f in files.values())


def test_runs_as_a_script() -> None:
    command = [sys.executable, str(ROOT / "data_prep" / "les_av.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=True)
    assert "--output_dir" in done.stdout


@pytest.mark.skipif(not REAL.is_dir(), reason="set MEDCOARSE_DATA to a folder that holds LES-AV/")
def test_real_data(tmp_path: Path) -> None:
    assert run("--folder", REAL, "--output_dir", tmp_path / "LES-AV") == 0
    assert len(json.loads((tmp_path / "LES-AV" / "provenance.json").read_text())["files"]) >= 66
