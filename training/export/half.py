"""The fp16 form of a graph: half precision between the first convolution and the last, and nowhere else.

HU / 1000 in half precision rounds the image itself, and a network takes that rounding for noise. So the input,
every convolution that sees it first, every convolution that no other follows, and all that comes after them
stay in float32; models.md 6.2 has the measurement. Types are written into the graph: a runtime has nothing to
choose.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from training.errors import ExportError
from training.export.graph import CONVOLUTIONS, Graph, Node

_FLOAT32_INPUT = {"Resize": 2}
"""Inputs that are float32 whatever the type of the data is: the scales of a Resize."""


def trunk(graph: Graph) -> frozenset[str]:
    """Outputs of the nodes that run in half precision."""
    before = {"": False, "x": False, "c": False, **dict.fromkeys(graph.weights, False)}
    stem: set[str] = set()
    for node in graph.nodes:
        seen = any(before[i] for i in node.inputs)
        if node.op in CONVOLUTIONS and not seen:
            stem.add(node.output)
        if node.op == "Relu" and node.inputs[0] in stem:
            # Rounding and ReLU commute; a runtime fuses the ReLU only if the cast comes after it.
            stem.add(node.output)
        before[node.output] = seen or node.op in CONVOLUTIONS
    after: set[str] = set()
    for node in reversed(graph.nodes):
        if node.op in CONVOLUTIONS or node.output in after:
            after.update(node.inputs)
    inner = {n.output for n in graph.nodes if any(before[i] for i in n.inputs) and n.output in after}
    return frozenset(inner - stem)


def to_half(graph: Graph) -> Graph:
    """Round the trunk's weights to float16 and put casts where values enter and leave it.

    Raises
    ------
    ExportError
        A weight is beyond the range of float16, or there is no trunk.
    """
    inner = trunk(graph)
    if not inner:
        raise ExportError("the network has no layer between its first convolution and its last")
    nodes: list[Node] = []
    weights: dict[str, NDArray[Any]] = {}
    cast: dict[tuple[str, bool], str] = {}

    def typed(name: str, half: bool) -> str:
        if not name:
            return name
        if name in graph.weights:
            told = name
            array = graph.weights[name]
            if half and array.dtype == np.float32:
                told, array = f"{name}.fp16", _rounded(name, array)
            weights[told] = array
            return told
        if (name in inner) == half:
            return name
        if (name, half) not in cast:
            to = TensorProto.FLOAT16 if half else TensorProto.FLOAT
            out = f"{name}.fp16" if half else f"{name}.fp32"
            nodes.append(Node(op="Cast", name=out, inputs=(name,), output=out, attributes={"to": to}))
            cast[name, half] = out
        return cast[name, half]

    for node in graph.nodes:
        half = node.output in inner
        keep = _FLOAT32_INPUT.get(node.op)
        inputs = tuple(typed(name, half and i != keep) for i, name in enumerate(node.inputs))
        nodes.append(replace(node, inputs=inputs))
    return Graph(nodes=tuple(nodes), weights=weights, scale=graph.scale)


def _rounded(name: str, array: NDArray[Any]) -> NDArray[np.float16]:
    top = float(np.finfo(np.float16).max)
    largest = float(np.abs(array).max(initial=0.0))
    if not largest <= top:
        raise ExportError(f"{name} holds {largest:g}, more than float16 can ({top:g})")
    return array.astype(np.float16)


def emulated(graph: Graph, half: Graph) -> Graph:
    """The fp16 graph in float32 operators, with every value of the trunk rounded to float16.

    That is what a tensor core does: float16 in and out, float32 sums. A runtime on the CPU may keep float32
    between its operators and so hide most of the error; this form hides none.

    Parameters
    ----------
    graph, half
        A graph, and what :func:`to_half` made of it.
    """
    inner = trunk(graph)
    weights: Mapping[str, NDArray[Any]] = {
        name: w.astype(np.float32) if w.dtype == np.float16 else w for name, w in half.weights.items()
    }
    nodes: list[Node] = []
    for node in half.nodes:
        rounds = node.output in inner or node.attributes.get("to") == TensorProto.FLOAT16
        if node.op == "Cast":
            node = replace(node, op="Identity", attributes={})
        if not rounds:
            nodes.append(node)
            continue
        exact, short, out = f"{node.output}.exact", f"{node.output}.short", node.output
        nodes += [
            replace(node, output=exact),
            Node(
                op="Cast",
                name=short,
                inputs=(exact,),
                output=short,
                attributes={"to": TensorProto.FLOAT16},
            ),
            Node(
                op="Cast",
                name=f"{out}.back",
                inputs=(short,),
                output=out,
                attributes={"to": TensorProto.FLOAT},
            ),
        ]
    return Graph(nodes=tuple(nodes), weights=weights, scale=graph.scale)
