"""Settings as users write them: YAML, with plain values and no name twice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from alutils.system.checks import ConfigError, shown


def parse_settings(given: str | Mapping[str, Any], *, source: str = "overrides") -> dict[str, Any]:
    """Settings written as a YAML mapping, as in a profile file or in papermill's ``-p overrides "{epochs: 3}"``.

    Args:
        given: YAML text, or a mapping, which is taken as it is.
        source: what to call it in an error.

    Raises:
        ConfigError: if it is neither a mapping with text keys nor YAML text of one, or a name stands twice.

    >>> parse_settings("{epochs: 3, loss: dice}")
    {'epochs': 3, 'loss': 'dice'}
    """
    settings = _parse(given, source) if isinstance(given, str) else given
    if not isinstance(settings, Mapping) or not all(isinstance(key, str) for key in settings):
        raise ConfigError(f'{source} must be a mapping such as "{{epochs: 3}}", got {shown(given)}')
    return dict(settings)


def _parse(text: str, source: str) -> Any:
    try:
        settings = yaml.load(text, _SettingsLoader)
    except RecursionError:
        raise ConfigError(f"{source} is not valid YAML: its lists and mappings are nested too deeply") from None
    except Exception as error:  # a YAMLError, or whatever int() and other readers of values raise
        raise ConfigError(f"{source} is not valid YAML: {error}") from None
    return {} if settings is None else settings


class _SettingsLoader(yaml.SafeLoader):
    """Plain values alone, and no name twice: YAML would take the last one without a word."""

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} stands twice", key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep)
