"""Transports: HTTP/1.1 connections with two paths to the core, and gRPC (``grpc_server``).

Plain inference requests go straight from the connection to ``core.handler`` (``direct_router``).
All others pass through BentoML's ASGI app (``asgi_cycle``, ``asgi_app``) to the same handler.
"""
