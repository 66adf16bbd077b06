"""A small Parquet file that unpacks to gigabytes is refused before it is unpacked."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from cvt_cli.base.errors import DataError
from cvt_cli.images import parquet_pages
from cvt_cli.images.table_files import open_table


def shared(text: str | bytes, rows: int) -> Any:
    places = pyarrow.array(np.zeros(rows, np.int32))
    return pyarrow.DictionaryArray.from_arrays(places, pyarrow.array([text]))


def written(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    """A table with as many bytes of noise as rows, which no bomb need be without."""
    rows = len(next(iter(columns.values())))
    noise = [os.urandom(2) for _ in range(rows)]
    table = pyarrow.table({**columns, "noise": noise})
    parquet.write_table(table, path, compression="zstd", store_schema=False, **options)
    return path


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_the_headers_of_pages_say_what_the_file_says_of_all_of_them(
    tmp_path: Path, version: str, compression: str
) -> None:
    path, rows = tmp_path / "t.parquet", 3000
    columns = {
        "image": [{"bytes": os.urandom(1000), "path": f"{i}.png"} for i in range(rows)],
        "labels": [["cat", "dog"], []] * (rows // 2),
        "number": range(rows),
    }
    parquet.write_table(
        pyarrow.table(columns), path, compression=compression, data_page_version=version,
        row_group_size=2000, write_page_checksum=True,
    )  # fmt: skip
    metadata = parquet.read_metadata(path)

    found = 0
    for group in range(metadata.num_row_groups):
        for place in range(metadata.num_columns):
            column = metadata.row_group(group).column(place)
            with path.open("rb") as file:
                headers = list(parquet_pages._pages(path, file, column))
                end = file.tell()
            begin = column.dictionary_page_offset or column.data_page_offset
            unpacked = sum(header[parquet_pages._UNPACKED] for header in headers)
            of_headers = column.total_uncompressed_size - unpacked
            assert end == begin + column.total_compressed_size
            assert 0 < of_headers < 5000 * len(headers)
            found += len(headers)
    assert found > 12


def test_a_page_that_unpacks_to_far_more_than_it_takes_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "t.parquet", {"image": [bytes(300 << 20), b""], "label": ["a", "b"]})
    assert path.stat().st_size < 100_000

    with pytest.raises(DataError, match=r"column `image` unpacks from .* to 314.6 MB"):
        open_table(path).pictures("image")


@pytest.mark.parametrize("column", ["path", "label"])
def test_a_long_text_that_many_rows_share_is_refused(tmp_path: Path, column: str) -> None:
    rows = 40_000
    columns = {"path": [f"{i}.png" for i in range(rows)], "label": shared("cat", rows)}
    path = written(tmp_path / "t.parquet", {**columns, column: shared("x" * 100_000, rows)})

    with pytest.raises(DataError, match=r"32,768 values of its rows have texts of 3.28 GB"):
        list(open_table(path).pieces(["path", "label"]))


def test_a_picture_that_many_rows_share_does_not_fill_the_disk(tmp_path: Path) -> None:
    path = written(tmp_path / "t.parquet", {"image": shared(bytes(20 << 20), 3000)})

    with pytest.raises(DataError, match="the pictures of the first 13 rows of .* 272.6 MB"):
        open_table(path).pictures("image")


def test_values_are_those_that_pyarrow_gives(tmp_path: Path) -> None:
    rows = 2000
    long = "x" * 10_000  # so that texts are read as those that rows share
    columns = {
        "path": [None if i % 7 == 0 else f"{i}.png" for i in range(rows - 1)] + [long],
        "labels": [None if i % 5 == 0 else ["cat"] * (i % 3) for i in range(rows)],
        "image": [None if i % 3 == 0 else {"bytes": b"x", "path": str(i)} for i in range(rows)],
        "label": [i % 4 or None for i in range(rows)],
    }
    path = written(tmp_path / "t.parquet", columns)

    pieces = list(open_table(path).pieces(list(columns)))

    found = {name: [value for piece in pieces for value in piece.columns[name]] for name in columns}
    named = [one and one["path"] for one in columns["image"]]
    assert found == {**columns, "image": named}
