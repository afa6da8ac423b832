"""From a PyTorch network to ONNX operators, one to one.

``torch.export`` lists the ATen operators of one run; each of those that our networks are made of has exactly
one ONNX operator, so that nearest upsampling is one Resize and pixel shuffle one DepthToSpace. PyTorch's own
exporter writes chains of Shape, Slice and Reshape there, and needs two more packages.

Nothing that depends on the size of the traced input can pass: all operators here hold for every size.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from training.errors import ExportError
from training.export.graph import Attribute, Graph, Node, needed

SIZE = 64
"""Of the traced input; a multiple of every alignment that cards allow."""

ALIASES = frozenset({"aten.dropout.default", "aten.detach.default", "aten.contiguous.default"})
"""Operators that change nothing when a network is only run."""

SPLITS = frozenset({"aten.split.Tensor", "aten.split_with_sizes.default", "aten.chunk.default"})
"""Operators whose pieces are taken one by one."""


def plain(network: nn.Module) -> nn.Module:
    """A copy on the CPU, in float32, as it is run and not as it is trained."""
    made = copy.deepcopy(network).cpu().float().eval()
    for module in made.modules():
        # Mixed precision wraps ``forward`` of single layers, and a wrap would still call the original's weights;
        # its hooks cast. PyTorch's own hooks compute weights and stay.
        module.__dict__.pop("forward", None)
        hooks = module._forward_pre_hooks
        for key in [k for k, hook in hooks.items() if not (hook.__module__ or "").startswith("torch.")]:
            del hooks[key]
    return made


def trace(network: nn.Module, *, scale: int = 1) -> Graph:
    """List the ONNX operators of a network.

    Parameters
    ----------
    network
        forward(x [N, 3, H, W], c [N, 1, H, W]) -> r [N, 1, scale H, scale W].

    Raises
    ------
    ExportError
        PyTorch cannot trace it, it uses an operator that is not in the table, or r has another shape.
    """
    x, c = torch.zeros(2, 3, SIZE, SIZE), torch.zeros(2, 1, SIZE, SIZE)
    try:
        with torch.no_grad():
            program = torch.export.export(plain(network), (x, c), strict=False)
    except Exception as e:  # torch.export has no narrower root.
        first = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise ExportError(f"the network cannot be traced: {first}") from e
    return _Walk(program).graph(scale)


class _Walk:
    """One pass over the traced program."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        self._program = program
        self._nodes: list[Node] = []
        self._weights: dict[str, NDArray[Any]] = {}
        self._names: dict[torch.fx.Node, str] = {}

    def graph(self, scale: int) -> Graph:
        signature = self._program.graph_signature
        stored = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        state = {**self._program.state_dict, **self._program.constants}
        inputs = iter(("x", "c"))
        result: Any = None
        self._program.graph.eliminate_dead_code()
        for node in self._program.graph.nodes:
            if node.op == "placeholder":
                if node.name in stored:
                    name = stored[node.name]
                    self._weights[name] = state[name].detach().numpy()
                    self._names[node] = name
                elif node.name in signature.inputs_to_lifted_tensor_constants:
                    name = signature.inputs_to_lifted_tensor_constants[node.name]
                    self._weights[name] = state[name].detach().numpy().astype(np.float32)
                    self._names[node] = name
                else:
                    self._names[node] = next(inputs)
            elif node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                (result,) = node.args[0] if len(node.args[0]) == 1 else (None,)
        if result is None or tuple(result.meta["val"].shape) != (2, 1, SIZE * scale, SIZE * scale):
            raise ExportError(f"the network must return one tensor [N, 1, {scale} H, {scale} W]")
        last = self._names[result]
        if last in ("x", "c") or last in self._weights:
            raise ExportError("the network returns what it was given")
        return needed(Graph(nodes=tuple(_renamed(self._nodes, last)), weights=self._weights, scale=scale))

    def _call(self, node: torch.fx.Node) -> None:
        target = str(node.target)
        if node.target is operator.getitem:
            self._part(node)
            return
        if target in SPLITS:
            return
        if target in ALIASES:
            self._names[node] = self.value(node.args[0])
            return
        if target not in _TABLE:
            raise ExportError(
                f"the network uses {target}, which has no place in an exported network",
                hint=f"use {', '.join(sorted(t.split('.')[1] for t in _TABLE))} (not in place)",
            )
        made = _TABLE[target](self, node.name, _arguments(node))
        if isinstance(made, str):
            self._names[node] = made
            return
        op, inputs, attributes = made
        # Layers keep the name that they have in the checkpoint.
        named = inputs[1].removesuffix(".weight") if op in ("Conv", "ConvTranspose") else node.name
        self._nodes.append(
            Node(op=op, name=named, inputs=inputs, output=node.name, attributes=dict(attributes))
        )
        self._names[node] = node.name

    def _part(self, node: torch.fx.Node) -> None:
        """One piece of a split along channels, as the Slice that it is."""
        whole, index = node.args
        assert isinstance(whole, torch.fx.Node)
        assert isinstance(index, int)
        told = _arguments(whole)
        if str(whole.target) not in SPLITS or told["dim"] not in (1, -3):
            raise ExportError(f"{node.name}: only channels can be split")
        ends = np.cumsum([part.shape[1] for part in whole.meta["val"]])
        start, end = int(ends[index] - whole.meta["val"][index].shape[1]), int(ends[index])
        given = {"self": told["self"], "dim": 1, "start": start, "end": end, "step": 1}
        _, inputs, _ = _slice(self, node.name, given)
        self._nodes.append(Node(op="Slice", name=node.name, inputs=inputs, output=node.name, attributes={}))
        self._names[node] = node.name

    def value(self, of: Any) -> str:
        """The name of a traced value."""
        return self._names[of]

    def constant(self, name: str, array: NDArray[Any]) -> str:
        self._weights[name] = array
        return name


