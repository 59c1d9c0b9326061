"""A table on a real bundle: MONAI's own command, training and evaluation."""

from __future__ import annotations

import json

import pytest

from medcoarse.experiments.__main__ import main


@pytest.mark.parametrize("bundle", ["les_av"], indirect=True)
def test_a_row_is_trained_evaluated_and_found_done(bundle, tmp_path, capsys):
    table = {
        "title": "One row",
        "bundle": "bundles/les_av",
        "config": ["configs/train.json"],
        "common": {**bundle.small, "max_epochs": 1, "warmup_epochs": 0},
        "seeds": [3],
        "metrics": {"vessel IoU": "image#iou_vessel", "mean IoU": "image#mean_iou", "CM": "annotators#image#cm_error"},
        "evaluate": {
            "config": ["configs/evaluate.json", "configs/evaluate_annotators.json"],
            "overrides": {"confusion#report#num_draws": 2},
        },
        "rows": [{"name": "low rank", "overrides": {"annotator_def#structure": "low_rank", "annotator_def#rank": 1}}],
    }
    (tmp_path / "one.json").write_text(json.dumps(table))
    command = [str(tmp_path / "one.json"), "--bundle_root", str(bundle.root), "--dataset_dir", str(bundle.data)]
    command += ["--output_dir", str(tmp_path / "runs")]
    assert main(command) == 0, capsys.readouterr().out
    (run,) = json.loads((tmp_path / "runs" / "one" / "results.json").read_text())["runs"]
    assert run["facts"]["seed"] == 3
    assert run["facts"]["data"] == run["definition"]["training"]["data"]["name"] == bundle.data.name
    (work,) = (path.parent for path in tmp_path.glob("runs/one/low-rank/seed-3/*/state.json"))
    evaluation = json.loads((work / "output" / "evaluation.json").read_text())
    assert run["scores"]["image#iou_vessel"] == evaluation["image"]["iou_vessel"]
    assert run["scores"]["annotators#image#cm_error"] == evaluation["annotators"]["image"]["cm_error"] > 0
    assert run["scores"]["annotators#num_draws"] == 2
    assert (work / "models" / "full.pt").is_file()
    line = f"{evaluation['image']['mean_iou']:.3f} | {evaluation['annotators']['image']['cm_error']:.3f} | 1 |"
    assert line in (tmp_path / "runs" / "one" / "results.md").read_text()
    capsys.readouterr()
    assert main(command) == 0
    assert "1 of 1 runs are done already" in capsys.readouterr().out
