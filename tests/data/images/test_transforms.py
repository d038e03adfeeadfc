"""Images on their way to the backbone: pixels that can be followed by eye, and Pillow and torchvision as witnesses."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import resized_crop

from fedsim.data.images.transforms import ImageTransform, cropped, flip_some

HALF = ((0.5,) * 3, (0.5,) * 3)


def test_a_flip_mirrors_left_and_right_only():
    image = torch.arange(12, dtype=torch.uint8).view(1, 1, 3, 4).expand(64, 3, 3, 4)
    flipped = flip_some(image, torch.rand(64, generator=torch.Generator().manual_seed(0)))
    is_same = (flipped == image).flatten(1).all(1)
    assert torch.equal(flipped[~is_same], image[~is_same].flip(-1))
    assert 16 < int(is_same.sum()) < 48


def test_resizing_is_pillows_bicubic_but_for_its_rounding():
    image = torch.randint(0, 256, (1, 3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    witness = Image.fromarray(image[0].permute(1, 2, 0).numpy()).resize((12, 12), Image.Resampling.BICUBIC)
    expected = torch.from_numpy(np.array(witness)).permute(2, 0, 1).float() / 127.5 - 1
    torch.testing.assert_close(ImageTransform(12, *HALF)(image)[0], expected, rtol=0, atol=2.5 / 127.5)


@pytest.mark.parametrize(
    ("place", "corner"), [((0, 0), (0, 0)), ((1, 0), (0, 8)), ((0, 1), (8, 0)), ((0.5, 0.5), (4, 4))]
)
def test_a_crop_is_torchvisions_at_the_place_that_was_drawn(place, corner):
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    ours = cropped(image, torch.tensor([[0.0, *place]]), 0.5, 8)
    expected = resized_crop(image, *corner, 8, 8, size=[8, 8])
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_a_crop_of_the_whole_is_the_image():
    image = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(cropped(image, torch.tensor([[1.0, 0.3, 0.9]]), 0.2, 9), image, rtol=0, atol=1e-5)


@pytest.mark.parametrize("crop", [1.0, 0.6])
def test_what_becomes_of_an_image_does_not_depend_on_its_neighbours(crop):
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    transform = ImageTransform(12, *HALF, crop)
    draws = torch.rand(5, transform.n_draws, generator=torch.Generator().manual_seed(1))
    together = transform.augment(images, draws)
    assert together.shape == (5, 3, 12, 12)
    for k in range(5):
        torch.testing.assert_close(transform.augment(images[k : k + 1], draws[k : k + 1])[0], together[k])
