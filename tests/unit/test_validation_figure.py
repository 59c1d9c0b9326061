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
from medcoarse.networks import AnnotatorHeads, AnnotatorNet, CoupledModel


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


class Said(torch.nn.Module):
    """Of two annotators the first says class 1 where the image is above 0, the second nowhere."""

    def forward(self, image):
        sure, never = 9 * image, torch.full_like(image, -9)
        return torch.cat([-sure, sure, -never, never], 1)


class Known(torch.nn.Module):
    """Class 1 where the image is above 0."""

    def forward(self, image):
        return torch.cat([-9 * image, 9 * image], 1)


@pytest.mark.parametrize("volume", [False, True])
@pytest.mark.parametrize("heads", [True, False])
def test_of_several_annotators_it_shows_what_is_expected_of_each(tmp_path, monkeypatch, heads, volume):
    """Of heads what they say. Of matrices, here of who never errs, the segmentation."""
    figures = []
    monkeypatch.setattr(report, "save_figure", lambda figure, path: figures.append(figure))
    size, dims = (8, 12, 4) if volume else (8, 12), 2 + volume
    image = torch.full((1, *size), -1.0)
    image[0, 2:5, 3:9] = 1 if not volume else torch.tensor([-1, -1, 1.0, -1])  # in the third plane
    network = AnnotatorHeads(Said(), 2) if heads else Known()
    model = CoupledModel(network, AnnotatorNet(None, dims, 0, 2, 2, 0, structure="global", initial_diagonal=0.99))
    drawn = torch.full((2, *size), 255)
    drawn[0] = (image[0] > 0).long()
    item = {"image": image, "label": drawn[:1], "positive": drawn}
    trainer, evaluator = Engine(lambda *_: None), Engine(lambda *_: None)
    options = {"divisor": 4, "annotator_names": ["Ada", "a name of more than 18 letters"]}
    loss = CoupledLoss(num_classes=2)
    ValidationFigure(model, [item], tmp_path, evaluator, ["background", "liver"], loss, **options).attach(trainer)
    evaluator.run([0])
    shown = {ax.get_title("left").split("   ")[0]: ax.images[0].get_array() for ax in figures[0].axes if ax.images}
    other = "a name of more th…"
    drawings = ["Ada: drawing", f"{other}: no drawing", "Ada: expected", f"{other}: expected"]
    assert list(shown) == ["Image", "Truth", "Prediction", "Errors: liver", *drawings]
    np.testing.assert_array_equal(shown["Ada: expected"], shown["Ada: drawing"])
    np.testing.assert_array_equal(shown["Ada: expected"], shown["Truth"])
    assert (shown["Ada: expected"] == 255).any()
    assert (shown[f"{other}: expected"] == 255).any() != heads


def test_annotators_without_names_are_numbered_in_rows_of_five():
    square = np.pad(np.ones((4, 4), int), 2)
    figure = report.annotators_figure(square / 2, np.stack([square] * 7), np.stack([square] * 7), square, square)
    titles = [ax.get_title("left") for ax in figure.axes]
    assert titles[4:9] == [f"annotator {r}: drawing" for r in range(1, 6)]
    assert titles[9:] == [
        *(f"annotator {r}: expected" for r in range(1, 6)),
        *(f"annotator {r}: {what}" for what in ("drawing", "expected") for r in (6, 7)),
    ]
    with pytest.raises(ValueError, match="7 annotators are expected to draw, but there are 1 names"):
        report.annotators_figure(square / 2, np.stack([square] * 7), annotator_names=["Ada"])
    with pytest.raises(ValueError, match="2 annotators are expected to draw, but there are 2 names and 1 drawings"):
        report.annotators_figure(square / 2, np.stack([square] * 2), square[None])
    with pytest.raises(ValueError, match="expected must be"):
        report.annotators_figure(square / 2, np.stack([square[:5]] * 2))
