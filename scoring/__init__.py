"""The forecast: features, model, calibration, registry, and the process that scores every tick."""
