"""The wire formats: decodes request bodies, encodes response bodies, and defines every error."""
