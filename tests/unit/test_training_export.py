"""Export of networks: the files compute what the network computes, or there are none."""

from __future__ import annotations

import hashlib
import re

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from onnx import TensorProto, numpy_helper  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from engines.catalog import Catalog  # noqa: E402
from engines.runtime.onnx import OnnxNetwork  # noqa: E402
from engines.runtime.onnxfile import inspect  # noqa: E402
from tests import laws  # noqa: E402
from training.errors import ExportError  # noqa: E402
from training.export import PROVENANCE, export, gflop, receptive_field, write_card  # noqa: E402
from training.export import parity as gates  # noqa: E402
from training.export.graph import Graph, Node, to_bytes  # noqa: E402
from training.export.half import emulated, to_half, trunk  # noqa: E402
from training.export.trace import plain, trace  # noqa: E402
from training.networks import build  # noqa: E402
from training.networks.half import halve  # noqa: E402

META = {key: f"the {key} of a test" for key in PROVENANCE}
CT = {"unit": "HU", "sigma_range": (5.0, 60.0)}
MR = {"unit": "arbitrary", "sigma_range": (0.01, 0.08)}

CARD = {
    "version": "0.1.0",
    "title": "A network of random weights",
    "family": "cnn",
    "modalities": ["CT"],
    "bound": 200.0,
    "trained_on": "nothing: its weights were drawn",
    "evaluated": "",
    "intended_use": "tests",
    "licence": "Apache-2.0",
    "lock": 16,
}


def drawn(kind: str = "pu", seed: int = 1, share: float = 0.1, **options: object) -> nn.Module:
    """A network of random weights whose branches and head are not zero: a tenth of what He would draw."""
    torch.manual_seed(seed)
    made = build(kind, **options)
    for layer in made.modules():
        if isinstance(layer, nn.Conv2d) and not layer.weight.any():
            nn.init.kaiming_normal_(layer.weight)
            layer.weight.data *= share
            nn.init.normal_(layer.bias, std=0.01)
    return made


@pytest.fixture(scope="module")
def small() -> nn.Module:
    return drawn(size="t")


@pytest.fixture(scope="module")
def made(small, tmp_path_factory):
    return export(small, tmp_path_factory.mktemp("zoo") / "ct-drawn", name="ct-drawn", meta=META, **CT)


def pair(network: nn.Module) -> tuple[bytes, bytes, bytes]:
    graph = trace(network)
    half = to_half(graph)
    return to_bytes(graph, {}), to_bytes(half, {}), to_bytes(emulated(graph, half), {})


def weights_of(content: bytes) -> dict[str, np.ndarray]:
    graph = onnx.load_from_string(content).graph
    return {w.name: numpy_helper.to_array(w) for w in graph.initializer}


def test_both_files_compute_what_the_network_does_at_every_size(small, made):
    rng = np.random.default_rng(3)
    files = {p: OnnxNetwork.load(p, made.sha256[p.name], threads=1) for p in (made.fp32, made.fp16)}
    for n, height, width in ((1, 8, 8), (1, 64, 200), (3, 88, 40)):
        x = rng.standard_normal((n, 3, height, width)).astype(np.float32) * np.float32(0.1)
        c = np.full((n, 1, height, width), 0.3, np.float32)
        with torch.no_grad():
            wanted = small(torch.from_numpy(x), torch.from_numpy(c)).numpy()
        assert np.abs(wanted).max() > 0.05
        assert np.abs(files[made.fp32].run(x, c) - wanted).max() * 100 < 1e-3
        assert 0 < np.abs(files[made.fp16].run(x, c) - wanted).max() * 100 < 0.5


def test_the_gates_have_measured_something(made):
    p = made.parity
    assert p.unit == "HU"
    assert p.n_inputs == len(gates.SHAPES)
    assert 0 < p.fp32_max <= 1e-3
    assert 0 < p.fp16_rms_rounded <= p.fp16_rms <= 0.1
    assert p.fp16_rms < p.fp16_max <= 0.5
    assert p.largest_residual > 5


def test_plain_operators_one_for_one(made):
    nodes = [n.op_type for n in onnx.load(made.fp32).graph.node]
    assert nodes.count("Conv") == 18
    assert nodes.count("Resize") == 2
    assert nodes.count("DepthToSpace") == 1
    assert not set(nodes) & {"Shape", "Reshape", "Transpose", "Gather", "Constant", "Identity", "Cast"}
    assert len(nodes) == made.n_nodes < 50
    assert inspect(made.fp32.read_bytes()).opset == 18


