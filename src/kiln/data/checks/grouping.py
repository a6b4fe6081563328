"""What belongs together, from pairs that do."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import TypeVar

Item = TypeVar("Item", bound=Hashable)


def joined(pairs: Iterable[tuple[Item, Item]]) -> list[list[Item]]:
    """The groups that pairs connect, each in the order in which its items first came."""
    root_of: dict[Item, Item] = {}

    def root(item: Item) -> Item:
        root_of.setdefault(item, item)
        while root_of[item] != item:
            root_of[item] = root_of[root_of[item]]
            item = root_of[item]
        return item

    for a, b in pairs:
        first, second = root(a), root(b)
        root_of[second] = first
    groups: dict[Item, list[Item]] = {}
    for item in root_of:
        groups.setdefault(root(item), []).append(item)
    return list(groups.values())
