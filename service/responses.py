"""The one shape of an error, for every way in: ``{"error": "what came, what was expected"}``."""

import json


def error_body(message: str) -> bytes:
    """JSON of an error; what a client sent may hold half characters, which UTF-8 cannot say."""
    sayable = message.encode("utf-8", "backslashreplace").decode()
    return json.dumps({"error": sayable}, ensure_ascii=False, separators=(",", ":")).encode()


def incident_message(incident: str) -> str:
    """What a client is told of a fault of the service."""
    return f"the service failed, not the request; its log tells more of {incident}"
