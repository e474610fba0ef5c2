"""Random histories of a shard against a plain model. `KYOGO_EXAMPLES=5000` tries more of them."""

import os

from hypothesis import HealthCheck, Phase, settings

from tests.support.shard_machine import ShardMachine

EXAMPLES = int(os.environ.get("KYOGO_EXAMPLES", "150"))
STEPS = int(os.environ.get("KYOGO_STEPS", "60"))

TestShardModel = ShardMachine.TestCase
TestShardModel.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    deadline=None,
    print_blob=True,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
)