def test_half_precision_is_between_the_first_and_the_last_convolution(made):
    model = onnx.shape_inference.infer_shapes(onnx.load(made.fp16), strict_mode=True)
    graph = model.graph
    types = {w.name: w.data_type for w in graph.initializer}
    convs = [n for n in graph.node if n.op_type == "Conv"]
    kinds = {n.name: types[n.input[1]] for n in convs}
    assert {name for name, kind in kinds.items() if kind == TensorProto.FLOAT} == {"stem", "head"}
    assert [n.op_type for n in graph.node].count("Cast") == 2
    assert [n.op_type for n in graph.node][-3:] == ["Cast", "Conv", "DepthToSpace"]
    for value in (*graph.input, *graph.output):
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT
    half = {v.name for v in graph.value_info if v.type.tensor_type.elem_type == TensorProto.FLOAT16}
    assert {n.output[0] for n in convs if n.name not in ("stem", "head")} <= half


def test_the_same_network_gives_the_same_bytes(small, made, tmp_path):
    again = export(small, tmp_path / "ct-drawn", name="ct-drawn", meta=dict(reversed(META.items())), **CT)
    for one, other in ((made.fp32, again.fp32), (made.fp16, again.fp16)):
        assert one.read_bytes() == other.read_bytes()
        assert hashlib.sha256(one.read_bytes()).hexdigest() == made.sha256[one.name] == again.sha256[one.name]
    assert sorted(p.name for p in again.fp32.parent.iterdir()) == ["model.fp16.onnx", "model.fp32.onnx"]


def test_files_say_where_they_come_from(made):
    for path, precision in ((made.fp32, "fp32"), (made.fp16, "fp16, fp32 stem and head")):
        told = inspect(path.read_bytes()).metadata
        assert {k: told[k] for k in META} == META
        assert told["precision"] == precision
        assert told["unit"] == "HU"
        assert told["sigma_range"] == "5 60"
        assert told["alignment"] == "8"
        assert int(told["receptive_field"]) == made.receptive_field
        assert torch.__version__ in told["versions"]


@pytest.mark.parametrize("key", PROVENANCE)
def test_no_weights_without_their_origin(small, tmp_path, key):
    with pytest.raises(ExportError, match=key):
        export(small, tmp_path / "ct-a", name="ct-a", meta={**META, key: ""}, **CT)
    assert not (tmp_path / "ct-a").exists()


def test_meta_cannot_speak_for_the_export(small, tmp_path):
    with pytest.raises(ExportError, match="alignment, precision"):
        export(
            small, tmp_path / "ct-a", name="ct-a", meta={**META, "precision": "fp8", "alignment": "1"}, **CT
        )


def test_the_folder_has_the_engines_name(small, tmp_path):
    with pytest.raises(ExportError, match="must have its name"):
        export(small, tmp_path / "other", name="ct-a", meta=META, **CT)


@pytest.mark.parametrize(("which", "figure"), [(0, "fp32_max"), (1, "fp16_max"), (2, "fp16_max")])
def test_a_tampered_file_fails_its_gate(small, which, figure):
    contents = list(pair(small))
    model = onnx.load_from_string(contents[which])
    (bias,) = [w for w in model.graph.initializer if w.name == "head.bias"]
    # 0.6 HU on every pixel.
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.006), bias.name))
    contents[which] = model.SerializeToString()
    with pytest.raises(ExportError, match=rf"{figure} 0\.6\d* > "):
        gates.measure(plain(small), *contents, scale=1, **CT)


def test_nothing_is_written_when_a_gate_is_missed(tmp_path):
    loud = drawn(size="t", share=0.6)
    with pytest.raises(ExportError, match="disagrees") as caught:
        export(loud, tmp_path / "ct-loud", name="ct-loud", meta=META, **CT)
    assert "residuals reach" in caught.value.hint
    assert not (tmp_path / "ct-loud").exists()


def test_a_weight_beyond_float16_is_refused():
    network = drawn(size="t")
    network.trunk.down0.weight.data[0, 0, 0, 0] = 1e5
    with pytest.raises(ExportError, match=r"trunk\.down0\.weight holds 100000"):
        to_half(trace(network))
    network.trunk.down0.weight.data[0, 0, 0, 0] = np.nan
    with pytest.raises(ExportError, match="holds nan"):
        to_half(trace(network))


def test_an_activation_beyond_float16_is_found():
    network = drawn(size="t")
    # What comes out is the same, but half way it is 2^16 times as much.
    network.trunk.enc0[0].first.weight.data *= 2.0**10
    network.trunk.enc0[0].first.bias.data *= 2.0**10
    network.stem.weight.data *= 2.0**10
    network.stem.bias.data *= 2.0**10
    with pytest.raises(ExportError, match=r"overflows|fp16_max inf"):
        gates.measure(plain(network), *pair(network), scale=1, **CT)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("autoencoder", {"channels": (8, 12, 16), "code": 4}),
        ("autoencoder", {"channels": (8, 12, 16), "code": 4, "variational": True}),
        ("red-cnn", {"channels": 8}),
        ("cnn-10", {"channels": 8}),
        ("u-net", {"channels": 4}),
    ],
)
def test_the_other_networks_in_fp32(kind, options):
    network = plain(drawn(kind, **options))
    content = to_bytes(trace(network), {})
    session = gates._session(content, 1)
    for x, c in gates.inputs("HU", (5.0, 60.0), 16, ((2, 32, 48),)):
        with torch.no_grad():
            wanted = network(torch.from_numpy(x), torch.from_numpy(c)).numpy()
        assert np.abs(gates._run(session, x, c) - wanted).max() < 1e-5 * np.abs(wanted).max()
    assert "spread.weight" not in weights_of(content)


