"""Load test: a running service and a bundle's golden samples in, verified figures out.

Nothing of the other stages is imported: what is measured is what any HTTP client would see, and a
bundle is read as the files it consists of.
"""
