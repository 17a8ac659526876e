"""Configuration: schema (what may be said), load (YAML to models), compile (models to the data plane's plan)."""
