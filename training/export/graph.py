"""A network as a list of ONNX operators, and its bytes.

Between tracing and writing stands this plain form, because the fp16 file is made from it by rules of our own
(training/export/half.py) and because the same network must give the same bytes every time: a digest of the
file is what the card and the node's audit name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from engines.errors import CardInvalid
from engines.runtime.onnxfile import inspect
from training.errors import ExportError

OPSET = 18
IR_VERSION = 10
"""Opset 18 in IR 10: the newest that ONNX Runtime since 1.20 and TensorRT since 10 both read."""

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})

Attribute = int | float | str | tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One operator; a name in ``inputs`` is x, c, another node's output or a weight; empty means not given."""

    op: str
    name: str
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, Attribute]


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """Nodes in the order they run, from x and c to r.

    Attributes
    ----------
    weights
        By name, in order of first use: float32, float16 or int64.
    scale
        Size of r over that of x.
    """

    nodes: tuple[Node, ...]
    weights: Mapping[str, NDArray[Any]]
    scale: int = 1


def needed(graph: Graph) -> Graph:
    """Without the nodes and weights that r does not depend on."""
    wanted, kept = {"r"}, []
    for node in reversed(graph.nodes):
        if node.output in wanted:
            kept.append(node)
            wanted.update(node.inputs)
    used = {name: w for name, w in graph.weights.items() if name in wanted}
    return Graph(nodes=tuple(reversed(kept)), weights=used, scale=graph.scale)


def to_bytes(graph: Graph, metadata: Mapping[str, str]) -> bytes:
    """Write a graph as one ONNX file; the same graph and metadata give the same bytes.

    Raises
    ------
    ExportError
        The file is not valid ONNX, or the node would refuse it.
    """
    f = TensorProto.FLOAT

    def written(n: Node) -> onnx.NodeProto:
        told: dict[str, Any] = dict(n.attributes)
        return helper.make_node(n.op, list(n.inputs), [n.output], name=n.name, **told)

    size = ("H", "W") if graph.scale == 1 else (f"{graph.scale}H", f"{graph.scale}W")
    made = helper.make_model(
        helper.make_graph(
            [written(n) for n in graph.nodes],
            "network",
            [
                helper.make_tensor_value_info("x", f, ["N", 3, "H", "W"]),
                helper.make_tensor_value_info("c", f, ["N", 1, "H", "W"]),
            ],
            [helper.make_tensor_value_info("r", f, ["N", 1, *size])],
            [numpy_helper.from_array(np.ascontiguousarray(w), n) for n, w in graph.weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="luminode",
    )
    made.ir_version = IR_VERSION
    for key, value in sorted(metadata.items()):
        entry = made.metadata_props.add()
        entry.key, entry.value = key, value
    content: bytes = made.SerializeToString(deterministic=True)
    try:
        onnx.checker.check_model(content, full_check=True)
        inspect(content)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, CardInvalid) as e:
        raise ExportError(f"the exported graph is not sound: {e}") from e
    return content
