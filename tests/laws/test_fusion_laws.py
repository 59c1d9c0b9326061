"""Laws of the fusion of several annotators, in 2D and 3D, with silent annotators and at the edges."""

from __future__ import annotations

import itertools
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from medcoarse.confusion import UNLABELED, sample_annotation
from medcoarse.fusion.spatial_staple import spatial_staple
from medcoarse.fusion.staple import staple
from medcoarse.fusion.voting import hard_label, majority_vote, mean_label
from medcoarse.metrics import confusion_matrix_error
from tests.cases import disc
from tests.reference import fusion_reference as reference

SIZES = {2: (18, 20), 3: (8, 9, 10)}
SOFT = {
    "mean": mean_label,
    "STAPLE": staple,
    "STAPLE where they disagree": partial(staple, disagreement_only=True),
    "STAPLE of all images": partial(staple, scope="dataset"),
    "Spatial STAPLE": spatial_staple,
    "Spatial STAPLE, one window size": partial(spatial_staple, window_mm=5),
}
MATRICES = {name: method for name, method in SOFT.items() if name not in ("mean", "STAPLE where they disagree")}
ERRORS = (0.05, 0.15, 0.25, 0.3)


def blobs(size: tuple[int, ...], num_classes: int, seed: int = 0) -> torch.Tensor:
    """Smooth regions of every class, ``(*size)``."""
    rng = np.random.default_rng(seed)
    fields = np.stack([gaussian_filter(rng.standard_normal(size), 2) for _ in range(num_classes)])
    return torch.from_numpy(fields.argmax(0))


def annotators(
    dims: int, num_classes: int, errors: tuple[float, ...] = ERRORS, missing: float = 0.1, num_images: int = 2
) -> torch.Tensor:
    rng = np.random.default_rng(1)
    truth = torch.stack([blobs(SIZES[dims], num_classes, seed) for seed in range(num_images)])[:, None].numpy()
    shape = (num_images, len(errors), *SIZES[dims])
    wrong = rng.random(shape) < np.reshape(errors, (-1, *[1] * dims))
    said = np.where(wrong, (truth + rng.integers(1, num_classes, shape)) % num_classes, truth)
    said[rng.random(shape) < missing] = UNLABELED
    return torch.from_numpy(said.astype(np.uint8))


def probs_of(result) -> torch.Tensor:
    return result if isinstance(result, torch.Tensor) else result.probs


