"""Machines of a cloud for less: spot machines on AWS, and the same on demand where there are none.

`ray up` has this by `provider: {type: external, module: mmray.on_ray.spot.SpotFirst}`. Two types of machine, one spot
and one on demand, would not do: when AWS refuses a spot machine Ray 2.60 asks for the same type again, whatever the
priorities of types say. They count only where a machine was promised and did not come.
"""

from __future__ import annotations

import logging
from typing import Any

from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException

logger = logging.getLogger(__name__)

# Of https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html: what another market may still have.
_NO_SPOT = (
    "InsufficientInstanceCapacity",
    "MaxSpotInstanceCountExceeded",
    "SpotMaxPriceTooLow",
    "UnfulfillableCapacity",
)
_MARKET = "InstanceMarketOptions"


class SpotFirst(AWSNodeProvider):
    """Ray's provider for AWS, which asks on demand for the machines that it gets in no zone of the spot market."""

    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> dict[str, Any]:
        """Launch up to `count` machines; those that are on demand are like the others in all but their price."""
        created: dict[str, Any] = {}
        try:
            created = super().create_node(node_config, tags, count)
        except NodeLaunchException as error:
            if _MARKET not in node_config or error.category not in _NO_SPOT:
                raise
            logger.warning(f"no spot machines: {error.category}: {error.description}")
        missing = count - len(created)
        if missing and _MARKET in node_config:
            logger.warning(f"launching {missing} of {count} machines on demand")
            on_demand = {key: value for key, value in node_config.items() if key != _MARKET}
            created |= super().create_node(on_demand, tags, missing)
        return created
