"""What is said of an error that the operator's configuration makes: enough, and none of its values."""

import pytest

from sottovoce.delivery.variables import told


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ("no such exporter 'otlp_pigeon'", "ValueError: no such exporter …: otlp_pigeon"),
        ("'a=hush' is not of type 'array' (at x -> y)", "ValueError: … (at x -> y)"),
        ("cannot reach https://u:hush@x/hush?hush", "ValueError: cannot reach …"),
        ("user:hush@host is down", "ValueError: … is down"),
        ("49151123456 is not of type 'string'", "ValueError: … is not of type …"),
        (f"{'x' * 180} '{'hush' * 50}'", f"ValueError: {'x' * 180} …"),
        ("first\nhush", "ValueError: first"),
    ],
)
def test_no_value_is_quoted(message, says):
    assert told(ValueError(message)) == says
