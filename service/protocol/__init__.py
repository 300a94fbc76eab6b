"""The wire formats of the service: parsers of requests, and the types of its JSON answers."""
