"""Probabilistic U-Net: a segmentation that depends on a latent variable, so that one image has many of them.

Source: Kohl et al., A Probabilistic U-Net for Segmentation of Ambiguous Images, NeurIPS 2018; DHE compares with it.
Deviates: U-Net and encoders are of MONAI's blocks and of the size that is asked for, the encoders without
    normalization; what nobody drew teaches nothing; no L2 term beside the optimizer's.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from monai.config import KeysCollection
from monai.networks.blocks import ResidualUnit
from monai.networks.layers.factories import Conv
from monai.networks.nets import UNet
from monai.networks.utils import one_hot
from monai.transforms import MapTransform, Randomizable
from torch import Tensor, nn

from medcoarse.confusion import UNLABELED, Annotations, CoupledOutput
from medcoarse.losses import CoupledLoss, dense_nll


class DiagonalGaussian(NamedTuple):
    """Independent normal distributions; both ``(B, D)``."""

    mean: Tensor
    log_std: Tensor


class PosteriorOutput(NamedTuple):
    """What a :class:`ProbabilisticUNet` gives in training.

    Args:
        logits: ``(B, L, *S)``, with the latent drawn from the posterior.
        posterior: ``q(z | x, y)``.
        prior: ``p(z | x)``.
    """

    logits: Tensor
    posterior: DiagonalGaussian
    prior: DiagonalGaussian


def gaussian_kl(posterior: DiagonalGaussian, prior: DiagonalGaussian) -> Tensor:
    """Kullback-Leibler divergence, ``sum_d log(s_p / s_q) + (s_q² + (m_q - m_p)²) / (2 s_p²) - 1/2``.

    Args:
        posterior: q, ``(B, D)``.
        prior: p, ``(B, D)``.

    Returns:
        ``KL(q || p)`` of each item, ``(B,)``, >= 0, in nats.

    Source: Kohl et al., Eq. 4.

    Example:
        >>> standard = DiagonalGaussian(torch.zeros(1, 2), torch.zeros(1, 2))
        >>> gaussian_kl(DiagonalGaussian(torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2)), standard)  # (1 + 4) / 2
        tensor([2.5000])
    """
    log_ratio = posterior.log_std - prior.log_std
    distance = (posterior.mean - prior.mean) * torch.exp(-prior.log_std)
    return 0.5 * (torch.exp(2 * log_ratio) + distance.square() - 1 - 2 * log_ratio).sum(1)


class GaussianEncoder(nn.Module):
    """A convolutional encoder, averaged over the image, that gives a :class:`DiagonalGaussian`.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of what it sees.
        channels: of its levels.
        strides: between them, one fewer.
        latent_size: D.
        num_res_units: convolutions of a level.

    Example:
        >>> encoder = GaussianEncoder(2, in_channels=1, channels=(4, 8), strides=(2,), latent_size=6)
        >>> encoder(torch.rand(3, 1, 16, 16)).mean.shape
        torch.Size([3, 6])
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        channels: Sequence[int],
        strides: Sequence[int],
        latent_size: int,
        num_res_units: int = 2,
    ) -> None:
        super().__init__()
        sizes, steps = [in_channels, *channels], [*strides[: len(channels) - 1], 1]
        levels = [
            ResidualUnit(spatial_dims, before, after, step, subunits=max(1, num_res_units), norm=None)
            for before, after, step in zip(sizes, channels, steps, strict=False)
        ]
        self.levels = nn.Sequential(*levels)
        self.head = nn.Linear(channels[-1], 2 * latent_size)

    def forward(self, seen: Tensor) -> DiagonalGaussian:
        """``(B, channels, *S)`` to two times ``(B, D)``, float32."""
        mean, log_std = self.head(self.levels(seen).flatten(2).mean(2)).float().chunk(2, 1)
        return DiagonalGaussian(mean, log_std)


