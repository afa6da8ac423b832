"""IXI.xls: age and sex of the subjects, with rules for the ids that are missing in it or are there twice.

- An id that is not in the table: age and sex unknown.
- A row without a usable age (empty, not a number, 0 or below, 110 and above): as if it had no age.
- An id with several rows: their age counts if they agree within a year, their sex if they agree; otherwise
  unknown, and the scan says so. No row is taken for being first.

Only the columns IXI_ID, AGE and SEX_ID are read, and an age leaves this room only as a band.
"""

from __future__ import annotations

import csv
import importlib
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from training.errors import DataError

AGREE_YEARS: Final = 1.0
OLDEST: Final = 110.0
_SEX: Final = {1.0: "male", 2.0: "female"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """What the table says of one subject. ``age`` in years or None; ``sex`` male, female or unknown."""

    age: float | None = None
    sex: str = "unknown"
    notes: tuple[str, ...] = ()


def read_table(path: Path | None) -> Callable[[int], Person]:
    """Read the table; return what it says of a subject's number.

    Raises
    ------
    DataError
        The file cannot be read, is neither .xls nor .csv, needs xlrd, or lacks a column.
    """
    if path is None:
        return lambda number: Person()
    rows = _rows(path)
    if not rows:
        raise DataError(f"{path.name}: empty", hint="download the table again")
    columns = [cell.strip().upper() for cell in map(str, rows[0])]
    at = {}
    for wanted in ("IXI_ID", "AGE", "SEX_ID"):
        found = [i for i, column in enumerate(columns) if column == wanted or column.startswith(f"{wanted} ")]
        if not found:
            raise DataError(f"{path.name}: no column {wanted}", hint="use IXI.xls as it is distributed")
        at[wanted] = found[0]
    people: dict[int, list[tuple[float | None, float | None]]] = {}
    for row in rows[1:]:
        number, age, sex = (
            _number(row[at[c]] if at[c] < len(row) else "") for c in ("IXI_ID", "AGE", "SEX_ID")
        )
        if number is not None and number == int(number):
            usable = age if age is not None and 0 < age < OLDEST else None
            people.setdefault(int(number), []).append((usable, sex))
    return lambda number: _person(people.get(number, []))


def _person(rows: Sequence[tuple[float | None, float | None]]) -> Person:
    if not rows:
        return Person(notes=("not in the table of ages",))
    ages = [age for age, _ in rows if age is not None]
    sexes = {_SEX[sex] for _, sex in rows if sex in _SEX}
    agree = bool(ages) and max(ages) - min(ages) <= AGREE_YEARS
    notes = ("the table has several ages for this subject: none is used",) if ages and not agree else ()
    return Person(
        age=sum(ages) / len(ages) if agree else None,
        sex=sexes.pop() if len(sexes) == 1 else "unknown",
        notes=notes,
    )


def _number(cell: object) -> float | None:
    try:
        value = float(str(cell).strip())
    except ValueError:
        return None
    return value if abs(value) < 1e9 else None


def _rows(path: Path) -> list[Sequence[object]]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path.name}: {type(error).__name__}", hint="give the path of IXI.xls") from None
    if path.suffix.lower() == ".csv":
        try:
            return list(csv.reader(io.StringIO(raw.decode("utf-8-sig"))))
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{path.name}: {type(error).__name__}", hint="save it as CSV in UTF-8") from None
    if path.suffix.lower() != ".xls":
        raise DataError(f"{path.name}: neither .xls nor .csv", hint="save the table as CSV")
    return list(_xls(raw, path.name))


def _xls(raw: bytes, name: str) -> Iterable[Sequence[object]]:
    try:
        xlrd: Any = importlib.import_module("xlrd")
    except ImportError:
        raise DataError(
            f"{name} is a legacy Excel file, for which xlrd is not installed",
            hint="pip install xlrd, or save the table as CSV",
        ) from None
    try:
        sheet = xlrd.open_workbook(file_contents=raw, logfile=io.StringIO()).sheet_by_index(0)
        return [sheet.row_values(i) for i in range(sheet.nrows)]
    except Exception as error:  # xlrd raises many types on files that are none of Excel's
        raise DataError(
            f"{name}: no Excel file ({type(error).__name__})", hint="download it again"
        ) from error
