"""Pictures of the validation."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from PIL import Image

from medcoarse import report
from medcoarse.losses import CoupledLoss
from medcoarse.monitoring import ValidationFigure
from medcoarse.networks import AnnotatorNet, CoupledModel


@pytest.mark.parametrize("known", [True, False])
def test_a_picture_of_a_validation_leaves_out_a_truth_that_is_not_known(tmp_path, monkeypatch, known):
    """What somebody has who drew and has no masks; the matrices are averaged where the prediction is."""
    figures, logged = [], {}
    save = report.save_figure
    monkeypatch.setattr(report, "save_figure", lambda figure, path: (figures.append(figure), save(figure, path))[1])
    backbone = torch.nn.Conv2d(1, 4, 1)
    model = CoupledModel(torch.nn.Conv2d(1, 2, 1), AnnotatorNet(backbone, 2, 4, num_classes=2, num_negative=0))
    drawn = torch.full((1, 9, 10), 255, dtype=torch.uint8)
    drawn[0, 3:6, 3:6] = 1
    label = (drawn == 1).to(torch.uint8) if known else torch.full_like(drawn, 255)
    item = {"image": torch.rand(1, 9, 10), "label": label, "positive": drawn}
    writer = SimpleNamespace(add_image=lambda tag, picture, step, dataformats: logged.update({dataformats: picture}))
    trainer, evaluator = Engine(lambda *_: None), Engine(lambda *_: None)
    loss = CoupledLoss(num_classes=2)
    names = ["background", "liver"]
    ValidationFigure(model, [item], tmp_path, evaluator, names, loss, divisor=4, writer=writer).attach(trainer)
    evaluator.run([0])
    titles = [ax.get_title("left").split("   ")[0] or ax.get_title() for ax in figures[0].axes]
    whole = ["Image", "Positive drawing", "Truth", "Prediction", "Errors: liver", "estimated A", "counted"]
    alone = ["Image", "Positive drawing", "Prediction", "estimated A"]
    assert [title for title in titles if title] == (whole if known else alone)
    matrix = next(ax for ax in figures[0].axes if ax.get_title() == "estimated A")
    assert any(text.get_text()[:2] in ("0.", "1.") for text in matrix.texts)
    [path] = tmp_path.glob("*.png")
    np.testing.assert_array_equal(logged["HWC"], np.asarray(Image.open(path)))  # what TensorBoard gets
