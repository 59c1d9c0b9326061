"""Do deployed bundles give the masks that the bundles give? `python examples/deploy/check.py` answers that.

It builds the application's environment, exports the bundle for photographs and one that `medcoarse train` planned for
series, runs the application on pictures, photographs in DICOM, and CT and MR series, and compares pixel by pixel.

Exit codes: 0 all equal, 1 something differs or fails, 3 the environment could not be installed.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from monai.bundle import ConfigParser
from PIL import Image

from medcoarse.cli.bundle import change_settings
from medcoarse.synthetic import fundus_photograph
from medcoarse.synthetic.volumes import write_pelvis_dataset

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUNDLE = ROOT / "bundles" / "les_av"
PARTS = ("photographs", "series")

NOT_INSTALLED = 3
STACK_BYTES = 32768 * 1024  # what Holoscan asks for, `ulimit -s 32768`
IMPORTS = "import sys; sys.path.insert(0, sys.argv[1]); import app, series_operators, compare_series"
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
"""This copy of the package, whichever the application's environment has installed."""

CPU_TORCH = "torch==2.13.0+cpu"
"""Asked for by its local version, so that pip fails rather than fetch gigabytes for GPUs."""


def main() -> None:
    """Build, export, run, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--env", type=Path, default=ROOT / "runs/deploy_env", help="environment; built if it is not there"
    )
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "runs/deploy", help="where everything goes; emptied first"
    )
    parser.add_argument("--only", choices=PARTS, help="one of the two parts; otherwise both")
    parser.add_argument("--pictures", type=Path, help="folder of two photographs or more; drawn ones otherwise")
    parser.add_argument("--ckpt_file", type=Path, help="weights of the bundle; random ones otherwise")
    parser.add_argument(
        "--bundle",
        type=Path,
        help="what `medcoarse train` made, for series; a planned one with random weights otherwise",
    )
    parser.add_argument("--series", type=Path, help="folder with a folder for every series; drawn ones otherwise")
    arguments = parser.parse_args()
    if arguments.series and not arguments.bundle:
        parser.error("--series needs the --bundle that segments them")
    python = environment(arguments.env.absolute())
    folder = arguments.folder.absolute()
    shutil.rmtree(folder, ignore_errors=True)
    print("exporting, running, comparing", flush=True)
    if arguments.only != "series":
        check_photographs(python, folder / "photographs", arguments.pictures, arguments.ckpt_file)
    if arguments.only != "photographs":
        check_series(python, folder / "series", arguments.bundle, arguments.series)
    print(run(python, HERE / "compare.py", folder), end="")
    print(f"report: {folder / 'report.json'}")


def check_photographs(python: Path, folder: Path, pictures: Path | None, ckpt_file: Path | None) -> None:
    """Everything that is to be compared of photographs."""
    (folder / "models").mkdir(parents=True)
    photographs(folder / "pictures", pictures)
    weights = folder / "models" / "model.pt"
    if ckpt_file:
        shutil.copy(ckpt_file, weights)
    else:
        random_weights(BUNDLE, weights)
    export(BUNDLE, weights, folder / "model.ts")
    run(python, HERE / "synthetic_dicom.py", folder / "pictures", folder / "dicom", folder / "references")
    for kind in ("pictures", "references"):
        infer(folder, kind)
    for kind in ("pictures", "dicom"):
        deploy(python, folder, kind)
    for kind in ("broken", "damaged"):
        deploy(python, folder, kind, expected=1)


def check_series(python: Path, folder: Path, bundle: Path | None, series: Path | None) -> None:
    """Everything that is to be compared of series: by `medcoarse predict`, and by inference.json as it is.

    The latter reads slices in the order of their numbers, which has to be that of space.
    """
    folder.mkdir(parents=True)
    if bundle:
        shutil.copytree(bundle, folder / "bundle")
    else:
        planned_bundle(folder)
    if series:
        shutil.copytree(series, folder / "dicom")
    else:
        drawn = bundle_data(folder)
        run(python, HERE / "synthetic_series.py", drawn, folder)
    weights = folder / "bundle" / "models" / "model.pt"
    export(folder / "bundle", weights, folder / "model.ts")
    given = [place for place in sorted((folder / "dicom").iterdir()) if place.name != "others"]
    medcoarse("predict", folder / "bundle", *given, "--output_dir", folder / "bundle_dicom")
    if not series:
        infer_series(folder, folder / "dicom" / "ct")
        deploy(python, folder, "broken", expected=1)
    deploy(python, folder, "dicom")


def bundle_data(folder: Path) -> Path:
    """Two drawn volumes and drawings of them, in folders as a user has them; the folder of the volumes."""
    if not (folder / "images").is_dir():
        data = write_pelvis_dataset(folder / "drawn", 1, 1, 1, (40, 32, 12), (2.5, 3.0, 5.0))
        for kind, name in (("images", "t2"), ("drawings", "strokes")):
            (folder / kind).mkdir()
            for case in sorted((data / "cases").iterdir())[:2]:
                shutil.copy(case / f"{name}.nii.gz", folder / kind / f"{case.name}.nii.gz")
    return folder / "images"


def planned_bundle(folder: Path) -> None:
    """A bundle as `medcoarse train` leaves it, of another spacing than the series, with random weights."""
    images = bundle_data(folder)
    words = ("--background", "3", "--class_names", "peripheral zone", "central gland", "--plan_only")
    medcoarse("train", images, folder / "drawings", "--output_dir", folder / "bundle", *words)
    small = {"patch_size": [24, 24, 8], "network_def#channels": [8, 16, 32], "network_def#strides": [[2, 2, 1], 2]}
    change_settings(folder / "bundle", {**small, "spacing": [3.0, 3.0, 4.0]})
    (folder / "bundle" / "models").mkdir()
    random_weights(folder / "bundle", folder / "bundle" / "models" / "model.pt")


def environment(folder: Path) -> Path:
    """The Python of the application's environment, which is installed if it is not there yet, or not whole."""
    python = folder / "bin" / "python"
    ready: list[str | Path] = [python, "-c", IMPORTS, HERE]
    if python.is_file() and subprocess.run(ready, capture_output=True, env=ENVIRONMENT).returncode == 0:
        return python
    print(f"installing the application's environment into {folder} (1.5 GB)", flush=True)
    pip = (python, "-m", "pip", "install", "--only-binary", ":all:")
    try:
        run(sys.executable, "-m", "venv", folder)
        run(*pip, CPU_TORCH)
        run(*pip, "-r", HERE / "requirements.txt")
        run(python, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--editable", ROOT)
        run(python, "-c", IMPORTS, HERE)
    except SystemExit as error:
        print(
            f"{error}\nThe environment could not be installed, so nothing was checked. It needs Linux on x86-64, "
            f"Python 3.11, a network, and a pip that knows where {CPU_TORCH} is.",
            file=sys.stderr,
        )
        sys.exit(NOT_INSTALLED)
    return python


def photographs(folder: Path, given: Path | None) -> None:
    """Those that are given, or two drawn ones."""
    if given:
        shutil.copytree(given, folder)
        return
    folder.mkdir()
    for number, (size, ending) in enumerate([((361, 405), "png"), ((330, 301), "jpg")]):
        Image.fromarray(fundus_photograph(number, size).image).save(folder / f"{number}.{ending}")


def random_weights(bundle: Path, file: Path) -> None:
    """Weights of its network that were never trained."""
    torch.manual_seed(0)
    config = ConfigParser(ConfigParser.load_config_file(bundle / "configs" / "inference.json"))
    torch.save(config.get_parsed_content("network_def").state_dict(), file)


def export(bundle: Path, weights: Path, model: Path) -> None:
    """The bundle as TorchScript with its configuration."""
    configs = bundle / "configs"
    command = (sys.executable, "-m", "monai.bundle", "ckpt_export", "network_def", "--filepath", model)
    described = ("--meta_file", configs / "metadata.json", "--config_file", configs / "inference.json")
    run(*command, "--ckpt_file", weights, *described)


def medcoarse(*words: str | Path) -> None:
    """The package's own command."""
    run(sys.executable, "-m", "medcoarse", *words)


def infer_series(folder: Path, series: Path) -> None:
    """The bundle's inference.json as it is, on one series, with MONAI's reader."""
    command = (sys.executable, "-m", "monai.bundle", "run", "inferring")
    config = ("--config_file", folder / "bundle" / "configs" / "inference.json", "--bundle_root", folder / "bundle")
    read = (f"--datalist=['{series}']", "--preprocessing#transforms#0#reader", "PydicomReader")
    run(*command, *config, *read, "--output_dir", folder / "bundle_nifti")


def infer(folder: Path, kind: str) -> None:
    """The bundle's own inference, as its page describes it."""
    command = (
        sys.executable,
        "-m",
        "monai.bundle",
        "run",
        "inferring",
        "--config_file",
        BUNDLE / "configs" / "inference.json",
    )
    out = folder / f"bundle_{kind}"
    run(*command, "--dataset_dir", folder / kind, "--output_dir", out, "--ckpt_dir", folder / "models")


def deploy(python: Path, folder: Path, kind: str, expected: int = 0) -> None:
    """The application; what it prints is kept, to be searched for what identifies the invented patients."""
    out = folder / f"app_{kind}"
    command = (python, HERE / "app.py", "-i", folder / kind, "-o", out, "-m", folder / "model.ts")
    printed = run(*command, expected=expected)
    (folder / f"app_{kind}.log").write_text(printed)


def run(*command: str | Path, expected: int = 0) -> str:
    """Run a command, return what it printed; stop with that when its exit code is not the expected one."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, preexec_fn=raise_stack,
        env=ENVIRONMENT,
    )  # fmt: skip
    if done.returncode != expected:
        raise SystemExit(f"{done.stdout}\nended with {done.returncode}: {' '.join(map(str, command))}")
    return done.stdout


def raise_stack() -> None:
    """Give a process the stack that Holoscan asks for, where it may have it."""
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    wanted = STACK_BYTES if hard == resource.RLIM_INFINITY else min(STACK_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_STACK, (wanted, hard))


if __name__ == "__main__":
    main()
