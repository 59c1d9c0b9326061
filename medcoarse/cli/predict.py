"""Segment images with a trained bundle.

IMAGES are files, folders of files, and DICOM series (folders). Segmentations get the names and the geometry of the
images. DICOM series give DICOM SEG, pictures PNG, anything else NIfTI, unless --format says otherwise.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medcoarse.cli.bundle import class_names_of, config_of
from medcoarse.cli.files import find_images, is_series, new_folder
from medcoarse.cli.main import CommandError, in_one_line

EXAMPLES = """examples:
  medcoarse predict run images/ --output_dir segmented
  medcoarse predict run case7.nii.gz --output_dir segmented --format seg.nrrd       for 3D Slicer
  medcoarse predict run dicom/ --output_dir segmented                               DICOM SEG for each series
  medcoarse predict run images/ --output_dir probabilities --probabilities
"""
FORMATS = ("nii.gz", "nii", "nrrd", "seg.nrrd", "dcm", "png")
_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    add = parser.add_argument
    add(
        "bundle",
        metavar="BUNDLE",
        help="folder that `medcoarse train` wrote, or any bundle with configs/inference.json",
    )
    add("images", metavar="IMAGES", nargs="+", help="images, folders of images, DICOM series")
    add("--output_dir", required=True, help="where the segmentations go")
    add("--format", choices=FORMATS, help="by default that of the images")
    add("--probabilities", action="store_true", help="write the probability of every class in place of labels")
    add("--overwrite", action="store_true", help="write into a folder that is not empty")
    add("--device", help="cpu, cuda, cuda:1; by default a GPU where there is one")


def run(options: argparse.Namespace) -> int:
    """Segment one image after the other; go on after one that fails."""
    bundle = Path(options.bundle)
    images = find_images(options.images)
    names = class_names_of(bundle)
    content = config_of(bundle, "inference.json")
    weights = bundle / "models" / "model.pt"
    if not weights.is_file():
        raise CommandError(f"{weights}: no weights; train first")
    jobs = [(image, _format_of(image, options.format, options.probabilities)) for image in images]
    output = new_folder(options.output_dir, options.overwrite)

    from medcoarse.transforms.saved import SaveSegmentationd  # takes seconds

    algorithm = _algorithm(bundle, weights)
    root = Path(options.images[0]) if len(options.images) == 1 and Path(options.images[0]).is_dir() else None
    segmenters: dict[bool, Callable[[Path], Any]] = {}
    failed = 0
    for number, (image, suffix) in enumerate(jobs, 1):
        series = is_series(image)
        if series not in segmenters:
            segmenters[series] = make_segmenter(bundle, content, series, options.probabilities, options.device)
        save = SaveSegmentationd("pred", output, names, suffix, "", "source", root, None, algorithm)
        try:
            written = save({"pred": segmenters[series](image), "source": str(image)})["pred_path"]
            print(f"[{number}/{len(jobs)}] {image} -> {written}", flush=True)
        except Exception as error:
            if options.debug:
                raise
            failed += 1
            print(f"[{number}/{len(jobs)}] {image}: {_without_header(error, series)}", file=sys.stderr, flush=True)
    if failed:
        raise CommandError(f"{failed} of {len(jobs)} images could not be segmented, see above")
    return 0


def _without_header(error: Exception, series: bool) -> str:
    """What went wrong; of DICOM only in words of our own, for what libraries say may quote the header."""
    ours = isinstance(error, CommandError) or type(error).__module__.startswith("medcoarse.")
    return in_one_line(error) if ours or not series else f"cannot be segmented ({type(error).__name__})"


def make_segmenter(
    bundle: Path, content: dict[str, Any], series: bool, probabilities: bool, device: str | None = None
) -> Callable[[Path], Any]:
    """Pre-processing, network and post-processing of a bundle, without what it saves: image file -> labels (1, *S) or
    probabilities (L, *S), where the image lies.

    Args:
        bundle: its folder.
        content: its inference.json.
        series: whether images are DICOM series, which MONAI's PydicomReader reads.
        probabilities: whether to stop before the class is chosen.
        device: by default the bundle's.
    """
    import torch
    from monai.bundle import ConfigParser
    from monai.data.meta_tensor import MetaTensor
    from monai.transforms import Compose

    content = copy.deepcopy(content) | {"bundle_root": str(bundle), "datalist": [], "output_dir": str(bundle)}
    content |= {"device": f"$torch.device({device!r})"} if device else {}
    if series:
        content["preprocessing"]["transforms"][0]["reader"] = "PydicomReader"
    steps = [step for step in content["postprocessing"]["transforms"] if step.get("_target_") != "SaveImaged"]
    chosen = next((i for i, step in enumerate(steps) if step.get("_target_") == "AsDiscreted"), len(steps))
    content["postprocessing"]["transforms"] = steps[:chosen] if probabilities else steps
    parser = ConfigParser(content)
    parser.parse(True)
    network, inferer, place = (parser.get_parsed_content(key) for key in ("network", "inferer", "device"))
    preprocessing = parser.get_parsed_content("preprocessing")
    postprocessing: Compose = parser.get_parsed_content("postprocessing")
    states = torch.load(bundle / "models" / "model.pt", map_location=place, weights_only=True)
    network.load_state_dict(states)
    network.to(place).eval()

    def segment(image: Path) -> Any:
        item = preprocessing({"image": str(image)})
        loaded = item["image"]
        with torch.no_grad():
            logits = inferer(loaded.as_tensor()[None].to(place), network)
        pred = MetaTensor(logits[0].cpu(), affine=loaded.affine, meta=loaded.meta)
        found = postprocessing({**item, "pred": pred})["pred"]
        found = found.softmax(0) if probabilities else found
        return _with_slice(found, loaded.meta)

    return segment


def _with_slice(found: Any, meta: Any) -> Any:
    """A volume of one slice that was segmented as a picture is one of one slice again."""
    shape = meta.get("spatial_shape", ())
    flat = found.ndim == 3 and len(shape) == 3 and int(shape[2]) == 1
    return found[..., None] if flat else found


def _format_of(image: Path, given: str | None, probabilities: bool) -> str:
    picture = image.name.lower().endswith(_PICTURES)
    if given is None:
        given = "dcm" if is_series(image) else "png" if picture and not probabilities else "nii.gz"
    if given == "dcm" and not is_series(image):
        raise CommandError(f"{image}: --format dcm needs DICOM images, which the segmentation refers to; pass nii.gz")
    if given == "png" and (not picture or probabilities):
        raise CommandError(f"{image}: --format png is for labels of pictures; pass nii.gz or nrrd")
    if given == "seg.nrrd" and probabilities:
        raise CommandError("--format seg.nrrd holds no probabilities; pass nii.gz, nrrd or dcm")
    return "." + given


def _algorithm(bundle: Path, weights: Path) -> Any:
    """Who made it, as DICOM asks: the bundle, its version, and the checksum of its weights."""
    from medcoarse.writers.dicom_seg import Algorithm

    metadata = config_of(bundle, "metadata.json")
    checksum = hashlib.sha256(weights.read_bytes()).hexdigest()
    name, version = (str(metadata.get(key, "unknown")) for key in ("name", "version"))
    return Algorithm(name[:64], version[:64], str(metadata.get("authors", "unknown"))[:64], checksum)
