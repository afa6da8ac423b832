"""Every network of the zoo becomes a real plan of TensorRT for RTX, once, without a GPU; what cannot is told why."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines import __main__ as command
from engines import bench
from engines import catalog as catalogs
from engines import compile as compiling
from engines.card import read
from engines.catalog import ZOO, Catalog
from engines.errors import CardInvalid, PlanMismatch, RuntimeUnavailable
from engines.ladder import RUNGS, OnGpu, Wanted
from engines.rebuild import rebuild
from engines.runtime import flavour, profile
from engines.runtime.build import build
from engines.runtime.gpu import Gpu, local
from engines.runtime.plans import Plans
from tests import onnx_samples

RTX = "tensorrt_rtx"
TARGETS = ("86", "120")
CATALOG = Catalog.default()
NETWORKS = [(n, p) for n in CATALOG.names() for p in CATALOG.models(n)]
CARD = Gpu(name="NVIDIA RTX 3090", compute_capability="86", driver="580.65")

pytestmark = [
    pytest.mark.tensorrt,
    pytest.mark.skipif(RTX not in flavour.installed(), reason="TensorRT for RTX is not installed"),
]
alone = pytest.mark.skipif(bool(local()), reason="there is a GPU here: it would be built for")


@pytest.fixture
def plans(tmp_path: Path) -> Plans:
    return Plans(tmp_path / "plans")


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """One small engine."""
    onnx_samples.folder(tmp_path / "zoo", onnx_samples.strided_network())
    return tmp_path / "zoo"


def jobs(catalog: Catalog, *names: str, **how: Any) -> tuple[compiling.Job, ...]:
    return compiling.jobs(catalog, names or catalog.names(), **({"capabilities": TARGETS} | how))


def run(*arguments: object, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "engines", *map(str, arguments), "--plans", str(folder)],
        capture_output=True,
        text=True,
        timeout=170,
        cwd=ZOO.parent.parent,
        env=os.environ | environment,
        check=False,
    )


class Watched:
    """What TensorRT told of its progress: nothing, if it was not asked to build."""

    def __init__(self) -> None:
        self.phases: list[tuple[str, float]] = []

    def __call__(self, phase: str, share: float) -> None:
        self.phases.append((phase, share))


# the zoo ------------------------------------------------------------------------------------------
def test_the_zoo_has_networks_in_both_precisions() -> None:
    assert len([n for n, p in NETWORKS if p == "fp32"]) >= 8
    assert len([n for n, p in NETWORKS if p == "fp16"]) >= 6
    assert {m for n, _ in NETWORKS for m in CATALOG.card(n).modalities} == {"CT", "MR"}
    assert any(CATALOG.card(n).scale == 2 for n, _ in NETWORKS)


def test_every_network_file_of_the_zoo_is_named_by_its_card_with_its_digest() -> None:
    named = {path: sha256 for n in CATALOG.names() for path, sha256 in CATALOG.models(n).values()}
    files = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in ZOO.glob("*/*.onnx")}
    assert named == files


@pytest.mark.parametrize(("name", "precision"), NETWORKS)
def test_every_network_builds_for_two_capabilities_and_is_kept(
    name: str, precision: compiling.Precision, plans: Plans
) -> None:
    (job,) = jobs(CATALOG, name, precisions=(precision,), flavour=RTX)
    assert job.key.capabilities == TARGETS
    first, second = Watched(), Watched()
    made = compiling.make(job, plans, progress=first)
    assert (made.state, made.fault, made.flavour) == ("built", "", RTX)
    assert first.phases
    assert all(0 <= share <= 1 for _, share in first.phases)
    plan = plans.load(job.key)
    # The weights are in it, in the precision of the file.
    weights = job.path.stat().st_size
    assert 0.8 * weights < len(plan) == made.size
    (path,) = plans.folder.glob("*.plan")
    before = path.stat()
    again = compiling.make(job, plans, progress=second)
    assert again == replace(made, state="kept", seconds=0.0)
    assert second.phases == [], "it was not built again"
    assert path.stat() == before
    assert plans.load(job.key) == plan


ALONE = sorted(n for n, p in NETWORKS if (n, "fp16") not in NETWORKS)
"""Autoencoders: half precision would round the image that they carry, and the parity gate refuses it (models.md 6.2).
What TensorRT makes of them is shown all the same, for whoever trains one that passes."""


@pytest.mark.parametrize("name", ALONE)
def test_a_network_that_ships_in_one_precision_builds_in_the_other_too(
    name: str, plans: Plans, tmp_path: Path
) -> None:
    pytest.importorskip("torch", reason="the exporter belongs to the training extra")
    from training.export.graph import Graph, Node, to_bytes
    from training.export.half import to_half

    shipped = onnx.load(CATALOG.models(name)["fp32"][0])
    nodes = tuple(
        Node(
            op=n.op_type, name=n.name, inputs=tuple(n.input), output=n.output[0],
            attributes={
                a.name: tuple(v) if isinstance(v := helper.get_attribute_value(a), list)
                else v.decode() if isinstance(v, bytes) else v
                for a in n.attribute
            },
        )
        for n in shipped.graph.node
    )  # fmt: skip
    weights = {w.name: numpy_helper.to_array(w) for w in shipped.graph.initializer}
    half = to_half(Graph(nodes=nodes, weights=weights, scale=CATALOG.card(name).scale))
    assert any(w.dtype == np.float16 for w in half.weights.values())
    path = tmp_path / "model.fp16.onnx"
    path.write_bytes(to_bytes(half, {p.key: p.value for p in shipped.metadata_props}))
    (given,) = jobs(CATALOG, name, precisions=("fp32",), flavour=RTX)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    key = replace(given.key, onnx_sha256=sha256)
    job = replace(given, path=path, precision="fp16", sha256=sha256, key=key)
    first = compiling.make(job, plans)
    assert (first.state, first.fault) == ("built", "")
    assert first.size < given.path.stat().st_size, "half of the weights' bytes"
    assert compiling.make(job, plans).state == "kept"


def test_the_order_and_the_number_of_targets_make_no_other_plan() -> None:
    (one,) = jobs(CATALOG, "ct-cnn", precisions=("fp16",))
    (other,) = jobs(CATALOG, "ct-cnn", precisions=("fp16",), capabilities=("120", "86", "120"))
    assert one.key == other.key
    (fewer,) = jobs(CATALOG, "ct-cnn", precisions=("fp16",), capabilities=("86",))
    assert fewer.key != one.key


# what is there to build ---------------------------------------------------------------------------
def test_engines_without_a_network_have_nothing_to_build() -> None:
    assert jobs(CATALOG, "ct-nlm", "identity") == ()
    assert [j.precision for j in jobs(CATALOG, "ct-autoencoder")] == ["fp32"]
    assert [j.precision for j in jobs(CATALOG, "ct-cnn")] == ["fp16", "fp32"]


def test_a_gpu_gets_a_plan_of_every_flavour_that_runs_on_it() -> None:
    twins = [CARD, replace(CARD, index=1)]
    (job,) = jobs(CATALOG, "ct-cnn", capabilities=(), gpus=twins, precisions=("fp16",), flavour=RTX)
    assert job.key.capabilities == ("86",)
    two = [CARD, replace(CARD, name="NVIDIA RTX 5090", compute_capability="120")]
    assert len(jobs(CATALOG, "ct-cnn", capabilities=(), gpus=two, precisions=("fp16",), flavour=RTX)) == 2


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"capabilities": ("90",)}, "does not run on capability 9.0"),
        ({"capabilities": ("86", "8x")}, "no compute capability"),
        ({"capabilities": (), "gpus": ()}, "no GPU here"),
        (
            {"capabilities": (), "gpus": [replace(CARD, compute_capability="90")]},
            "does not run on NVIDIA RTX 3090",
        ),
        ({"flavour": "tensorflow"}, "no flavour"),
    ],
)
def test_what_cannot_be_built_is_told_before_anything_is(how: dict[str, Any], said: str) -> None:
    if "tensorrt" in flavour.installed() and how.get("gpus"):
        how = how | {"flavour": RTX}
    with pytest.raises(RuntimeUnavailable, match=said) as refused:
        jobs(CATALOG, "ct-cnn", **how)
    assert refused.value.hint


def test_only_rtx_builds_for_gpus_that_are_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flavour, "bindings", lambda name: None)
    with pytest.raises(RuntimeUnavailable, match="only for the GPU that is there") as refused:
        compiling._ahead(("tensorrt",), TARGETS)
    assert "tensorrt_rtx" in refused.value.hint


# what TensorRT says -------------------------------------------------------------------------------
def network(nodes: Sequence[onnx.NodeProto], *weights: TensorProto) -> bytes:
    content: bytes = onnx_samples.model(list(nodes), list(weights)).SerializeToString()
    return content


def bfloat16_upsampling() -> bytes:
    """A transposed convolution in bfloat16: ONNX allows it, TensorRT for RTX knows no kernel."""
    ones = [
        numpy_helper.from_array(np.ones(s, np.float32), n)
        for n, s in (("a", (4, 4, 2, 2)), ("b", (1, 4, 1, 1)))
    ]
    half = helper.make_tensor("w", TensorProto.BFLOAT16, [4, 4, 2, 2], bytes(2 * 64), raw=True)
    nodes = [
        helper.make_node("Concat", ["x", "c"], ["xc"], axis=1),
        helper.make_node("Conv", ["xc", "a"], ["s"], strides=[2, 2]),
        helper.make_node("Cast", ["s"], ["t"], to=TensorProto.BFLOAT16),
        helper.make_node("ConvTranspose", ["t", "w"], ["d"], strides=[2, 2], name="up"),
        helper.make_node("Cast", ["d"], ["e"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["e", "b"], ["r"]),
    ]
    return network(nodes, half, *ones)


def test_a_network_that_tensorrt_cannot_build_is_told_in_its_words() -> None:
    with pytest.raises(
        RuntimeUnavailable, match=r"cannot build.*Could not infer output types.*deconv"
    ) as refused:
        build(bfloat16_upsampling(), RTX, profile.of(CATALOG.card("ct-cnn")), targets=TARGETS)
    assert refused.value.hint
    # And nothing of it is left over for the next.
    with pytest.raises(RuntimeUnavailable, match="Det determinant") as other:
        build(unknown(), RTX, profile.of(CATALOG.card("ct-cnn")), targets=TARGETS)
    assert "deconv" not in other.value.message


def unknown() -> bytes:
    nodes = [
        helper.make_node("Det", ["x"], ["q"], name="determinant"),
        helper.make_node("Add", ["q", "c"], ["r"]),
    ]
    return network(nodes)


def test_an_operator_that_tensorrt_does_not_know_is_named() -> None:
    with pytest.raises(RuntimeUnavailable, match=r"does not read.*Det determinant: .*UNSUPPORTED_NODE"):
        build(unknown(), RTX, profile.of(CATALOG.card("ct-cnn")), targets=TARGETS)


def test_a_file_that_the_node_does_not_run_never_reaches_a_parser() -> None:
    for content in (b"nonsense", b"", unknown()[:-30]):
        with pytest.raises(CardInvalid):
            build(content, RTX, profile.of(CATALOG.card("ct-cnn")), targets=TARGETS)


def test_sizes_that_the_network_cannot_have_are_refused() -> None:
    sizes = profile.of(CATALOG.card("ct-cnn"))
    upside_down = replace(sizes.ranges[0], least=(16, 1024, 1024), most=(1, 64, 64))
    path, _ = CATALOG.models("ct-cnn")["fp16"]
    with pytest.raises(RuntimeUnavailable):
        build(path.read_bytes(), RTX, replace(sizes, ranges=(upside_down,)), targets=("86",))


@alone
def test_without_a_gpu_nothing_is_built_for_the_one_that_is_there() -> None:
    path, _ = CATALOG.models("ct-cnn")["fp16"]
    with pytest.raises(RuntimeUnavailable, match="no GPU here"):
        build(path.read_bytes(), RTX, profile.of(CATALOG.card("ct-cnn")), device=0)


# what is kept -------------------------------------------------------------------------------------
def test_a_damaged_plan_is_built_again_and_never_loaded(zoo: Path, plans: Plans) -> None:
    (job,) = jobs(Catalog([zoo]))
    assert compiling.make(job, plans).state == "built"
    (path,) = plans.folder.glob("*.plan")
    good = path.read_bytes()
    for bad in (good[:-1], good[:1000] + bytes([good[1000] ^ 4]) + good[1001:], b""):
        path.write_bytes(bad)
        with pytest.raises(PlanMismatch):
            plans.load(job.key)
        assert compiling.make(job, plans).state == "built"
        assert plans.load(job.key)


def test_weights_that_are_not_the_cards_are_not_built(zoo: Path, plans: Plans) -> None:
    (job,) = jobs(Catalog([zoo]))
    job.path.write_bytes(job.path.read_bytes()[:-1] + b"?")
    failed = compiling.make(job, plans)
    assert failed.state == "failed"
    assert "not the one the card names" in failed.fault
    assert plans.list() == ()


def test_a_folder_that_is_not_to_be_trusted_is_told(zoo: Path, plans: Plans) -> None:
    (job,) = jobs(Catalog([zoo]))
    plans.folder.mkdir()
    plans.folder.chmod(0o777)
    failed = compiling.make(job, plans)
    assert (failed.state, failed.hint) == ("failed", f"chmod 700 {plans.folder}")
    assert list(plans.folder.iterdir()) == []
    for gpus in ((), (CARD,)):
        (told,) = (s for s in compiling.states(Catalog([zoo]), "ct-sample", plans, gpus) if s.flavour == RTX)
        assert (told.state, told.hint) == ("refused", f"chmod 700 {plans.folder}"), gpus


def test_states_are_told_for_the_gpus_that_are_here_or_for_what_was_built(zoo: Path, plans: Plans) -> None:
    catalog = Catalog([zoo])
    name = "ct-sample"

    def told(*gpus: Gpu) -> list[str]:
        seen = compiling.states(catalog, name, plans, gpus)
        return [s.state for s in seen if s.flavour == RTX]

    other = replace(CARD, compute_capability="89")
    hopper = replace(CARD, compute_capability="90")
    assert (told(), told(CARD), told(hopper)) == ([], ["missing"], [])
    (job,) = jobs(catalog)
    assert compiling.make(job, plans).state == "built"
    assert (told(), told(CARD), told(other), told(CARD, other)) == (
        ["ready"],
        ["ready"],
        ["stale"],
        ["ready", "stale"],
    )
    (path,) = plans.folder.glob("*.plan")
    path.write_bytes(path.read_bytes()[:-1])
    assert told(CARD) == ["missing"], (
        "what is refused is as good as none for a GPU that it was not built for alone"
    )
    assert compiling.states(CATALOG, "ct-nlm", plans, (CARD,)) == ()


def test_purge_keeps_what_is_of_use(zoo: Path, plans: Plans) -> None:
    catalog = Catalog([zoo])
    (job,) = jobs(catalog)
    compiling.make(job, plans)
    for key in (
        replace(job.key, version="1.6.0"),
        replace(job.key, onnx_sha256="0" * 64),
        replace(job.key, profile="0" * 64),
        replace(job.key, options=""),
    ):
        plans.store(key, b"old")
    plans.cache("kernels", job.key, CARD, b"kernels")
    assert compiling.purge(catalog, plans, ()) == 4
    assert plans.cached("kernels", job.key, CARD) == b"kernels"
    assert compiling.purge(catalog, plans, (replace(CARD, driver="590"),)) == 1, (
        "kernels of a driver that is gone"
    )
    assert [k.key for k in plans.list()] == [job.key]


# the command --------------------------------------------------------------------------------------
def test_build_from_end_to_end(tmp_path: Path) -> None:
    folder = tmp_path / "plans"
    first = run("build", "ct-cnn", "ct-nlm", "--for", "8.6,120", "--json", folder=folder)
    assert (first.returncode, first.stderr) == (0, "")
    told = json.loads(first.stdout)
    assert [(o["engine"], o["precision"], o["state"]) for o in told if o["flavour"] == RTX] == [
        ("ct-cnn", "fp16", "built"),
        ("ct-cnn", "fp32", "built"),
    ]
    second = run("build", "ct-cnn", "--for", "86,120", "--precision", "fp16", folder=folder)
    assert second.returncode == 0
    assert "[1/1] ct-cnn" in second.stdout
    assert "capability 8.6, 12.0: kept" in second.stdout
    listed = run("list", "ct-cnn", "--json", folder=folder)
    assert listed.returncode == 0
    (one,) = json.loads(listed.stdout)
    if not local():
        assert {(p["precision"], p["state"]) for p in one["plans"]} == {("fp16", "ready"), ("fp32", "ready")}


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["build", "ct-cnn", "--for", "90"], 1, "does not run on capability 9.0"),
        (["build", "ct-cn", "--for", "86"], 2, "did you mean ct-cnn"),
        (["build", "--for", "86", "--precision", "int8"], 2, "int8"),
        (["build", "ct-nlm", "--for", "86"], 0, "nothing to build"),
        (["verify", "ct-cnn", "--runtime", "abacus"], 2, "abacus"),
        (["build", "ct-cnn", "--for", "86", "--plans", ""], 2, "no folder is named"),
        pytest.param(["build", "ct-cnn"], 1, "no GPU here", marks=alone),
    ],
)
def test_exit_status_and_words(
    arguments: list[str], status: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        seen = command.main([*arguments, "--plans", str(tmp_path / "plans")])
    except SystemExit as e:
        seen = int(str(e.code))
    told = capsys.readouterr()
    assert seen == status
    assert said in told.out + told.err


def test_one_that_fails_does_not_keep_the_others(
    zoo: Path, plans: Plans, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx_samples.folder(zoo, bfloat16_upsampling(), name="odd")
    (zoo / "broken").mkdir()
    rest = ["--zoo", str(zoo), "--plans", str(plans.folder), "--for", "86"]
    assert command.main(["build", "odd", "ct-sample", *rest]) == 1
    told = capsys.readouterr().out
    assert "odd" in told
    assert "Could not infer output types" in told
    assert [k.title for k in plans.list()] == ["ct-sample fp32"]
    assert command.main(["build", "ct-sample", *rest]) == 0
    assert command.main(["build", "ct-sample", *rest, "--purge"]) == 0
    assert "kept" in (told := capsys.readouterr().out)
    assert "removed 0 files" in told
    assert command.main(["build", *rest, "--precision", "fp16"]) == 1
    assert "broken: card.yaml cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["verify", "bench"])
def test_what_was_tried_gives_the_gpu_back_and_what_ran_is_told(
    verb: str, zoo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next engine needs the memory of the one before, and so does one after a failure."""
    onnx_samples.folder(zoo, onnx_samples.strided_network(), name="ct-second")
    onnx_samples.folder(zoo, onnx_samples.broken_network(float("nan")), name="ct-third")
    held: list[str] = []
    most: list[int] = []

    def rung(wanted: Wanted) -> OnGpu:
        inner = RUNGS["onnx"](wanted)
        assert not isinstance(inner, OnGpu)
        inner.name, inner.device = "tensorrt", "a GPU of this test"  # type: ignore[misc]
        held.append(wanted.card.name)
        most.append(len(held))
        return OnGpu(network=inner, close=lambda: held.remove(wanted.card.name))

    monkeypatch.setattr(catalogs, "RUNGS", {"tensorrt": rung})
    names = ["ct-sample", "ct-third", "ct-second"]
    assert command.main([verb, *names, "--zoo", str(zoo), "--repeat", "1", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (held, most) == ([], [1, 1, 1])
    ran = {(t["name"], t["runtime"], t["device"]) for t in told if t.get("ok", True)}
    assert ran == {(n, "tensorrt", "a GPU of this test") for n in ("ct-sample", "ct-second")}


def test_build_says_where(zoo: Path, plans: Plans, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        command.main(["build", "ct-sample", "--zoo", str(zoo), "--plans", str(plans.folder), "--for", "86"])
        == 0
    )
    assert capsys.readouterr().out.splitlines()[-1] == f"they are in {plans.folder}"


def test_verify_and_bench_take_a_runtime(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rest = ["--zoo", str(zoo), "--runtime", "onnx", "--json"]
    assert command.main(["verify", "ct-sample", *rest]) == 0
    assert json.loads(capsys.readouterr().out)[0]["name"] == "ct-sample"
    assert bench.timed(Catalog([zoo]), "ct-sample", repeat=1, side=64, runtime="onnx").core_ms > 0
    with pytest.raises(RuntimeUnavailable, match="no runtime 'abacus'"):
        bench.timed(Catalog([zoo]), "ct-sample", repeat=1, side=64, runtime="abacus")


def test_two_processes_build_a_plan_once(zoo: Path, plans: Plans) -> None:
    both = [rebuild(["ct-sample"], plans=plans, capabilities=TARGETS, zoo=[zoo]) for _ in range(2)]
    ended = [one.outcomes(150.0) for one in both]
    assert sorted(o.state for told in ended if told for o in told if o.flavour == RTX) == ["built", "kept"]
    assert both[0].outcomes() == ended[0], "it may be asked again"


def test_a_rebuild_tells_why_it_cannot_begin(plans: Plans) -> None:
    with pytest.raises(RuntimeUnavailable, match=r"does not run on capability 9\.0"):
        rebuild(["ct-cnn"], plans=plans, capabilities=["90"]).outcomes(150.0)


def test_a_rebuild_that_hangs_ends_by_itself(zoo: Path, plans: Plans) -> None:
    (job,) = jobs(Catalog([zoo]))
    with plans.lock(job.key):
        begun = rebuild(["ct-sample"], plans=plans, capabilities=TARGETS, zoo=[zoo], seconds=3)
        with pytest.raises(RuntimeUnavailable, match="ended with status -14"):
            begun.outcomes(150.0)
    assert compiling.make(job, plans).state == "built"


def test_a_rebuild_can_be_stopped(zoo: Path, plans: Plans) -> None:
    (job,) = jobs(Catalog([zoo]))
    with plans.lock(job.key):
        begun = rebuild(["ct-sample"], plans=plans, capabilities=TARGETS, zoo=[zoo])
        assert begun.outcomes() is None
        begun.stop()
    assert plans.list() == ()


# the card -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "lines",
    [
        "model_fp16: model.fp16.onnx",
        f"model_fp16_sha256: {'a' * 64}",
        f"model_fp16: model.fp32.onnx\nmodel_fp16_sha256: {'a' * 64}",
        f"model_fp16: ../model.fp16.onnx\nmodel_fp16_sha256: {'a' * 64}",
    ],
)
def test_a_card_names_its_fp16_file_in_full_or_not_at_all(zoo: Path, lines: str) -> None:
    card = zoo / "ct-sample" / "card.yaml"
    assert read(card.parent).model_fp16 is None
    card.write_text(f"{card.read_text()}{lines}\n")
    with pytest.raises(CardInvalid, match="model_fp16"):
        read(card.parent)


def test_verify_sees_an_fp16_file_that_is_not_the_cards(zoo: Path) -> None:
    card = zoo / "ct-sample" / "card.yaml"
    (card.parent / "model.fp16.onnx").write_bytes(b"half")
    card.write_text(f"{card.read_text()}model_fp16: model.fp16.onnx\nmodel_fp16_sha256: {'a' * 64}\n")
    found = command.verified(Catalog([zoo]), "ct-sample")
    assert not found.ok
    assert "model.fp16.onnx is not the one the card names" in found.fault
