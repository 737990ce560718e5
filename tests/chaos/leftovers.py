"""What lies in the farm's cluster that belongs to no whole gang: one JSON object."""

from __future__ import annotations

import json
from collections import Counter

import ray

from actors import cluster, gang
from farm import config
from farm.config import Settings


def main(settings: Settings) -> None:
    cluster.connect(settings)
    names = [name for name in ray.util.list_named_actors() if name.startswith(gang.PREFIX)]
    ranks = Counter(name.removeprefix(gang.PREFIX).rpartition("/")[0] for name in names)
    rows = ray.util.placement_group_table().values()
    groups = {row["name"].removeprefix(gang.PREFIX) for row in rows if row["state"] != "REMOVED"}
    wanted = {pool.called: pool.ranks for pool in settings.pools}
    wrong = [f"placement group {name} without a gang" for name in sorted(groups - ranks.keys())]
    for gang_id, count in ranks.items():
        if gang_id not in groups or count != wanted[gang.pool_of(gang_id)]:
            wrong.append(f"gang {gang_id} with {count} ranks{' and no group' * (gang_id not in groups)}")
    print(json.dumps({"ranks": len(names), "wrong": wrong}))
    cluster.disconnect()


if __name__ == "__main__":
    main(config.load())
