"""Results must not depend on the number of workers: the same bits with 1, 2 and 3, through the real launcher."""

import pytest
from runs import QUICKSTART, SMALL, fabric, finished


@pytest.fixture(scope="module")
def one_worker(tmp_path_factory):
    out = tmp_path_factory.mktemp("one") / "run"
    return out, finished(fabric(1, QUICKSTART, *SMALL, "--rounds", 4, "--cohort-size", 5, "--out", out), out)


@pytest.mark.parametrize("workers", [2, 3])
def test_all_methods_end_in_the_same_bits_with_several_workers(one_worker, tmp_path, workers):
    reference, expected = one_worker
    out = tmp_path / "run"
    result = finished(fabric(workers, QUICKSTART, *SMALL, "--rounds", 4, "--cohort-size", 5, "--out", out), out)
    assert result["digest"] == expected["digest"]
    for method in ("local", "fedit", "hilora"):
        for table in ("metrics.csv", "clients.csv"):
            assert (out / method / table).read_bytes() == (reference / method / table).read_bytes()
