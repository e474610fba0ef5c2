"""Consumers and publishers come, go, are cut off and killed: everything returns to where it was.

The long form, with memory, is `python -m bench.deep --rows leaks`.
"""

import pytest

from bench.deep.jobs import Churn
from bench.deep.leaks import COUNTS, empty, rested
from bench.processes import Load, Server

STEADY = [name for name, what in COUNTS.items() if what != "threads"]
"""Pools of threads grow when they like."""


@pytest.mark.timeout(180)
def test_tasks_files_streams_and_consumers_return_to_where_they_were() -> None:
    with Server("broker") as server:
        rests: list[dict[str, float]] = []
        for seconds in (1.0, 4.0):
            job = Churn(server.target, seconds, consumers=8, victims=1, publishers=2, drained_after_s=0.2)
            with Load(job) as load:
                load.go()
                report = load.result()
            assert report.messages > 0
            assert report.frames > 11, "nobody came a second time"
            empty(server)
            rests.append(rested(server, rests[0] if rests else {}, look_s=0.2))
    first, last = ({name: rest[name] for name in STEADY} for rest in rests)
    assert first["kyogo_queue_messages"] == first["kyogo_queue_consumers"] == first["kyogo_streams"] == 0
    assert last == first
