"""What is asked of the cluster, and how impossible wishes are refused. Plain arithmetic: Ray is not started."""

from __future__ import annotations

import pytest

from mmray.config import Resources
from mmray.on_ray.plan import plan_workers


def plan(cpus: float, gpus: float, **resources: object) -> dict[str, object]:
    return plan_workers(Resources.model_validate(resources), cpus, gpus)


def test_workers_share_the_cpus() -> None:
    assert plan(2, 0, num_workers=2)["resources_per_worker"] == {"CPU": 1.0}
    for cpus, workers in [(2, 3), (4, 6), (8, 12), (7, 11)]:
        share = plan(cpus, 0, num_workers=workers)["resources_per_worker"]["CPU"]  # type: ignore[index]
        assert cpus / workers - 1e-3 < share <= cpus / workers, "shares that add up to more never start"
    assert plan(64, 0, num_workers=4)["resources_per_worker"] == {"CPU": 1.0}


def test_feed_keeps_a_cpu_for_itself() -> None:
    assert plan(2, 0, num_workers=2, feed="ray_data")["resources_per_worker"] == {"CPU": 0.5}
    with pytest.raises(ValueError, match="needs a CPU beside the workers; the cluster has 1"):
        plan(1, 0, num_workers=1, feed="ray_data")


def test_gpus_are_used_where_there_are_enough() -> None:
    assert plan(8, 4, num_workers=4)["use_gpu"] is True
    assert plan(8, 3, num_workers=4)["use_gpu"] is False
    assert plan(8, 4, num_workers=4, use_gpu=False)["use_gpu"] is False


def test_impossible_wishes_are_refused_with_the_arithmetic() -> None:
    with pytest.raises(
        ValueError, match=r"num_workers=4 needs 4 GPUs.*has 1.*num_workers=1 or resources\.use_gpu=false"
    ):
        plan(8, 1, num_workers=4, use_gpu=True)
    with pytest.raises(ValueError, match=r"cpus_per_worker=2 x num_workers=2 \+ 0 for the feed = 4 CPUs.*has 2"):
        plan(2, 0, num_workers=2, cpus_per_worker=2)
    with pytest.raises(ValueError, match=r"1 x num_workers=2 \+ 1 for the feed = 3 CPUs.*cpus_per_worker=0\.5 or less"):
        plan(2, 0, num_workers=2, cpus_per_worker=1, feed="ray_data")
