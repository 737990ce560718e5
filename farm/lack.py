"""The room that a gang to be finds none of, and which gangs hold it. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

Amount = tuple[int, int]  # CPUs and GPUs, in ten-thousandths, as Ray counts them


@dataclass(frozen=True, slots=True)
class Lack:
    """So many bundles, each on one node. Which parts of GPUs lie together is not known: Ray has the last word."""

    bundle: Amount
    count: int
    left: Mapping[str, Amount]  # of each node that would take a bundle, were it empty
    taken: Mapping[str, Mapping[str, Amount]]  # by each gang, on its nodes

    def met(self, gone: Collection[str] = ()) -> bool:
        """Would there be room, were these gangs gone?"""
        left = self.without(gone).left.values() if gone else self.left.values()
        return sum(self._bundles(amount) for amount in left) >= self.count

    def without(self, gone: Collection[str]) -> Lack:
        left = dict(self.left)
        for gang in gone:
            for node, (cpus, gpus) in self.taken.get(gang, {}).items():
                if node in left:
                    left[node] = left[node][0] + cpus, left[node][1] + gpus
        return replace(self, left=left)

    def useful(self, gang: str) -> bool:
        return not self.left.keys().isdisjoint(self.taken.get(gang, {}))

    def least(self, gangs: Sequence[str]) -> list[str]:
        """The first of these that make room together, less those that need not go; none where all of them do not."""
        if not self.met(gangs):
            return []
        count = next(count for count in range(len(gangs) + 1) if self.met(gangs[:count]))
        chosen = list(gangs[:count])
        for gang in reversed(gangs[:count]):
            fewer = [one for one in chosen if one != gang]
            chosen = fewer if self.met(fewer) else chosen
        return chosen

    def _bundles(self, amount: Amount) -> int:
        return min((have // need for have, need in zip(amount, self.bundle, strict=True) if need), default=self.count)
