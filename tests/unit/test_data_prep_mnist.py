"""Reading IDX files, and the MNIST script from folder and network."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monai.data import load_decathlon_datalist
from PIL import Image

from medcoarse.datalist import DataError
from tests.loopback import Web

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "data_prep"))  # scripts there import each other plainly

import mnist  # noqa: E402

REAL = Path(os.environ.get("MEDCOARSE_DATA", "/nonexistent")) / "MNIST"


def idx(array: np.ndarray, kind: int = 8) -> bytes:
    """An IDX file as its definition has it, written number by number."""
    header = bytes([0, 0, kind, array.ndim]) + b"".join(length.to_bytes(4, "big") for length in array.shape)
    return header + array.astype(np.uint8).tobytes()


# ---- IDX --------------------------------------------------------------------------------------------------------


def test_labels_and_images_are_read():
    labels = mnist.read_idx(idx(np.array([7, 2, 1])), "labels")
    assert (labels.tolist(), labels.dtype) == ([7, 2, 1], np.uint8)
    images = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    assert np.array_equal(mnist.read_idx(idx(images), "images"), images)
    assert mnist.read_idx(idx(np.empty((0, 3))), "none").shape == (0, 3)
    assert mnist.read_idx(bytes([0, 0, 8, 0, 5]), "one number").shape == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"x: no IDX file, it begins with b''; fetch it again"),
        (b"\0\0\x08", "no IDX file"),
        (b"<html>", r"no IDX file, it begins with b'<htm'"),
        (b"\x1f\x8b\x08\x00", "no IDX file"),
        (idx(np.zeros(3), kind=13), r"samples of type 13, expected 8 \(unsigned bytes\)"),
        (idx(np.zeros((2, 3)))[:11], "cut short in its header of 12 bytes"),
        (idx(np.zeros((2, 3)))[:-1], r"cut short, 5 samples where 6 are stated \(2, 3\)"),
        (idx(np.zeros((2, 3))) + b"\0", r"longer than it says, 7 samples where 6 are stated"),
        (bytes([0, 0, 8, 3]) + b"\xff" * 12, "cut short, 0 samples where 79228162458924105385300197375 are stated"),
    ],
)
def test_what_is_no_idx_file(content: bytes, message: str):
    with pytest.raises(DataError, match=message):
        mnist.read_idx(content, "x")


def test_packed_or_not(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"\0\0")
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"\0\0"))
    assert [mnist.read_unpacked(path) for path in (tmp_path / "a", tmp_path / "b.gz")] == [b"\0\0"] * 2


def test_damaged_archive(tmp_path: Path):
    good = bytearray(gzip.compress(np.random.default_rng(0).bytes(1000)))
    path = tmp_path / "a.gz"
    flipped = good.copy()
    flipped[500] ^= 255
    for content in (good[:-300], good[:5], flipped, good[:-6] + b"\0\0" + good[-4:], good[:3] + b"\xff" + good[3:]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a.gz: damaged gzip archive \(.*\); fetch it again"):
            mnist.read_unpacked(path)


def test_archive_that_unpacks_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mnist, "_MAX_BYTES", 1000)
    (tmp_path / "a.gz").write_bytes(gzip.compress(bytes(1001)))
    with pytest.raises(DataError, match="unpacks to more than 1000 bytes"):
        mnist.read_unpacked(tmp_path / "a.gz")


# ---- the script -------------------------------------------------------------------------------------------------


@pytest.fixture
def content(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Twenty small pictures take the place of the official 10,000."""
    content = idx(np.random.default_rng(0).integers(0, 256, (20, 28, 28)))
    official(monkeypatch, content)
    monkeypatch.setattr(mnist, "POOL", (0, 10))
    monkeypatch.setattr(mnist, "TEST", (17, 20))
    monkeypatch.setattr(mnist, "NUM_TRAINING", 4)
    monkeypatch.setattr(mnist, "NUM_VALIDATION", 2)
    return content


