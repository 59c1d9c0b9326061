"""Do the bundles work in MONAI Label? `python examples/monailabel/check.py` answers that with MONAI Label itself.

It builds an environment for MONAI Label, draws small data with scribbles on them, lays out every bundle as it is
served, and lets MONAI Label's own tasks segment, train from the scribbles, and segment again. What they segment is
compared voxel by voxel with what the bundle segments by itself.

Exit codes: 0 all well, 1 something differs or fails, 3 the environment could not be installed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from monai.bundle import ConfigParser
from PIL import Image

from medcoarse.bundle_files import serve
from medcoarse.cityscapes import CLASSES, class_table
from medcoarse.synthetic import fundus_photograph
from medcoarse.synthetic.brain import ms_scan, tumour_scan
from medcoarse.synthetic.pelvis import pelvis_scan
from medcoarse.synthetic.street import street_scene

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUNDLES = sorted(path.parent.parent for path in ROOT.glob("bundles/*/configs/monailabel.json"))

NOT_INSTALLED = 3
CPU_TORCH = "torch==2.13.0+cpu"
"""Asked for by its local version, so that pip fails rather than fetch gigabytes for GPUs."""

TASKS = "import sys; sys.path.insert(0, sys.argv[1]); import tasks, medcoarse.workflow"
SMALL = {"iterations_per_epoch": 2, "batch_size": 2}


def main() -> None:
    """Build, draw, serve, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [bundle.name for bundle in BUNDLES]
    parser.add_argument("bundles", nargs="*", metavar="BUNDLE", help=f"of {', '.join(names)}; by default all")
    parser.add_argument("--env", type=Path, default=ROOT / "runs/label_env", help="environment; built if not there")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs/label", help="everything goes here; emptied first")
    arguments = parser.parse_args()
    bundles = [bundle for bundle in BUNDLES if bundle.name in (arguments.bundles or names)]
    if unknown := sorted(set(arguments.bundles) - set(names)):
        parser.error(f"no bundle {', '.join(unknown)}; there are {', '.join(names)}")
    python, folder = environment(arguments.env.absolute()), arguments.folder.absolute()
    shutil.rmtree(folder, ignore_errors=True)
    print("drawing, serving, training, comparing", flush=True)
    for bundle in bundles:
        lay_out(bundle, folder / bundle.name)
    run(python, HERE / "tasks.py", folder)
    report = json.loads((folder / "report.json").read_text())
    faults = [fault for bundle in bundles for fault in faults_of(bundle, folder / bundle.name, report["bundles"])]
    (folder / "report.json").write_text(json.dumps(report | {"faults": faults}, indent=2) + "\n")
    print(*(faults or [f"all well: {', '.join(report['bundles'])}"]), f"report: {folder / 'report.json'}", sep="\n")
    sys.exit(bool(faults))


def environment(folder: Path) -> Path:
    """The Python of MONAI Label's environment, which is installed if it is not there yet, or not whole."""
    python = folder / "bin" / "python"
    if python.is_file() and subprocess.run([python, "-c", TASKS, HERE], cwd=ROOT, capture_output=True).returncode == 0:
        return python
    print(f"installing MONAI Label's environment into {folder} (1.5 GB)", flush=True)
    try:
        run(sys.executable, "-m", "venv", folder)
        run(python, "-m", "pip", "install", "--only-binary", ":all:", CPU_TORCH, "torchvision==0.28.0")
        run(python, "-m", "pip", "install", "--no-deps", "-r", HERE / "requirements.txt")
        run(python, "-m", "pip", "install", "--no-deps", "-e", ROOT)
        run(python, "-c", TASKS, HERE)
    except SystemExit as error:
        print(
            f"{error}\nThe environment could not be installed, so nothing was checked. It needs Linux on x86-64, "
            f"Python 3.11, a network, and a pip that knows where {CPU_TORCH} is.",
            file=sys.stderr,
        )
        sys.exit(NOT_INSTALLED)
    return python


def lay_out(bundle: Path, place: Path, overrides: dict[str, Any] = SMALL) -> None:
    """The bundle as it is served, with random weights, three images with a reader's scribbles and one without."""
    copy = serve(bundle, place / "model", **overrides)
    torch.manual_seed(0)
    config = ConfigParser(ConfigParser.load_config_file(copy / "configs" / "inference.json"))
    network = config.get_parsed_content("network_def")
    (copy / "models").mkdir(exist_ok=True)
    torch.save(network.state_dict(), copy / "models" / "model.pt")
    labels = place / "studies" / "labels" / "final"
    for part in (labels, place / "unseen"):
        part.mkdir(parents=True)
    for number in range(4):
        image, truth = drawn_case(bundle.name, number)
        target = place / "studies" if number < 3 else place / "unseen"
        save(target / f"case{number}", image, channels=bundle.name in ("ms_lesions", "brats"))
        if number < 3:
            save(labels / f"case{number}", scribbles(truth, values_of(copy), number))


