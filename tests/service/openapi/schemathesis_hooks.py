"""Hook of schemathesis: integers in generated bodies are written without a decimal point.

JSON Schema 2020-12 accepts 216.0 where an integer is expected. The service does not: a pixel that
is written with a decimal point has usually been scaled already.
"""

from typing import Any

import schemathesis


def _write_integers(value: Any) -> Any:
    """The same JSON value with integers such as 216 in place of 216.0."""
    if isinstance(value, dict):
        return {key: _write_integers(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_write_integers(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


@schemathesis.hook
def map_body(context: schemathesis.HookContext, body: Any) -> Any:
    """Convert each generated body; schemathesis finds this hook by its name."""
    return _write_integers(body)
