"""Does the deployed bundle give the masks that the bundle gives? `python examples/deploy/check.py` answers that.

It builds the application's environment, exports the bundle, runs the application on pictures and on DICOM, and compares
pixel by pixel.

Exit codes: 0 all equal, 1 something differs or fails, 3 the environment could not be installed.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from monai.bundle import ConfigParser
from PIL import Image

from medcoarse.synthetic import fundus_photograph

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUNDLE = ROOT / "bundles" / "les_av"
CONFIG, METADATA = BUNDLE / "configs" / "inference.json", BUNDLE / "configs" / "metadata.json"

NOT_INSTALLED = 3
STACK_BYTES = 32768 * 1024  # what Holoscan asks for, `ulimit -s 32768`
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
    parser.add_argument("--pictures", type=Path, help="folder of two photographs or more; drawn ones otherwise")
    parser.add_argument("--ckpt_file", type=Path, help="weights of the bundle; random ones otherwise")
    arguments = parser.parse_args()
    python = environment(arguments.env.absolute())
    folder = arguments.folder.absolute()
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "models").mkdir(parents=True)
    print("exporting, running, comparing", flush=True)
    photographs(folder / "pictures", arguments.pictures)
    export(folder, arguments.ckpt_file and arguments.ckpt_file.absolute())
    run(python, HERE / "synthetic_dicom.py", folder / "pictures", folder / "dicom", folder / "references")
    for kind in ("pictures", "references"):
        infer(folder, kind)
    for kind in ("pictures", "dicom"):
        deploy(python, folder, kind)
    deploy(python, folder, "broken", expected=1)
    print(run(python, HERE / "compare.py", folder), end="")
    print(f"report: {folder / 'report.json'}")


def environment(folder: Path) -> Path:
    """The Python of the application's environment, which is installed if it is not there yet, or not whole."""
    python = folder / "bin" / "python"
    if python.is_file() and subprocess.run([python, "-c", "import app"], cwd=HERE, capture_output=True).returncode == 0:
        return python
    print(f"installing the application's environment into {folder} (1.5 GB)", flush=True)
    pip = (python, "-m", "pip", "install", "--only-binary", ":all:")
    try:
        run(sys.executable, "-m", "venv", folder)
        run(*pip, CPU_TORCH)
        run(*pip, "-r", HERE / "requirements.txt")
        run(python, "-c", "import sys; sys.path.insert(0, sys.argv[1]); import app", HERE)
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


def export(folder: Path, ckpt_file: Path | None) -> None:
    """The bundle as `model.ts`, with the weights that are given or random ones."""
    weights = folder / "models" / "model.pt"
    if ckpt_file:
        shutil.copy(ckpt_file, weights)
    else:
        torch.manual_seed(0)
        network = ConfigParser(ConfigParser.load_config_file(CONFIG)).get_parsed_content("network_def")
        torch.save(network.state_dict(), weights)
    command = (sys.executable, "-m", "monai.bundle", "ckpt_export", "network_def", "--filepath", folder / "model.ts")
    run(*command, "--ckpt_file", weights, "--meta_file", METADATA, "--config_file", CONFIG)


def infer(folder: Path, kind: str) -> None:
    """The bundle's own inference, as its page describes it."""
    command = (sys.executable, "-m", "monai.bundle", "run", "inferring", "--config_file", CONFIG)
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
