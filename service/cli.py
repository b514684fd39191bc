"""The `routecast` command. Exit codes: 0 done, 1 it failed, 2 the input was wrong."""

import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError

from analytics.errors import HistoryError
from service.commands.common import ERR, FailureError, InputError
from service.config_file import ConfigError

app = App(
    name="routecast",
    help="Decides which provider serves each AI request, and moves traffic before a provider fails.",
    version_flags=["--version"],
)
analytics = App(name="analytics", help="Tables from the history.")
app.command(analytics)
# Imported only when they run, so their help stands here.
for command, purpose in (
    ("serve:serve", "Serve gRPC and the OpenAI-compatible HTTP edge until SIGTERM."),
    ("configuration:check_config", "Validate a configuration file without starting anything."),
    ("configuration:schema", "Print the JSON Schema of the configuration, for editors."),
    ("health:health", "Ask a service for its health; exit with 1 unless it is serving."),
    ("train:train", "Retrain the forecaster on the history."),
    ("history:sql", "Run a read-only query over the history."),
):
    app.command(f"service.commands.{command}", help=purpose)
for question, purpose in (
    ("failovers", "Every departure of an endpoint: cause, lead time, duration, requests moved."),
    ("providers", "Every endpoint: requests, success, outcomes, latency, share, cost."),
    ("forecasts", "How good the forecasts were: precision, recall, Brier skill, lead time."),
    ("summary", "All requests together: failed, failed over, latency, cost."),
):
    analytics.command(f"service.commands.history:{question}", help=purpose)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    try:
        app(arguments, exit_on_error=False, print_error=True)
    except CycloptsError:
        sys.exit(2)
    except (ConfigError, InputError) as error:
        _complain(error)
        sys.exit(2)
    except (HistoryError, FailureError, OSError) as error:
        _complain(error)
        sys.exit(1)


def _complain(error: Exception) -> None:
    ERR.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
