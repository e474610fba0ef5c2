"""Random histories of a shard against a plain model. `KYOGO_EXAMPLES=5000 KYOGO_STEPS=200` tries more and longer ones."""

import os

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.shard_history import Program, ShardHistory

EXAMPLES = int(os.environ.get("KYOGO_EXAMPLES", "150"))
STEPS = int(os.environ.get("KYOGO_STEPS", "60"))


@settings(max_examples=EXAMPLES, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck),
          report_multiple_bugs=False)  # fmt: skip
@given(seed=st.integers(0, 1 << 20), program=ShardHistory.programs(steps=STEPS))
def test_every_step_is_as_the_model_says(seed: int, program: Program) -> None:
    ShardHistory.run(seed, program)
