"""What happens after the gate: the pipelines that carry telemetry away, and their end."""