def _arguments(node: torch.fx.Node) -> dict[str, Any]:
    """What an operator is given, by name, defaults too."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    given = {a.name: a.default_value for a in schema if a.has_default_value()}
    return given | {a.name: v for a, v in zip(schema, node.args, strict=False)} | dict(node.kwargs)


Operator = tuple[str, tuple[str, ...], Mapping[str, Attribute]]
Made = Operator | str
Rule = Callable[[_Walk, str, Mapping[str, Any]], Made]


def _renamed(nodes: list[Node], last: str) -> list[Node]:
    def name(of: str) -> str:
        return "r" if of == last else of

    return [
        Node(
            op=n.op,
            name=n.name,
            inputs=tuple(map(name, n.inputs)),
            output=name(n.output),
            attributes=n.attributes,
        )
        for n in nodes
    ]


def _two(value: Any) -> tuple[int, int]:
    told = [int(v) for v in value] if isinstance(value, (list, tuple)) else [int(value)]
    return (told[0], told[-1])


def _conv(op: str) -> Rule:
    def rule(walk: _Walk, name: str, a: Mapping[str, Any]) -> Made:
        inputs = tuple(walk.value(a[k]) for k in ("input", "weight", "bias") if a[k] is not None)
        pads = _two(a["padding"])
        attributes: dict[str, Attribute] = {
            "dilations": _two(a["dilation"]),
            "group": int(a["groups"]),
            "kernel_shape": tuple(int(n) for n in a["weight"].meta["val"].shape[2:]),
            "pads": (*pads, *pads),
            "strides": _two(a["stride"]),
        }
        if op == "ConvTranspose":
            attributes["output_padding"] = _two(a["output_padding"])
        return op, inputs, attributes

    return rule


def _unary(op: str) -> Rule:
    return lambda walk, name, a: (op, (walk.value(a["self"]),), {})


def _binary(op: str) -> Rule:
    neutral = 1.0 if op in ("Mul", "Div") else 0.0

    def rule(walk: _Walk, name: str, a: Mapping[str, Any]) -> Made:
        if a.get("alpha", 1) != 1:
            raise ExportError(f"{name}: a sum with a factor inside", hint="multiply first")
        first, second = a["self"], a["other"]
        if isinstance(second, torch.fx.Node):
            return op, (walk.value(first), walk.value(second)), {}
        if float(second) == neutral:
            return walk.value(first)
        number = walk.constant(f"{name}.number", np.array(second, np.float32))
        return op, (walk.value(first), number), {}

    return rule


def _cat(walk: _Walk, name: str, a: Mapping[str, Any]) -> Made:
    if a["dim"] not in (1, -3):
        raise ExportError(f"{name}: only channels can be concatenated")
    return "Concat", tuple(walk.value(t) for t in a["tensors"]), {"axis": 1}


def _slice(walk: _Walk, name: str, a: Mapping[str, Any]) -> Operator:
    if a["dim"] not in (1, -3):
        raise ExportError(f"{name}: only channels can be sliced", hint="pad and crop outside of the network")
    last = np.iinfo(np.int64).max if a["end"] is None else int(a["end"])
    told = {"starts": int(a["start"] or 0), "ends": last, "axes": 1, "steps": int(a["step"])}
    inputs = [walk.constant(f"{name}.{k}", np.array([v], np.int64)) for k, v in told.items()]
    return "Slice", (walk.value(a["self"]), *inputs), {}


def _nearest(walk: _Walk, name: str, a: Mapping[str, Any]) -> Made:
    factors = a["scale_factors"]
    if factors is None or any(f != int(f) for f in factors):
        raise ExportError(f"{name}: upsampling to a size or by a fraction", hint="use scale_factor=2.0")
    scales = walk.constant(f"{name}.scales", np.array([1, 1, *factors], np.float32))
    # floor(i / 2): what nearest means for a whole factor, whatever the convention of coordinates.
    mode = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return "Resize", (walk.value(a["input"]), "", scales), mode


def _shuffle(walk: _Walk, name: str, a: Mapping[str, Any]) -> Made:
    told: dict[str, Attribute] = {"blocksize": int(a["upscale_factor"]), "mode": "CRD"}
    return "DepthToSpace", (walk.value(a["self"]),), told


def _mean_pool(walk: _Walk, name: str, a: Mapping[str, Any]) -> Made:
    size, pads = _two(a["kernel_size"]), _two(a["padding"])
    if a["ceil_mode"] or a.get("divisor_override"):
        raise ExportError(f"{name}: pooling that rounds up, or divides by another number")
    told: dict[str, Attribute] = {
        "kernel_shape": size,
        "strides": _two(a["stride"]) if a["stride"] else size,
        "pads": (*pads, *pads),
        "count_include_pad": int(bool(a["count_include_pad"])),
    }
    return "AveragePool", (walk.value(a["self"]),), told


def _leaky(walk: _Walk, name: str, a: Mapping[str, Any]) -> Made:
    return "LeakyRelu", (walk.value(a["self"]),), {"alpha": float(a["negative_slope"])}


_TABLE: Mapping[str, Rule] = {
    "aten.conv2d.default": _conv("Conv"),
    "aten.conv_transpose2d.input": _conv("ConvTranspose"),
    "aten.relu.default": _unary("Relu"),
    "aten.leaky_relu.default": _leaky,
    "aten.neg.default": _unary("Neg"),
    "aten.abs.default": _unary("Abs"),
    "aten.add.Tensor": _binary("Add"),
    "aten.sub.Tensor": _binary("Sub"),
    "aten.mul.Tensor": _binary("Mul"),
    "aten.div.Tensor": _binary("Div"),
    "aten.cat.default": _cat,
    "aten.slice.Tensor": _slice,
    "aten.upsample_nearest2d.vec": _nearest,
    "aten.pixel_shuffle.default": _shuffle,
    "aten.avg_pool2d.default": _mean_pool,
}
