"""Offline scoring: ``python -m service.score INPUT OUTPUT --bundle B``, on Ray Data's actor pool.

The input is divided into parts: row groups of Parquet files, ranges of idx files, runs of image
files. Each part is a unit of work with an output file of its own, which appears by one rename, so
that a killed run goes on where it was. In the order of the data: ``source`` lists the input's
files, ``parts`` divides them, ``reader`` reads a part's rows with the help of ``columns``,
``scorer`` runs the verified model, ``output`` writes. ``pool`` spreads the parts over Ray's actors,
``run`` puts all of it together, ``cli`` is the command line.
"""