@pytest.mark.parametrize("name", SOFT)
class TestEveryMethod:
    @pytest.mark.parametrize(("dims", "num_classes"), [(2, 2), (2, 4), (3, 3)])
    def test_probabilities_where_somebody_said_something_and_zeros_elsewhere(self, name, dims, num_classes):
        said = annotators(dims, num_classes, errors=(0.2, 0.3), missing=0.4)
        probs = probs_of(SOFT[name](said, num_classes))
        assert probs.dtype == torch.float32
        assert probs.shape == (2, num_classes, *SIZES[dims])
        assert (probs >= 0).all()
        silent = (said == UNLABELED).all(1)
        assert silent.any()
        assert not probs.movedim(1, -1)[silent].any()
        torch.testing.assert_close(probs.sum(1)[~silent], torch.ones(int((~silent).sum())))

    @pytest.mark.parametrize(("dims", "num_classes"), [(2, 3), (3, 2)])
    def test_the_order_of_annotators_does_not_matter(self, name, dims, num_classes):
        said, order = annotators(dims, num_classes), [2, 0, 3, 1]
        result, other = (SOFT[name](x, num_classes) for x in (said, said[:, order]))
        torch.testing.assert_close(probs_of(other), probs_of(result), atol=1e-4, rtol=0)
        if name in MATRICES:
            cm = result.cm if "Spatial" not in name else result.global_cm
            other_cm = other.cm if "Spatial" not in name else other.global_cm
            torch.testing.assert_close(other_cm, cm[:, order], atol=1e-4, rtol=0)

    def test_a_silent_annotator_changes_nothing(self, name):
        said = annotators(2, 3)
        more = torch.cat([torch.full_like(said[:, :1], UNLABELED), said], 1)
        assert torch.equal(probs_of(SOFT[name](more, 3)), probs_of(SOFT[name](said, 3)))

    @pytest.mark.parametrize("number", [1, 3])
    @pytest.mark.parametrize("dims", [2, 3])
    def test_what_all_say_is_the_result(self, name, dims, number):
        truth = blobs(SIZES[dims], 3)
        truth[..., :2] = UNLABELED
        probs = probs_of(SOFT[name](truth.expand(1, number, *truth.shape), 3))
        torch.testing.assert_close(hard_label(probs)[0, 0].long(), truth)
        if number > 1:  # nothing tells how often one annotator alone errs: windows loosen the belief in it
            assert (probs.amax(1)[0][truth != UNLABELED] > 0.9999).all()

    def test_a_flat_volume_is_an_image(self, name):
        said = annotators(2, 3)
        flat, volume = SOFT[name](said, 3), SOFT[name](said[:, :, None], 3)
        torch.testing.assert_close(probs_of(volume)[:, :, 0], probs_of(flat), atol=1e-5, rtol=0)

    @pytest.mark.filterwarnings("ignore:annotations .* are of one annotator")
    @pytest.mark.parametrize("number", [1, 2])
    def test_all_unlabeled(self, name, number):
        result = SOFT[name](torch.full((2, number, 4, 5), UNLABELED), 3)
        assert not probs_of(result).any()
        assert (hard_label(probs_of(result)) == UNLABELED).all()
        if name in MATRICES:
            assert (result.cm if "Spatial" not in name else result.global_cm).isnan().all()
            assert result.converged.all()

    @pytest.mark.parametrize("size", [(1, 1), (1, 1, 1), (1, 7), (7, 1, 1)])
    def test_tiny_images(self, name, size):
        said = torch.ones(1, 2, *size)
        probs = probs_of(SOFT[name](said, 3))
        assert probs.shape == (1, 3, *size)
        torch.testing.assert_close(probs[:, 1], torch.ones(1, *size))

    def test_one_image_all_unlabeled_beside_another(self, name):
        said = annotators(2, 3)
        said[0] = UNLABELED
        probs = probs_of(SOFT[name](said, 3))
        assert not probs[0].any()
        torch.testing.assert_close(probs[1:], probs_of(SOFT[name](said[1:], 3)))

    def test_absent_class(self, name):
        said = annotators(2, 2)
        result, smaller = SOFT[name](said, 3), SOFT[name](said, 2)
        assert not probs_of(result)[:, 2].any()
        torch.testing.assert_close(probs_of(result)[:, :2], probs_of(smaller), atol=1e-4, rtol=0)
        if name in MATRICES:
            cm = result.cm if "Spatial" not in name else result.global_cm
            assert cm[..., 2].isnan().all()
            assert not cm[..., 2, :2].any()

    def test_classes_are_names(self, name):
        said = annotators(2, 3, missing=0)
        swapped = torch.tensor([2, 0, 1], dtype=torch.uint8)[said.long()]  # 0 is called 2, 1 is 0, 2 is 1
        probs, other = (probs_of(SOFT[name](x, 3)) for x in (said, swapped))
        torch.testing.assert_close(other[:, [2, 0, 1]], probs, atol=1e-4, rtol=0)


def test_majority_and_mean_agree():
    said = annotators(3, 3)
    torch.testing.assert_close(majority_vote(said, 3, "lowest"), hard_label(mean_label(said, 3)))


@pytest.mark.filterwarnings("ignore:annotations .* are of one annotator")
def test_one_annotator_is_taken_at_its_word_by_voting():
    said = annotators(2, 3, errors=(0.2,))
    assert torch.equal(majority_vote(said, 3), said)
    assert torch.equal(mean_label(said, 3).bool(), torch.stack([said[:, 0] == k for k in range(3)], 1))


