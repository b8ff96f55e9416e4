"""Fixtures of the hooked libraries."""

from servers.fixtures import (  # noqa: F401 - fixtures
    calls,
    driver,
    no_failures,
    raw_calls,
    running_server,
    server,
)
