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
models = App(name="models", help="Forecasters: who serves, who is watched, and the way back.")
app.command(models)
thresholds = App(name="thresholds", help="Thresholds that learn from history: proposed, applied, taken back.")
app.command(thresholds)
# Imported only when they run, so their help stands here.
for command, purpose in (
    ("serve:serve", "Serve gRPC and the OpenAI-compatible HTTP edge until SIGTERM."),
    ("configuration:check_config", "Validate a configuration file without starting anything."),
    ("configuration:schema", "Print the JSON Schema of the configuration, for editors."),
    ("tenants:tenant_key", "Print a new API key for a tenant, and its hash for the configuration."),
    ("failover:providers", "Show the health of all providers, and the failure domains that are down."),
    ("failover:check", "Send a probe to an endpoint now; exit with 1 unless it is answered."),
    ("failover:drain", "Take an endpoint out of service; requests in flight finish there."),
    ("failover:restore", "Let a drained endpoint earn its traffic back."),
    ("failover:switch", "Send a model's traffic to one of its endpoints; without an endpoint, end that."),
    ("health:health", "Ask a service for its health; exit with 1 unless it is serving."),
    ("retrain:retrain", "Retrain the forecaster on the history, once; for cron and Kubernetes."),
    ("history:sql", "Run a read-only query over the history."),
    ("backtest:backtest", "Replay the history under the current, the proposed and baseline policies."),
):
    app.command(f"service.commands.{command}", help=purpose)
for question, purpose in (
    ("failovers", "Every departure of an endpoint: cause, lead time, duration, requests moved."),
    ("providers", "Every endpoint: requests, success, outcomes, latency, share, cost."),
    ("forecasts", "How good the forecasts were: precision, recall, Brier skill, lead time."),
    ("alarms", "Every alarm of the forecast: what raised the risk, and what the alarm might do."),
    ("summary", "All requests together: failed, failed over, latency, cost."),
    ("usage", "The ledger: what was served and what it cost, by who pays and who served."),
):
    analytics.command(f"service.commands.history:{question}", help=purpose)

for step, name, purpose in (
    ("list_models", "list", "Show the models of a service and their roles."),
    ("promote", "promote", "Let a model serve, without the gate."),
    ("roll_back", "rollback", "Take the serving model out of service; the one before it serves."),
):
    models.command(f"service.commands.retrain:{step}", name=name, help=purpose)

for step, name, purpose in (
    ("propose", "propose", "Replay the history under every single step; propose the best that is certified safe."),
    ("apply", "apply", "Put a proposal in force."),
    ("rollback", "rollback", "Take the change in force back."),
    ("list_changes", "list", "Every change: what, when, why, by whom, and where it stands."),
):
    thresholds.command(f"service.commands.tune:{step}", name=name, help=purpose)


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
