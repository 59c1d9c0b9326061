"""Review who drew, or report on cases.

Of a bundle that `medcoarse train` made. Without --cases everybody who drew is reviewed: reliability and errors, the
drawings to look at again, which image to draw next, and whom to ask; no mask is needed. With --pool images that nobody
has drawn are among those to draw next. annotators.html and annotators.json are written.

With --cases images are segmented and reported on, in one HTML file to look at or to send, and its numbers in JSON:
outlines, calibrated uncertainty, sizes with an interval, how who drew is estimated to err on them. Probabilities are
calibrated on the validation images, by their masks (`medcoarse train --labels`) or else their drawings. Written are
case_report.html and case_report.json. Cases are numbered and files not named, unless --show_names.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medcoarse.cli.bundle import config_of, run_bundle
from medcoarse.cli.channels import Channels, files_of
from medcoarse.cli.files import find_images
from medcoarse.cli.main import CommandError
from medcoarse.cli.predict import channels_of, require_alike

EXAMPLES = """examples:
  medcoarse report run                                              who drew
  medcoarse report run --pool images/                               which of these to draw next, too
  medcoarse report run --cases case7.nii.gz dicom/ --output_dir reported      some cases
"""
_CASES, _REVIEW = "case_report.json", "review.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("bundle", metavar="BUNDLE", help="folder that `medcoarse train` wrote")
    parser.add_argument("--cases", nargs="+", metavar="IMAGES", help="images, folders of images, DICOM series")
    parser.add_argument(
        "--pool", nargs="+", metavar="IMAGES", help="images to draw next: read as --cases, drawn ones are left out"
    )
    parser.add_argument("--output_dir", metavar="OUT", help="where the files go; by default BUNDLE/output")
    parser.add_argument(
        "--show_names", action="store_true", help="name the cases by their files, which may name people"
    )


def run(options: argparse.Namespace) -> int:
    """Run the bundle's review, or its report on cases."""
    bundle = Path(options.bundle)
    content = config_of(bundle, "train.json")
    if not (bundle / "models" / "full.pt").is_file():
        raise CommandError(f"{bundle}: not trained yet, it has no models/full.pt")
    output = Path(options.output_dir or bundle / "output").absolute()
    if options.cases and options.pool:
        raise CommandError("--pool is of the review of who drew; leave it out where --cases are reported")
    if options.cases:
        _report(bundle, _cases(bundle, options.cases), output, options.show_names)
        return 0
    pool = {"pool": _cases(bundle, options.pool)} if options.pool else {}
    if "pool" not in config_of(bundle, _REVIEW) and pool:
        raise CommandError(f"{bundle}: was not made by `medcoarse train`; --pool is for such bundles, leave it out")
    run_bundle(
        bundle, ["train.json", _REVIEW], "reviewing", output_dir=str(output), **pool, **_without_training(content)
    )
    print(f"written: {output / 'annotators.html'} and annotators.json")
    return 0


def _without_training(content: Mapping[str, Any]) -> dict[str, Any]:
    """How fast annotators learn and who votes is settled, and to tell it all that was trained on would be read."""
    settled = (("whole_beside_masks", False), ("one_each", False), ("voters", None))  # the second of earlier versions
    return {key: value for key, value in settled if key in content}


def _cases(bundle: Path, places: list[str]) -> list[str | list[str]]:
    """Files of images, or of the channels of each."""
    images = find_images(places)
    channels = channels_of(bundle, images)
    _require_usable(bundle, list(channels) or images, channels)
    files = [[str(file.absolute()) for file in files_of(image, channels)] for image in list(channels) or images]
    return [several if len(several) > 1 else several[0] for several in files]


def _require_usable(bundle: Path, images: list[Path], channels: Channels) -> None:
    """Refuse images before any is reported on."""
    from medcoarse.cli.facts import load_image  # it imports torch, which takes seconds

    content = config_of(bundle, "train.json")
    for image in images:
        loaded = load_image(image, channels)
        try:
            require_alike(loaded, content)
        except CommandError as error:
            raise CommandError(f"{image}: {error}") from None


def _report(bundle: Path, cases: list[str | list[str]], output: Path, show_names: bool) -> None:
    if "cases" not in config_of(bundle, _CASES):
        raise CommandError(
            f"{bundle}: reports are made with python -m monai.bundle run reporting --config_file "
            f"\"['{bundle}/configs/inference.json','{bundle}/configs/{_CASES}']\" --dataset_dir IMAGES"
        )
    content = config_of(bundle, "train.json")
    given = {"cases": cases, "output_dir": str(output), "show_names": show_names, **_without_training(content)}
    listed = bundle / "datalist.json"
    if listed.is_file():
        given["known"] = str(listed.absolute())  # else it is verified, every file of it
    run_bundle(bundle, ["train.json", _CASES], "reporting", **given)
    print(f"written: {output / 'case_report.html'} and case_report.json")
