"""The wire formats: what a request's bytes mean, what an answer's bytes are, and every error."""
