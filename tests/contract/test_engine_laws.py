"""Every engine of the catalogue keeps every law; two networks made on the spot stand for learned engines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engines.base import Engine, Params, Volume
from engines.catalog import ZOO, Catalog
from engines.errors import OutputImplausible
from engines.runtime.onnx import OnnxNetwork
from tests import laws, onnx_samples

SHIPPED = Catalog.default()
LEARNED = ("ct-sample", "ct-strided", "mr-sample", "ct-detail", "mr-detail", "ct-coder")

CASES = [(name, m) for name in SHIPPED.names() for m in SHIPPED.card(name).modalities]
CASES += [(name, name[:2].upper()) for name in LEARNED]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zoo")


@pytest.fixture(scope="module")
def catalog(zoo: Path) -> Catalog:
    onnx_samples.folder(zoo, onnx_samples.blur_network())
    onnx_samples.folder(zoo, onnx_samples.strided_network(), name="ct-strided")
    onnx_samples.folder(zoo, onnx_samples.blur_network(gain=1.0), name="mr-sample", modality="MR")
    detail = onnx_samples.detail_network()
    onnx_samples.folder(zoo, detail, name="ct-detail", scale=2, receptive_field=8)
    onnx_samples.folder(zoo, detail, name="mr-detail", modality="MR", scale=2, receptive_field=8)
    onnx_samples.folder(zoo, onnx_samples.blur_network(), name="ct-coder", family="autoencoder")
    return Catalog.default([zoo])


@pytest.fixture(params=CASES, ids=[f"{name}-{m}" for name, m in CASES], scope="module")
def case(request: pytest.FixtureRequest, catalog: Catalog) -> tuple[Engine, str]:
    name, modality = request.param
    return catalog.load(name, threads=2), modality


@pytest.fixture(scope="module")
def engine(case: tuple[Engine, str]) -> Engine:
    return case[0]


@pytest.fixture(scope="module")
def volume(case: tuple[Engine, str]) -> Volume:
    return laws.stack(case[1])


@pytest.fixture(scope="module")
def pair(volume: Volume) -> Volume:
    """Two slices of it, for laws that look at one slice and its neighbour."""
    return laws.cut(volume, 1, 3)


def test_nothing_shipped_is_broken() -> None:
    assert not SHIPPED.faults()
    assert {"ct-nlm", "mr-nlm", "ct-tv", "mr-tv", "ct-wavelet", "mr-wavelet", "identity"} <= set(
        SHIPPED.names()
    )


def test_works(engine: Engine, pair: Volume) -> None:
    if engine.card.name == "ct-strided":
        pytest.skip("random weights denoise nothing; the other laws hold for them all the same")
    laws.works(engine, pair)


def test_keeps_form(engine: Engine, pair: Volume) -> None:
    laws.keeps_form(engine, pair)


def test_leaves_its_input_alone(engine: Engine, pair: Volume) -> None:
    laws.leaves_its_input_alone(engine, pair)


def test_same_input_same_bytes_whatever_the_threads(catalog: Catalog, engine: Engine, volume: Volume) -> None:
    laws.is_repeatable(engine, catalog.load(engine.card.name, threads=1), volume)


@pytest.mark.parametrize("shape", [(1, 61, 47), (2, 16, 130), (1, 13, 13), (3, 1, 40), (1, 5, 5)])
def test_odd_sizes_and_one_slice(case: tuple[Engine, str], shape: tuple[int, int, int]) -> None:
    engine, modality = case
    small = laws.stack(modality, shape, padded=False)
    laws.keeps_form(engine, small)
    laws.tiled_equals_whole(engine, small, 16)


@pytest.mark.parametrize("tile", [40, 58])
def test_tiled_equals_whole(engine: Engine, pair: Volume, tile: int) -> None:
    laws.tiled_equals_whole(engine, pair, tile)


def test_tiles_of_learned_engines_reach_far_enough(case: tuple[Engine, str]) -> None:
    """On a slice that no window covers, so that a halo that is told too small shows."""
    engine, modality = case
    if engine.card.runtime != "onnx":
        pytest.skip("the small slices are larger than the windows of the others")
    side = 3 * (engine.card.receptive_field + 24)
    laws.tiled_equals_whole(engine, laws.stack(modality, (1, side, side + 5), padded=False), 24)


@pytest.mark.parametrize("size", [1, 3])
def test_slabs_equal_whole(engine: Engine, volume: Volume, size: int) -> None:
    laws.slabs_equal_whole(engine, volume, size)


def test_strength_zero_gives_the_input(engine: Engine, pair: Volume) -> None:
    laws.strength_zero_gives_the_input(engine, pair)


def test_stays_within_bound(engine: Engine, pair: Volume) -> None:
    laws.stays_within_bound(engine, pair)


@pytest.mark.parametrize("kind", ["chest", "head"])
def test_keeps_means(case: tuple[Engine, str], kind: str) -> None:
    engine, modality = case
    laws.keeps_means(engine, laws.stack(modality, (1, 128, 128), padded=False, kind=kind))


def test_leaves_padding(engine: Engine, pair: Volume) -> None:
    laws.leaves_padding(engine, pair)


def test_is_linear_in_strength(engine: Engine, pair: Volume) -> None:
    laws.is_linear_in_strength(engine, pair)


@pytest.mark.parametrize("factor", [0.013, 3.7])
def test_scales(engine: Engine, pair: Volume, factor: float) -> None:
    if pair.unit == "HU":
        pytest.skip("Hounsfield units are absolute")
    laws.scales(engine, pair, factor)


def test_has_no_up_or_down(engine: Engine, volume: Volume) -> None:
    if engine.card.name == "ct-strided":
        pytest.skip("random weights do tell the slice below from the slice above")
    laws.has_no_up_or_down(engine, volume)


def test_crosses_no_gap(engine: Engine, volume: Volume) -> None:
    laws.crosses_no_gap(engine, volume)


def test_leaves_strange_noise(case: tuple[Engine, str]) -> None:
    engine, modality = case
    if engine.card.family == "identity":
        pytest.skip("takes any noise")
    level, quiet, loud = (40.0, 0.1, 400.0) if modality == "CT" else (800.0, 0.2, 500.0)
    laws.leaves_strange_noise(
        engine, laws.uniform(modality, level, quiet), laws.uniform(modality, level, loud)
    )


def test_extra_folders_are_found(catalog: Catalog) -> None:
    assert set(LEARNED) < set(catalog.names())


def test_neighbours_far_apart_are_not_used(engine: Engine, volume: Volume) -> None:
    """Slices 5 mm apart: each comes out as if it were alone."""
    far = laws.replace(volume, spacing_mm=(5.0, 0.8, 0.8))
    alone = laws.replace(far, contiguous=np.zeros_like(volume.contiguous))
    assert laws.same(laws.run(engine, far), laws.run(engine, alone))


def test_paths_of_this_test_are_not_in_the_cards(catalog: Catalog, tmp_path: Path) -> None:
    """A card tells nothing of the machine it lies on."""
    for name in catalog.names():
        assert str(tmp_path.parent) not in repr(catalog.card(name))


def test_keeps_acquired_frequencies(case: tuple[Engine, str]) -> None:
    engine, modality = case
    if engine.card.scale == 1:
        pytest.skip("of an engine that changes the matrix")
    for shape in ((1, 96, 120), (1, 113, 97)):
        laws.keeps_acquired_frequencies(engine, laws.stack(modality, shape, padded=False))


def test_stays_in_range(engine: Engine, pair: Volume) -> None:
    laws.stays_in_range(engine, pair)


def test_batch_changes_nothing(catalog: Catalog, zoo: Path, case: tuple[Engine, str]) -> None:
    engine, modality = case
    card = engine.card
    if card.runtime != "onnx":
        pytest.skip("there is no network")
    folder = ZOO / card.name if (ZOO / card.name).is_dir() else zoo / card.name
    network = OnnxNetwork.load(folder / "model.fp32.onnx", card.weights_sha256, threads=2)
    volume = laws.stack(modality, (3, 64, 72), padded=False)
    x = np.stack([volume.values, volume.values[::-1]]) / np.float32(1000.0)
    c = np.full((2, 1, 64, 72), 0.2, np.float32)
    laws.batch_changes_nothing(network, x, c)


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_stops_the_series(tmp_path: Path, scale: int, value: float) -> None:
    """G8: nothing is returned that could be taken for an image."""
    onnx_samples.folder(tmp_path, onnx_samples.broken_network(value, scale), scale=scale)
    engine = Catalog([tmp_path]).load("ct-sample", threads=2)
    with pytest.raises(OutputImplausible, match="not numbers"):
        laws.run(engine, laws.stack("CT", (2, 96, 96)))


@pytest.mark.parametrize("scale", [1, 2])
def test_a_constant_is_neither_noise_nor_detail(tmp_path: Path, scale: int) -> None:
    """G2 and G3 against a network gone mad: a huge constant moves no mean and no pixel by more than it may."""
    onnx_samples.folder(tmp_path, onnx_samples.broken_network(1e6, scale), scale=scale)
    engine = Catalog([tmp_path]).load("ct-sample", threads=1)
    whole, padded = laws.stack("CT", (1, 96, 96), padded=False), laws.stack("CT", (2, 96, 96))
    assert engine.enhance(whole, Params(strength=1.0)).figures["skipped"] == 0
    laws.keeps_means(engine, whole)
    laws.stays_within_bound(engine, padded)
    laws.leaves_padding(engine, padded)
