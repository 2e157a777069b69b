"""The tables that come with a download, CSV or Excel: where they are, and what their rows say."""

import csv
import math
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from anatogen.core.errors import UserError
from anatogen.io.archives import place_of

Cell = str | float | None


def find_tables(download: Path, pattern: str) -> list[Path]:
    """Tables whose name matches, in the download, up to two folders below it, or beside it; nearest first.

    Args:
        download: The folder that the user names, or what the archive unpacks to; then tables beside the
            archive count.
        pattern: Regular expression for the whole file name; case does not matter.
    """
    folder = download.resolve()
    places = [(folder, "*"), (folder, "*/*"), (folder, "*/*/*"), (place_of(download), "*")]
    found = [
        file
        for place, depth in places
        for file in sorted(place.glob(depth))
        if re.fullmatch(pattern, file.name, re.IGNORECASE)
        and not any(part.startswith(".") for part in file.relative_to(place).parts)
        and file.is_file()
    ]
    return list(dict.fromkeys(found))


def tables_beside(download: Path) -> list[Path]:
    """All tables in the folder that the download, a folder or an archive, lies in; in order of name."""
    files = sorted(place_of(download).glob("[!.]*"))
    return [file for file in files if file.suffix.lower() in (".csv", ".xlsx") and file.is_file()]


def read_csv(path: Path, *columns: Collection[str]) -> list[dict[str, str]]:
    """Rows of a CSV file by column; names of columns in lower case, with single spaces.

    Args:
        path: The file.
        columns: Of each of these, the file needs to have one; else it is another's table, and has no rows.

    Raises:
        UserError: If it can't be read.
    """
    try:
        # Tables of many programs lie about; what is not UTF-8 in one matters in names that are not used.
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            reader = csv.reader(file)
            names = [_plain(name) for name in next(reader, [])]
            if not all(set(names) & set(choice) for choice in columns):
                return []
            return [dict(zip(names, (cell.strip() for cell in row), strict=False)) for row in reader if row]
    except (OSError, csv.Error) as error:
        raise UserError(f"the table {path} can't be read ({error}): save it as CSV in UTF-8") from error


def read_sheet(path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, Cell]]:
    """Rows of the first sheet of an Excel file, below the row that names the first of the columns.

    Rows above that one (groups of columns) are passed over; a row of explanations below it comes as data.

    Args:
        path: An .xlsx file.
        columns: Wanted columns in lower case with single spaces; the first has to be there.

    Yields:
        Values by wanted column; a column that the sheet lacks is None.

    Raises:
        UserError: If it can't be read or has no such column.
    """
    # A tenth of a second that most uses of this module do not need.
    import openpyxl

    places: dict[str, int] | None = None
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        for row in book.worksheets[0].iter_rows(values_only=True):
            if places is None:
                # Of two columns of one name the first counts.
                names = {_plain(str(value)): index for index, value in reversed(list(enumerate(row)))}
                places = names if columns[0] in names else None
            else:
                cells = {name: places.get(name, len(row)) for name in columns}
                yield {name: _cell(row[cell]) if cell < len(row) else None for name, cell in cells.items()}
        book.close()
    except Exception as error:  # a damaged archive can raise nearly anything
        raise UserError(
            f"the table {path} can't be read ({type(error).__name__}): download it again"
        ) from error
    if places is None:
        raise UserError(f"the table {path} has no column {columns[0]!r}: download it again")


def number(value: Cell) -> float | None:
    """A cell's number, or None for "NC", "NP", "nan", nothing, and the like."""
    try:
        found = float(value) if value is not None else math.nan
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def _plain(name: str) -> str:
    return " ".join(name.lower().split())


def _cell(value: object) -> Cell:
    if value is None or isinstance(value, str):
        return value.strip() if value else None
    return float(value) if isinstance(value, int | float) else str(value)
