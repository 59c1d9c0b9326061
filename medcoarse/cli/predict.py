"""Segment images with a trained bundle.

IMAGES are files, folders of files, and DICOM series (folders). Segmentations get the names and the geometry of the
images. DICOM series give DICOM SEG, pictures PNG, anything else NIfTI, unless --format says otherwise. A bundle that
was trained on files of channels (case1_0000.nii.gz, case1_0001.nii.gz, ...) takes such, and segments case1.

labels.txt beside label maps says what their values are called: to ITK-SNAP (Segmentation, Import Label Descriptions),
and to `medcoarse evaluate`.

With several bundles (--with), such as those of the same `medcoarse train` with other seeds, the mean of their
probabilities decides; each prepares the image in its own way.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import sys
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

from medcoarse.cli.bundle import class_names_of, config_of, require_text
from medcoarse.cli.channels import files_of, join_channels
from medcoarse.cli.files import NAMES_FILE, find_images, new_folder
from medcoarse.cli.main import CommandError, in_one_line
from medcoarse.inspection import PIL_SUFFIXES
from medcoarse.readers.dicom import require_one_series
from medcoarse.readers.formats import is_series

EXAMPLES = """examples:
  medcoarse predict run images/ --output_dir segmented
  medcoarse predict run case7.nii.gz --output_dir segmented --format seg.nrrd       for 3D Slicer
  medcoarse predict run dicom/ --output_dir segmented                               DICOM SEG for each series
  medcoarse predict run images/ --output_dir probabilities --probabilities
  medcoarse predict run images/ --with run2 run3 --output_dir segmented             the mean of three networks
