"""Fetch and verify MNIST's test images and make the noisy digits that `bundles/mnist` segments.

    python data_prep/mnist.py --output_dir data/MNIST                        # from a public mirror, 1.6 MB
    python data_prep/mnist.py --output_dir data/MNIST --folder downloads     # t10k-images-idx3-ubyte(.gz) is there

The protocol is fixed. Of the 10,000 images of the official test file, a draw with seed 0 from images 0 to 4999 gives
600 training and 100 validation images; images 9000 to 9999 are for testing. The first 400 training images, in the
order of the draw, are the base set. Image = clean intensity + Gaussian noise of standard deviation 0.3, clipped to
[0, 1], the noise seeded by the image's number, stored in 8 bits; mask = clean intensity above 0.5.

The folder is whole or absent; a second run verifies it and asks nobody. MNIST's labels and its 60,000 training images
are not needed and not fetched.

Checksums are of the unpacked file, so that it counts as official however it was compressed. Its gzip archive, as the
mirrors have it, has the MD5 9fb629c4189551a2d022fa330f9573f3 under which MNIST is commonly listed.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import math
import os
import shlex
import shutil
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from download import DownloadError, download

from medcoarse.datalist import DataError, verify_prepared
from medcoarse.files import holds_dataset, write_dataset
from medcoarse.inspection import count
from medcoarse.synthetic.digits import NOISE, Splits, digit_paths, write_digit_files

PAGE = "http://yann.lecun.com/exdb/mnist/"
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
NAME = "t10k-images-idx3-ubyte"
GZIP_SHA256 = "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"
SHA256 = "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
"""Of the file as the mirrors have it, and of what is in it."""

GENERATOR_VERSION = 1
"""Raised whenever the protocol gives other pixels, so that a data set made by an older version is not reused."""
POOL, TEST = (0, 5000), (9000, 10000)
NUM_TRAINING, NUM_VALIDATION = 600, 100
SEED = 0

_KIND = "set of noisy MNIST digits"
_MAX_BYTES = 100_000_000  # the largest of MNIST's files has 47 MB


def read_idx(content: bytes, name: str) -> npt.NDArray[np.uint8]:
    """The array in an IDX file of unsigned bytes.

    Two zero bytes, the type (8 for unsigned bytes), the number of dimensions, their lengths as big-endian 32-bit
    integers, then the samples, the last index running fastest.

    Args:
        content: the whole file, unpacked.
        name: of the file, for errors.

    Raises:
        DataError: no IDX file, samples of another type, cut short, or bytes after the last sample.

    Example:
        >>> read_idx(bytes([0, 0, 8, 2, 0, 0, 0, 1, 0, 0, 0, 3, 5, 6, 7]), "x").tolist()
        [[5, 6, 7]]
    """
    if len(content) < 4 or content[:2] != b"\0\0":
        raise DataError(f"{name}: no IDX file, it begins with {content[:4]!r}; fetch it again")
    kind, num_dims = content[2], content[3]
    if kind != 8:
        raise DataError(f"{name}: IDX file with samples of type {kind}, expected 8 (unsigned bytes); fetch it again")
    first = 4 + 4 * num_dims
    if len(content) < first:
        raise DataError(f"{name}: cut short in its header of {first} bytes; fetch it again")
    shape = tuple(int(n) for n in np.frombuffer(content, ">u4", num_dims, offset=4))
    found, stated = len(content) - first, math.prod(shape)
    if found != stated:
        what = "cut short" if found < stated else "longer than it says"
        raise DataError(f"{name}: {what}, {found} samples where {stated} are stated {shape}; fetch it again")
    return np.frombuffer(content, np.uint8, offset=first).reshape(shape)


def read_unpacked(path: Path) -> bytes:
    """Content of a file, unpacked where it is a gzip archive.

    Raises:
        DataError: damaged, or longer than any file of MNIST.
    """
    with path.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(path) if packed else path.open("rb") as stream:
            content = stream.read(_MAX_BYTES + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip archive ({error}); fetch it again") from error
    if len(content) > _MAX_BYTES:
        raise DataError(f"{path}: unpacks to more than {_MAX_BYTES} bytes, which no file of MNIST does; not used")
    return content


def splits() -> dict[str, list[int]]:
    """Which image is in which section.

    Example:
        >>> {name: (len(numbers), numbers[0]) for name, numbers in splits().items()}
        {'training': (600, 2221), 'validation': (100, 913), 'test': (1000, 9000)}
    """
    drawn = np.random.default_rng(SEED).permutation(np.arange(*POOL))[: NUM_TRAINING + NUM_VALIDATION].tolist()
    return {"training": drawn[:NUM_TRAINING], "validation": drawn[NUM_TRAINING:], "test": list(range(*TEST))}


def prepare(
    output_dir: Path, folder: Path | None = None, urls: Sequence[str] = MIRRORS, allow_modified: bool = False
) -> Path:
    """Make the data set, or verify the one that is there.

    Args:
        output_dir: where it shall be.
        folder: where the official file lies, packed or not; ``None`` fetches it.
        urls: addresses of folders that hold the packed file, tried in turn.
        allow_modified: accept a file that is not the official one.

    Returns:
        ``output_dir``, resolved.

    Raises:
        DataError: the file is missing, damaged or not the official one.
        DownloadError: the file cannot be fetched.
        FileExistsError: ``output_dir`` holds something else.
    """
    output_dir, chosen = output_dir.resolve(), splits()
    if folder is None and holds_dataset(output_dir, _provenance(SHA256), digit_paths(chosen), _KIND):
        return _verified(output_dir)
    fetched = output_dir.with_name(f".{output_dir.name}.download")
    content = read_unpacked(_find(folder) if folder is not None else _fetch(fetched, urls))
    sha256 = hashlib.sha256(content).hexdigest()
    _require_official(sha256, folder, allow_modified)
    write_from(content, output_dir, chosen, sha256)
    shutil.rmtree(fetched, ignore_errors=True)
    return _verified(output_dir)


def write_from(content: bytes, output_dir: Path, chosen: Splits, sha256: str) -> None:
    """Write the data set that an IDX file of digits gives."""
    images = read_idx(content, NAME)
    highest = max(max(numbers) for numbers in chosen.values())
    if images.ndim != 3 or len(images) <= highest:
        raise DataError(f"{NAME}: holds {images.shape}, expected at least {highest + 1} images; is it the test file?")
    clean = (images[number] / 255 for numbers in chosen.values() for number in numbers)
    description = f"images of MNIST's test file ({PAGE}), CC BY-SA 3.0, made by data_prep/mnist.py"

    def write(draft: Path) -> None:
        write_digit_files(draft, chosen, clean, "Noisy MNIST digits", description, SEED)

    write_dataset(output_dir, _provenance(sha256), digit_paths(chosen), _KIND, write)


def _provenance(sha256: str) -> dict[str, Any]:
    return {
        "dataset": "MNIST",
        "page": PAGE,
        "licence": "Creative Commons Attribution-Share Alike 3.0",
        "generator": "data_prep/mnist.py",
        "generator_version": GENERATOR_VERSION,
        "parameters": {
            "source": NAME,
            "source_sha256": sha256,
            "pool": list(POOL),
            "test": list(TEST),
            "num_training": NUM_TRAINING,
            "num_validation": NUM_VALIDATION,
            "seed": SEED,
            "noise": NOISE,
        },
    }


def _verified(root: Path) -> Path:
    num_files = verify_prepared(root, "data_prep/mnist.py", label_values=(0, 255), required_keys=("label",))
    print(f"{root}: {count(num_files, 'file')} decoded and verified")
    return root


def _find(folder: Path) -> Path:
    """The official file in a folder, packed or not."""
    paths = [folder / f"{NAME}.gz", folder / NAME]
    found = next((path for path in paths if path.is_file()), None)
    if found is None:
        raise DataError(f"{folder}: neither {NAME}.gz nor {NAME} is there; leave --folder out to have it fetched")
    return found


def _fetch(folder: Path, urls: Sequence[str]) -> Path:
    """Download the packed file from the first address that gives the official one."""
    failures = []
    for url in urls:
        address = f"{url.rstrip('/')}/{NAME}.gz"
        print(f"fetching {address}")
        try:
            return download(address, folder / f"{NAME}.gz", GZIP_SHA256, max_bytes=_MAX_BYTES)
        except DownloadError as error:
            failures.append(f"  - {error}")
    raise DownloadError(
        "\n".join(["MNIST could not be fetched:", *failures])
        + f"\nGet {NAME}.gz elsewhere and run this script again with --folder FOLDER, or name a mirror with --url"
    )


def _require_official(sha256: str, folder: Path | None, allow_modified: bool) -> None:
    if sha256 == SHA256:
        return
    text = f"{folder or NAME}: {NAME} unpacks to SHA-256 {sha256}, the official one to {SHA256}"
    if not allow_modified:
        raise DataError(f"{text}; leave --folder out to have it fetched, or accept it with --allow-modified")
    print(f"warning: {text}; accepted because of --allow-modified", file=sys.stderr)


# --- command line ------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Fetch and verify MNIST and make the noisy digits of bundles/mnist.",
        epilog=(__doc__ or "").partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--output_dir", type=Path, default=Path("data/MNIST"), help="where the data set shall be (default: data/MNIST)")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--folder", type=Path, help=f"where {NAME}.gz lies, packed or not")
    source.add_argument("--url", help=f"take {NAME}.gz from the folder at this address")
    add("--allow-modified", action="store_true", help="accept a file that is not the official one, with a warning")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    args = _parser().parse_args(argv)
    try:
        root = prepare(args.output_dir, args.folder, (args.url,) if args.url else MIRRORS, args.allow_modified)
    except (DataError, DownloadError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    config = "bundles/mnist/train.json"
    print(
        f"next: python -m monai.bundle run training --config_file {config} --dataset_dir {shlex.quote(os.fspath(root))}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
