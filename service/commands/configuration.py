"""`routecast check-config` and `routecast schema`."""

import json
import sys

from service.commands.common import OUT, ConfigFile
from service.config import Config
from service.config_file import load


def check_config(config: ConfigFile) -> None:
    """Validate a configuration file without starting anything."""
    settings = load(config)
    counts = (len(settings.providers), len(settings.models), len(settings.catalogue().endpoints))
    OUT.print(f"{config}: valid; {counts[0]} providers, {counts[1]} models, {counts[2]} endpoints", soft_wrap=True)


def schema() -> None:
    """Print the JSON Schema of the configuration, for editors."""
    sys.stdout.write(json.dumps(Config.model_json_schema(), indent=2, sort_keys=True) + "\n")
