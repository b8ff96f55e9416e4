"""OpenTelemetry for local and remote model calls, without a word of what was said."""
