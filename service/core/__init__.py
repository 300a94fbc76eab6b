"""The core: decodes a request, has it computed, and encodes its response, for both transports."""