def official(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(mnist, "SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(mnist, "GZIP_SHA256", hashlib.sha256(packed(content)).hexdigest())


def packed(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


@pytest.fixture
def folder(content: bytes, tmp_path: Path) -> Path:
    (tmp_path / "official").mkdir()
    (tmp_path / "official" / "t10k-images-idx3-ubyte.gz").write_bytes(packed(content))
    return tmp_path / "official"


def run(*args: object) -> int:
    return mnist.main([str(arg) for arg in args])


def everything(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_images_are_noisy_and_masks_are_clean(content: bytes, folder: Path, tmp_path: Path):
    out = tmp_path / "out"
    assert run("--folder", folder, "--output_dir", out) == 0
    clean = np.frombuffer(content, np.uint8, offset=16).reshape(20, 28, 28)
    drawn = np.random.default_rng(0).permutation(10)[:6]
    expected = {"training": drawn[:4], "validation": drawn[4:], "test": [17, 18, 19]}
    for section, numbers in expected.items():
        items = load_decathlon_datalist(str(out / "datalist.json"), True, section)
        assert [int(Path(item["image"]).stem) for item in items] == list(numbers)
        for item, number in zip(items, numbers, strict=True):
            image, label = (np.array(Image.open(item[key])) for key in ("image", "label"))
            assert np.array_equal(label, np.where(clean[number] >= 128, 255, 0))
            noise = np.random.default_rng([0, number]).normal(0, 0.3, (28, 28))
            assert np.abs(image / 255 - np.clip(clean[number] / 255 + noise, 0, 1)).max() <= 0.5 / 255 + 1e-9
    provenance = json.loads((out / "provenance.json").read_text())
    assert provenance["parameters"]["source_sha256"] == hashlib.sha256(content).hexdigest()
    assert provenance["licence"].startswith("Creative Commons")


def test_unpacked_and_otherwise_packed_files_are_official(content: bytes, folder: Path, tmp_path: Path):
    assert run("--folder", folder, "--output_dir", tmp_path / "a") == 0
    (folder / "t10k-images-idx3-ubyte.gz").unlink()
    (folder / "t10k-images-idx3-ubyte").write_bytes(content)
    assert run("--folder", folder, "--output_dir", tmp_path / "b") == 0
    (folder / "t10k-images-idx3-ubyte").unlink()
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(content, 1))
    assert run("--folder", folder, "--output_dir", tmp_path / "c") == 0
    a, b, c = ({p.relative_to(tmp_path / x): v[1] for p, v in everything(tmp_path / x).items()} for x in "abc")
    assert a == b == c


def test_from_the_network(
    web: Web, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    name = "t10k-images-idx3-ubyte.gz"
    mirrors = (web.url + "/closed/", web.url + "/other", web.url + "/open/")
    web.status(f"/closed/{name}", 403)
    web.file(f"/other/{name}", packed(content)[::-1])
    web.file(f"/open/{name}", packed(content))
    monkeypatch.setattr(mnist, "MIRRORS", mirrors)
    out = tmp_path / "data" / "MNIST"
    assert run("--output_dir", out) == 0
    command = f"python -m monai.bundle run training --config_file bundles/mnist/train.json --dataset_dir {out}"
    assert command in capsys.readouterr().out
    assert [entry.name for entry in (tmp_path / "data").iterdir()] == ["MNIST"]
    before = everything(out)
    assert run("--output_dir", out, "--url", "http://127.0.0.1:9/") == 0, "what is there asks nobody"
    assert everything(out) == before


def test_no_address_works(web: Web, content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    web.file("/t10k-images-idx3-ubyte.gz", b"<html>")
    assert run("--output_dir", tmp_path / "out", "--url", web.url) == 1
    error = capsys.readouterr().err
    assert "MNIST could not be fetched:\n  - http://127.0.0.1" in error
    assert "the file was discarded" in error
    assert "run this script again with --folder FOLDER, or name a mirror with --url" in error
    assert not (tmp_path / "out").exists()


def test_what_stands_against_a_folder(
    content: bytes, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    path = folder / "t10k-images-idx3-ubyte.gz"

    def refused(*more: object) -> str:
        assert run("--folder", folder, "--output_dir", out, *more) == 1
        assert not out.exists()
        assert {entry.name for entry in tmp_path.iterdir()} == {"official"}, "nothing is left behind"
        return capsys.readouterr().err

    other = bytearray(content)
    other[-1] ^= 1
    path.write_bytes(packed(bytes(other)))
    assert "leave --folder out to have it fetched, or accept it with --allow-modified" in refused()
    path.write_bytes(packed(content)[:-100])
    assert "damaged gzip archive" in refused("--allow-modified")
    path.write_bytes(packed(content[:-100]))
    assert "cut short" in refused("--allow-modified")
    few = idx(np.zeros((12, 28, 28)))
    path.write_bytes(packed(few))
    assert "holds (12, 28, 28), expected at least 20 images; is it the test file?" in refused("--allow-modified")
    path.unlink()
    assert "neither t10k-images-idx3-ubyte.gz nor t10k-images-idx3-ubyte is there" in refused()
    path.write_bytes(packed(bytes(other)))
    assert run("--folder", folder, "--output_dir", out, "--allow-modified") == 0
    assert "warning:" in capsys.readouterr().err


def test_other_folders_are_left_alone(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    assert run("--folder", folder, "--output_dir", out) == 1
    assert "exists but is not a set of noisy MNIST digits; choose another folder" in capsys.readouterr().err
    assert [entry.name for entry in out.iterdir()] == ["mine.txt"]


def test_damage_done_later_is_found(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    assert run("--folder", folder, "--output_dir", out) == 0
    (out / "images" / "00017.png").write_bytes(b"")
    assert run("--output_dir", out) == 1
    assert "00017.png: 0 bytes long" in capsys.readouterr().err
    (out / "images" / "00017.png").unlink()
    assert run("--output_dir", out) == 1
    assert "is incomplete: 1 files are missing, first images/00017.png" in capsys.readouterr().err


def test_interrupted_writing_leaves_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(mnist, "write_digit_files", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run("--folder", folder, "--output_dir", tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["official"]


def test_protocol_is_fixed():
    chosen = mnist.splits()
    assert [len(chosen[name]) for name in ("training", "validation", "test")] == [600, 100, 1000]
    pool = chosen["training"] + chosen["validation"]
    assert pool[:5] == [2221, 1222, 227, 4662, 3029]
    assert hashlib.sha256(json.dumps(pool).encode()).hexdigest()[:16] == "fec220d022a5f7d7"
    assert len(set(pool)) == 700
    assert max(pool) < 5000
    assert chosen["test"] == list(range(9000, 10000))


def test_runs_as_a_script():
    command = [sys.executable, str(ROOT / "data_prep" / "mnist.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=True)
    assert "--output_dir" in done.stdout


@pytest.mark.skipif(not REAL.is_dir(), reason="set MEDCOARSE_DATA to a folder that holds MNIST/")
def test_real_data(tmp_path: Path):
    assert run("--folder", REAL, "--output_dir", tmp_path / "MNIST") == 0
    assert len(list((tmp_path / "MNIST").rglob("*.png"))) == 3400
    labels = mnist.read_idx(mnist.read_unpacked(REAL / "t10k-labels-idx1-ubyte.gz"), "labels")
    assert labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    masks = [np.array(Image.open(tmp_path / "MNIST" / "labels" / f"{i:05d}.png")) > 0 for i in range(9000, 10000)]
    assert np.mean(masks) == pytest.approx(0.134, abs=0.005)
