import csv

import pytest
from fake.fixtures import execute_in
from fake.trials import make

from harness.errors import SpecError, StoreError
from harness.export import COLUMNS, export
from harness.store import Store


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    modes = [make(folder, mode) for mode in ("ok", "raises", "any_loss")]
    made = [*modes, make(folder, "ok", backend="emulated"), make(folder, "lacks")]
    return execute_in(Store(folder / "runs"), *made).records


def test_every_sample_is_a_row_with_its_kind_and_hardware(records, tmp_path):
    path = tmp_path / "out.csv"
    count = export(records, path)
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == count == 4 + 2 + 4 + 1 + 1
    assert {(r["kind"], r["backend"], r["hardware"]) for r in rows} == {
        ("measured", "local", "laptop"),
        ("emulated", "emulated", "laptop"),
    }
    assert {bool(r["machine"]) for r in rows if r["kind"] == "measured"} == {True}
    assert {r["machine"] for r in rows if r["kind"] == "emulated"} == {""}
    assert [r["value"] for r in rows if r["metric"] == "loss"] == ["nan", "inf", "-inf", "1.0"]
    assert [r["metric"] for r in rows if r["state"] == "unsupported"] == [""]


@pytest.mark.parametrize("name", ["out.csv", "out.parquet"])
def test_the_order_of_records_does_not_change_the_bytes(records, tmp_path, name):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    export(records, tmp_path / "first" / name)
    export(records[::-1], tmp_path / "second" / name)
    assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_parquet_has_types(records, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    export(records, tmp_path / "out.parquet")
    table = parquet.read_table(tmp_path / "out.parquet")
    assert table.column_names == list(COLUMNS)
    assert str(table.schema.field("value").type) == "double"
    assert table.num_rows == 12


def test_another_kind_of_file_is_refused(records, tmp_path):
    with pytest.raises(SpecError, match=r"cannot export to 'out\.xlsx'; expected a file name that ends in \.csv or"):
        export(records, tmp_path / "out.xlsx")


def test_a_place_that_cannot_be_written_is_one_clear_error(records, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        export(records, tmp_path / "file" / "out.csv")
