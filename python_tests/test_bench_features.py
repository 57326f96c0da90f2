"""The reprojection that the feature field is measured against."""

import torch

from bench.features import at_cells, points_of, read_map, seen_at
from raymarch.config import preset
from raymarch.data.paths import cameras_of
from raymarch.model import Model


def test_points_are_seen_where_their_rays_began():
    pose = torch.tensor([[[1.0, 0, 0, 0.3], [0, 0, -1, 0.1], [0, 1, 0, -0.2]]])
    camera = cameras_of(pose, torch.tensor([[40.0, 42, 21, 15]]), 40, 30)
    camera.distortion[0, :6] = torch.tensor([0.05, -0.02, 0.01, 0.0, 0.003, -0.002])
    model = Model(preset("tiny").model, 1)
    points = points_of(model, camera, torch.rand(30, 40) + 0.5)
    pixels, inside = seen_at(points, camera)
    y, x = torch.meshgrid(torch.arange(30) + 0.5, torch.arange(40) + 0.5, indexing="ij")
    torch.testing.assert_close(pixels, torch.stack([x, y], -1).view(-1, 2), rtol=0, atol=2e-2)
    assert inside.float().mean() > 0.99
    behind = 2 * pose[0, :, 3] - points
    assert not seen_at(behind, camera)[1].any()


def test_maps_are_read_between_the_centres_of_their_cells():
    values = torch.arange(6.0).view(2, 3, 1)
    at = torch.tensor([[10.0, 10], [30, 10], [50, 30], [20, 10], [0, 0]])
    found = read_map(values, at, torch.tensor([60.0, 40]))
    torch.testing.assert_close(found[:, 0], torch.tensor([0.0, 1, 5, 0.5, 0]))


def test_one_pixel_per_cell():
    camera = cameras_of(torch.eye(4)[None, :3], torch.tensor([[40.0, 42, 20, 15]]), 40, 30)
    small = at_cells(camera, 3, 4)
    assert small.size.tolist() == [[4, 3]]
    torch.testing.assert_close(small.intrinsics, torch.tensor([[4.0, 4.2, 2, 1.5]]))