def drawn_case(name: str, number: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A picture or volume of the kind that the bundle is for, channels last, and its classes."""
    if name == "les_av":
        photograph = fundus_photograph(number, (321, 285))
        return photograph.image, photograph.vessels.astype(np.uint8)
    if name == "mnist":
        rows, columns = np.mgrid[:28, :28]
        ring = np.abs(np.hypot(rows - 14, columns - 13 - number) - 7) < 2
        return (ring * 200 + 20).astype(np.uint8), ring.astype(np.uint8)
    if name == "cityscapes":
        scene = street_scene(number, (72, 96))
        return scene.image, np.array(class_table(list(CLASSES.values())), np.uint8)[scene.label]
    if name == "drawings":
        volume = pelvis_scan(number, (40, 40, 10), (2.0, 2.0, 3.6))
        return volume.image, volume.label
    if name == "lidc":
        rows, columns, planes = np.mgrid[:70, :64, :9]
        ball = np.hypot(np.hypot(rows - 30 - number, columns - 30), 3 * (planes - 4)) < 9
        return (ball * 900 - 850).astype(np.int16), ball.astype(np.uint8)
    scan = (ms_scan if name == "ms_lesions" else tumour_scan)(number, (64, 48, 12), (1.0, 1.0, 3.0))
    return scan.image, scan.label


def labels_of(copy: Path) -> dict[str, int]:
    """Name -> value of what a reader can choose from."""
    outputs = json.loads((copy / "configs" / "metadata.json").read_text())["network_data_format"]["outputs"]
    return {name.lower(): int(k) for k, name in outputs["pred"]["channel_def"].items() if name != "background"}


def values_of(copy: Path) -> list[int]:
    """What a reader draws each class of the network with; a background with the number of classes."""
    config = ConfigParser(ConfigParser.load_config_file(copy / "configs" / "inference.json"))
    num_classes, values = config.get_parsed_content("num_classes"), sorted(labels_of(copy).values())
    return values if len(values) == num_classes else [num_classes, *values]


def scribbles(truth: np.ndarray[Any, Any], values: Sequence[int], seed: int) -> np.ndarray[Any, Any]:
    """Some of every class, as MONAI Label writes it: 0 where nothing is drawn; where nobody knows (255), nothing is."""
    table = np.zeros(256, np.uint8)
    table[: len(values)] = values
    some = np.random.default_rng(seed).random(truth.shape) < 0.3
    result: np.ndarray[Any, Any] = np.where(some, table[truth], 0).astype(np.uint8)
    return result


def save(path: Path, values: np.ndarray[Any, Any], channels: bool = False) -> None:
    """Pictures as PNG, volumes as NIfTI with voxels that are no cubes."""
    if values.ndim == 2 or values.shape[-1] == 3:
        Image.fromarray(values).save(path.with_suffix(".png"))
    else:
        nibabel.save(nibabel.Nifti1Image(values, np.diag([1.0, 1.0, 3.0, 1.0])), path.with_suffix(".nii.gz"))


def faults_of(bundle: Path, place: Path, reported: dict[str, Any]) -> list[str]:
    """What is not as it should be, one line each."""
    found = reported.get(bundle.name, {"error": "it was not tried"})
    if "error" in found:
        return [f"{bundle.name}: {found['error']}"]
    copy = place / "model" / bundle.name
    wrong = {
        "the labels are not those of the metadata": found["after"]["label_names"] != labels_of(copy),
        "it learned nothing": len(set(found["weights"])) != 2,
        "its weights are not finite": not found["finite"],
        "it was not validated to the end": found["epochs"][-1:] != [2],
        "not all that was drawn was in its datalist": len(found["datalist"]) != 3,
        "MONAI Label's segmentation is not the bundle's own": not equal(copy, place),
    }
    return [f"{bundle.name}: {fault}" for fault, is_so in wrong.items() if is_so]


def equal(copy: Path, place: Path) -> bool:
    """Whether what MONAI Label segmented in the end is what the bundle segments by itself."""
    own = place / "own"
    command = (sys.executable, "-m", "monai.bundle", "run", "inferring", "--config_file")
    run(*command, copy / "configs/inference.json", "--dataset_dir", place / "unseen", "--output_dir", own,
        "--bundle_root", copy, *datalist_of(copy, place))  # fmt: skip
    pairs = [(path, next(own.rglob(f"{path.name.split('.')[0]}*"))) for path in sorted((place / "after").iterdir())]
    return bool(pairs) and all(np.array_equal(read(a), read(b)) for a, b in pairs)


def datalist_of(copy: Path, place: Path) -> tuple[str, ...]:
    """The images by name, because the volumes' bundles look for the names that their data sets have."""
    return ("--datalist", str([str(path) for path in sorted((place / "unseen").iterdir())]))


def read(path: Path) -> np.ndarray[Any, Any]:
    """Classes; a picture's 255 is class 1."""
    if path.suffix == ".png":
        values = np.asarray(Image.open(path))
        return np.where(values == 255, 1, values)
    return np.asarray(nibabel.load(path).dataobj).squeeze()


def run(*command: str | Path) -> str:
    """Run a command, return what it printed; stop with that when it fails."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{done.stdout}\nended with {done.returncode}: {' '.join(map(str, command))}")
    return done.stdout


if __name__ == "__main__":
    main()
