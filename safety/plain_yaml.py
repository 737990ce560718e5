"""YAML in which what a reader sees is what counts."""

from __future__ import annotations

from typing import Any

import yaml


def plain(text: str) -> Any:
    """YAML lets a later key silently win and an alias stand for anything: both are refused, as is any merge."""
    root = yaml.compose(text, yaml.SafeLoader)
    if root is None:
        return None
    _refuse_tricks(root, set())
    return yaml.constructor.SafeConstructor().construct_document(root)


def _refuse_tricks(node: yaml.Node, seen: set[int]) -> None:
    if id(node) in seen:
        raise ValueError(f"an alias stands for {node.tag}; write it out")
    seen.add(id(node))
    children = node.value if isinstance(node, yaml.SequenceNode) else []
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value]
        if doubled := next((key for key in keys if keys.count(key) > 1), None):
            raise ValueError(f"{doubled!r} is given twice")
        if "<<" in keys:
            raise ValueError("it merges mappings; write them out")
        children = [part for pair in node.value for part in pair]
    for child in children:
        _refuse_tricks(child, seen)


def dump(document: Any) -> str:
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)
