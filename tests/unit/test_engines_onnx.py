"""The ONNX Runtime front: nothing is parsed before its digest is checked; what is not plain is refused."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from engines.errors import CardInvalid, OutputImplausible, RuntimeUnavailable, WeightsMismatch
from engines.runtime import onnx as runtime
from engines.runtime.onnx import OnnxNetwork, read_verified
from engines.runtime.onnxfile import inspect
from tests import onnx_samples

BLUR = onnx_samples.blur_network().SerializeToString()


def written(tmp_path: Path, made: onnx.ModelProto | bytes) -> tuple[Path, str]:
    content = made if isinstance(made, bytes) else made.SerializeToString()
    path = tmp_path / "model.fp32.onnx"
    path.write_bytes(content)
    return path, hashlib.sha256(content).hexdigest()


def loaded(tmp_path: Path, made: onnx.ModelProto | bytes, threads: int = 1) -> OnnxNetwork:
    return OnnxNetwork.load(*written(tmp_path, made), threads=threads)


def relu(domain: str = "", op: str = "Relu", **attributes: object) -> onnx.ModelProto:
    """x -> first channel of op(x), with c added: a contract, and one node to play with."""
    nodes = [
        helper.make_node(op, ["x"], ["y"], domain=domain, **attributes),
        helper.make_node("ReduceMean", ["y", "axes"], ["m"], keepdims=1),
        helper.make_node("Add", ["m", "c"], ["r"]),
    ]
    made = onnx_samples.model(nodes, [numpy_helper.from_array(np.array([1], np.int64), "axes")])
    if domain:
        made.opset_import.append(helper.make_opsetid(domain, 1))
    return made


def test_runs_the_same_whatever_threads_and_batch(tmp_path: Path) -> None:
    made = onnx_samples.strided_network()
    one, two = (loaded(tmp_path, made, n) for n in (1, 2))
    rng = np.random.default_rng(0)
    x = rng.normal(0, 0.3, (2, 3, 64, 48)).astype(np.float32)
    c = rng.uniform(0.1, 0.4, (2, 1, 64, 48)).astype(np.float32)
    r = one.run(x, c)
    assert r.shape == c.shape
    assert r.dtype == np.float32
    assert r.tobytes() == two.run(x, c).tobytes()
    assert r[1:].tobytes() == one.run(x[1:], c[1:]).tobytes()


def test_the_file_is_described_as_onnx_describes_it() -> None:
    made = onnx_samples.strided_network()
    made.metadata_props.add(key="sigma", value="5-120 HU")
    found = inspect(made.SerializeToString())
    assert found.operators == {n.op_type for n in made.graph.node}
    assert found.opset == 18
    assert found.metadata == {"sigma": "5-120 HU"}


def test_a_wrong_digest_stops_before_any_parser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, sha256 = written(tmp_path, BLUR)
    path.write_bytes(BLUR[:-1] + b"\0")

    def parser(content: bytes) -> None:
        pytest.fail("the bytes were parsed")

    monkeypatch.setattr(runtime, "inspect", parser)
    with pytest.raises(WeightsMismatch):
        OnnxNetwork.load(path, sha256)


def test_weights_that_are_missing_or_huge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CardInvalid, match="cannot be opened"):
        read_verified(tmp_path / "none.onnx", "0" * 64)
    path, sha256 = written(tmp_path, BLUR)
    monkeypatch.setattr(runtime, "MAX_BYTES", 100)
    with pytest.raises(CardInvalid, match="larger"):
        read_verified(path, sha256)


def external() -> onnx.ModelProto:
    made = onnx_samples.blur_network()
    tensor = made.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../secrets.bin"
    tensor.ClearField("raw_data")
    return made


def external_in_attribute() -> onnx.ModelProto:
    made = onnx_samples.blur_network()
    hidden = external().graph.initializer[0]
    made.graph.node.append(helper.make_node("Constant", [], ["unused"], value=hidden))
    return made


def subgraph() -> onnx.ModelProto:
    inner = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "inner", [], [])
    made = relu()
    made.graph.node[0].attribute.append(helper.make_attribute("body", inner))
    made.graph.node[0].op_type = "Loop"
    return made


def functions() -> onnx.ModelProto:
    made = relu()
    made.functions.append(
        helper.make_function("local", "f", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], [])
    )
    return made


@pytest.mark.parametrize(
    ("made", "word"),
    [
        (external(), "other files"),
        (external_in_attribute(), "other files"),
        (relu(domain="com.microsoft", op="Gelu"), "com.microsoft"),
        (relu(domain="our.plugin", op="Anything"), "our.plugin"),
        (relu(op="RandomNormalLike"), "RandomNormalLike"),
        (subgraph(), "Loop"),
        (functions(), "functions"),
    ],
)
def test_what_is_not_plain_is_refused_before_the_runtime(
    tmp_path: Path, made: onnx.ModelProto, word: str
) -> None:
    with pytest.raises(CardInvalid, match=word):
        loaded(tmp_path, made)


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, len(BLUR) - 1), byte=st.integers(0, 255), end=st.integers(0, len(BLUR)))
def test_mangled_files_are_refused_or_described_never_worse(at: int, byte: int, end: int) -> None:
    mangled = bytearray(BLUR)
    mangled[at] = byte
    for content in (bytes(mangled), BLUR[:end], bytes(mangled[:end])):
        with contextlib.suppress(CardInvalid):
            inspect(content)


@pytest.mark.parametrize(
    "content", [b"", b"not a model", b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", b"\0" * 99]
)
def test_not_onnx(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(CardInvalid):
        loaded(tmp_path, content)


def test_deep_nesting_is_bounded() -> None:
    graph = helper.make_graph([helper.make_node("Relu", ["a"], ["b"])], "g", [], [])
    for _ in range(20):
        node = helper.make_node("Custom", ["a"], ["b"])
        node.attribute.append(helper.make_attribute("body", graph))
        graph = helper.make_graph([node], "g", [], [])
    with pytest.raises(CardInvalid, match="nests"):
        inspect(helper.make_model(graph).SerializeToString())


def test_another_contract_is_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "c"], ["r"])]
    with pytest.raises(CardInvalid, match="must be float32"):
        loaded(tmp_path, onnx_samples.model(nodes, [], channels=5))
    with pytest.raises(CardInvalid, match="inputs must be x and c"):
        loaded(tmp_path, onnx_samples.model([helper.make_node("Add", ["x", "c"], ["q"])], [], output="q"))


def test_a_graph_the_runtime_cannot_take(tmp_path: Path) -> None:
    with pytest.raises(RuntimeUnavailable):
        loaded(tmp_path, relu(op="NoSuchOperator"))


def test_a_wrong_shape_of_the_result_is_caught(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["c"], ["shape"]),
        helper.make_node("Add", ["shape", "more"], ["wider"]),
        helper.make_node("Expand", ["one", "wider"], ["r"]),
    ]
    weights = [
        numpy_helper.from_array(np.array([0, 0, 1, 0], np.int64), "more"),
        numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "one"),
    ]
    network = loaded(tmp_path, onnx_samples.model(nodes, weights))
    with pytest.raises(OutputImplausible):
        network.run(np.zeros((1, 3, 8, 8), np.float32), np.zeros((1, 1, 8, 8), np.float32))
