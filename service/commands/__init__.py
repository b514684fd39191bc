"""The subcommands of `routecast`, imported only when they run: a health check must not load scikit-learn."""