def test_a_network_that_carries_the_image_has_no_fp16_file(tmp_path):
    network = drawn("autoencoder", channels=(8, 12, 16), code=4)
    network.plain = True
    # Decoded images of a few hundred HU, as from a network that has begun to learn.
    network.head.weight.data *= 0.1
    folder = tmp_path / "ct-auto"
    folder.mkdir()
    (folder / "model.fp16.onnx").write_bytes(b"of other weights")
    with pytest.raises(ExportError, match="fp16_max"):
        export(network, folder, name="ct-auto", meta=META, **CT)
    made = export(network, folder, name="ct-auto", meta=META, carries_image=True, **CT)
    assert made.fp16 is None
    assert [p.name for p in folder.iterdir()] == ["model.fp32.onnx"] == list(made.sha256)
    assert made.parity.fp16_max == 0
    assert 0 < made.parity.fp32_max < 1e-2
    write_card(made, **{**CARD, "family": "autoencoder", "ood_limit": 40.0})
    assert Catalog([tmp_path]).load("ct-auto", threads=1).card.parameters["ood_limit"] == 40.0
    with pytest.raises(ExportError, match="ood_limit"):
        write_card(made, **{**CARD, "ood_limit": 40.0})


def test_super_resolution_has_twice_the_size(tmp_path):
    network = drawn("sr", size="t", share=0.03)
    made = export(network, tmp_path / "mr-sr", name="mr-sr", meta=META, scale=2, **MR)
    session = gates._session(made.fp32.read_bytes(), 1)
    x, c = np.zeros((1, 3, 40, 48), np.float32), np.zeros((1, 1, 40, 48), np.float32)
    assert gates._run(session, x, c).shape == (1, 1, 80, 96)
    assert inspect(made.fp32.read_bytes()).metadata["scale"] == "2"
    write_card(made, **{**CARD, "modalities": ["MR"], "bound": 0.3})
    files = {path.name: sha256 for path, sha256 in Catalog([tmp_path]).models("mr-sr").values()}
    assert files == made.sha256, "the card names both files"
    engine = Catalog([tmp_path]).load("mr-sr", threads=1)
    assert engine.card.scale == 2
    out = engine.enhance(laws.stack("MR", (2, 65, 72), padded=False), laws.Params(strength=1.0))
    assert out.volume.values.shape == (2, 130, 144)
    with pytest.raises(ExportError, match="one tensor"):
        trace(network, scale=1)


def test_a_network_that_was_trained_in_half_precision_is_exported_in_full(small):
    mixed = drawn(size="t")
    halve(mixed, torch.bfloat16)
    assert weights_of(pair(mixed)[0]).keys() == weights_of(pair(small)[0]).keys()
    assert pair(mixed) == pair(small)
    assert receptive_field(mixed) == receptive_field(small)


class _Odd(nn.Module):
    def __init__(self, what) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 3, padding=1)
        self.what = what

    def forward(self, x, c):
        return self.what(self.conv(x), c)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (lambda y, c: torch.sin(y), r"aten\.sin"),
        (lambda y, c: functional.interpolate(y, scale_factor=1.5)[..., :64, :64], "by a fraction"),
        (lambda y, c: y[:, :, :32], "only channels"),
        (lambda y, c: (y, c), "one tensor"),
        (lambda y, c: functional.avg_pool2d(y, 2), "one tensor"),
        (lambda y, c: torch.add(y, c, alpha=2), "multiply first"),
        (lambda y, c: y if y.sum() > 0 else c, "cannot be traced"),
    ],
)
def test_what_has_no_plain_operator_is_refused_by_name(what, said):
    with pytest.raises(ExportError) as caught:
        trace(_Odd(what))
    assert re.search(said, f"{caught.value} {caught.value.hint}")


def test_a_network_without_a_trunk_has_no_fp16_form():
    with pytest.raises(ExportError, match="no layer between"):
        to_half(trace(_Odd(lambda y, c: y * 2 + c)))


def test_an_unsound_graph_is_refused():
    node = Node(op="Reluu", name="a", inputs=("x",), output="r", attributes={})
    with pytest.raises(ExportError, match="not sound"):
        to_bytes(Graph(nodes=(node,), weights={}), {})