"""
FORMATS = ("nii.gz", "nii", "nrrd", "seg.nrrd", "dcm", "png")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    add = parser.add_argument
    add(
        "bundle",
        metavar="BUNDLE",
        help="folder that `medcoarse train` wrote, or any bundle with configs/inference.json",
    )
    add("images", metavar="IMAGES", nargs="+", help="images, folders of images, DICOM series")
    add(
        "--with",
        dest="others",
        metavar="BUNDLE",
        nargs="+",
        default=[],
        help="more bundles, of the same classes; after IMAGES",
    )
    add("--output_dir", required=True, help="where the segmentations go")
    add("--format", choices=FORMATS, help="by default that of the images")
    add("--probabilities", action="store_true", help="write the probability of every class in place of labels")
    add("--overwrite", action="store_true", help="write into a folder that is not empty")
    add("--device", help="cpu, cuda, cuda:1; by default a GPU where there is one")


def run(options: argparse.Namespace) -> int:
    """Segment one image after the other; go on after one that fails."""
    bundle, *others = bundles = [Path(one) for one in (options.bundle, *options.others)]
    images = find_images(options.images, besides=options.output_dir)
    names = class_names_of(bundle)
    for one in bundles:
        if not _weights_of(one).is_file():
            raise CommandError(f"{_weights_of(one)}: no weights; train first")
    for other in others:
        _require_same_task(bundle, other)
    channels = channels_of(bundle, images)
    jobs = [
        (image, _format_of(files_of(image, channels)[0], options.format, options.probabilities))
        for image in channels or images
    ]

    from medcoarse.transforms.saved import SaveSegmentationd  # takes seconds
    from medcoarse.writers.itksnap import write_label_descriptions

    algorithm = _algorithm(bundles)
    root = Path(options.images[0]) if len(options.images) == 1 and Path(options.images[0]).is_dir() else None
    savers = {
        suffix: SaveSegmentationd(
            "pred", options.output_dir, names, suffix, "", "source", root, None, algorithm, name_key="image"
        )
        for _, suffix in jobs
    }
    _require_different({image: savers[suffix].path_of(str(image)) for image, suffix in jobs})
    _require_device(options.device)
    new_folder(options.output_dir, options.overwrite)
    nameless = not options.probabilities
    segment = make_segmenter(bundles, options.probabilities, options.device)
    seen = [_planned(one).get("slice_spacings") for one in bundles]
    failed = 0
    for number, (image, suffix) in enumerate(jobs, 1):
        files = files_of(image, channels)
        series = any(is_series(file) for file in files)
        try:
            item: dict[Hashable, Any] = {"pred": segment(files), "source": str(files[0]), "image": str(image)}
            written = savers[suffix](item)["pred_path"]
            if nameless and suffix not in (".dcm", ".seg.nrrd"):  # they hold the names
                write_label_descriptions(Path(options.output_dir) / NAMES_FILE, names)
                nameless = False
            print(f"[{number}/{len(jobs)}] {image} -> {written}{_said_of_size(item['pred'], seen)}", flush=True)
        except Exception as error:
            if options.debug:
                raise
            failed += 1
            print(f"[{number}/{len(jobs)}] {image}: {_without_header(error, series)}", file=sys.stderr, flush=True)
    if failed:
        raise CommandError(f"{failed} of {len(jobs)} images could not be segmented, see above")
    return 0


def channels_of(bundle: Path, images: list[Path]) -> dict[Path, list[Path]]:
    """The files of every image, for a bundle that was trained on several each."""
    numbers = _planned(bundle).get("channels")
    return join_channels(images, numbers)[0] if numbers else {}


def _planned(bundle: Path) -> dict[str, Any]:
    """What `medcoarse train` wrote of its plan; nothing where something else made the bundle."""
    return config_of(bundle, "plan.json") if (bundle / "configs" / "plan.json").is_file() else {}


def _said_of_size(pred: Any, seen: list[list[list[float]] | None]) -> str:
    """Of a single slice, which is not resampled: that a bundle was trained on others."""
    import numpy as np

    from medcoarse.grids import is_unseen

    spacing = np.linalg.norm(np.asarray(pred.affine)[:3, :2], axis=0)
    others = next((one for one in seen if one is not None and is_unseen(spacing.tolist(), one)), None)
    if others is None:
        return ""
    here, *there = dict.fromkeys(" x ".join(f"{step:.4g}" for step in steps) for steps in (spacing, *others))
    return f"  ITS PIXELS HAVE {here} mm, those trained on {' to '.join(there)}, and slices are not resampled"


def _require_different(targets: dict[Path, Path]) -> None:
    """Refuse images of the same name, whose segmentations would replace each other."""
    taken: dict[Path, Path] = {}
    for image, target in targets.items():
        other = taken.setdefault(target, image)
        if other is not image:
            raise CommandError(
                f"{other} and {image} would both become {target}; give them different names, or segment one at a time"
            )


def _without_header(error: Exception, series: bool) -> str:
    """What went wrong; of DICOM only in words of our own, for what libraries say may quote the header."""
    while type(error) is RuntimeError and isinstance(error.__cause__, Exception):  # MONAI's, of a pipeline
        error = error.__cause__
    ours = isinstance(error, CommandError) or type(error).__module__.startswith("medcoarse.")
    return in_one_line(error) if ours or not series else f"cannot be segmented ({type(error).__name__})"


def _require_device(device: str | None) -> None:
    """Before anything is read or written."""
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):  # of what CUDA says, and of a PyTorch without it
        raise CommandError(f"--device {device}: PyTorch cannot use it here; pass cpu, or leave it out") from None


def make_segmenter(
    bundles: Sequence[Path], probabilities: bool, device: str | None = None
) -> Callable[[list[Path]], Any]:
    """Pre-processing, network and post-processing of a bundle, without what it saves: file of an image, or files of its
    channels -> labels (1, *S) or probabilities (L, *S), where the image lies. Images are read as for training.

    Args:
        bundles: their folders; of several the mean of the probabilities, from which the first one's steps go on.
        probabilities: whether to stop before the class is chosen.
        device: by default the bundle's.
    """
    first, *others = networks = [_Network(bundle, device) for bundle in bundles]

    def segment(files: list[Path]) -> Any:
        for file in files:
            require_one_series(file)
        item = first(files)
        meta = item["image"].meta
        if probabilities or others:
            item["pred"] = first.probabilities(item["pred"])
            for network in others:
                item["pred"] += network.probabilities(network(files)["pred"])
            item["pred"] /= len(networks)
        return _with_slice((item if probabilities else first.choose(item))["pred"], meta)

    return segment


class _Network:
    """A bundle's network, with what comes before it and after it up to the choice of a class."""

    def __init__(self, bundle: Path, device: str | None) -> None:
        from monai.bundle import ConfigParser

        from medcoarse.files import load_weights

        folder = str(bundle.absolute())
        require_text("a path", folder)
        weights = load_weights(_weights_of(bundle))  # before the configuration looks into it
        content = copy.deepcopy(config_of(bundle, "inference.json"))
        content |= {"bundle_root": folder, "datalist": [], "output_dir": folder}
        content |= {"device": f"$torch.device({device!r})"} if device else {}
        loading = content["preprocessing"]["transforms"][0]
        if loading.get("image_only", True):
            loading["_target_"] = "medcoarse.transforms.series.LoadImageOrSeriesd"
        steps = [step for step in content["postprocessing"]["transforms"] if step.get("_target_") != "SaveImaged"]
        choice = next((i for i, step in enumerate(steps) if step.get("_target_") == "AsDiscreted"), len(steps))
        content["postprocessing"]["transforms"] = steps[:choice]
        content["choosing"] = {"_target_": "Compose", "transforms": steps[choice:]}
        self.gives_probabilities = any(step.get("_target_") == "Activationsd" for step in steps[:choice])
        parser = ConfigParser(content)
        parser.parse(True)
        self.content = content
        self.network, self.inferer, self.place = (
            parser.get_parsed_content(key) for key in ("network", "inferer", "device")
        )
        self.preprocess, self.postprocess, self.choose = (
            parser.get_parsed_content(key) for key in ("preprocessing", "postprocessing", "choosing")
        )
        self.network.load_state_dict(weights)
        self.network.to(self.place).eval()

    def __call__(self, files: list[Path]) -> dict[Hashable, Any]:
        """The image as the network saw it, and under `pred` what it says (L, *S), where the image lies."""
        import torch
        from monai.data.meta_tensor import MetaTensor

        from medcoarse.transforms.series import require_intensities

        item = self.preprocess({"image": [str(file) for file in files] if len(files) > 1 else str(files[0])})
        loaded = item["image"]
        require_intensities(loaded, files[0])
        require_alike(loaded, self.content)
        if not bool(loaded.isfinite().all()):  # the network would call all of it background
            raise CommandError("has values that are not numbers (NaN or infinity); repair it")
        with torch.no_grad():
            logits = self.inferer(loaded.as_tensor()[None].to(self.place), self.network)
        pred = MetaTensor(logits[0].cpu(), affine=loaded.affine, meta=loaded.meta)
        return {**item, **self.postprocess({**item, "pred": pred})}

    def probabilities(self, pred: Any) -> Any:
        """Of what the network says."""
        return pred if self.gives_probabilities else pred.softmax(0)


