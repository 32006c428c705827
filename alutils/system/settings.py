"""Settings as users write them: YAML, with plain values and no name twice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import yaml
from pydantic import BeforeValidator

from alutils.system.checks import ConfigError, shown

from_list = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
"""Marks a setting that is a tuple: YAML has lists alone."""

DegenerateMasks = Literal["warn", "error", "keep"]
"""What is done with masks that show no lesion or nothing else; in settings and in descriptions of data."""


def parse_settings(given: str | Mapping[str, Any], *, source: str = "overrides") -> dict[str, Any]:
    """Settings from YAML text, as in papermill's ``-p overrides "{epochs: 3}"``, or from a mapping.

    Raises:
        ConfigError: if it is no mapping with text keys, or a name stands twice; ``source`` is what that error calls it.

    >>> parse_settings("{epochs: 3, loss: dice}")
    {'epochs': 3, 'loss': 'dice'}
    """
    settings = given
    if isinstance(given, str):
        try:
            settings = yaml.load(given, _SettingsLoader)
        except Exception as error:  # a YAMLError, or whatever int() and other readers of values raise
            raise ConfigError(f"{source} is not valid YAML: {error}") from None
        settings = {} if settings is None else settings
    if not isinstance(settings, Mapping) or not all(isinstance(key, str) for key in settings):
        raise ConfigError(f'{source} must be a mapping such as "{{epochs: 3}}", got {shown(given)}')
    return dict(settings)


class _SettingsLoader(yaml.SafeLoader):
    """Plain values alone, and no name twice: YAML would take the last one without a word."""

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        if len(set(names)) < len(names):
            name = next(name for name in names if names.count(name) > 1)
            raise yaml.constructor.ConstructorError(None, None, f"{name} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)
