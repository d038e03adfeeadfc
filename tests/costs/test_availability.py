"""When clients are there."""

import json
import math

import numpy as np
import pytest

from fedsim.costs.availability import DAY, WEEK, Availability, Windows, read_windows

TWICE = Windows((0.0, 20.0), (5.0, 30.0), 30.0)
"""From 20 to 35, from 50 to 65 and so on, and at the start until 5."""


def test_windows_repeat_and_go_on_across_the_repeat():
    assert [TWICE.until(second) for second in (0, 4, 5, 19, 20, 29, 31, 36)] == [5, 5, 5, 19, 35, 35, 35, 36]
    assert [TWICE.since(second) for second in (0, 6, 19, 25, 35, 36)] == [0, 20, 20, 25, 50, 50]
    assert Windows((0.0,), (10.0,), 10.0).until(3) == math.inf
    assert Windows((), (), 10.0).since(3) == math.inf


def test_whoever_is_waited_for_is_there_then():
    calendar = Availability(on_hours=1, off_hours=3).calendar(0)
    for client in range(50):
        for second in np.random.default_rng(client).uniform(0, 5 * WEEK, 20):
            since = calendar.since(client, second)
            assert since >= second
            assert calendar.until(client, since) > since


@pytest.mark.parametrize(("options", "share"), [({"on_hours": 2, "off_hours": 6}, 0.25), ({"night_hours": 8}, 1 / 3)])
def test_clients_are_there_for_their_share_of_the_time(options, share):
    calendar, times = Availability(**options).calendar(1), np.arange(0, WEEK, 36000)
    found = np.mean([[calendar.until(client, s) > s for s in times] for client in range(400)])
    assert found == pytest.approx(share, abs=0.03)


def test_by_night_every_client_has_one_window_a_day_in_a_zone_of_its_own():
    calendar = Availability(night_hours=8).calendar(1)
    begins = [calendar.since(client, calendar.until(client, calendar.since(client, 0))) % DAY for client in range(100)]
    assert np.histogram(begins, 4, (0, DAY))[0].min() > 10
    for client in range(5):
        since = calendar.since(client, DAY)
        assert calendar.until(client, calendar.since(client, since + 8 * 3600 + 1)) > since


def test_windows_are_a_function_of_seed_and_client():
    one, again, other = (Availability(on_hours=2, off_hours=6).calendar(seed) for seed in (0, 0, 1))
    assert one.of(3) == again.of(3)
    assert one.of(3) not in (one.of(4), other.of(3))


def test_fedscales_lists_become_windows(tmp_path):
    entry = {"duration": 7, "active": [10, 60], "inactive": [5, 30], "finish_time": 100, "model": "x"}
    (tmp_path / "a.json").write_text(json.dumps({"1": entry}))
    assert read_windows(tmp_path / "a.json") == [Windows([0.0, 10.0, 60.0], [5.0, 30.0, 100.0], 100.0)]
    (tmp_path / "a.csv").write_text("client,active,inactive,finish_time\na,10,30,100\nb,0,100,100\na,60,70,100\n")
    assert read_windows(tmp_path / "a.csv") == [
        Windows([10.0, 60.0], [30.0, 70.0], 100.0),
        Windows([0.0], [100.0], 100.0),
    ]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.pkl", "", "Pickles are not loaded"),
        ("a.json", "{}", "holds no client"),
        ("a.json", "[{]", "cannot be read"),
        ("a.json", '[{"active": [5, 7], "inactive": [9], "finish_time": 10}]', "client 1, must have"),
        ("a.json", '[{"active": [5], "inactive": [11], "finish_time": 10}]', "client 1, must have"),
        ("a.json", '[{"active": [], "inactive": [], "finish_time": 10}]', "client 1, must have"),
        ("a.csv", "client,active\n1,2\n", "cannot be read: a row has no inactive and no finish_time"),
    ],
)
def test_what_is_no_table_of_windows_is_refused(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=says):
        read_windows(tmp_path / name)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"on_hours": 1}, "give on_hours and off_hours"),
        ({"on_hours": 1, "off_hours": 1, "night_hours": 3}, "windows come from a table"),
        ({"night_hours": 24}, "must be less than 24"),
        ({"on_hours": 0, "off_hours": 1}, "on_hours is 0; it must be positive"),
    ],
)
def test_what_is_no_availability_is_refused(options, says):
    with pytest.raises(ValueError, match=says):
        Availability(**options)
