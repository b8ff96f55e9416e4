"""One file per HTTP library: attempts of a call, calls without an SDK, bodies read in passing."""
