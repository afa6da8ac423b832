"""The documents for admins say what the code says: every refusal, rejection and SOP class is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from node.dicom import contents, modality
from node.receive import contexts, intake, terms

DOCS = Path(__file__).resolve().parents[2] / "docs"
TROUBLE = (DOCS / "operations" / "troubleshooting.md").read_text()
CONFORMANCE = (DOCS / "conformance.md").read_text()
PAGES = [*sorted((DOCS / "operations").glob("*.md")), DOCS / "conformance.md"]


def test_every_reason_not_to_enhance_is_explained() -> None:
    told = {v.reason for v in vars(contents).values() if isinstance(v, contents.Verdict)}
    told |= {reason for _, reason in modality._SPEAKING} | {modality._OURS.reason}
    source = Path(modality.__file__).read_text()
    literal = re.findall(r'Verdict\(\s*Bar\.\w+,\s*"([^"]+)"', source)
    assert len(literal) > 8
    assert {reason for reason in told | set(literal) if f"| {reason} |" not in TROUBLE} == set()


def test_every_refusal_of_the_door_is_explained() -> None:
    refusals = [
        v for v in vars(intake).values() if isinstance(v, tuple) and len(v) == 2 and isinstance(v[1], str)
    ]
    assert len(refusals) > 10
    for status, comment in refusals:
        for page in (TROUBLE, CONFORMANCE):
            assert f"| {status:04X}H | {comment} |" in page
    rejections = [v for v in vars(terms).values() if isinstance(v, terms.Rejection)]
    assert len(rejections) > 5
    for r in rejections:
        assert f"| {r.result}/{r.source}/{r.reason} | {r.because} |" in TROUBLE
        assert f"{r.result}/{r.source}/{r.reason}" in CONFORMANCE


def test_every_storage_class_is_in_the_conformance_statement() -> None:
    listed = re.findall(r"\| (1\.2\.840\.10008\.5\.[\d.]+) \|$", CONFORMANCE, flags=re.MULTILINE)
    assert sorted(listed) == sorted(contexts.STORAGE_CLASSES)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    def anchors(path: Path) -> set[str]:
        heads = re.findall(r"^#+ (.+)$", path.read_text(), flags=re.MULTILINE)
        return {re.sub(r"[^\w -]", "", h.lower()).strip().replace(" ", "-") for h in heads}

    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if target.startswith(("http:", "https:")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target
