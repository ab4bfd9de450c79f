"""Projectors stay in host memory; the device holds those of a few timesteps."""

import numpy as np
import pytest
import tiny
import torch

from nullbooth.learning.adapter import Adapter
from nullbooth.statistics.site_projectors import SiteProjectors

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def stack(unet, protected) -> list:
    """Projectors of one site at three timesteps."""
    return next(found for found in tiny.projectors(unet, protected).values() if len(found) == 3)


@pytest.mark.parametrize("room", [1, 2, 3])
def test_fetching_again_gives_the_same_vectors(stack, room):
    projectors, a = SiteProjectors(stack), torch.randn(4, tiny.WIDTH)
    projectors.room = room
    for steps in ([0, 1, 2], [2], [1, 0]):
        expected = [a.numpy() @ stack[s].dense() for s in steps]
        np.testing.assert_allclose(projectors.project(a, steps).numpy(), expected, atol=1e-5)
        assert len(projectors._held) <= room


def test_the_last_used_projectors_stay(stack):
    projectors = SiteProjectors(stack)
    projectors.room = 2
    for step in (0, 1, 0, 2):
        projectors.fetch(step)
    assert list(projectors._held) == [0, 2]


def test_gradients_do_not_depend_on_how_many_projectors_stay(unet, protected):
    def gradients(room: int) -> list[torch.Tensor]:
        torch.manual_seed(0)
        adapter = tiny.randomise(tiny.adapter(unet, protected, "timestep", 4))
        for projectors in adapter.projectors:
            projectors.room = room
        noisy, t = protected.latents.flatten(0, 1), torch.tensor([901.0, 901.0, 501.0, 501.0, 101.0, 101.0])
        with adapter.attached(unet):
            unet(noisy, t, encoder_hidden_states=protected.prompts.repeat(3, 1, 1)).sample.square().mean().backward()
        return [p.grad for p in adapter.parameters()]

    for one, all_ in zip(gradients(1), gradients(3), strict=True):
        assert one.equal(all_)
        assert one.abs().max() > 0


def test_projectors_are_listed_once(unet, protected):
    """Sites that read the same tensor share projectors."""
    adapter = tiny.adapter(unet, protected, "timestep", 4)
    assert len(adapter.projectors) == len({id(p) for p in adapter.projectors}) < len(adapter.site_adapters)


@GPU
def test_on_a_gpu_vectors_stay_with_the_host(unet, protected):
    adapter: Adapter = tiny.randomise(tiny.adapter(unet, protected, "timestep", 4)).cuda()
    adapter.prepare(1, share=0.0)
    assert all(p.vectors.device.type == "cpu" and p.vectors.is_pinned() for p in adapter.projectors)
    adapter.prefetch(torch.tensor([901.0], device="cuda"))
    torch.cuda.synchronize()
    for projectors in adapter.projectors:
        assert [v.device.type for v in projectors._held.values()] == ["cuda"]
        assert projectors.room == min(2, len(projectors))
