"""Results must not depend on the number of workers: the same bits with 1, 2 and 3, through the real launcher."""

import pytest
from runs import QUICKSTART, SMALL, fabric, finished

from fedsim.run_folder import RunFolder

OPTIONS = (*SMALL, "--rounds", 4, "--cohort-size", 5, "--block-size", 2)


def rows(path):
    """A table without the one column that is about workers."""
    return [{**row, "utilisation": ""} for row in RunFolder(path.parent).read_table(path.name)]


@pytest.fixture(scope="module")
def one_worker(tmp_path_factory):
    out = tmp_path_factory.mktemp("one") / "run"
    return out, finished(fabric(1, QUICKSTART, *OPTIONS, "--out", out), out)


@pytest.mark.parametrize("workers", [2, 3])
def test_all_methods_end_in_the_same_bits_with_several_workers(one_worker, tmp_path, workers):
    reference, expected = one_worker
    out = tmp_path / "run"
    result = finished(fabric(workers, QUICKSTART, *OPTIONS, "--out", out), out)
    assert result["digest"] == expected["digest"]
    for method in ("local", "fedit", "hilora"):
        for table in ("metrics.csv", "clients.csv"):
            assert rows(out / method / table) == rows(reference / method / table)
        busy = [float(row["utilisation"]) for row in RunFolder(out / method).read_table("metrics.csv")]
        assert all(1 <= share <= workers for share in busy)
        assert max(busy) > 1, "five clients cannot be dealt evenly"
