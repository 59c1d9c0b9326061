"""Fetch, verify and list LES-AV: 22 fundus photographs with vessel drawings and field-of-view masks.

    python data_prep/les_av.py --output_dir data/LES-AV                         # from figshare, 46 MB
    python data_prep/les_av.py --output_dir data/LES-AV --archive LES-AV.zip    # saved with a browser
    python data_prep/les_av.py --folder somewhere/LES-AV                        # unpacked already, verified in place

Afterwards the folder holds ``images/``, ``vessel-segmentations/``, ``masks/``, ``README.txt`` (the terms of use),
``datalist.json`` (the split in MONAI's format) and ``provenance.json``. A second run verifies and fetches only what is
missing. The archive also has separate drawings of arteries and veins; these are not unpacked.

Checksums. Size and MD5 of the zip come from the publisher: figshare's public API states them, and an archive that this
script fetches and that differs is discarded. If the API does not answer, a note says so and the run goes on: in any
case the 66 image files are verified one by one with ``les_av.sha256.json``. These checksums were measured on one copy
of the data set not fetched by this script: in it the 22 photographs may have been re-compressed. So a file counts
as official if its bytes match or its pixels do. If figshare should ever serve other pixels, ``--allow-modified``
accepts them after decoding all of them. The checksums of the zip you got are recorded in ``provenance.json``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import sys
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from download import ArchiveError, DownloadError, copy_atomically, download, extract_zip, read_json
from PIL import Image

from medcoarse.datalist import DataError, les_av_root, provenance, verify_les_av
from medcoarse.files import write_atomically, write_json
from medcoarse.inspection import count, sha256_of

PAGE = "https://figshare.com/articles/dataset/LES-AV_dataset/11857698"
FILE_ID = 21732282
URLS = (f"https://ndownloader.figshare.com/files/{FILE_ID}", f"https://api.figshare.com/v2/file/download/{FILE_ID}")
"""Two ways to the same file; figshare closes the first to programs now and then."""

API = "https://api.figshare.com/v2/articles/11857698/files"
"""Where figshare states size and MD5 of each file."""

MANIFEST = Path(__file__).with_name("les_av.sha256.json")
DATALIST = Path(__file__).resolve().parents[1] / "bundles" / "les_av" / "configs" / "datalist.json"
README = "README.txt"
_MAX_BYTES = 200_000_000  # the archive has 46 MB


def prepare(
    output_dir: Path | None = None,
    archive: Path | None = None,
    folder: Path | None = None,
    urls: Sequence[str] = URLS,
    allow_modified: bool = False,
) -> Path:
    """Bring LES-AV to a folder, verify it and write its datalist and provenance.

    Args:
        output_dir: where the data set shall be; ``None`` for ``folder``, or ``data/LES-AV`` where that is ``None`` too.
        archive: the official zip file, if it is here already.
        folder: an unpacked data set, verified in place or copied to ``output_dir``.
        urls: addresses of the zip file, tried in turn.
        allow_modified: report files that are not the official ones instead of refusing them.

    Returns:
        The folder with ``images/``.

    Raises:
        DataError: missing, changed or damaged files.
        DownloadError: the archive cannot be fetched.
        ArchiveError: the archive is damaged or not LES-AV.
    """
    files: dict[str, dict[str, Any]] = json.loads(MANIFEST.read_text(encoding="utf-8"))["files"]
    root = _root(output_dir or folder or Path("data/LES-AV"))
    origin = _fill(root, list(files), archive, folder, urls)
    _compare(root, files, allow_modified)
    _write_datalist(root)
    num_files = verify_les_av(root)
    print(f"{root}: {count(num_files, 'file')} decoded and verified")
    _write_provenance(root, [README, *files], origin)
    return root


def _root(directory: Path) -> Path:
    """The folder with ``images/`` in or right below ``directory``, else the (perhaps new) directory itself."""
    try:
        return les_av_root(directory)
    except DataError:
        return directory.resolve()


# --- getting the files -------------------------------------------------------------------------------------------


def _fill(
    root: Path, names: Sequence[str], archive: Path | None, folder: Path | None, urls: Sequence[str]
) -> dict[str, Any]:
    """Put the files there that are missing; returns where they came from, empty if none was missing."""
    missing = [name for name in (README, *names) if not (root / name).is_file()]
    if not set(missing).intersection(names):  # the README alone is not worth a download
        return {}
    if folder is not None:
        return _copy(les_av_root(folder), root, missing)
    if archive is not None:
        return _unpack(archive, root, missing, {"archive": archive.name})
    fetched, origin = _fetch(root / "LES-AV.download.zip", urls)
    try:
        return _unpack(fetched, root, missing, origin)
    finally:
        fetched.unlink()  # a damaged archive would stand in the way of the next run


def _copy(source: Path, root: Path, names: Iterable[str]) -> dict[str, Any]:
    """Copy from an unpacked data set; what is not there either is reported later, all together."""
    if source != root:
        for name in names:
            if (source / name).is_file():
                copy_atomically(source / name, root / name)
    return {"folder": source.name}


def _published() -> tuple[int, str] | None:
    """Size and MD5 of the archive as figshare states them; if it does not, a note and ``None``."""
    try:
        entry = {one["id"]: one for one in read_json(API)}[FILE_ID]
        size, md5 = int(entry["size"]), str(entry["computed_md5"]).lower()
        if not re.fullmatch("[0-9a-f]{32}", md5):
            raise ValueError(f"MD5 {md5!r}")
    except (DownloadError, KeyError, TypeError, ValueError) as error:
        note = f"{API} states no size and MD5 ({type(error).__name__}: {error})"
        print(f"note: {note}; only the files in the archive are verified", file=sys.stderr)
        return None
    return size, md5


def _objection(archive: Path, published: tuple[int, str] | None) -> str:
    """Why a fetched file is not the archive; empty if it is."""
    if not zipfile.is_zipfile(archive):
        return "what came is no zip archive"
    found = archive.stat().st_size, hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest()
    if published in (None, found):
        return ""
    came, stated = ("{} bytes with MD5 {}".format(*pair) for pair in (found, published))
    return f"what came has {came}, figshare states {stated}"


def _fetch(path: Path, urls: Sequence[str]) -> tuple[Path, dict[str, Any]]:
    """Download the archive from the first address that gives what figshare published."""
    published = _published()
    failures = []
    for url in urls:
        print(f"fetching {url}")
        try:
            fetched = download(url, path, max_bytes=_MAX_BYTES)
        except DownloadError as error:
            failures.append(str(error))
            continue
        objection = _objection(fetched, published)
        if not objection:
            return fetched, {"url": url, "published_md5": published and published[1]}
        fetched.unlink()
        failures.append(f"{url}: {objection}")
    lines = "\n".join(f"  - {failure}" for failure in failures)
    raise DownloadError(
        f"LES-AV could not be fetched:\n{lines}\nOpen {PAGE} in a browser, save the zip file and run this script again "
        "with --archive FILE, or name a mirror with --url"
    )


def _unpack(archive: Path, root: Path, names: Iterable[str], origin: dict[str, Any]) -> dict[str, Any]:
    """Unpack what is wanted, be it at the top of the archive or in one folder; the rest is left out."""
    wanted = set(names)

    def select(member: str) -> str | None:
        parts = PurePosixPath(member).parts
        return next((name for name in ("/".join(parts), "/".join(parts[1:])) if name in wanted), None)

    if not extract_zip(archive, root, select, max_bytes=_MAX_BYTES):
        raise ArchiveError(f"{archive}: holds none of the files of LES-AV; get the zip file from {PAGE}")
    return origin | {"archive_size": archive.stat().st_size, "archive_sha256": sha256_of(archive)}


# --- comparing with the official files ---------------------------------------------------------------------------


def pixels_sha256(path: Path) -> str:
    """SHA-256 of the shape and the 8-bit samples of an image; the same after lossless re-compression."""
    with Image.open(path) as image:
        array = np.asarray(image, dtype=np.uint8)
    return hashlib.sha256(f"{array.shape}".encode() + array.tobytes()).hexdigest()


def _compare(root: Path, files: Mapping[str, Mapping[str, Any]], allow_modified: bool) -> None:
    """Every file must be there with official bytes, or at least official pixels."""
    missing = [name for name in files if not (root / name).is_file()]
    if missing:
        raise DataError(
            f"{root}: {len(missing)} of {len(files)} files are missing ({_some(missing)}); run this script with "
            "--output_dir alone to fetch them"
        )
    other_bytes = [name for name, known in files.items() if sha256_of(root / name) != known["sha256"]]
    modified = [name for name in other_bytes if not _same_pixels(root / name, files[name])]
    if len(other_bytes) > len(modified):
        print(f"{root}: {count(len(other_bytes) - len(modified), 'file')} re-compressed, pixels as in the official set")
    if not modified:
        return
    text = f"{root}: {len(modified)} of {len(files)} files are not the official ones ({_some(modified)})"
    if not allow_modified:
        raise DataError(
            f"{text}; delete them and run this script again to fetch them, or accept them with --allow-modified"
        )
    print(f"warning: {text}; accepted because of --allow-modified", file=sys.stderr)


def _same_pixels(path: Path, known: Mapping[str, Any]) -> bool:
    """Official pixels? A file that cannot be decoded has none."""
    try:
        return bool(pixels_sha256(path) == known["pixels_sha256"])
    except (OSError, SyntaxError, ValueError):  # what Pillow raises for damaged files
        return False


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


# --- writing what training needs ---------------------------------------------------------------------------------


def _write_datalist(root: Path) -> None:
    """Put the committed split beside the data; a split that is there already is kept."""
    target, text = root / "datalist.json", DATALIST.read_text(encoding="utf-8")
    if not target.is_file():
        _require_writable(root)
        write_atomically(target, lambda file: file.write(text.encode()))
    elif target.read_text(encoding="utf-8") != text:
        print(f"{target}: differs from the official split and was kept; delete it and run again to restore the split")


def _write_provenance(root: Path, names: Iterable[str], origin: dict[str, Any]) -> None:
    """Record bytes, origin and terms; an existing record of the same bytes is kept."""
    target = root / "provenance.json"
    readme = root / README
    record = provenance([root / name for name in names if (root / name).is_file()], root)
    if target.is_file() and _recorded_files(target) == record["files"]:
        return
    licence = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else "see " + PAGE
    _require_writable(root)
    content = {"dataset": "LES-AV", "page": PAGE, "origin": origin or {"folder": root.name}, "licence": licence}
    write_json(target, content | record)


def _recorded_files(path: Path) -> Any:
    """The files of an earlier record; ``None`` if it cannot be read, so that it is written again."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["files"]
    except (ValueError, KeyError, TypeError):
        return None


def _require_writable(root: Path) -> None:
    if not os.access(root, os.W_OK):
        raise DataError(f"{root}: cannot be written to; make a copy with --output_dir")


# --- command line ------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Fetch, verify and list the LES-AV data set.",
        epilog=(__doc__ or "").partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--output_dir", type=Path, help="where the data set shall be (default: --folder, else data/LES-AV)")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--archive", type=Path, help="the official zip file, fetched already")
    source.add_argument("--folder", type=Path, help="the unpacked data set: verified there, or copied to --output_dir")
    source.add_argument("--url", help="take the zip file from this address instead of figshare")
    add("--allow-modified", action="store_true", help="accept files that differ from the official ones, with a warning")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    args = _parser().parse_args(argv)
    urls = (args.url,) if args.url else URLS
    try:
        root = prepare(args.output_dir, args.archive, args.folder, urls, args.allow_modified)
    except (DataError, DownloadError, ArchiveError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    config = "bundles/les_av/train.json"
    print(
        f"next: python -m monai.bundle run training --config_file {config} --dataset_dir {shlex.quote(os.fspath(root))}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
