"""The tables of the report: cases, corrected errors, bars, pages without a corpus."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from engines.base import Volume
from engines.catalog import Catalog
from training.data.shards import Writer
from training.evaluate.averaging import Estimate
from training.report import (
    bars,
    cases,
    corpus,
    generalisation,
    heat,
    measures,
    pairs,
    plots,
    reference,
    rows,
    table1,
)
from training.report.cases import Case, ct_truth
from training.report.section import Context, Section
from training.report.subjects import Grid, anatomy, grid_of, thinned
from training.report.tables import number, table, told, verdict


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(
        catalog=Catalog.default(),
        corpus=None,
        data=tmp_path / "data",
        runs=tmp_path / "runs",
        out=tmp_path / "out",
        quick=True,
    )


@pytest.fixture(scope="module")
def phantom() -> Case:
    return ct_truth(9001, "abdomen", 20.0, 0.25)


def _volume(values: np.ndarray, step: float = 1.0) -> Volume:
    return cases.plain(values.astype(np.float32), (1.0, 0.8, 0.8), "HU", step)


# cases --------------------------------------------------------------------------------------------------


def test_phantom_cases_measure_slices_with_both_neighbours(phantom: Case) -> None:
    assert phantom.measured == (1, 2, 3)
    assert cases.usable(phantom)
    told_noise = float(np.median(phantom.survey.sigma))
    assert 0.75 * 20 < told_noise < 1.3 * 20


def test_a_case_cut_for_tuning_scores_one_slice_around_the_mask(phantom: Case) -> None:
    cut = phantom.stack(2, side=96)
    assert cut.noisy.shape == (3, 96, 96)
    assert cut.mask[1].any()
    assert not cut.mask[[0, 2]].any()
    assert cut.sigma.shape == (3,)


def test_thinned_keeps_blocks_and_marks_the_gaps() -> None:
    volume = _volume(np.arange(40)[:, None, None] * np.ones((40, 8, 8)))
    kept, measured = thinned(volume, 3, 4)
    slices = kept.values[:, 0, 0]
    assert len(slices) == 12
    for i in measured:
        assert slices[i] - slices[i - 1] == 1
        assert slices[i + 1] - slices[i] == 1
    gaps = np.flatnonzero(np.diff(slices) != 1)
    assert len(gaps) == 2
    assert not kept.contiguous[gaps].any()
    whole, inner = thinned(_volume(np.zeros((5, 8, 8))), 3, 4)
    assert whole.shape[0] == 5
    assert inner == (1, 2, 3)


def test_the_grid_is_that_of_the_stored_values() -> None:
    stored = np.random.default_rng(3).integers(0, 400, (1, 16, 16))
    volume = _volume(stored * 0.5 - 100.0, step=0.5)
    grid = grid_of(volume)
    np.testing.assert_allclose(grid.written(volume.values), volume.values)
    np.testing.assert_allclose(grid.written(volume.values + np.float32(0.2)), volume.values)
    assert float(grid.written(np.array([-5000.0], np.float32))[0]) >= -1024


@pytest.mark.parametrize("kind", ["chest", "abdomen", "head"])
def test_anatomy_is_told_by_what_is_seen(kind: str) -> None:
    clean, spacing = heat.truth(kind, 3.0, seed=1)
    assert anatomy(cases.plain(clean, spacing, "HU")) == kind


def test_halves_of_painted_shards_share_nothing(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "s")
    for i in range(6):
        writer.add(
            f"m{i}", np.ones((3, 8, 8), np.float32), (1, 1, 1), span=(0, 4), kind="axial" if i < 4 else "flat"
        )
    found = cases.read_shards(tmp_path / "s")
    first, second = (cases._shared_out(found, second=s) for s in (False, True))
    assert {s.name for s in first} == {"m0", "m2", "m4"}
    assert {s.name for s in second} == {"m1", "m3", "m5"}
    assert cases.read_shards(tmp_path / "none") == ()


# rows ---------------------------------------------------------------------------------------------------


def test_the_error_to_the_truth_is_found_behind_a_noisy_reference() -> None:
    """Reference and input share noise; the known truth must come out, whatever the method left of the noise."""
    rng = np.random.default_rng(11)
    shape = (1, 256, 256)
    truth = np.full(shape, 40.0)
    own, added = 10 * rng.standard_normal(shape), 10 * np.sqrt(3) * rng.standard_normal(shape)
    full, low = truth + own, truth + own + added
    base = ct_truth(9002, "water", 20.0, 0.22)
    mask = np.ones(shape, np.bool_)
    case = replace(
        base,
        volume=_volume(low),
        reference=full.astype(np.float32),
        mask=mask,
        added=(low - full).astype(np.float32),
        ratio=3.0,
    )
    for left in (1.0, 0.5, 0.25):
        output = (truth + left * (own + added)).astype(np.float32)
        found = rows.error_to_truth(case, output, mask)[0]
        assert found == pytest.approx(left * 20.0, rel=0.05)
    exact = replace(case, reference=truth.astype(np.float32), added=None, ratio=0.0)
    assert rows.error_to_truth(exact, low.astype(np.float32), mask)[0] == pytest.approx(20.0, rel=0.02)


def test_strengths_are_blended_as_the_engine_would(phantom: Case) -> None:
    from engines.base import Params

    engine = Catalog.default().load("ct-tv", threads=1)
    full = rows.at_full(engine, phantom)
    assert full.refused == ""
    direct = engine.enhance(phantom.volume, Params(strength=0.5), phantom.survey).volume.values
    np.testing.assert_allclose(
        rows.blended(phantom, full.values, 0.5), phantom.grid.written(direct), atol=1.0
    )
    np.testing.assert_array_equal(rows.blended(phantom, full.values, 0.0), phantom.volume.values)


def test_a_refusal_leaves_the_input(phantom: Case) -> None:
    engine = Catalog.default().load("mr-tv", threads=1)
    full = rows.at_full(engine, phantom)
    assert "arbitrary" in full.refused
    np.testing.assert_array_equal(full.values, phantom.volume.values)


def test_tuned_filters_are_ordered_and_beat_their_input(phantom: Case) -> None:
    said: list[str] = []
    found = rows.tune_filters([phantom], "HU", said.append, names=("gaussian", "tv"))
    assert found[0].score >= found[1].score
    assert len(said) == 2
    out = rows.filtered(found[0], phantom)
    window = rows.window_of(phantom)
    before = rows.windowed_psnr(phantom.reference, phantom.volume.values, phantom.mask, window)
    assert rows.windowed_psnr(phantom.reference, out, phantom.mask, window) > before + 1
    np.testing.assert_array_equal(out, np.rint(out))
    np.testing.assert_array_equal(out[0], phantom.volume.values[0])


# bars and tables ----------------------------------------------------------------------------------------


def _measured(case: Case, gains: dict[str, float]) -> measures.Measured:
    """Rows that leave a share of the error: a known gain in dB each."""
    out = measures.Measured()
    error = case.volume.values - case.reference
    for key, gain in {"input": 0.0, **gains}.items():
        output = (case.reference + error * np.float32(10 ** (-gain / 20))).astype(np.float32)
        out.take(key, case, output, measures.CT_WINDOWS[:1])
    return out


def test_bars_are_judged_by_figures(phantom: Case) -> None:
    row = rows.Row(name="x", title="x", family="classical", strength=1.0, score=30.0)
    tuned = rows.Tuned(filters=(row,), traditional=row, best=row, engines={"cnn": replace(row, family="cnn")})
    weak = _measured(phantom, {"traditional": 2.0, "classical": 3.0, "cnn": 4.0})
    strong = _measured(phantom, {"traditional": 2.0, "classical": 3.0, "cnn": 6.0})
    text, judged = bars.bars({"quarter": weak, "truth": strong}, {"quarter": tuned, "truth": tuned})
    by = {(j["bar"], j["on"]): j for j in judged}
    key = "CNN: PSNR at least +1.5 dB over the best tuned classical row"
    assert by[key, "quarter"]["met"] is False
    assert by[key, "truth"]["met"] is True
    assert by[key, "truth"]["figure"]["mean"] == pytest.approx(3.0, abs=0.3)
    assert by[key, "quarter, to the truth"]["figure"]["mean"] == pytest.approx(1.0, abs=0.05)
    assert by["GAN: PSNR at least +5.2 dB over the paper-style row", "truth"]["met"] is None
    assert "**yes**" in "\n".join(text)
    assert "**no**" in "\n".join(text)


def test_markdown() -> None:
    made = table(["a", "b"], [["x", "1"]])
    assert made == "| a | b |\n| --- | ---: |\n| x | 1 |"
    e = Estimate(mean=1.234, low=1.0, high=1.5, n=4)
    assert told(e, signed=True) == "+1.23 [+1.00, +1.50]"
    assert told(replace(e, n=1)) == "1.23 (n = 1)"
    assert number(float("nan")) == "-"
    assert [verdict(v) for v in (True, False, None)] == ["**yes**", "**no**", "not measured"]


def test_pictures_are_small(tmp_path: Path) -> None:
    e = Estimate(mean=1.0, low=0.5, high=1.5, n=5)
    plots.gains(tmp_path / "a.png", {"one": e, "two": e}, title="t", label="dB")
    plots.heat(
        tmp_path / "b.png",
        {"soft": np.arange(4.0).reshape(2, 2), "sharp": np.full((2, 2), np.nan)},
        rows=["50 %", "25 %"],
        columns=["1", "3"],
        row_label="dose",
        column_label="mm",
        label="dB",
        title="t",
    )
    plots.bars(
        tmp_path / "c.png", ["chest", "head"], {"cnn": [e, None], "gan": [None, e]}, title="t", label="G"
    )
    for name in "abc":
        path = tmp_path / f"{name}.png"
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size < 150_000


# pages --------------------------------------------------------------------------------------------------


def test_the_largest_mean_of_a_box_is_found() -> None:
    change = np.zeros((1, 128, 128), np.float32)
    change[0, 40:72, 40:72] = 0.5
    # A box of 64 pixels (0.5 mm) holds the patch as its quarter.
    inside = np.ones(change.shape, np.bool_)
    assert corpus.largest_mean(change, inside, (1.0, 1.0)) == pytest.approx(0.5, abs=1e-3)
    assert corpus.largest_mean(change, inside, (0.5, 0.5)) == pytest.approx(0.125, abs=1e-3)
    assert corpus.largest_mean(change, np.zeros_like(inside), (1.0, 1.0)) == 0.0


def _seen(**told: object) -> corpus.Seen:
    given: dict[str, object] = {
        "series": "a", "engine": "e", "family": "cnn", "n_slices": 4, "skipped": 0, "before": 20.0, "after": 11.0,
        "cfr": 0.95, "radial_cfr": 0.9, "largest_mean": 0.2, "error_before": 10.0, "error_after": 7.0, "notes": (),
    }  # fmt: skip
    return corpus.Seen(**{**given, **told})  # type: ignore[arg-type]


def test_bars_of_the_corpus() -> None:
    good = corpus.judged([_seen()], "cnn", "HU")
    assert [b["met"] for b in good] == [True, True, True, True]
    bad = corpus.judged(
        [_seen(), _seen(series="b", error_after=11.0, after=4.0, cfr=0.5, largest_mean=2.0)], "cnn", "HU"
    )
    assert [b["met"] for b in bad] == [False, False, False, False]
    assert "b" in bad[0]["measured"]
    nothing = float("nan")
    left = corpus.judged(
        [_seen(before=nothing, after=nothing, error_before=nothing, error_after=nothing)], "cnn", "HU"
    )
    assert [b["met"] for b in left] == [None, True, None, None]
    assert corpus.judged([], "cnn", "HU") == []


def test_slices_that_show_the_same_are_compared() -> None:
    rng = np.random.default_rng(5)
    five = 40 + 5 * rng.standard_normal((5, 64, 64))
    five[3:, :, :32] += 60
    same = pairs.alike(five.astype(np.float32), 5.0)
    assert same[:, 40:].mean() > 0.9
    assert not same[:, :24].any()


def test_pages_say_what_is_missing(context: Context) -> None:
    page = corpus.run(context)
    assert "no corpus" in page.text
    page = reference.run(context)
    assert page.figures["met"] is None
    assert "not trained" in page.text
    page = generalisation.run(context)
    assert "no validation shards" in page.text


def _checked(page: Section) -> None:
    assert page.text.strip()
    assert page.figures


def test_table1_without_a_corpus(context: Context) -> None:
    said: list[str] = []
    page = table1.run(replace(context, say=said.append))
    _checked(page)
    assert said
    assert "not self-consistent" in page.text
    assert "No engine of this family is in the catalogue" in page.text or rows.learned(context.catalog, "HU")
    assert (context.out / "images" / "table1-truth.png").exists()
    soft = page.figures["CT truth"]["soft tissue L50 W400"]["rows"]
    assert soft["classical"]["gain_db"]["input"]["mean"] > 0
    spread = [soft[k]["psnr_db"]["mean"] - soft[k]["snr_db"]["mean"] for k in soft]
    assert max(spread) - min(spread) < 1e-6
    assert page.figures["bars"]


def test_heat_without_engines_is_a_page(context: Context) -> None:
    bare = replace(context, catalog=Catalog([]))
    assert "No engine of this family" in heat.run(bare).text
    assert heat.noise_hu(0.25, "std", 3.0) == pytest.approx(16.0)
    assert heat.noise_hu(1.0, "sharp", 0.75) == pytest.approx(35.2)


def test_generalisation_scores_filters_on_shards(context: Context) -> None:
    for folder, seed in (("ct-validation", 1), ("ct-truth", 2)):
        writer = Writer(context.data / folder)
        for i, kind in enumerate(generalisation.DOMAINS):
            clean, spacing = heat.truth(kind, 3.0, 10 * seed + i)
            writer.add(f"{folder}-{kind}", clean, spacing, span=(-1024, 3071), kind=kind)
    page = generalisation.run(context)
    assert "with-all-cnn is not trained" in page.text
    assert page.figures["classical chest tuning"]["tuned_on"]["row"] in ("gaussian", "median")
    assert page.figures["classical chest"]["gain_with_db"]["n"] == 1
    given = generalisation.test_patches(cases.read_shards(context.data / "ct-validation"), 1, 0)
    found = generalisation.gains(lambda p: p.clean, given)
    assert found == {}
    half = generalisation.gains(lambda p: p.clean + (p.noisy - p.clean) / 2, given)
    assert min(half.values()) > 4


def test_a_grid_clips_to_what_can_be_stored() -> None:
    grid = Grid(slope=1.0, intercept=0.0, limits=(-1024, 3071))
    np.testing.assert_array_equal(
        grid.written(np.array([-2000.0, 0.4, 9999.0], np.float32)), [-1024, 0, 3071]
    )