def test_emulation_rounds_every_value_of_the_trunk(small):
    graph = trace(small)
    half = to_half(graph)
    short = emulated(graph, half)
    rounded = [n for n in short.nodes if n.op == "Cast" and n.attributes["to"] == TensorProto.FLOAT16]
    # One more than the trunk has nodes: what enters it.
    assert len(rounded) == len(trunk(graph)) + 1
    assert all(w.dtype != np.float16 for w in short.weights.values())


class _Stack(nn.Module):
    """Two strides and some layers whose reach can be counted by hand."""

    def __init__(self, *layers: nn.Module, scale: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x, c):
        return self.layers(torch.cat([x, c], 1))


def test_receptive_field_of_what_can_be_counted():
    assert receptive_field(_Stack(nn.Conv2d(4, 1, 1))) == 0
    assert (
        receptive_field(_Stack(nn.Conv2d(4, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 1, 5, padding=2))) == 3
    )
    assert receptive_field(_Stack(nn.Conv2d(4, 1, (1, 7), padding=(0, 3)))) == 3
    # Pixel 1 of a pair sees pixels -1 to 2 of the pair, pixel 0 the same: 2 at most.
    halved = _Stack(nn.Conv2d(4, 4, 4, 2, 1), nn.PixelShuffle(2))
    assert receptive_field(halved) == 2
    doubled = _Stack(nn.Conv2d(4, 4, 3, padding=1), nn.PixelShuffle(2))
    assert receptive_field(doubled, 2) == 1


def test_receptive_field_does_not_depend_on_the_weights():
    torch.manual_seed(0)
    assert receptive_field(build("pu", size="t")) == receptive_field(drawn(size="t", seed=9)) == 66


def test_a_network_that_looks_at_the_whole_slice_is_refused():
    class Whole(nn.Module):
        def forward(self, x, c):
            return x[:, 1:2] - x.mean((1, 2, 3), keepdim=True)

    with pytest.raises(ExportError, match="further than"):
        receptive_field(Whole())


def test_no_pixel_looks_further_than_the_receptive_field(small):
    """By another way: values beyond the measured radius are changed, and nothing happens."""
    radius, size = receptive_field(small), 192
    x, c = torch.zeros(1, 3, size, size), torch.full((1, 1, size, size), 0.3)
    other = x.clone()
    other[:, :, 96] = 1.0
    with torch.no_grad():
        away = (small(other, c) - small(x, c))[0, 0].abs().amax(1)
    rows = away.nonzero().flatten() - 96
    assert 40 < int(rows.abs().max()) <= radius


@pytest.mark.parametrize(("size", "wanted"), [("t", 4.1), ("s", 9.1), ("m", 16.0), ("l", 121.0)])
def test_work_of_one_slice_is_what_the_design_says(size, wanted):
    assert gflop(build("pu", size=size)) == pytest.approx(wanted, rel=0.03)


def test_work_is_two_operations_per_weight_and_pixel():
    assert gflop(_Stack(nn.Conv2d(4, 6, 3, padding=1, bias=False)), size=64) == 2 * 4 * 6 * 9 * 64**2 / 1e9


def test_the_catalogue_loads_what_was_exported(made):
    path = write_card(made, **CARD)
    catalog = Catalog([path.parent.parent])
    assert not catalog.faults()
    card = catalog.card("ct-drawn")
    assert card.sigma_range == (5.0, 60.0)
    assert (card.receptive_field, card.alignment, card.neighbours) == (made.receptive_field, 8, 1)
    assert card.weights_sha256 == made.sha256["model.fp32.onnx"]
    engine, other = catalog.load("ct-drawn", threads=1), catalog.load("ct-drawn", threads=2)
    volume = laws.stack("CT", (3, 113, 97))
    assert engine.enhance(volume, laws.Params(strength=1.0)).figures["largest_change"] > 0
    laws.keeps_form(engine, volume)
    laws.stays_within_bound(engine, volume)
    laws.leaves_padding(engine, volume)
    laws.is_repeatable(engine, other, volume)


def test_tiles_of_the_measured_halo_give_the_bits_of_the_whole(made):
    write_card(made, **CARD)
    engine = Catalog([made.fp32.parent.parent]).load("ct-drawn", threads=1)
    laws.tiled_equals_whole(engine, laws.stack("CT", (1, 260, 244)), 64)


def test_a_card_that_the_node_would_refuse_is_taken_back(made):
    path = write_card(made, **CARD)
    before = path.read_bytes()
    with pytest.raises(ExportError, match="version"):
        write_card(made, **{**CARD, "version": "one"})
    assert path.read_bytes() == before
    path.unlink()
    with pytest.raises(ExportError, match="bound"):
        write_card(made, **{**CARD, "bound": -1.0})
    assert not path.exists()
