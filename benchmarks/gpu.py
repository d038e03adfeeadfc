"""What is measured of fedsim's batched engine on a GPU only: a large round with its evaluation, and memory."""

from row_process import RowProcess
from workloads import FEW, HELLO, MANY, Workload

GIB = 2**30


def describe() -> list[str]:
    """Return the lines for the report."""
    return [large_round(), *(memory(workload) for workload in (FEW, MANY))]


def large_round() -> str:
    """Time a round of Fed-HeLLo's size: 10 clients × 500 images of 224 × 224, then 10,000 test images."""
    row = RowProcess("batched", HELLO.device, HELLO.precision)
    row.ask("open", HELLO.name)
    row.ask("round")
    seconds = row.ask("again")["seconds"], row.ask("evaluate")["seconds"]
    row.close()
    return (
        f"ViT-B/16, {HELLO.clients} clients × {HELLO.samples_each} images in batches of "
        f"{HELLO.batch_size}: {seconds[0]:.1f} s a round, and {seconds[1]:.1f} s to evaluate "
        f"{HELLO.clients * HELLO.test_samples:,} images."
    )


def memory(workload: Workload) -> str:
    """Measure the peak memory of two rounds."""
    row = RowProcess("batched", workload.device, workload.precision)
    row.ask("open", workload.name)
    row.ask("round")
    peak = row.ask("round")["memory"]
    row.close()
    return f"ViT-B/16, {workload.clients:,} clients, {workload.cohort} a round: peak {peak / GIB:.2f} GiB."