class TestMatrices:
    @pytest.mark.parametrize("method", [staple, *(partial(spatial_staple, bias=b, return_cm=True) for b in (0.0, 4.0))])
    @pytest.mark.parametrize("num_classes", [2, 4])
    def test_columns_sum_to_one(self, method, num_classes):
        result = method(annotators(2, num_classes), num_classes, max_iterations=20)
        torch.testing.assert_close(result.cm.sum(2), torch.ones_like(result.cm.sum(2)), atol=1e-4, rtol=0)
        assert (result.cm >= 0).all()

    @pytest.mark.parametrize("number", [1, 2, 5])
    def test_identical_annotators_never_err(self, number):
        truth = blobs((20, 20), 3)
        for cm in (
            staple(truth.expand(1, number, 20, 20), 3).cm,
            spatial_staple(truth.expand(1, number, 20, 20), 3).global_cm,
        ):
            torch.testing.assert_close(cm, torch.eye(3).expand(1, number, 3, 3), atol=1e-4, rtol=0)

    @pytest.mark.parametrize("disagreement_only", [False, True])
    @pytest.mark.parametrize("num_classes", [2, 4])
    def test_likelihood_never_falls(self, num_classes, disagreement_only):
        said = annotators(2, num_classes, num_images=1)
        drawn = said[0].flatten(1)
        if disagreement_only:
            known = [len(set(votes) - {UNLABELED}) > 1 for votes in zip(*drawn.tolist(), strict=True)]
            drawn = drawn[:, known]
        values = []
        for iterations in (1, 2, 3, 5, 8, 13, 40, 200):
            result = staple(
                said, num_classes, disagreement_only=disagreement_only, initial_diagonal=0.6, tol=0,
                max_iterations=iterations,
            )  # fmt: skip
            values.append(
                reference.log_likelihood(drawn.tolist(), result.prior[0].tolist(), result.cm[0].double().tolist())
            )
        assert all(later >= earlier - 1e-3 for earlier, later in pairwise(values))
        assert values[-1] > values[0] + 1

    @pytest.mark.parametrize(("num_classes", "scope"), [(2, "image"), (3, "image"), (3, "dataset")])
    def test_simulated_matrices_are_recovered(self, num_classes, scope):
        generator = torch.Generator().manual_seed(0)
        images = 4 if scope == "dataset" else 1
        label = torch.randint(0, num_classes, (images, 1, 150, 150), generator=generator)
        noise = torch.rand(1, 4, num_classes, num_classes, generator=generator)
        error = torch.tensor([0.1, 0.2, 0.3, 0.4]).view(1, 4, 1, 1)
        true = (1 - error) * torch.eye(num_classes) + error * noise / noise.sum(2, keepdim=True)
        said = sample_annotation(
            true[..., None, None].expand(images, -1, -1, -1, 150, 150), label, generator
        )  # fmt: skip
        prior = [1 / num_classes] * num_classes
        result = staple(said, num_classes, scope, prior, initial_diagonal=0.8)
        assert result.converged.all()
        # the standard error with the truth at hand is sqrt(0.25 * num_classes / voxels) at most; here it is hidden
        assert confusion_matrix_error(result.cm, true).max() < 4 * (0.25 * num_classes / label.numel()) ** 0.5
        assert (result.cm - true).abs().max() > 0

    def test_four_good_annotators_beat_each_one_of_them(self):
        truth = blobs(SIZES[3], 3)
        said = annotators(3, 3, errors=(0.15, 0.2, 0.25, 0.3), missing=0, num_images=1)
        right = (hard_label(staple(said, 3).probs)[0, 0] == truth).float().mean()
        assert right > (said[0, 0] == truth).float().mean() + 0.04


