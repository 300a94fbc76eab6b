"""The web page at / and the API documentation at /docs."""

from service.web.pages import CONTENT_SECURITY_POLICY as CONTENT_SECURITY_POLICY
from service.web.pages import PAGE_PATHS as PAGE_PATHS
from service.web.pages import page_routes as page_routes