def require_alike(image: Any, content: dict[str, Any]) -> None:
    """Refuse an image of other axes or channels than a bundle takes; the network would not say it in plain words.

    Raises:
        CommandError: they are others.
    """
    axes = image.ndim - 1
    flat = content.get("spatial_dims") == 2 and axes == 3 and image.shape[-1] == 1
    for key, what, found in (("spatial_dims", "axes", axes - flat), ("in_channels", "channels", len(image))):
        expected = content.get(key)
        if isinstance(expected, int) and found != expected:
            raise CommandError(f"has {found} {what}; the bundle was trained on images of {expected}")


def _with_slice(found: Any, meta: Any) -> Any:
    """A volume of one slice that was segmented as a picture is one of one slice again."""
    shape = meta.get("spatial_shape", ())
    flat = found.ndim == 3 and len(shape) == 3 and int(shape[2]) == 1
    return found[..., None] if flat else found


def _format_of(image: Path, given: str | None, probabilities: bool) -> str:
    picture = image.name.lower().endswith(PIL_SUFFIXES)
    if given is None:
        given = "dcm" if is_series(image) else "png" if picture and not probabilities else "nii.gz"
    if given == "dcm" and not is_series(image):
        raise CommandError(f"{image}: --format dcm needs DICOM images, which the segmentation refers to; pass nii.gz")
    if given == "png" and (not picture or probabilities):
        raise CommandError(f"{image}: --format png is for labels of pictures; pass nii.gz or nrrd")
    if given == "seg.nrrd" and probabilities:
        raise CommandError("--format seg.nrrd holds no probabilities; pass nii.gz, nrrd or dcm")
    return "." + given


def _weights_of(bundle: Path) -> Path:
    return bundle / "models" / "model.pt"


def _require_same_task(bundle: Path, other: Path) -> None:
    """Refuse bundles whose probabilities are of other classes, or that take other channels."""
    for what, one, two in (
        ("classes", class_names_of(bundle), class_names_of(other)),
        ("channels", _planned(bundle).get("channels"), _planned(other).get("channels")),
    ):
        if one != two:
            raise CommandError(f"--with {other}: its {what} are {_list(two)}, those of {bundle} {_list(one)}")


def _list(names: Sequence[Any] | None) -> str:
    return ", ".join(map(str, names)) if names else "one file"


def _algorithm(bundles: Sequence[Path]) -> Any:
    """Who made it, as DICOM asks: the bundle, its version, and the checksum of its weights, or of all one after the
    other."""
    from medcoarse.writers.dicom_seg import algorithm_of

    checksum = hashlib.sha256()
    for bundle in bundles:
        checksum.update(_weights_of(bundle).read_bytes())
    return algorithm_of(config_of(bundles[0], "metadata.json"), checksum.hexdigest())