def halves(n: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """A disc, and one annotator who is good on the left half only beside one good and two poor ones."""
    rng = np.random.default_rng(0)
    truth = (((np.indices((n, n)) - n / 2) ** 2).sum(0) < (0.28 * n) ** 2).astype(np.int64)

    def noisy(ratio: float) -> np.ndarray:
        return np.where(rng.random(truth.shape) < ratio, 1 - truth, truth)

    two_faced = np.where(np.arange(n) < n // 2, noisy(0.02), noisy(0.45))
    return torch.from_numpy(np.stack([two_faced, noisy(0.05), noisy(0.25), noisy(0.25)]))[None], torch.from_numpy(truth)


class TestWindows:
    @pytest.mark.parametrize("dims", [2, 3])
    def test_one_window_for_all_without_bias_is_staple(self, dims):
        said = annotators(dims, 3)
        whole = spatial_staple(said, 3, window_mm=SIZES[dims], bias=0.0, return_cm=True, tol=1e-6)
        plain = staple(said, 3)
        torch.testing.assert_close(whole.probs, plain.probs, atol=1e-4, rtol=0)
        everywhere = plain.cm.view(*plain.cm.shape, *[1] * dims).expand_as(whole.cm)
        torch.testing.assert_close(whole.cm, everywhere, atol=1e-4, rtol=0)

    @pytest.mark.parametrize("dims", [2, 3])
    def test_endless_bias_is_staple(self, dims):
        said = annotators(dims, 3)
        stiff, plain = spatial_staple(said, 3, window_mm=3, bias=1e7, return_cm=True), staple(said, 3)
        torch.testing.assert_close(stiff.probs, plain.probs, atol=1e-4, rtol=0)
        everywhere = plain.cm.view(*plain.cm.shape, *[1] * dims).expand_as(stiff.cm)
        torch.testing.assert_close(stiff.cm, everywhere, atol=1e-5, rtol=0)

    def test_the_more_bias_the_nearer_to_staple(self):
        said, _ = halves()
        plain = staple(said, 2).probs
        distances = [
            (spatial_staple(said, 2, bias=bias, tol=1e-5, max_iterations=300).probs - plain).abs().mean().item()
            for bias in (0.2, 1.0, 4.0, 20.0, 200.0)
        ]
        assert all(nearer < farther for farther, nearer in pairwise(distances))

    def test_an_annotator_who_is_perfect_on_one_half_has_two_levels(self):
        truth = torch.from_numpy(disc((32, 40))).roll(4, 1) | torch.from_numpy(disc((32, 40))).roll(-8, 1)
        truth[::4], truth[2::4] = 1, 0  # both classes in every window
        rng = torch.Generator().manual_seed(0)
        wrong = torch.rand(truth.shape, generator=rng) < 0.4
        wrong[:, :20] = False
        said = torch.stack([torch.where(wrong, 1 - truth, truth), truth, truth])[None]
        result = spatial_staple(said, 2, window_mm=9, bias=0.0, return_cm=True)
        hit = result.cm[0, 0].diagonal().movedim(-1, 0)  # (class, height, width)
        assert (hit[:, :, :16] > 0.999).all()  # no window of these reaches the other half
        right = hit[:, :, 24:]
        assert (right.mean((1, 2)) - 0.6).abs().max() < 0.05
        assert right.max() < 0.95
        assert (result.cm[0, 1:].diagonal(dim1=1, dim2=2) > 0.999).all()

    def test_windows_without_bias_fail_and_a_bias_of_four_is_good(self):
        said, truth = halves()

        def right(label: torch.Tensor) -> float:
            return (label[0, 0] == truth).float().mean().item()

        overall = right(hard_label(staple(said, 2).probs))
        small, large = (
            [
                right(hard_label(spatial_staple(said, 2, window_mm=side, bias=bias, max_iterations=200).probs))
                for bias in (0.0, 0.2, 1.0, 4.0)
            ]
            for side in (16, 41)
        )
        assert all(earlier < later for earlier, later in pairwise(small))
        assert small[0] < overall - 0.15
        assert small[-1] > overall - 0.005
        assert large[0] > small[0] + 0.15
        assert min(large) >= overall
        assert small[-1] > right(majority_vote(said, 2, "lowest"))

    @pytest.mark.parametrize("share", [0.03, 0.5])
    def test_who_finds_a_class_on_one_side_alone_is_known_there_however_rare_it_is(self, share):
        rng = np.random.default_rng(0)
        truth = torch.from_numpy(rng.random((64, 64)) < share).long()
        blind = torch.where(torch.arange(64) < 32, truth, 0)
        said = torch.stack([blind, truth, truth, truth])[None]
        hit = spatial_staple(said, 2, return_cm=True).cm[0, 0, 1, 1]
        overall = staple(said, 2).cm[0, 0, 1, 1]
        assert 0.4 < overall < 0.6
        assert hit[:, :16].mean() > overall + 0.07
        assert hit[:, -16:].mean() < overall - 0.07

    def test_one_drawing_of_an_image_is_left_as_it_is(self):
        """Nothing tells where its annotator errs, and rare classes would be explained away window by window."""
        y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
        radius = torch.hypot(y - 30.0, x - 34.0)
        drawn = torch.stack([radius < r for r in (14, 7, 4)]).sum(0)
        together = torch.stack([torch.stack([drawn, torch.full_like(drawn, 255)]), torch.stack([drawn, drawn])])
        result, plain = spatial_staple(together, 4, return_cm=True), staple(together, 4)
        assert torch.equal(hard_label(result.probs)[0, 0], drawn)
        assert torch.equal(result.probs[0], plain.probs[0])
        assert (result.iterations[0], result.converged[0]) == (0, True)
        assert result.iterations[1] > 0

    def test_spacing_and_size_of_a_window_scale_together(self):
        said = annotators(3, 2)
        small, large = (
            spatial_staple(said, 2, window_mm=[scale * w for w in (3, 4, 5)], spacing=scale) for scale in (1.0, 2.5)
        )
        assert torch.equal(small.probs, large.probs)

    @pytest.mark.parametrize("axes", [*itertools.permutations((2, 3, 4))][1:])
    def test_axes_are_alike(self, axes):
        said = annotators(3, 2, num_images=1)
        window, spacing = (3.0, 7.0, 9.0), (1.0, 1.0, 1.5)
        turned = spatial_staple(
            said.permute(0, 1, *axes), 2, [window[a - 2] for a in axes], [spacing[a - 2] for a in axes]
        )
        straight = spatial_staple(said, 2, window, spacing)
        torch.testing.assert_close(turned.probs, straight.probs.permute(0, 1, *axes), atol=1e-4, rtol=0)
