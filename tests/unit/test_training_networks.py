"""The networks: shapes, beginnings, and what no network of ours may do (look far, tell up from down)."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from training.errors import RecipeError  # noqa: E402
from training.networks import KINDS, build, n_parameters  # noqa: E402
from training.networks.dae import Autoencoder  # noqa: E402
from training.networks.discriminator import Discriminator, edges  # noqa: E402
from training.networks.half import halve  # noqa: E402

SMALL = {
    "pu": {"size": "t"},
    "sr": {"size": "t"},
    "autoencoder": {"channels": [8, 12, 16], "code": 8},
    "red-cnn": {"channels": 6},
    "cnn-10": {"channels": 6},
    "u-net": {"channels": 4, "levels": 3},
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


def random(network: torch.nn.Module) -> torch.nn.Module:
    """Every weight drawn anew: the zeros at the end of branches hide what is before them."""
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.15)
    return network.eval().requires_grad_(False)


def given(height: int = 32, width: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 3, height, width), torch.full((2, 1, height, width), 0.3)


def test_all_kinds_are_tried() -> None:
    assert set(SMALL) == set(KINDS)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_shapes(kind: str) -> None:
    x, c = given()
    factor = 2 if kind == "sr" else 1
    assert random(build(kind, **SMALL[kind]))(x, c).shape == (2, 1, 32 * factor, 48 * factor)


@pytest.mark.parametrize("kind", ["pu", "sr"])
def test_a_new_network_finds_nothing(kind: str) -> None:
    assert not build(kind)(*given()).any()


@pytest.mark.parametrize(("size", "thousands"), [("t", 209), ("s", 468), ("m", 830)])
def test_sizes(size: str, thousands: int) -> None:
    """About what models.md 2.1 counted (its stem and ups are slightly wider)."""
    assert round(n_parameters(build("pu", size=size)) / 1000) == thousands


def test_red_cnn_has_the_published_number_of_parameters() -> None:
    assert n_parameters(build("red-cnn")) == 1_848_865


@pytest.mark.parametrize("kind", ["pu", "sr", "autoencoder"])
def test_neither_up_nor_down(kind: str) -> None:
    """The slices in reverse order give the same bits."""
    network = random(build(kind, **SMALL[kind]))
    x, c = given()
    assert torch.equal(network(x, c), network(x.flip(1), c))


@pytest.mark.parametrize("kind", ["pu", "autoencoder"])
def test_what_is_far_away_does_not_matter(kind: str) -> None:
    network = random(build(kind, **SMALL[kind]))
    x, c = torch.randn(1, 3, 16, 320), torch.full((1, 1, 16, 320), 0.3)
    moved = x.clone()
    moved[..., :8] += 5
    change = (network(x, c) - network(moved, c)).abs()[0, 0].amax(dim=0)
    assert change[:8].max() > 0
    assert change[8 + 72 :].max() == 0


def test_a_noise_map_matters() -> None:
    network = random(build("pu", size="t"))
    x, c = given()
    assert not torch.equal(network(x, c), network(x, 2 * c))


def test_an_unknown_network_is_refused() -> None:
    with pytest.raises(RecipeError, match="no network 'transformer'"):
        build("transformer")
    with pytest.raises(RecipeError, match="depth"):
        build("pu", depth=3)


def test_half_precision_stays_near_and_spares_the_stem() -> None:
    network = random(build("pu", size="t"))
    x, c = given()
    exact = network(x, c)
    seen: list[torch.dtype] = []
    network.stem.register_forward_hook(lambda _m, _i, out: seen.append(out.dtype))
    halve(network, torch.bfloat16)
    near = network(x, c)
    assert seen == [torch.float32]
    assert near.dtype == torch.float32
    assert 0 < (near - exact).abs().max() < 0.05 * exact.abs().max()


def test_a_variational_network_runs_at_its_mean() -> None:
    network = Autoencoder((8, 12, 16), 8, variational=True).eval()
    x, c = given()
    assert torch.equal(network(x, c), network(x, c))
    one, _, divergence = network.sampled(x, c)
    other, _, _ = network.sampled(x, c)
    assert not torch.equal(one, other)
    assert float(divergence.detach()) > 0


def test_structure_is_not_taken_for_noise() -> None:
    """What did not pass the bottleneck comes back where it is as weak as noise, and is weakened where it is not."""
    network = Autoencoder((8, 12, 16), 8, trust=1.7)
    c = torch.full((1, 1, 32, 32), 0.2)
    weak = 0.2 * torch.randn(1, 1, 32, 32).clamp(-1.5, 1.5)
    assert torch.equal(network.noise_of(weak, c), weak)
    strong = torch.where(weak > 0, 3.0, -3.0)
    assert network.noise_of(strong, c).abs().max() <= 1.7 * 0.04 / 9 * 3 * 1.01


def test_the_bottleneck_is_narrow() -> None:
    code, _ = Autoencoder().encode(*given(64, 64))
    assert code.shape == (2, 32, 8, 8)


def test_the_critic_sees_edges() -> None:
    image = torch.zeros(1, 1, 16, 16)
    image[..., 8:] = 1
    found = edges(image)
    assert found[0, 0, 4, 7] == pytest.approx(1, abs=1e-3)
    assert found[0, 0, 4, 3] < 2e-3
    assert Discriminator(8)(image, image).shape == (1, 1, 4, 4)
