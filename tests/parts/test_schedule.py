"""How much a late update counts."""

import pytest
import torch

from fedsim.parts.schedule import Schedule


@pytest.mark.parametrize(
    ("staleness", "of"),
    [
        ("constant", {0: 1, 9: 1}),
        ("polynomial:0.5", {0: 1, 3: 0.5, 99: 0.1}),
        ("hinge:10,4", {0: 1, 4: 1, 5: 1 / 11, 6: 1 / 21}),
    ],
)
def test_weights_are_those_of_the_papers(staleness, of):
    schedule = Schedule(kind="buffered", staleness=staleness)
    assert {tau: schedule.weight(tau) for tau in of} == pytest.approx(of)


def test_buffered_adds_the_change_and_async_moves_towards_the_model():
    trained, received, held = (torch.tensor([value]) for value in (7.0, 4.0, 10.0))
    buffered = Schedule(kind="buffered", staleness="polynomial:1")
    mixed = Schedule(kind="async", staleness="polynomial:1", mixing=0.5)
    assert buffered.as_of_now(trained, received, held, 2).item() == pytest.approx(10 + (7 - 4) / 3)
    assert mixed.as_of_now(trained, received, held, 2).item() == pytest.approx(10 + 0.5 * (7 - 10) / 3)
    assert buffered.as_of_now(trained, held, held, 0) is trained


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"staleness": "polynomial"}, "staleness is 'polynomial'"),
        ({"staleness": "hinge:1"}, "hinge:a,b"),
        ({"staleness": "linear:1"}, "constant, polynomial:a or hinge:a,b"),
        ({"staleness": "polynomial:-1"}, "numbers of 0 or more"),
        ({"kind": "async", "buffer": 2}, "async steps at every arrival"),
        ({"buffer": 2}, "rounds have neither"),
        ({"kind": "async", "mixing": 1.5}, "mixing is 1.5"),
        ({"kind": "sometimes"}, "kind is 'sometimes'|schedule is 'sometimes'"),
    ],
)
def test_what_is_no_schedule_is_refused(options, says):
    with pytest.raises(ValueError, match=says):
        Schedule(**options)
