"""The OpenAPI document at /docs.json: schemas generated from ``service.protocol.answers``."""

from service.openapi.document import openapi_document as openapi_document