class ProbabilisticUNet(nn.Module):
    """A U-Net whose features meet a latent variable in three 1 x 1 convolutions.

    The latent is concatenated with the features at every pixel; of the first convolution the features' part is
    computed once for all samples and the latent's, which is the same at every pixel, added to it.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the image.
        out_channels: L.
        channels: of the levels of MONAI's ``UNet``, and of the two encoders.
        strides: between them.
        num_res_units: as MONAI's.
        latent_size: D.
        num_samples: K, of the point estimate and of :meth:`members`.
        seed: of their noise. It is drawn once and serves every image and window: the same image has the same
            segmentation, and neighbouring windows fit together.
        unet_options: further arguments of MONAI's ``UNet``.

    Raises:
        ValueError: a number below 1; in training, no annotation.

    Example:
        >>> model = ProbabilisticUNet(2, in_channels=1, out_channels=2, channels=(4, 8), strides=(2,))
        >>> image, label = torch.rand(3, 1, 16, 16), torch.randint(0, 2, (3, 1, 16, 16))
        >>> model(image, label).logits.shape, model.eval()(image).shape
        (torch.Size([3, 2, 16, 16]), torch.Size([3, 2, 16, 16]))
        >>> model.sample(image, num_samples=5).shape
        torch.Size([3, 5, 2, 16, 16])
    """

    noise: Tensor

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int],
        strides: Sequence[int],
        num_res_units: int = 0,
        latent_size: int = 6,
        num_samples: int = 16,
        seed: int = 0,
        **unet_options: Any,
    ) -> None:
        super().__init__()
        if min(latent_size, num_samples) < 1:
            raise ValueError(f"latent_size and num_samples must be at least 1, got {latent_size} and {num_samples}")
        width, shape = channels[0], (channels, strides)
        self.num_classes = out_channels
        self.unet = UNet(spatial_dims, in_channels, width, *shape, num_res_units=num_res_units, **unet_options)
        self.prior = GaussianEncoder(spatial_dims, in_channels, *shape, latent_size, num_res_units)
        self.posterior = GaussianEncoder(spatial_dims, in_channels + out_channels, *shape, latent_size, num_res_units)
        convolution = Conv[Conv.CONV, spatial_dims]
        self.of_features = convolution(width, width, kernel_size=1)
        self.of_latent = nn.Linear(latent_size, width, bias=False)
        self.mix = nn.Sequential(
            nn.ReLU(), convolution(width, width, kernel_size=1), nn.ReLU(), convolution(width, out_channels, 1)
        )
        noise = torch.randn(num_samples, latent_size, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("noise", noise, persistent=False)

    def forward(self, image: Tensor, annotation: Tensor | None = None) -> PosteriorOutput | Tensor:
        """In training with ``z ~ q(z | x, y)``; in evaluation the log of the mean softmax over ``z ~ p(z | x)``.

        Args:
            image: ``(B, channels, *S)``.
            annotation: one annotator's label map ``(B, 1, *S)``, classes or 255, in training.
        """
        if not self.training:
            log_probs = self._log_probs(image, self.noise[:, None])
            return log_probs.logsumexp(1) - math.log(len(self.noise))
        if annotation is None or annotation.shape[1] != 1:
            got = "none" if annotation is None else annotation.shape[1]
            raise ValueError(f"training needs one annotation an image, got {got}; RandAnnotatord draws one of many")
        prior, posterior = self.prior(image), self.posterior(torch.cat([image, self._one_hot(annotation, image)], 1))
        latent = posterior.mean + posterior.log_std.exp() * torch.randn_like(posterior.mean)
        return PosteriorOutput(self._decode(self.of_features(self.unet(image)), latent), posterior, prior)

    def sample(self, image: Tensor, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Class probabilities ``(B, num_samples, L, *S)``, one latent of the prior for each item and sample.

        Args:
            image: ``(B, channels, *S)``.
            num_samples: how many.
            generator: source of randomness, on the image's device.
        """
        shape = (num_samples, len(image), self.noise.shape[1])
        return self._log_probs(image, torch.randn(shape, generator=generator, device=image.device)).exp()

    def members(self, image: Tensor) -> Tensor:
        """K samples with the noise of the point estimate ``(B, K, L, *S)``."""
        return self._log_probs(image, self.noise[:, None]).exp()

    def _log_probs(self, image: Tensor, noise: Tensor) -> Tensor:
        """``(B, N, L, *S)`` for noise ``(N, B, D)`` or ``(N, 1, D)``."""
        prior, features = self.prior(image), self.of_features(self.unet(image))
        latents = prior.mean + prior.log_std.exp() * noise
        return torch.stack([self._decode(features, latent).float().log_softmax(1) for latent in latents], 1)

    def _decode(self, features: Tensor, latent: Tensor) -> Tensor:
        """Logits of what the first convolution makes of the features, and of a latent ``(B, D)``."""
        shift = self.of_latent(latent)
        logits: Tensor = self.mix(features + shift.view(*shift.shape, *(1,) * (features.ndim - 2)))
        return logits

    def _one_hot(self, annotation: Tensor, image: Tensor) -> Tensor:
        """``(B, L, *S)``; all zero where nothing was drawn."""
        drawn = annotation != UNLABELED
        return one_hot(annotation.masked_fill(~drawn, 0), self.num_classes, dtype=image.dtype) * drawn


class EvidenceLoss(CoupledLoss):
    """The negative evidence lower bound, ``-log p(y | x, z) + beta KL(q(z | x, y) || p(z | x))``.

    The cross-entropy is summed over the drawn pixels of an image, the bound averaged over the images that were drawn.
    Takes the place of :class:`medcoarse.losses.CoupledLoss` in a bundle.

    Args:
        num_classes: L.
        beta: weight of the divergence.
        balance: of the classes, see :func:`medcoarse.likelihoods.class_weights`; the pixels of an image weigh as much
            together as without.

    Raises:
        ValueError: a negative weight, a balance beyond 0 and 1.

    Source: Kohl et al., Eq. 4.
    Deviates: the balance, so that it stands on equal footing where other methods have one.

    Example:
        >>> same = DiagonalGaussian(torch.zeros(1, 6), torch.zeros(1, 6))
        >>> output = PosteriorOutput(torch.zeros(1, 2, 3), same, same)
        >>> EvidenceLoss(num_classes=2)(output, Annotations(torch.tensor([[[0, 1, 255]]])))  # 2 log 2
        tensor(1.3863)
    """

    def __init__(self, num_classes: int, beta: float = 1.0, balance: float = 0.0) -> None:
        super().__init__(num_classes, balance=balance)
        if beta < 0:
            raise ValueError(f"beta must not be negative, got {beta}")
        self.beta = beta

    def forward(self, output: PosteriorOutput | CoupledOutput, target: Annotations) -> Tensor:
        """Scalar loss; ``nll`` and ``kl``, in nats an image, stay in ``parts`` (detached)."""
        if isinstance(output, CoupledOutput) or target.positive is None or target.positive.shape[1] != 1:
            raise ValueError("EvidenceLoss takes a ProbabilisticUNet's output in training, and one annotation an image")
        label = target.positive
        drawn = label != UNLABELED
        known = drawn.flatten(1).any(1)
        number = known.sum().clamp_min(1)
        nll = dense_nll(output.logits.float().log_softmax(1), label, self.balance) * drawn.sum() / number
        kl = (gaussian_kl(output.posterior, output.prior) * known).sum() / number
        self.parts = {"nll": nll.detach(), "kl": kl.detach()}
        return nll + self.beta * kl


class RandAnnotatord(MapTransform, Randomizable):
    """Keep the annotation of one annotator, drawn at random among those who drew the image.

    Args:
        keys: annotations ``(R, *S)``; become ``(1, *S)``, 255 everywhere where nobody drew.
        chosen_key: where the number of the annotator goes, -1 for nobody.
        allow_missing_keys: skip missing annotations.

    Example:
        >>> choose = RandAnnotatord("positive").set_random_state(seed=0)
        >>> item = choose({"positive": torch.tensor([[255, 255], [1, 0], [255, 255]])})
        >>> item["positive"].tolist(), item["chosen"]
        ([[1, 0]], 1)
    """

    def __init__(self, keys: KeysCollection, chosen_key: Hashable = "chosen", allow_missing_keys: bool = False) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.chosen_key = chosen_key
        self.chosen = -1

    def randomize(self, data: Any) -> None:
        """Draw one of the annotators who drew something."""
        drew = torch.as_tensor(data != UNLABELED).flatten(1).any(1).nonzero()[:, 0].tolist()
        self.chosen = int(self.R.choice(drew)) if drew else -1

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The item with one annotation."""
        item = dict(data)
        for key in self.key_iterator(item):
            self.randomize(item[key])
            item[key] = item[key][[max(self.chosen, 0)]]
            item[self.chosen_key] = self.chosen
        return item
