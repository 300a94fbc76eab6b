"""Transports: HTTP/1.1 connections, and the two ways by which their requests reach the core.

Plain inference requests go straight from the connection to ``core.handler`` (``direct_router``).
All others pass through BentoML's ASGI app (``asgi_cycle``, ``asgi_app``) to the same handler.
"""
