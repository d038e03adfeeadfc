"""The lines of a run's tables that count when it goes on: those of rounds up to its checkpoint, all of them whole."""

import csv
from collections.abc import Iterator
from pathlib import Path

from fedsim.storage.disk import open_own, own_bytes, parse_json, writing

TABLES = ("metrics.csv", "clients.csv", "costs.csv", "timing.csv", "events.jsonl")
EVERY_ROUND = frozenset(TABLES) - {"clients.csv"}
"""Tables that have a row of every round; costs.csv has none of a round without clients."""


WHOLE, WORDS = ("round", "client", "train_samples"), ("stage", "evaluation", "domain")
"""Columns of clients.csv that are whole numbers and words; all others are numbers."""
COMPACT = 2**26
"""Bytes of clients.csv from which on a finished run has it as clients.parquet too, a tenth of that."""


def lines_up_to(folder: Path, last: int) -> dict[Path, int]:
    """Return how many bytes the lines of rounds 1 to `last` have, by table; a last line that is torn has none.

    Raises ValueError that names file and line where one is no row of its table, or where a round's rows are missing.
    """
    check_counts_from_one(folder)
    empty = _without_clients(folder / "metrics.csv")
    return {
        folder / name: _lines_up_to(folder / name, last, empty if name == "costs.csv" else frozenset())
        for name in TABLES
    }


def check_counts_from_one(folder: Path) -> None:
    """Raise ValueError for a folder whose tables count rounds from 0, as those of earlier versions do."""
    path = folder / "metrics.csv"
    if path.exists() and own_bytes(path).partition(b"\n")[2].startswith(b"0,"):
        raise ValueError(
            f"'{folder}' is of an earlier version of fedsim, whose tables count rounds from 0; they count from 1 now. "
            "Use it with the version that wrote it (recipe.json has its git revision), or start the run anew (--out)."
        )


def header(path: Path) -> list[str]:
    """Return the names of a CSV table's columns, none where there is no table yet."""
    if not path.exists():
        return []
    with open_own(path, "r", newline="") as file:
        return next(csv.reader(file), [])


def _without_clients(path: Path) -> frozenset[int]:
    """The rounds in which, by metrics.csv, nobody took part."""
    place, empty = 0, set()
    for line, found in _rows(path):
        fields = next(csv.reader([line.decode()]))
        if not found:
            place = fields.index("clients") if "clients" in fields else 0
        elif fields[place] == "0":
            empty.add(found)
    return frozenset(empty)


def _lines_up_to(path: Path, last: int, empty: frozenset[int]) -> int:
    kept, missing, number = 0, set(range(1, last + 1)) - empty if path.name in EVERY_ROUND else set(), 0
    is_past = False
    for number, (line, found) in enumerate(_rows(path), 1):
        if found <= last and is_past:
            raise _damaged(path, number, f"it is of round {found}, behind rows of rounds after {last}")
        is_past = found > last
        kept += 0 if is_past else len(line)
        missing.discard(found)
        if missing and found > min(missing):
            raise _damaged(path, number, f"it is of round {found}, and none before it is of round {min(missing)}")
    if missing:
        raise _damaged(path, number + 1, f"here must be a row of round {min(missing)}, and the file ends")
    return kept


def _damaged(path: Path, number: int, what: str) -> ValueError:
    return ValueError(
        f"'{path}' is damaged in line {number}: {what}. Put back a copy of the file as it was, or start the run anew."
    )


def _rows(path: Path) -> Iterator[tuple[bytes, int]]:
    """Yield every whole line and the round that it is of; 0 for the header of a CSV table."""
    width = 0
    for number, line in enumerate(_lines(path), 1):
        if not line.endswith(b"\n"):
            return
        try:
            if path.suffix == ".jsonl":
                yield line, int(parse_json(line.decode())["round"])
                continue
            fields = next(csv.reader([line.decode()], strict=True))
            width = width or len(fields)
            if len(fields) != width:
                raise ValueError(f"it has {len(fields)} fields, and the header has {width}")
            if number == 1 and fields[0] != "round":
                raise ValueError("it is no header")
            yield line, int(fields[0]) if number > 1 else 0
        except (ValueError, KeyError, TypeError, csv.Error, StopIteration) as error:
            raise _damaged(
                path, number, f"{line[:60].decode(errors='replace').strip()!r} is no row ({error})"
            ) from None


def _lines(path: Path) -> Iterator[bytes]:
    if path.exists():
        with open_own(path) as file:
            yield from file


def compact(path: Path, least: int = COMPACT) -> None:
    """Write a CSV table of at least so many bytes as parquet beside it, whole or not at all; what is there is replaced.

    Rows go from one to the other in blocks, so that memory does not grow with the table.
    """
    if not path.exists() or path.stat().st_size < least:
        return
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    kinds = {name: pa.int64() for name in WHOLE} | {name: pa.string() for name in WORDS}
    types = pa.csv.ConvertOptions(column_types={name: kinds.get(name, pa.float64()) for name in header(path)})
    partial, done = path.with_name(f".{path.stem}.parquet.partial"), path.with_suffix(".parquet")
    partial.unlink(missing_ok=True)  # a leftover, or a link that somebody put there
    with (
        writing(done),
        open_own(path) as file,
        pa.csv.open_csv(file, convert_options=types) as blocks,
        pa.parquet.ParquetWriter(partial, blocks.schema, compression="zstd") as table,
    ):
        for block in blocks:
            table.write_batch(block)
    partial.replace(done)
