"""The core: decodes a request, runs the model and encodes the response, for every transport."""
