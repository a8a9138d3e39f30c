"""From ids to rows: against a dictionary, whatever the ids, and exact where hashes are not enough."""

from __future__ import annotations

import pickle
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmray.features import id_table
from mmray.features.id_table import DuplicateIdError, IdTable

IDS = st.lists(st.text(st.characters(codec="utf-8"), max_size=6), max_size=30)


@given(IDS, IDS)
@settings(max_examples=25, deadline=None)
def test_rows_are_those_of_a_dictionary(ids: list[str], others: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        first, last = {}, {}
        for row, name in enumerate(ids):
            first.setdefault(name, row)
            last[name] = row
        wanted = [*others, *ids]
        pieces = [pa.array(ids[:7], pa.string()), pa.array(ids[7:], pa.large_string())]
        for duplicates, expected in (("first", first), ("last", last)):
            table = IdTable.build(Path(folder) / duplicates, pieces, duplicates)
            assert table.rows_of(wanted).tolist() == [expected.get(name, -1) for name in wanted]
            assert table.ids.to_pylist() == ids
            assert len(table) == len(ids)


def test_arrow_arrays_of_any_kind_are_looked_up(tmp_path: Path) -> None:
    table = IdTable.build(tmp_path / "ids.arrow", [pa.array(["zero", "one", "two"])])
    wanted = pa.array(["two", None, "zero", "", "twos"])
    assert table.rows_of(wanted).tolist() == [2, -1, 0, -1, -1]
    assert table.rows_of(wanted.slice(2)).tolist() == [0, -1, -1]
    assert table.rows_of(wanted.slice(2).cast(pa.large_string())).tolist() == [0, -1, -1]
    assert table.rows_of([]).tolist() == []


def test_ids_of_one_hash_are_told_apart(tmp_path: Path) -> None:
    """All hashes are made those of the id that is looked up."""
    ids = pa.array(["same length", "SAME LENGTH", "short"], pa.large_string())
    for row, name in enumerate(ids.to_pylist()):
        one = id_table._hashes_of(*id_table._memory(ids.slice(row, 1)))[0]
        table = IdTable(tmp_path / "none", ids, np.full(3, one), np.array([2, 1, 0]))
        assert table.rows_of([name]).tolist() == [row]
    assert table.rows_of(["other"]).tolist() == [-1]


def test_duplicates_are_refused_by_name_and_row(tmp_path: Path) -> None:
    with pytest.raises(DuplicateIdError, match=r"id 'b' stands in row 1 and in row 3; .* 3") as caught:
        IdTable.build(tmp_path / "ids.arrow", [pa.array(["a", "b", "c", "b", "b", "c"])])
    assert caught.value.rows == (1, 3)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="1 of 2 rows have no id"):
        IdTable.build(tmp_path / "ids.arrow", [pa.array(["a", None])])


def test_a_table_is_sent_as_its_path(tmp_path: Path) -> None:
    table = IdTable.build(tmp_path / "ids.arrow", [pa.array([f"id {i}" for i in range(1000)])])
    sent = pickle.dumps(table)
    assert len(sent) < 300
    assert pickle.loads(sent).rows_of(["id 77"]).tolist() == [77]
