"""Review who drew: everybody's reliability and errors, the drawings to look at again, and whom to ask next.

Of a bundle that `medcoarse train` made, or any with configs/review.json. Writes annotators.json and annotators.html
into its output folder. No mask is needed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from medcoarse.cli.bundle import config_of, run_bundle
from medcoarse.cli.main import CommandError
from medcoarse.files import write_json

EXAMPLES = """examples:
  medcoarse report run
"""
_REVIEW = {
    "review": {
        "_target_": "medcoarse.review.AnnotatorReview",
        "model": "@coarse_model",
        "loss": "@loss",
        "dataset": "@train#drawings",
        "inferer": "@validate#inferer",
        "class_names": "@class_names",
        "directory": "@output_dir",
        "shown_key": "shown",
        "seed": "@seed",
    },
    "initialize": [
        "$monai.utils.set_determinism(seed=@seed)",
        "$workflow.require_weights(@ckpt_dir + '/full.pt')",
        "$@coarse_model.load_state_dict(torch.load(@ckpt_dir + '/full.pt', map_location=@device, "
        "weights_only=True)['model'])",
    ],
    "reviewing": ["$@review()"],
    "run": "@reviewing",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("bundle", metavar="BUNDLE", help="folder that `medcoarse train` wrote")


def run(options: argparse.Namespace) -> int:
    """Run the bundle's review, or the usual one."""
    bundle = Path(options.bundle)
    content = config_of(bundle, "train.json")
    if not (bundle / "models" / "full.pt").is_file():
        raise CommandError(f"{bundle}: not trained yet, it has no models/full.pt")
    overlay = bundle / "configs" / "review.json"
    if not overlay.is_file():
        if "class_names" not in content:
            raise CommandError(f"{bundle}: has no configs/review.json")
        write_json(overlay, _REVIEW)
    run_bundle(bundle, ["train.json", "review.json"], "reviewing")
    print(f"written: {bundle / 'output' / 'annotators.html'} and annotators.json")
    return 0
