"""Small networks in ONNX, made as the tests run: what the learned front door is proven with."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CARD = """\
name: {name}
version: 1.0.0
title: A network for tests
family: {family}
scale: {scale}
modalities: [{modality}]
unit: {unit}
model: model.fp32.onnx
weights_sha256: {digest}
sigma_range: {sigma_range}
receptive_field: {receptive_field}
alignment: 8
neighbours: 1
bound_sigmas: 4.0
bound: {bound}
default_strength: 0.6
parameters: {parameters}
"""


def blur_network(gain: float = 1000.0 / 100.0) -> onnx.ModelProto:
    """r = gain * (slice - mean of 3 x 3 of the three slices): a plain denoiser as a network of one layer.

    ``gain`` turns the unit of x (HU / 1000) into that of c (HU / 100).
    """
    kernel = np.full((1, 3, 3, 3), -1 / 27, np.float32)
    kernel[0, 1, 1, 1] += 1
    weights = [numpy_helper.from_array(kernel * np.float32(gain), "k")]
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["d"], pads=[1, 1, 1, 1]),
        # c takes part, as it must in a graph that declares it: bound the residual to five sigma.
        helper.make_node("Mul", ["c", "five"], ["top"]),
        helper.make_node("Neg", ["top"], ["bottom"]),
        helper.make_node("Min", ["d", "top"], ["e"]),
        helper.make_node("Max", ["e", "bottom"], ["r"]),
    ]
    weights.append(numpy_helper.from_array(np.array(5, np.float32), "five"))
    return model(nodes, weights)


def strided_network(seed: int = 1) -> onnx.ModelProto:
    """The layout of the real ones: strided stem, residual block, depth to space. Random weights."""
    rng = np.random.default_rng(seed)

    def weight(name: str, *shape: int) -> TensorProto:
        fan = float(np.prod(shape[1:]))
        return numpy_helper.from_array((rng.standard_normal(shape) / np.sqrt(fan)).astype(np.float32), name)

    weights = [
        weight("stem", 8, 4, 4, 4),
        weight("down", 16, 8, 2, 2),
        weight("a", 16, 16, 3, 3),
        weight("up", 8, 16, 1, 1),
        weight("head", 4, 8, 3, 3),
        numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales"),
    ]
    same = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Concat", ["x", "c"], ["xc"], axis=1),
        helper.make_node("Conv", ["xc", "stem"], ["s"], strides=[2, 2], **same),
        helper.make_node("Relu", ["s"], ["sr"]),
        helper.make_node("Conv", ["sr", "down"], ["d"], strides=[2, 2]),
        helper.make_node("Conv", ["d", "a"], ["b"], **same),
        helper.make_node("Relu", ["b"], ["br"]),
        helper.make_node("Conv", ["br", "up"], ["u"]),
        helper.make_node("Resize", ["u", "", "scales"], ["n"], mode="nearest"),
        helper.make_node("Add", ["n", "sr"], ["m"]),
        helper.make_node("Conv", ["m", "head"], ["h"], **same),
        helper.make_node("DepthToSpace", ["h"], ["r"], blocksize=2, mode="CRD"),
    ]
    return model(nodes, weights)


def detail_network(gain: float = 0.5, most: float = 0.5) -> onnx.ModelProto:
    """Super-resolution in one layer: each of the four new pixels gets a slice's Laplacian, unlike weighted.

    In units of x, and at most ``most`` times c (so that c takes part).
    """
    laplacian = np.array([[0, -1, 0], [-1, 4, -1], [0, -1, 0]], np.float32) / 4
    kernel = np.zeros((4, 3, 3, 3), np.float32)
    for phase, weight in enumerate((0.2, -1.0, 0.7, 0.4)):
        kernel[phase, 1] = gain * weight * laplacian
        kernel[phase, 0] = kernel[phase, 2] = 0.1 * kernel[phase, 1]
    weights = [
        numpy_helper.from_array(kernel, "k"),
        numpy_helper.from_array(np.array(most, np.float32), "most"),
        numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales"),
    ]
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["d"], pads=[1, 1, 1, 1]),
        helper.make_node("DepthToSpace", ["d"], ["e"], blocksize=2, mode="CRD"),
        helper.make_node("Resize", ["c", "", "scales"], ["wide"], mode="nearest"),
        helper.make_node("Mul", ["wide", "most"], ["top"]),
        helper.make_node("Neg", ["top"], ["bottom"]),
        helper.make_node("Min", ["e", "top"], ["f"]),
        helper.make_node("Max", ["f", "bottom"], ["r"]),
    ]
    return model(nodes, weights, scale=2)


def broken_network(value: float, scale: int = 1) -> onnx.ModelProto:
    """A network of which every output is ``value``: what a guard is there for."""
    weights = [
        numpy_helper.from_array(np.array(value, np.float32), "v"),
        numpy_helper.from_array(np.array(0, np.float32), "zero"),
        numpy_helper.from_array(np.array([1, 1, scale, scale], np.float32), "scales"),
    ]
    nodes = [
        helper.make_node("Resize", ["c", "", "scales"], ["wide"], mode="nearest"),
        helper.make_node("Mul", ["wide", "zero"], ["none"]),
        helper.make_node("Slice", ["x", "zero_", "one_", "one_"], ["one"]),
        helper.make_node("Resize", ["one", "", "scales"], ["wider"], mode="nearest"),
        helper.make_node("Mul", ["wider", "zero"], ["nothing"]),
        helper.make_node("Add", ["none", "nothing"], ["sum"]),
        helper.make_node("Add", ["sum", "v"], ["r"]),
    ]
    weights += [
        numpy_helper.from_array(np.array([0], np.int64), "zero_"),
        numpy_helper.from_array(np.array([1], np.int64), "one_"),
    ]
    return model(nodes, weights, scale=scale)


def model(
    nodes: list[onnx.NodeProto],
    weights: list[TensorProto],
    channels: int = 3,
    output: str = "r",
    scale: int = 1,
) -> onnx.ModelProto:
    """A model of our contract: x [N, channels, H, W], c [N, 1, H, W] -> r [N, 1, scale H, scale W]."""
    size = ["H", "W"] if scale == 1 else [f"{scale}*H", f"{scale}*W"]
    graph = helper.make_graph(
        nodes,
        "network",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", channels, "H", "W"]),
            helper.make_tensor_value_info("c", TensorProto.FLOAT, ["N", 1, "H", "W"]),
        ],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", 1, *size])],
        weights,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    made.ir_version = 10
    return made


def folder(
    where: Path,
    made: onnx.ModelProto | bytes,
    *,
    name: str = "ct-sample",
    modality: str = "CT",
    receptive_field: int = 24,
    digest: str | None = None,
    family: str = "cnn",
    scale: int = 1,
    parameters: str = "{lock: 16}",
) -> Path:
    """Write an engine's folder below ``where``; return it."""
    path = where / name
    path.mkdir(parents=True)
    content = made if isinstance(made, bytes) else made.SerializeToString()
    (path / "model.fp32.onnx").write_bytes(content)
    ct = modality == "CT"
    card = CARD.format(
        name=name,
        modality=modality,
        unit="HU" if ct else "arbitrary",
        digest=digest or hashlib.sha256(content).hexdigest(),
        sigma_range="[1.0, 150.0]" if ct else "[0.002, 0.15]",
        receptive_field=receptive_field,
        bound="200.0" if ct else "0.3",
        family=family,
        scale=scale,
        parameters=parameters,
    )
    (path / "card.yaml").write_text(card)
    return path
